"""The statistics that a commit takes from Parquet footers: never a bound that hides a value."""

import datetime as dt
import decimal
import io
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_assets.datasets.parquet import LARGEST_FLOATS, read_footers
from synapse_assets.errors import StagedFilesError

UTC = dt.timezone.utc
TIMESTAMP = pa.timestamp("us", "UTC")


def statistics_of(path: Path) -> dict[str, Any]:
    (footer,) = read_footers([path.name], root=str(path.parent))
    found: dict[str, Any] = json.loads(footer.stats)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


def write(folder: Path, table: pa.Table, *, group: int = 1_000) -> dict[str, Any]:
    path = folder / "file.parquet"
    pq.write_table(table, path, row_group_size=group)
    return statistics_of(path)


def as_bound(value: Any, like: Any) -> Any:
    """Return a bound as its readers take it: JSON has neither times nor dates."""
    if isinstance(like, dt.datetime):
        return dt.datetime.strptime(value, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    if isinstance(like, dt.date):
        return dt.date.fromisoformat(value)
    return value


values = {
    "ints": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "smalls": (pa.int8(), st.integers(-128, 127)),
    "floats": (pa.float64(), st.floats()),
    "singles": (pa.float32(), st.floats(width=32)),
    "texts": (pa.string(), st.text(st.characters(codec="utf-8"), max_size=80)),
    "times": (TIMESTAMP, st.datetimes(timezones=st.just(UTC))),
    "dates": (pa.date32(), st.dates()),
    "bools": (pa.bool_(), st.booleans()),
}


@given(
    columns=st.integers(0, 12).flatmap(
        lambda rows: st.fixed_dictionaries(
            {
                name: st.lists(st.none() | strategy, min_size=rows, max_size=rows)
                for name, (_, strategy) in values.items()
            }
        )
    ),
    group=st.integers(1, 5),
)
@settings(max_examples=150, deadline=None, database=None)
def test_no_bound_excludes_a_value(folder: Path, columns: dict[str, list[Any]], group: int) -> None:
    schema = pa.schema([(name, arrow_type) for name, (arrow_type, _) in values.items()])
    found = write(folder, pa.table(columns, schema=schema), group=group)
    assert found["numRecords"] == len(columns["ints"])
    for name, column in columns.items():
        there = [value for value in column if value is not None]
        if name in found["nullCount"]:
            assert found["nullCount"][name] == len(column) - len(there)
        for value in there:
            # Delta's readers take NaN for more than any number.
            order = math.inf if isinstance(value, float) and math.isnan(value) else value
            if name in found["minValues"]:
                assert as_bound(found["minValues"][name], value) <= order
            if name in found["maxValues"]:
                if order == math.inf:
                    assert found["maxValues"][name] in LARGEST_FLOATS.values()
                    assert value != math.inf
                    continue
                assert as_bound(found["maxValues"][name], value) >= order


def test_bounds_are_tight_where_nothing_forbids_it(folder: Path) -> None:
    at = dt.datetime(2026, 11, 24, 6, 0, 0, 123_000, UTC)
    table = pa.table(
        {
            "i": [3, 1, None],
            "s": ["b", "a", None],
            "t": pa.array([at, at, None], TIMESTAMP),
            "d": [at.date(), at.date(), None],
            "f": [0.5, 1.5, None],
        }
    )
    assert write(folder, table, group=1) == {
        "numRecords": 3,
        "minValues": {
            "i": 1,
            "s": "a",
            "t": "2026-11-24T06:00:00.123Z",
            "d": "2026-11-24",
            "f": 0.5,
        },
        "maxValues": {
            "i": 3,
            "s": "b",
            "t": "2026-11-24T06:00:00.123Z",
            "d": "2026-11-24",
            "f": LARGEST_FLOATS["DOUBLE"],
        },
        "nullCount": dict.fromkeys("istdf", 1),
    }


def test_upper_bound_leaves_room_for_a_nan_that_the_footer_hides(folder: Path) -> None:
    for name, arrow_type in (("FLOAT", pa.float32()), ("DOUBLE", pa.float64())):
        found = write(folder, pa.table({"f": pa.array([1.0, math.nan], arrow_type)}))
        assert found["maxValues"] == {"f": LARGEST_FLOATS[name]}
    for column in ([math.nan], [math.inf, 1.0]):
        assert write(folder, pa.table({"f": column}))["maxValues"] == {}


def test_times_at_the_ends_of_the_calendar(folder: Path) -> None:
    last = dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)
    early = dt.datetime(500, 1, 1, tzinfo=UTC)
    found = write(folder, pa.table({"t": pa.array([last, early], TIMESTAMP)}))
    assert found["minValues"] == {"t": "0500-01-01T00:00:00.000Z"}
    assert found["maxValues"] == {}


@pytest.mark.parametrize("column", [pa.array([2**62], TIMESTAMP), pa.array([2**30], pa.date32())])
def test_times_beyond_pythons_calendar_have_no_bounds(folder: Path, column: pa.Array) -> None:
    found = write(folder, pa.table({"t": column}))
    assert (found["minValues"], found["maxValues"], found["nullCount"]) == ({}, {}, {"t": 0})


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("b" * 32, "b" * 32),
        ("b" * 33, "b" * 32 + "\U0010ffff"),
        ("\U0010ffff" * 33, "\U0010ffff" * 33),
        ("\U0010ffff" * 34, None),
        ("b" * 5_000, None),
    ],
)
def test_upper_bound_of_long_text_is_cut_upwards(
    folder: Path, text: str, bound: str | None
) -> None:
    found = write(folder, pa.table({"s": [text, "a"]}))
    assert found["maxValues"].get("s") == bound
    assert found["minValues"].get("s", "a") == "a"


def test_decimals_are_bounded_where_json_holds_them_exactly(folder: Path) -> None:
    exact, long = decimal.Decimal("1.50"), decimal.Decimal("1234567890123456789.01")
    assert write(folder, pa.table({"x": [exact]}))["maxValues"] == {"x": 1.5}
    assert write(folder, pa.table({"x": [long]}))["maxValues"] == {}


def test_nulls_alone_have_no_bounds_and_take_none_from_other_groups(folder: Path) -> None:
    table = pa.table({"x": [None, 5], "n": pa.array([None, None], pa.int64())})
    found = write(folder, table, group=1)
    assert found["minValues"] == found["maxValues"] == {"x": 5}
    assert found["nullCount"] == {"x": 1, "n": 2}


def test_group_without_statistics_takes_away_all_bounds(folder: Path) -> None:
    path = folder / "file.parquet"
    pq.write_table(pa.table({"x": [1], "y": [2]}), path, write_statistics=["y"])
    found = statistics_of(path)
    assert found["minValues"] == found["maxValues"] == {"y": 2}


def test_types_without_an_order_in_json_have_none(folder: Path) -> None:
    table = pa.table(
        {
            "b": [b"\xff"],
            "l": [[1, 2]],
            "s": [{"x": 1}],
            "with.dot": [1],
        }
    )
    found = write(folder, table)
    assert found["minValues"] == found["maxValues"] == {}
    assert found["numRecords"] == 1


def test_footers_come_in_the_order_of_the_paths(folder: Path) -> None:
    paths = []
    for rows in range(40):
        paths.append(f"{rows}.parquet")
        pq.write_table(pa.table({"x": range(rows)}), folder / paths[-1])
    for open_file in (None, lambda path: pa.OSFile(str(folder / path))):
        footers = read_footers(paths, root=str(folder), open_file=open_file)
        assert [footer.rows for footer in footers] == list(range(40))


def test_damaged_footer_names_the_file(folder: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), sink)
    for content in (b"", b"PAR1", sink.getvalue()[:-1], b"PAR1" * 100):
        path = folder / "damaged.parquet"
        path.write_bytes(content)
        with pytest.raises(StagedFilesError, match=r"damaged\.parquet.*Run the step again"):
            statistics_of(path)
