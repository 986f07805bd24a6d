"""Takes an immutable snapshot of an arrival, and sets files aside that no later step could read.

Rows are counted here without Spark, so that the check "rows in = prepared + quarantined"
compares two independent counts. What one row is follows RFC 4180: a line, except that a line
break inside a quoted field does not end the row. Blank lines (empty or only white space) are no
rows. Only the rules that make a *file* unreadable live here; a bad *row* is `prepare`'s to judge.
"""

import csv
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from synapse_assets.steps import titanic_schema as schema
from synapse_assets.steps.titanic_schema import BLANKS, COLUMNS

logger = logging.getLogger(__name__)

_PREVIEW_ROWS = 5
_PREVIEW_CELL_CHARS = 40
_MAX_REASONS = 20
_BLOCK_BYTES = 1 << 20
_PROGRESS_EVERY_ROWS = 1_000_000
# Spark's CSV parser allocates its columns up front: it needs a limit, and dies beyond it.
_MAX_FIELDS_IN_LINE = 1_000_000
_MAX_FIELD_CHARS = 2**31 - 1
_END_OF_FILE = "synapse_assets: end of file"
_LINE_ENDS = {"\n": "LF", "\r": "CR", "\r\n": "CRLF"}

_FOREIGN_FORMATS = {
    b"": "is empty (0 bytes): land a CSV file with a header.",
    b"\xff\xfe\x00\x00": "line 1: the text is UTF-32: save it as UTF-8.",
    b"\x00\x00\xfe\xff": "line 1: the text is UTF-32: save it as UTF-8.",
    b"\xff\xfe": "line 1: the text is UTF-16: save it as UTF-8.",
    b"\xfe\xff": "line 1: the text is UTF-16: save it as UTF-8.",
    b"\x1f\x8b": "is a gzip file, not CSV: unpack it first.",
    b"PK\x03\x04": "is a zip or Excel file, not CSV: unpack it, or save it as CSV, first.",
    b"BZh": "is a bzip2 file, not CSV: unpack it first.",
    b"\xfd7zXZ\x00": "is an xz file, not CSV: unpack it first.",
    b"\x28\xb5\x2f\xfd": "is a zstandard file, not CSV: unpack it first.",
    b"PAR1": "is a Parquet file, not CSV: export it as CSV first.",
    b"\xd0\xcf\x11\xe0": "is an old Excel file, not CSV: save it as CSV first.",
    b"%PDF-": "is a PDF file, not CSV: export it as CSV first.",
}


def land(
    landing: list[Path],
    titanic_input: Path,
    titanic_quarantined_files: Path,
    report: Callable[..., None],
) -> dict[str, dict[str, dict[str, str]]]:
    """Copy each landed file byte for byte, and return what there is to know of it.

    A file that can be read goes into `titanic_input`, with its rows and columns; another one into
    `titanic_quarantined_files`, with the reason in one sentence.

    Args:
        landing: The files of one arrival, on the local disk.
        titanic_input: The empty folder to fill with what can be read.
        titanic_quarantined_files: The empty folder to fill with what cannot.
        report: Called with the arrival's row count, a preview of the first rows, and the reasons.

    Raises:
        ValueError: There is no file, or one whose bytes are not there to be copied.
    """
    if not landing:
        raise ValueError("The arrival holds no file: put at least one CSV file under landing.")
    for source in landing:
        _refuse_what_is_no_file(source)
    readable: dict[str, dict[str, str]] = {}
    quarantined: dict[str, dict[str, str]] = {}
    preview: list[list[str]] = []
    total = 0
    for source, name in zip(landing, _name_copies(landing), strict=True):
        # The copy is what is looked at: the source may change meanwhile.
        copy = titanic_input / name
        shutil.copyfile(source, copy)
        try:
            header, rows, first = _inspect_csv(copy, file_name=source.name)
        except ValueError as e:
            shutil.move(copy, titanic_quarantined_files / name)
            quarantined[name] = {"reason": str(e)}
            logger.warning("%s", e)
            continue
        readable[name] = {"rows": str(rows), "columns": str(len(header))}
        total += rows
        # Files may order their columns differently; the preview shows one order.
        order = [header.index(column) for column in COLUMNS]
        padded = [[*row, *[""] * len(order)] for row in first[: _PREVIEW_ROWS - len(preview)]]
        preview += [[row[at] for at in order] for row in padded]
        logger.info("%s: %d rows", name, rows)
    report(
        "titanic_input",
        **{
            "dagster/row_count": total,
            "preview": {"raw_value": _format_markdown_table(COLUMNS, preview), "type": "md"},
        },
    )
    if quarantined:
        reasons = [[name, properties["reason"]] for name, properties in quarantined.items()]
        table = _format_markdown_table(("file", "reason"), reasons[:_MAX_REASONS], cut=False)
        report("titanic_quarantined_files", reasons={"raw_value": table, "type": "md"})
    return {"titanic_input": readable, "titanic_quarantined_files": quarantined}


def check_header(path: Path) -> None:
    """Refuse a file that no step could read, by its first line alone.

    Raises:
        ValueError: It is no regular file, not CSV, or lacks a column.
    """
    _refuse_what_is_no_file(path)
    with _opened(path, file_name=path.name) as lines:
        _read_header(lines, file_name=path.name)


def _refuse_what_is_no_file(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise ValueError(
            f"{path.name} is a link to {path.readlink()}, which does not exist: "
            "mend the link, or land the file itself."
        )
    if path.is_dir():
        raise ValueError(f"{path.name} is a folder: land the CSV files in it, one by one.")
    if not path.exists():
        raise ValueError(f"{path.name} does not exist any more: land it again.")
    if not path.is_file():
        raise ValueError(f"{path.name} is no regular file: land a CSV file.")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path.name} may not be read: give this user the right to read it.")


def _name_copies(landing: list[Path]) -> list[str]:
    """Return one name per landed file: its base name, numbered where that is taken.

    Names that differ by case only count as taken, since some stores do not tell them apart.
    """
    wanted = {path.name.casefold() for path in landing}
    taken: set[str] = set()
    names: list[str] = []
    for path in landing:
        name = path.name
        numbers = itertools.count(2)
        while name.casefold() in taken or (name != path.name and name.casefold() in wanted):
            name = f"{path.stem}-{next(numbers)}{path.suffix}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _inspect_csv(path: Path, *, file_name: str) -> tuple[list[str], int, list[list[str]]]:
    """Return the header, the number of rows after it, and the first of them."""
    with _opened(path, file_name=file_name) as lines:
        header = _read_header(lines, file_name=file_name)
        counted = _count_rows_by_lines(path)
    if counted is None:
        with _opened(path, file_name=file_name) as lines:
            counted = _count_rows_by_quotes(lines, file_name=file_name)
    return header, *counted


@contextmanager
def _opened(path: Path, *, file_name: str) -> Iterator[Iterator[str]]:
    """Open a CSV file, give its lines, and lift the csv module's limit of 131,072 a field."""
    with path.open("rb") as data:
        head = data.read(16)
    for magic, problem in _FOREIGN_FORMATS.items():
        if head.startswith(magic) and (magic or not head):
            where = "," if problem.startswith("line") else ""
            raise ValueError(f"{file_name}{where} {problem}")
    limit = csv.field_size_limit(_MAX_FIELD_CHARS)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            yield _check_lines(text, file_name=file_name)
    finally:
        csv.field_size_limit(limit)


def _check_lines(text: TextIO, *, file_name: str) -> Iterator[str]:
    """Yield each line with its end, refusing what no CSV parser could take."""
    for number, line in enumerate(schema.check_lines(text, file_name=file_name), start=1):
        if "\0" in line:
            raise ValueError(
                f"{file_name}, line {number}: the text holds NUL bytes, as UTF-16 and UTF-32 do: "
                "save it as UTF-8."
            )
        if len(line) > _MAX_FIELDS_IN_LINE and line.count(",") >= _MAX_FIELDS_IN_LINE:
            raise ValueError(
                f"{file_name}, line {number}: the line has more than {_MAX_FIELDS_IN_LINE:,} "
                "commas: remove or mend the line."
            )
        yield line


def _read_header(lines: Iterator[str], *, file_name: str) -> list[str]:
    line = next(lines)
    if not line.strip(BLANKS):
        raise ValueError(f"{file_name}, line 1: the line is blank: begin with the header.")
    header = schema.parse_header(line)
    schema.check_header(header, file_name=file_name)
    return header


def _count_rows_by_lines(path: Path) -> tuple[int, list[list[str]]] | None:
    """Count the lines as rows; return None where a row may span lines, or the text is wrong.

    A quoted field that spans lines leaves an odd number of quotes on the line it begins on.
    """
    rows = -1  # the header
    preview: list[bytes] = []
    blanks = BLANKS.encode()
    with path.open("rb") as data:
        while lines := data.readlines(_BLOCK_BYTES):
            text = b"".join(lines)
            try:
                text.decode()
            except UnicodeDecodeError:
                return None
            if text.count(b"\r") != text.count(b"\r\n"):
                lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            if (
                b"\0" in text
                or (
                    max(map(len, lines)) > _MAX_FIELDS_IN_LINE
                    and max(line.count(b",") for line in lines) >= _MAX_FIELDS_IN_LINE
                )
                or any(line.count(b'"') % 2 for line in lines)
            ):
                return None
            filled = [line for line in lines if line.strip(blanks)]
            preview += filled[: 1 + _PREVIEW_ROWS - len(preview)]
            if (rows + len(filled)) // _PROGRESS_EVERY_ROWS > rows // _PROGRESS_EVERY_ROWS > -1:
                logger.info("%d rows counted", rows + len(filled))
            rows += len(filled)
    return rows, [next(csv.reader([line.decode()])) for line in preview[1:]]


def _count_rows_by_quotes(lines: Iterable[str], *, file_name: str) -> tuple[int, list[list[str]]]:
    """Count the rows after the header of a file with line breaks inside fields."""
    line = ""

    def tracked() -> Iterator[str]:
        nonlocal line
        for line in itertools.chain(lines, [_END_OF_FILE]):  # noqa: UP028 -- `line` is told
            yield line

    reader = csv.reader(tracked())
    rows = -1
    preview: list[list[str]] = []
    begins_at = 1
    row_end = ""
    for row in reader:
        if line is _END_OF_FILE:
            # This row holds the line put behind the last one: alone, or inside a quote.
            if reader.line_num == begins_at:
                break
            raise ValueError(
                f"{file_name}, line {begins_at}: a quoted field of this row never ends: "
                "close the quote, or double it where it is part of the text."
            )
        # Spark takes the first line end of a file with line breaks inside fields as that of all
        # rows; with two kinds it would glue rows together.
        end = line[len(line.rstrip("\r\n")) :]
        row_end = row_end or end
        if end not in ("", row_end):
            raise ValueError(
                f"{file_name}, line {reader.line_num}: the line ends with {_LINE_ENDS[end]}, the "
                f"lines before with {_LINE_ENDS[row_end]}: save the file with one kind of line "
                "end, since it also has line breaks inside fields."
            )
        begins_at = reader.line_num + 1
        if line.strip(BLANKS):
            rows += 1
            if 1 <= rows <= _PREVIEW_ROWS:
                preview.append(row)
    return rows, preview


def _format_markdown_table(
    header: Sequence[str], rows: list[list[str]], *, cut: bool = True
) -> str:
    lines = [" | ".join(header), " | ".join(["---"] * len(header))]
    lines += [" | ".join(_format_cell(cell, cut=cut) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _format_cell(cell: str, *, cut: bool) -> str:
    if cut and len(cell) > _PREVIEW_CELL_CHARS:
        cell = cell[: _PREVIEW_CELL_CHARS - 1] + "…"
    return " ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|")
