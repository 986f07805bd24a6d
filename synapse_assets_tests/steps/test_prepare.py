import csv
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from synapse_assets.steps.land import land
from synapse_assets.steps.prepare import prepare
from synapse_assets.steps.titanic_schema import COLUMNS
from synapse_assets_tests.steps.conftest import HEADER, Reports, passenger, quoted

pytestmark = pytest.mark.spark

_SCHEMA = {
    "passenger_id": "bigint",
    "survived": "int",
    "pclass": "int",
    "name": "string",
    "sex": "string",
    "age": "double",
    "sib_sp": "int",
    "parch": "int",
    "ticket": "string",
    "fare": "double",
    "cabin": "string",
    "embarked": "string",
    "title": "string",
    "family_size": "int",
    "is_alone": "boolean",
    "deck": "string",
    "age_imputed": "boolean",
}
_QUARANTINE_SCHEMA = dict.fromkeys(("source_file", "passenger_id", "reason", "raw"), "string")


@dataclass
class _Outcome:
    prepared: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]
    frames: dict[str, DataFrame]

    @property
    def reasons(self) -> list[str]:
        return [row["reason"] for row in self.quarantined]


_Prepare = Callable[..., _Outcome]


@pytest.fixture
def run(spark: SparkSession, reports: Reports) -> Iterator[_Prepare]:
    """Return a function that prepares files and collects both tables."""

    def prepare_files(*paths: Path) -> _Outcome:
        frames = prepare(spark, [_to_uri(path) for path in paths], reports)
        rows = {name: [row.asDict() for row in frame.collect()] for name, frame in frames.items()}
        return _Outcome(
            prepared=sorted(rows["titanic_prepared"], key=lambda row: row["passenger_id"]),
            quarantined=rows["titanic_quarantined"],
            frames=frames,
        )

    yield prepare_files
    spark.catalog.clearCache()


def _to_uri(path: Path) -> str:
    return "".join(f"\\{char}" if char in "\\*?[]{}" else char for char in str(path))


@pytest.mark.titanic
def test_the_real_file_comes_out_whole(titanic_csv: Path, run: _Prepare, reports: Reports) -> None:
    outcome = run(titanic_csv)
    assert outcome.quarantined == []
    assert [row["passenger_id"] for row in outcome.prepared] == list(range(1, 892))
    assert reports.of["titanic_prepared"] == {
        "ages_imputed": 177,
        "fares_imputed": 0,
        "ports_imputed": 2,
    }
    assert sum(row["survived"] for row in outcome.prepared) == 342
    assert {row["title"] for row in outcome.prepared} == {"Mr", "Mrs", "Miss", "Master", "Rare"}
    assert all(row["age"] is not None and row["embarked"] for row in outcome.prepared)
    # Moran, Mr. James: third class, no age.
    assert outcome.prepared[5]["age_imputed"]
    assert outcome.prepared[5]["age"] == 26.0
    assert dict(outcome.frames["titanic_prepared"].dtypes) == _SCHEMA


def test_a_good_row_is_typed_and_gets_its_derived_columns(
    write_csv: Callable[..., Path], run: _Prepare
) -> None:
    line = passenger(
        7, Name='" Duff, the Countess. of (""Lucy"") "', Sex="Female", Age=" 48.5", Cabin="b20 B22"
    )
    (row,) = run(write_csv(line)).prepared
    assert row == {
        "passenger_id": 7,
        "survived": 0,
        "pclass": 3,
        "name": 'Duff, the Countess. of ("Lucy")',
        "sex": "female",
        "age": 48.5,
        "sib_sp": 1,
        "parch": 0,
        "ticket": "A/5 7",
        "fare": 7.25,
        "cabin": "b20 B22",
        "embarked": "S",
        "title": "Rare",
        "family_size": 2,
        "is_alone": False,
        "deck": "B",
        "age_imputed": False,
    }


def test_missing_values_are_filled(
    write_csv: Callable[..., Path], run: _Prepare, reports: Reports
) -> None:
    def named(number: int, title: str, **changes: str) -> str:
        return passenger(number, Name=quoted(f"Doe, {title}. {number}"), **changes)

    outcome = run(
        write_csv(
            named(1, "Mr", Age="20", Fare="8", Embarked="C"),
            named(2, "Mr", Age="30", Fare="9", Embarked="C"),
            named(3, "Mr", Age="40", Fare="10", Embarked="C"),
            named(4, "Mr", Age="60", Pclass="1", Fare="90"),
            named(5, "Mr", Age="", Fare="", Embarked=""),
            named(6, "Mr", Age="", Pclass="1", Fare="", SibSp="", Parch=""),
            named(7, "Mr", Age="", Pclass="2", Fare=""),
            named(8, "Miss", Age=""),
            named(9, "Mlle", Age="", Ticket="", Cabin="Z9"),
        )
    )
    by_id = {row["passenger_id"]: row for row in outcome.prepared}
    assert [by_id[number]["age"] for number in range(5, 10)] == [30, 60, 30, 30, 30]
    assert [by_id[number]["age_imputed"] for number in (4, 5)] == [False, True]
    assert [by_id[number]["fare"] for number in (5, 6, 7)] == [8, 90, 8]
    assert by_id[5]["embarked"] == "S"
    assert (by_id[6]["sib_sp"], by_id[6]["family_size"], by_id[6]["is_alone"]) == (0, 1, True)
    assert (by_id[9]["title"], by_id[9]["ticket"], by_id[9]["deck"]) == ("Miss", None, "U")
    assert reports.of["titanic_prepared"] == {
        "ages_imputed": 5,
        "fares_imputed": 3,
        "ports_imputed": 1,
    }


def test_ages_that_nobody_has_are_filled_all_the_same(
    write_csv: Callable[..., Path], run: _Prepare
) -> None:
    (row,) = run(write_csv(passenger(Age="", Fare="", Embarked=""))).prepared
    assert (row["age"], row["fare"], row["embarked"]) == (28.0, 14.4542, "S")


_REASON_BY_CHANGE = [
    ({"Age": "abc"}, "Age 'abc' is not a number"),
    ({"Age": "NaN"}, "Age 'NaN' is not a number"),
    ({"Age": "Infinity"}, "Age 'Infinity' is not a number"),
    ({"Age": "22d"}, "Age '22d' is not a number"),
    ({"Age": "0x1p3"}, "Age '0x1p3' is not a number"),
    ({"Age": '"22\n"'}, "Age '22\n' is not a number"),
    ({"Age": "1e400"}, "Age 1e400 is above 120"),
    ({"Age": "-1"}, "Age -1 is negative"),
    ({"Age": "121"}, "Age 121 is above 120"),
    ({"Age": "x" * 50}, f"Age '{'x' * 39}…' is not a number"),
    ({"Fare": "-5"}, "Fare -5 is negative"),
    ({"Fare": "free"}, "Fare 'free' is not a number"),
    ({"Fare": "1e9"}, "Fare 1e9 is above 1000000"),
    ({"SibSp": "1.5"}, "SibSp '1.5' is not a whole number of up to 3 digits"),
    ({"SibSp": "-1"}, "SibSp -1 is negative"),
    ({"Parch": "many"}, "Parch 'many' is not a whole number of up to 3 digits"),
    ({"PassengerId": "x1"}, "PassengerId 'x1' is not a whole number of up to 18 digits"),
    (
        {"PassengerId": "9" * 19},
        f"PassengerId '{'9' * 19}' is not a whole number of up to 18 digits",
    ),
    ({"PassengerId": ""}, "PassengerId is missing"),
    ({"Survived": "2"}, "Survived '2' is not 0 or 1"),
    ({"Survived": ""}, "Survived is missing"),
    ({"Pclass": "4"}, "Pclass '4' is not 1, 2 or 3"),
    ({"Pclass": " "}, "Pclass is missing"),
    ({"Name": '""'}, "Name is missing"),
    ({"Sex": "m"}, "Sex 'm' is not male or female"),
    ({"Sex": ""}, "Sex is missing"),
    ({"Embarked": "X"}, "Embarked 'X' is not C, Q or S"),
    ({"Name": "n" * 10_001}, "Name has 10001 characters, the limit is 10000"),
    ({"Cabin": '"' + "c" * 10_001 + '"'}, "Cabin has 10001 characters, the limit is 10000"),
    ({"Age": "abc", "Fare": "-5"}, "Age 'abc' is not a number; Fare -5 is negative"),
]


def test_every_wrong_value_is_refused_with_its_reason(
    write_csv: Callable[..., Path], run: _Prepare
) -> None:
    lines = [passenger(100 + at, **change) for at, (change, _) in enumerate(_REASON_BY_CHANGE)]
    outcome = run(write_csv(passenger(1), *lines))
    assert [row["passenger_id"] for row in outcome.prepared] == [1]
    assert sorted(outcome.reasons) == sorted(reason for _, reason in _REASON_BY_CHANGE)
    for row in outcome.quarantined:
        assert row["source_file"] == "Titanic.csv"
        fields = next(csv.reader(row["raw"].splitlines(keepends=True)))
        assert len(fields) == 12
        assert (row["passenger_id"] or "") == fields[0]


def test_ragged_rows_are_refused_as_they_stand(
    write_csv: Callable[..., Path], run: _Prepare
) -> None:
    lines = {
        passenger(1).rsplit(",", 1)[0]: "the row has 11 fields, the header has 12",
        f"{passenger(2)},more": "the row has 13 fields, the header has 12",
        "only": "the row has 1 field, the header has 12",
        '"a,""b"", c",d': "the row has 2 fields, the header has 12",
        "x" * 10_001: "the row has 1 field, the header has 12; "
        "PassengerId has 10001 characters, the limit is 10000",
    }
    outcome = run(write_csv(*lines, passenger(3)))
    assert {row["raw"]: row["reason"] for row in outcome.quarantined} == lines
    assert len(outcome.prepared) == 1


def test_a_ragged_row_in_a_file_with_line_breaks_keeps_its_text(
    write_csv: Callable[..., Path], run: _Prepare
) -> None:
    for end in ("\n", "\r\n", "\r"):
        outcome = run(write_csv(passenger(1, Name=quoted("A,\nB")), "", '"a\nb",c', end=end))
        assert [row["name"] for row in outcome.prepared] == ["A,\nB"]
        assert [row["raw"] for row in outcome.quarantined] == ['"a\nb",c']


def test_fields_come_out_as_they_were_quoted(write_csv: Callable[..., Path], run: _Prepare) -> None:
    names: list[str] = []
    paths: list[Path] = []
    for end, mark, line_break in itertools.product(
        ("\n", "\r\n", "\r"), ("", "\ufeff"), ("", "\n", "\n\n")
    ):
        names.append(f'O\'Leary, Miss. "Nora" \\ "{line_break}, é')
        number = len(names)
        lines = (passenger(number, Name=quoted(names[-1])), "  ", "", passenger(100 + number))
        paths.append(write_csv(*lines, header=f"{mark}{HEADER}", end=end, name=f"{number}.csv"))
    outcome = run(*paths)
    assert outcome.quarantined == []
    assert [row["name"] for row in outcome.prepared[: len(names)]] == names
    assert len(outcome.prepared) == 2 * len(names)
    assert {row["embarked"] for row in outcome.prepared} == {"S"}


def test_each_file_is_read_by_its_own_header_and_named_in_quarantine(
    write_csv: Callable[..., Path], run: _Prepare
) -> None:
    turned = ",".join(reversed(passenger(2, Name="B").split(",")))
    name = "odd name+[1] %20 é.csv"
    paths = [
        write_csv(passenger(1)),
        write_csv(turned, "bad", name="turned.csv", header=",".join(reversed(COLUMNS))),
        write_csv(passenger(3, Name=quoted("C\nD")), passenger(4, Age="old"), name=name),
    ]
    outcome = run(*paths)
    assert [row["passenger_id"] for row in outcome.prepared] == [1, 2, 3]
    assert [row["name"] for row in outcome.prepared] == ["Braund, Mr. Owen 1", "B", "C\nD"]
    assert {row["source_file"] for row in outcome.quarantined} == {"turned.csv", name}


@pytest.mark.parametrize("header_only", [True, False], ids=["header only", "all refused"])
def test_no_good_row_gives_empty_typed_tables(
    header_only: bool, write_csv: Callable[..., Path], run: _Prepare, reports: Reports
) -> None:
    outcome = run(write_csv(*([] if header_only else ["bad"])))
    assert outcome.prepared == []
    assert len(outcome.quarantined) == (0 if header_only else 1)
    assert dict(outcome.frames["titanic_prepared"].dtypes) == _SCHEMA
    assert dict(outcome.frames["titanic_quarantined"].dtypes) == _QUARANTINE_SCHEMA
    assert reports.of["titanic_prepared"]["ages_imputed"] == 0


def test_of_doubled_passengers_the_first_good_one_is_kept(
    write_csv: Callable[..., Path], run: _Prepare
) -> None:
    paths = [
        write_csv(
            passenger(1, Age="old"),
            passenger(1, Name="first"),
            passenger(2),
            passenger(1, Name='"sec""ond"', Age="30.5"),
            name="a.csv",
        ),
        write_csv(passenger(1, Name="third"), passenger(3), name="b.csv"),
    ]
    outcome = run(*reversed(paths))
    assert [row["passenger_id"] for row in outcome.prepared] == [1, 2, 3]
    assert outcome.prepared[0]["name"] == "first"
    refused = {row["raw"]: (row["source_file"], row["reason"]) for row in outcome.quarantined}
    taken = "PassengerId 1 is taken by an earlier row"
    assert refused == {
        '1,0,3,"Braund, Mr. Owen 1",male,old,1,0,A/5 1,7.25,,S': (
            "a.csv",
            "Age 'old' is not a number",
        ),
        '1,0,3,"sec""ond",male,30.5,1,0,A/5 1,7.25,,S': ("a.csv", taken),
        "1,0,3,third,male,22,1,0,A/5 1,7.25,,S": ("b.csv", taken),
    }


def test_ten_megabytes_in_one_field_go_to_quarantine(
    write_csv: Callable[..., Path], run: _Prepare
) -> None:
    huge = "x" * 10_000_000
    outcome = run(write_csv(passenger(1), passenger(2, Name=huge), passenger(3, Age=huge)))
    assert len(outcome.prepared) == 1
    assert sorted(outcome.reasons) == [
        f"Age '{'x' * 39}…' is not a number; Age has 10000000 characters, the limit is 10000",
        "Name has 10000000 characters, the limit is 10000",
    ]


def test_no_input_is_refused(spark: SparkSession, reports: Reports) -> None:
    with pytest.raises(ValueError, match="titanic_input holds no file: land at least one"):
        prepare(spark, [], reports)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER.replace("Age", "Ages"), "has the unexpected column 'Ages'"),
        (HEADER.replace(",Age", ""), "line 1: there is no header with the columns"),
    ],
)
def test_a_file_without_the_header_is_refused(
    header: str, message: str, write_csv: Callable[..., Path], run: _Prepare
) -> None:
    good = write_csv(passenger(1))
    with pytest.raises(ValueError, match=r"other\.csv, line 1: .*") as refused:
        run(good, write_csv(passenger(2), name="other.csv", header=header))
    assert message in str(refused.value)


_PIECES = st.sampled_from(
    [
        *('"', '""', ",", "\n", " ", "\t", "a", "1", "\\", "é", 'x"y', "#", "\u2028", "\x1c"),
        f"{','.join(['1'] * 12)}\n",
        f"{','.join([''] * 12)}\n",
        *(f"{passenger(number)}\n" for number in (1, 2)),
        f"{passenger(3, Name=quoted(chr(10)))}\n",
    ]
)
_FILES = st.lists(
    st.tuples(st.lists(_PIECES, max_size=20).map("".join), st.sampled_from(["\n", "\r\n", "\r"])),
    min_size=1,
    max_size=25,
)


@given(files=_FILES)
@settings(
    max_examples=6,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_whatever_lands_every_row_comes_out_once(
    files: list[tuple[str, str]],
    spark: SparkSession,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("arrival")
    rows_in = 0
    paths: list[Path] = []
    for at, (text, end) in enumerate(files):
        path = folder / f"{at}.csv"
        path.write_bytes(f"{HEADER}\n{text}".replace("\n", end).encode())
        target = folder / f"{at}"
        refused = folder / f"{at}-refused"
        target.mkdir()
        refused.mkdir()
        reports = Reports()
        land([path], target, refused, reports)
        if any(refused.iterdir()):
            # A quote that never ends, most of the time: such a file goes no further.
            continue
        rows_in += reports.of["titanic_input"]["dagster/row_count"]
        paths.append(path)
    if not paths:
        return
    frames = prepare(spark, [str(path) for path in paths], Reports())
    quarantined = frames["titanic_quarantined"]
    assert frames["titanic_prepared"].count() + quarantined.count() == rows_in
    assert quarantined.filter("coalesce(reason, '') = '' OR raw IS NULL").count() == 0
    spark.catalog.clearCache()
