"""Our tables, as the Delta readers of others see them."""

import datetime as dt
import math
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import resolve
from synapse_assets.datastore import Datastore
from synapse_assets_tests.datasets.staging import put

UTC = dt.timezone.utc
AT = dt.datetime(2026, 11, 24, 6, 0, 0, 123_456, UTC)
# polars takes a partition's value from the path, where a longer key does not fit.
KEYS = ["a", "b c", "%2F/..", "ü='#?+", "x" * 170]


def rows_for(key: str) -> pa.Table:
    """Return three files' worth of rows that differ from key to key."""
    index = KEYS.index(key)
    floats = [float(index), math.nan if index == 1 else None, -1.0 if index == 2 else 0.5]
    return pa.table(
        {
            "i": [index * 10, None, index * 10 + 2],
            "f": floats,
            "s": [f"s{index}", "z" * 40 * index, None],
            "t": pa.array(
                [AT + dt.timedelta(microseconds=index), None, AT], pa.timestamp("us", "UTC")
            ),
            "d": [AT.date() + dt.timedelta(days=index), None, AT.date()],
            "b": [bool(index % 2), None, True],
        }
    )


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    datastore = Datastore(root=str(tmp_path_factory.mktemp("datastore")))
    for key in KEYS:
        slot = Slot("table", "part", key)
        put(datastore, slot, rows_for(key).slice(0, 1))
        put(datastore, slot, *(rows_for(key).slice(row, 1) for row in range(3)))
    return resolve(datastore, "table").uri


@pytest.fixture(scope="module")
def expected() -> pl.DataFrame:
    frames = [pl.DataFrame(rows_for(key)).with_columns(part=pl.lit(key)) for key in KEYS]
    return pl.concat(frames)


def as_set(frame: pl.DataFrame) -> set[tuple[str, ...]]:
    rows = [tuple(repr(value) for value in row) for row in frame.rows()]
    assert len(set(rows)) == len(rows)
    return set(rows)


def test_readers_of_delta_see_every_row_in_its_partition(uri: str, expected: pl.DataFrame) -> None:
    by_deltalake = pl.DataFrame(DeltaTable(uri).to_pyarrow_table()).select(expected.columns)
    by_polars = pl.scan_delta(uri).select(expected.columns).collect()
    assert as_set(by_deltalake) == as_set(by_polars) == as_set(expected)


def test_old_version_is_read_by_its_number(uri: str) -> None:
    assert pl.scan_delta(uri, version=0).collect().height == 1
    assert DeltaTable(uri, version=1).to_pyarrow_table().num_rows == 3


FILTERS = {
    "equal": pl.col("i") == 20,
    "range": (pl.col("i") > 9) & (pl.col("i") <= 30),
    "nan_is_large": pl.col("f") > 1e300,
    "below": pl.col("f") < 0,
    "text_is_long": pl.col("s") > "z" * 32,
    "text": pl.col("s") == "s3",
    "microsecond": pl.col("t") == AT + dt.timedelta(microseconds=3),
    "after": pl.col("t") > AT,
    "day": pl.col("d") >= AT.date() + dt.timedelta(days=3),
    "truth": pl.col("b"),
    "missing": pl.col("i").is_null(),
    "there": pl.col("s").is_not_null(),
    **{f"partition_{key[:6]}": pl.col("part") == key for key in KEYS},
    "partition_and_value": (pl.col("part") == KEYS[2]) & (pl.col("i") == 20),
}


@pytest.mark.parametrize("name", list(FILTERS))
def test_filter_of_polars_finds_what_is_there(uri: str, expected: pl.DataFrame, name: str) -> None:
    found = pl.scan_delta(uri).select(expected.columns).filter(FILTERS[name]).collect()
    assert as_set(found) == as_set(expected.filter(FILTERS[name]))


def test_filters_of_deltalake_find_what_is_there(uri: str, expected: pl.DataFrame) -> None:
    table = expected.to_arrow()
    dataset = DeltaTable(uri).to_pyarrow_dataset()
    fields = {name: ds.field(name) for name in expected.columns}
    predicates: list[Any] = [
        fields["i"] == 20,
        (fields["i"] > 9) & (fields["i"] <= 30),
        fields["f"] > 1e300,
        fields["f"] <= 0.5,
        fields["s"] > "z" * 32,
        fields["t"] == pa.scalar(AT + dt.timedelta(microseconds=3), pa.timestamp("us", "UTC")),
        fields["t"] > pa.scalar(AT, pa.timestamp("us", "UTC")),
        fields["d"] >= AT.date() + dt.timedelta(days=3),
        fields["i"].is_null(),
        fields["s"].is_valid(),
        *(fields["part"] == key for key in KEYS),
    ]
    for predicate in predicates:
        found = pl.DataFrame(dataset.to_table(filter=predicate)).select(expected.columns)
        assert as_set(found) == as_set(pl.DataFrame(table.filter(predicate))), predicate


def test_partitions_are_those_of_the_log(uri: str) -> None:
    table = DeltaTable(uri)
    assert sorted(entry["part"] for entry in table.partitions()) == sorted(KEYS)
    for key in KEYS:
        found = table.to_pyarrow_table(filters=[("part", "=", key)])
        assert found.num_rows == 3
        assert set(found["part"].to_pylist()) == {key}
