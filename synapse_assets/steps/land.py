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
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from synapse_assets.steps.titanic_schema import COLUMNS, explain_wrong_header, parse_header

logger = logging.getLogger(__name__)

_PREVIEW_ROWS = 5
_PREVIEW_CELL_CHARS = 40
_MAX_REASONS = 20
_BLOCK_BYTES = 1 << 20
_PROGRESS_EVERY_ROWS = 1_000_000
# Spark's CSV parser allocates its columns up front: it needs a limit, and dies beyond it.
_MAX_FIELDS_IN_LINE = 1_000_000
_MAX_FIELD_CHARS = 2**31 - 1
# What Spark strips when it decides whether a line is blank: everything up to the space.
_BLANKS = "".join(map(chr, range(33)))
_END_OF_FILE = "synapse_assets: end of file"

_WIDE_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_FOREIGN_FORMATS = (
    (b"\x1f\x8b", "a gzip file", "unpack it first"),
    (b"PK\x03\x04", "a zip or Excel file", "unpack it, or save it as CSV, first"),
    (b"BZh", "a bzip2 file", "unpack it first"),
    (b"\xfd7zXZ\x00", "an xz file", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file", "unpack it first"),
    (b"PAR1", "a Parquet file", "export it as CSV first"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file", "save it as CSV first"),
    (b"%PDF-", "a PDF file", "export it as CSV first"),
)


@dataclass(frozen=True)
class _Inspection:
    rows: int
    header: list[str]
    preview: list[list[str]]


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
            inspection = _inspect_csv(copy, file_name=source.name)
        except ValueError as e:
            shutil.move(copy, titanic_quarantined_files / name)
            quarantined[name] = {"reason": str(e)}
            logger.warning("%s", e)
            continue
        readable[name] = {"rows": str(inspection.rows), "columns": str(len(inspection.header))}
        total += inspection.rows
        # Files may order their columns differently; the preview shows one order.
        order = [inspection.header.index(column) for column in COLUMNS]
        preview.extend(
            [row[at] if at < len(row) else "" for at in order]
            for row in inspection.preview[: _PREVIEW_ROWS - len(preview)]
        )
        logger.info("%s: %d rows", name, inspection.rows)
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
    _refuse_foreign_format(path, file_name=path.name)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        _check_header(next(_check_lines(text, file_name=path.name)), file_name=path.name)


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


def _inspect_csv(path: Path, *, file_name: str) -> _Inspection:
    _refuse_foreign_format(path, file_name=file_name)
    plain = _count_plain_rows(path)
    # surrogateescape keeps a byte that is not UTF-8 visible in its line, so that the message
    # can name the line without a second pass.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        lines = _check_lines(text, file_name=file_name)
        header = _check_header(next(lines), file_name=file_name)
        by_lines = plain or _count_rows_by_lines(lines)
        if by_lines is not None:
            return _Inspection(rows=by_lines[0], header=header, preview=by_lines[1])
        text.seek(0)
        rows, preview = _count_rows_by_quotes(
            _check_lines(text, file_name=file_name), file_name=file_name
        )
        return _Inspection(rows=rows, header=header, preview=preview)


def _refuse_foreign_format(path: Path, *, file_name: str) -> None:
    with path.open("rb") as data:
        head = data.read(16)
    if not head:
        raise ValueError(f"{file_name} is empty (0 bytes): land a CSV file with a header.")
    for mark, encoding in _WIDE_BYTE_ORDER_MARKS:
        if head.startswith(mark):
            raise ValueError(f"{file_name}, line 1: the text is {encoding}: save it as UTF-8.")
    for magic, what, remedy in _FOREIGN_FORMATS:
        if head.startswith(magic):
            raise ValueError(f"{file_name} is {what}, not CSV: {remedy}.")


def _check_lines(text: TextIO, *, file_name: str) -> Iterator[str]:
    """Yield each line with its end, refusing what is not UTF-8 text."""
    for number, line in enumerate(text, start=1):
        if "\0" in line:
            raise ValueError(
                f"{file_name}, line {number}: the text holds NUL bytes, as UTF-16 and UTF-32 do: "
                "save it as UTF-8."
            )
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = ord(line[error.start]) - 0xDC00
                raise ValueError(
                    f"{file_name}, line {number}: the byte 0x{byte:02X} is not UTF-8: "
                    "save the file as UTF-8."
                ) from error
        if len(line) > _MAX_FIELDS_IN_LINE and line.count(",") >= _MAX_FIELDS_IN_LINE:
            raise ValueError(
                f"{file_name}, line {number}: the line has more than {_MAX_FIELDS_IN_LINE:,} "
                "commas: remove or mend the line."
            )
        yield line


def _check_header(line: str, *, file_name: str) -> list[str]:
    if not line.strip(_BLANKS):
        raise ValueError(f"{file_name}, line 1: the line is blank: begin with the header.")
    header = parse_header(line)
    problem = explain_wrong_header(header, file_name=file_name)
    if problem is not None:
        raise ValueError(problem)
    return header


def _count_plain_rows(path: Path) -> tuple[int, list[list[str]]] | None:
    """Count the rows after the first line of a file without anything unusual, None of others.

    Everything else (a row over several lines, other line ends, what is no text) is left to the
    slower counts, which know what to say of it.
    """
    rows = 0
    preview: list[str] = []
    rest = b""
    with path.open("rb") as data:
        if b"\r" in data.readline().removesuffix(b"\r\n"):
            return None
        while block := data.read(_BLOCK_BYTES):
            whole, end, rest = (rest + block).rpartition(b"\n")
            counted = _count_plain_lines(whole + end, preview)
            if counted is None or len(rest) > _MAX_FIELDS_IN_LINE:
                return None
            if (rows + counted) // _PROGRESS_EVERY_ROWS > rows // _PROGRESS_EVERY_ROWS:
                logger.info("%d rows counted", rows + counted)
            rows += counted
    counted = _count_plain_lines(rest, preview)
    if counted is None:
        return None
    with _UnlimitedFields():
        return rows + counted, [next(csv.reader([line])) for line in preview]


def _count_plain_lines(text: bytes, preview: list[str]) -> int | None:
    """Count whole lines that are rows, without a Python loop; add the first ones to `preview`."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return None
    if b"\0" in text or text.count(b"\r") != text.count(b"\r\n"):
        return None
    lines = text.split(b"\n")
    if max(map(len, lines)) > _MAX_FIELDS_IN_LINE:
        return None
    if any(map((1).__and__, map(bytes.count, lines, itertools.repeat(b'"')))):
        return None
    filled = map(bytes.strip, lines, itertools.repeat(_BLANKS.encode()))
    for line in lines if len(preview) < _PREVIEW_ROWS else ():
        if line.strip(_BLANKS.encode()):
            preview.append(line.decode())
            if len(preview) == _PREVIEW_ROWS:
                break
    return sum(map(bool, filled))


def _count_rows_by_lines(lines: Iterable[str]) -> tuple[int, list[list[str]]] | None:
    """Count the lines as rows; return None as soon as a line holds an odd number of quotes.

    A quoted field that spans lines leaves an odd number of quotes on the line it begins on.
    """
    rows = 0
    preview: list[str] = []
    for line in lines:
        if line.count('"') % 2:
            return None
        if line.strip(_BLANKS):
            rows += 1
            if rows <= _PREVIEW_ROWS:
                preview.append(line)
            elif rows % _PROGRESS_EVERY_ROWS == 0:
                logger.info("%d rows counted", rows)
    with _UnlimitedFields():
        return rows, [next(csv.reader([line])) for line in preview]


def _count_rows_by_quotes(lines: Iterable[str], *, file_name: str) -> tuple[int, list[list[str]]]:
    """Count the rows after the header of a file with line breaks inside fields."""
    tracked = _LineTracker(lines)
    reader = csv.reader(itertools.chain(tracked, [_END_OF_FILE]))
    rows = -1
    preview: list[list[str]] = []
    begins_at = 1
    row_end: str | None = None
    with _UnlimitedFields():
        for row in reader:
            if tracked.is_exhausted:
                # This row holds the line put behind the last one: alone, or inside a quote.
                if reader.line_num == begins_at:
                    break
                raise ValueError(
                    f"{file_name}, line {begins_at}: a quoted field of this row never ends: "
                    "close the quote, or double it where it is part of the text."
                )
            row_end = _check_row_end(
                tracked.line, row_end, file_name=file_name, line_number=reader.line_num
            )
            begins_at = reader.line_num + 1
            if tracked.line.strip(_BLANKS):
                rows += 1
                if 1 <= rows <= _PREVIEW_ROWS:
                    preview.append(row)
    return rows, preview


def _check_row_end(
    line: str, expected: str | None, *, file_name: str, line_number: int
) -> str | None:
    """Return the line end of the rows so far, refusing a second kind of it.

    Spark takes the first line end of a file with line breaks inside fields as that of all rows;
    with two kinds it would glue rows together.
    """
    end = line[len(line.rstrip("\r\n")) :]
    if not end or expected is None or end == expected:
        return expected or end or None
    names = {"\n": "LF", "\r": "CR", "\r\n": "CRLF"}
    raise ValueError(
        f"{file_name}, line {line_number}: the line ends with {names.get(end, repr(end))}, the "
        f"lines before with {names.get(expected, repr(expected))}: save the file with one kind "
        "of line end, since it also has line breaks inside fields."
    )


class _LineTracker:
    """Iterates over lines and tells where it is, which `csv.reader` does not."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = lines
        self.line = ""
        self.is_exhausted = False

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.line = line
            yield line
        self.is_exhausted = True


class _UnlimitedFields:
    """Lifts the csv module's limit of 131,072 characters per field, and restores it."""

    def __enter__(self) -> None:
        self._limit = csv.field_size_limit(_MAX_FIELD_CHARS)

    def __exit__(self, *_: object) -> None:
        csv.field_size_limit(self._limit)


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
