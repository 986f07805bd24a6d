import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from synapse_assets.steps.land import land
from synapse_assets.steps.titanic_schema import COLUMNS
from synapse_assets_tests.steps.conftest import HEADER, Reports, passenger, quoted

_LINE = passenger()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    for name in ("titanic_input", "titanic_quarantined_files"):
        (tmp_path / name).mkdir()
    return tmp_path / "titanic_input"


def _quarantine(target: Path) -> Path:
    return target.parent / "titanic_quarantined_files"


def _land(
    landing: list[Path], target: Path, reports: Reports
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Land files and return what is said of those that can be read, and of the others."""
    found = land(landing, target, _quarantine(target), reports)
    for name, properties in found.items():
        assert {path.name for path in (target.parent / name).iterdir()} == set(properties)
    return found["titanic_input"], found["titanic_quarantined_files"]


def _land_bytes(data: bytes, target: Path, reports: Reports) -> dict[str, dict[str, str]]:
    path = target.parent / "Titanic.csv"
    path.write_bytes(data)
    found, quarantined = _land([path], target, reports)
    assert not quarantined
    assert (target / "Titanic.csv").read_bytes() == data
    return found


@pytest.mark.titanic
def test_the_real_file_has_891_rows(titanic_csv: Path, target: Path, reports: Reports) -> None:
    found, _ = _land([titanic_csv], target, reports)
    assert found == {"Titanic.csv": {"rows": "891", "columns": "12"}}
    assert (target / "Titanic.csv").read_bytes() == titanic_csv.read_bytes()
    assert reports.of["titanic_input"]["dagster/row_count"] == 891


_TWO_LINES = passenger(Name=quoted("A,\nB"))
_MANY_LINES = passenger(Name=quoted('A\n\nB "x"\n'))
_DOUBLED_QUOTES = passenger(Name=quoted('A "B", C'))
_STRAY_QUOTE = passenger(Ticket='5 "')
_OPEN = '"A'
_OTHER_ALPHABETS = passenger(Name="A\u2028B\x85C\x0bD\x1cE")

_ROWS_BY_TEXT = {
    "header only": (HEADER, 0),
    "header only with line end": (f"{HEADER}\n", 0),
    "no line end at the end": (f"{HEADER}\n{_LINE}", 1),
    "CRLF": (f"{HEADER}\r\n{_LINE}\r\n{_LINE}\r\n", 2),
    "CR": (f"{HEADER}\r{_LINE}\r{_LINE}\r", 2),
    "CRLF with LF inside a field": (f"{HEADER}\r\n{_TWO_LINES}\r\n", 1),
    "byte order mark": (f"\ufeff{HEADER}\n{_LINE}\n", 1),
    "byte order mark and line breaks": (f"\ufeff{HEADER}\n{_TWO_LINES}\n", 1),
    "blank and white lines": (f"{HEADER}\n\n{_LINE}\n  \t\n\n{_LINE}\n\n", 2),
    "ragged rows": (f"{HEADER}\n1,2\n{_LINE},more\n", 2),
    "a quoted nothing is a row": (f'{HEADER}\n""\n', 1),
    "doubled quotes": (f"{HEADER}\n{_DOUBLED_QUOTES}\n", 1),
    "line breaks inside a field": (f"{HEADER}\n{_MANY_LINES}\n\n{_LINE}\n  \n", 2),
    "a stray quote": (f"{HEADER}\n{_STRAY_QUOTE}\n{_LINE}\n", 2),
    "separators of other alphabets": (f"{HEADER}\n{_OTHER_ALPHABETS}\n", 1),
    "columns in another order": (f"{','.join(reversed(COLUMNS))}\n", 0),
}


@pytest.mark.parametrize(("text", "rows"), _ROWS_BY_TEXT.values(), ids=_ROWS_BY_TEXT)
def test_rows_are_counted_as_rfc_4180_says(
    text: str, rows: int, target: Path, reports: Reports
) -> None:
    found = _land_bytes(text.encode(), target, reports)
    assert found == {"Titanic.csv": {"rows": str(rows), "columns": "12"}}
    assert reports.of["titanic_input"]["dagster/row_count"] == rows


def test_ten_megabytes_in_one_field_are_one_row(target: Path, reports: Reports) -> None:
    huge = "x" * 10_000_000
    for name in (huge, f'"{huge}\n"'):
        found = _land_bytes(f"{HEADER}\n{passenger(Name=name)}\n".encode(), target, reports)
        assert found["Titanic.csv"]["rows"] == "1"


_TOO_MANY_COMMAS = "," * 1_000_001
_RENAMED = HEADER.replace("Age", "Ages")
_REFUSED = {
    "empty": (b"", "is empty (0 bytes): land a CSV file with a header"),
    "UTF-16": (HEADER.encode("utf-16"), "the text is UTF-16: save it as UTF-8"),
    "UTF-32": (HEADER.encode("utf-32"), "the text is UTF-32: save it as UTF-8"),
    "UTF-16 without mark": (HEADER.encode("utf-16-le"), "line 1: the text holds NUL bytes"),
    "NUL": (f"{HEADER}\n{_LINE}\n1,\0".encode(), "line 3: the text holds NUL bytes"),
    "latin-1": (f"{HEADER}\n{_LINE}\nZoë".encode("latin-1"), "line 3: the byte 0xEB is not UTF-8"),
    "cut UTF-8": (f"{HEADER}\nZoë".encode()[:-1], "line 2: the byte 0xC3 is not UTF-8"),
    "gzip": (b"\x1f\x8b\x08\x00rest", "is a gzip file, not CSV: unpack it first"),
    "zip": (b"PK\x03\x04rest", "is a zip or Excel file, not CSV"),
    "parquet": (b"PAR1rest", "is a Parquet file, not CSV: export it as CSV first"),
    "blank first line": (f"\n{HEADER}\n".encode(), "line 1: the line is blank"),
    "missing column": (HEADER.replace(",Age", "").encode(), "the header lacks column 'Age'"),
    "renamed column": (
        _RENAMED.encode(),
        "the header lacks column 'Age', and has the unexpected column 'Ages'",
    ),
    "doubled column": (f"{HEADER},Age".encode(), "has more than once column 'Age'"),
    "unexpected column": (f"{HEADER},Boat".encode(), "has the unexpected column 'Boat'"),
    "semicolons": (HEADER.replace(",", ";").encode(), "look separated by semicolons"),
    "no header": (f"{_LINE}\n".encode(), "give it exactly the columns PassengerId, Survived"),
    "unclosed header": (f'{HEADER[:-8]}"Embarked\n'.encode(), "line 1: the header lacks columns"),
    "quote that never ends": (
        f"{HEADER}\n{_LINE}\n{passenger(Name=_OPEN)}\n{passenger(Name='B')}".encode(),
        "line 3: a quoted field of this row never ends",
    ),
    "mixed line ends": (
        f"{HEADER}\r\n{_TWO_LINES}\r\n{_LINE}\n".encode(),
        "line 4: the line ends with LF, the lines before with CRLF",
    ),
    "a million commas": (f"{HEADER}\n{_TOO_MANY_COMMAS}".encode(), "more than 1,000,000 commas"),
}


@pytest.mark.parametrize(("data", "message"), _REFUSED.values(), ids=_REFUSED)
def test_what_no_step_could_read_is_set_aside_with_one_sentence(
    data: bytes, message: str, target: Path, reports: Reports
) -> None:
    path = target.parent / "Titanic.csv"
    path.write_bytes(data)
    found, quarantined = _land([path], target, reports)
    assert not found
    assert (_quarantine(target) / "Titanic.csv").read_bytes() == data
    sentence = quarantined["Titanic.csv"]["reason"]
    assert sentence.startswith("Titanic.csv")
    assert message in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert reports.of["titanic_input"]["dagster/row_count"] == 0
    assert sentence.replace("|", "") in reports.of["titanic_quarantined_files"]["reasons"][
        "raw_value"
    ].replace("\\|", "")


def test_unreadable_files_do_not_keep_the_others_back(
    write_csv: Callable[..., Path], target: Path, reports: Reports
) -> None:
    landing = [
        write_csv(passenger(1), name="a/Titanic.csv"),
        write_csv(passenger(2), name="b/Titanic.csv", header="PassengerId"),
        write_csv(passenger(3), passenger(4), name="c/Titanic.csv"),
        write_csv(name="d.csv", header=""),
    ]
    found, quarantined = _land(landing, target, reports)
    assert {name: of["rows"] for name, of in found.items()} == {
        "Titanic.csv": "1",
        "Titanic-3.csv": "2",
    }
    assert list(quarantined) == ["Titanic-2.csv", "d.csv"]
    for source, name in ((landing[1], "Titanic-2.csv"), (landing[3], "d.csv")):
        assert (_quarantine(target) / name).read_bytes() == source.read_bytes()
    assert reports.of["titanic_input"]["dagster/row_count"] == 3
    table = reports.of["titanic_quarantined_files"]["reasons"]
    assert table["type"] == "md"
    assert "| d.csv | d.csv, line 1: the line is blank" in table["raw_value"]


def test_an_arrival_without_files_is_refused(target: Path, reports: Reports) -> None:
    with pytest.raises(ValueError, match="holds no file: put at least one CSV"):
        _land([], target, reports)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("titanic_input", "titanic_input is a folder: land the CSV files in it"),
        ("link.csv", r"a link to gone\.csv, which does not exist"),
        ("gone.csv", r"gone\.csv does not exist any more"),
        ("pipe.csv", r"pipe\.csv is no regular file"),
    ],
)
def test_what_has_no_bytes_is_refused_before_anything_waits_on_it(
    name: str, message: str, tmp_path: Path, target: Path, reports: Reports
) -> None:
    (tmp_path / "link.csv").symlink_to("gone.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match=message):
        _land([tmp_path / name], target, reports)


def test_files_of_one_name_all_survive(
    write_csv: Callable[..., Path], target: Path, reports: Reports
) -> None:
    landing = [
        write_csv(passenger(1), name="a/Titanic.csv"),
        write_csv(passenger(2), passenger(3), name="b/Titanic.csv"),
        write_csv(name="c/titanic-2.csv"),
    ]
    found, _ = _land(landing, target, reports)
    assert {name: of["rows"] for name, of in found.items()} == {
        "Titanic.csv": "1",
        "Titanic-3.csv": "2",
        "titanic-2.csv": "0",
    }
    assert (target / "Titanic-3.csv").read_bytes() == landing[1].read_bytes()
    assert reports.of["titanic_input"]["dagster/row_count"] == 3


def test_the_preview_shows_five_rows_in_the_usual_order_and_cuts_cells(
    write_csv: Callable[..., Path], target: Path, reports: Reports
) -> None:
    turned = [",".join(reversed(passenger(n, Name=f"n{n}").split(","))) for n in range(3)]
    landing = [
        write_csv(passenger(7, Name="x" * 50, Ticket="a|b"), "8", "9", header=HEADER),
        write_csv(*turned, name="turned.csv", header=",".join(reversed(COLUMNS))),
    ]
    _land(landing, target, reports)
    preview = reports.of["titanic_input"]["preview"]
    lines = preview["raw_value"].splitlines()
    assert preview["type"] == "md"
    assert lines[0] == f"| {' | '.join(COLUMNS)} |"
    assert len(lines) == 2 + 5
    assert f"| {'x' * 39}… |" in lines[2]
    assert r"a\|b" in lines[2]
    assert lines[5].startswith("| 0 | 0 | 3 | n0 | male |")


def test_the_limit_of_the_csv_module_is_left_as_it_was(target: Path, reports: Reports) -> None:
    before = csv.field_size_limit()
    _land_bytes(f"{HEADER}\n{_TWO_LINES}\n".encode(), target, reports)
    assert csv.field_size_limit() == before
