"""Partitions of real Delta tables folded into one and taken back out: no file is written anew."""

import datetime as dt
import decimal

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from synapse_assets.datasets.retirement import retire
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import column_bounds, resolve
from synapse_assets.datasets.vacuum import Retention, vacuum
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.errors import DatasetError
from synapse_assets_tests.datasets.staging import (
    contents_of,
    numbers,
    put,
    put_files,
    rows_of,
    values_of,
)

INTO = "before-2026-01-01"


def slot(partition: str, name: str = "t") -> Slot:
    return Slot(name, "arrival", partition)


def paths(version: DatasetVersion) -> set[str]:
    return {file.path for file in version.files}


def test_files_stay_where_they_are_with_their_statistics(datastore: Datastore) -> None:
    utc = dt.timezone.utc
    table = pa.table(
        {
            "x": [1, None],
            "text": ["a", "b"],
            "day": [dt.date(2026, 1, 1), dt.date(2026, 1, 2)],
            "at": [
                dt.datetime(2026, 1, 1, 12, 0, 0, 1000, utc),
                dt.datetime(2026, 1, 2, tzinfo=utc),
            ],
            "price": pa.array(
                [decimal.Decimal("1.25"), decimal.Decimal("2.50")], pa.decimal128(9, 2)
            ),
            "share": [0.5, 0.75],
        }
    )
    for partition in ("a b/ü%", "b", "c"):
        put(datastore, slot(partition), table)
    before = resolve(datastore, "t")
    assert retire(datastore, "t", {"a b/ü%", "b", "none"}, into=INTO) == 2
    after = resolve(datastore, "t")
    assert after.partitions == (INTO, "c")
    assert paths(after) == paths(before)
    assert column_bounds(datastore, after) == column_bounds(datastore, before)
    folded = resolve(datastore, "t", partitions=[INTO])
    assert [row["arrival"] for row in rows_of(datastore, folded)] == [INTO] * 4
    # Once more there is nothing to do, not even a commit.
    assert retire(datastore, "t", {"a b/ü%", "b"}, into=INTO) == 0
    assert resolve(datastore, "t").version == after.version
    # A checkpoint keeps the later entry of each path, and vacuum the files.
    DeltaTable(before.uri).create_checkpoint()
    vacuum(datastore, "t", retention=Retention(dt.timedelta(0), force=True), dry_run=False)
    again = resolve(datastore, "t", partitions=[INTO])
    assert (paths(again), len(rows_of(datastore, again))) == (paths(folded), 4)


def test_partition_that_is_made_again_is_taken_back_first(datastore: Datastore) -> None:
    for partition, value in (("a", 1), ("b", 2), ("c", 3)):
        put(datastore, slot(partition), numbers(value))
    retire(datastore, "t", {"a", "b"}, into=INTO)
    retire(datastore, "t", {INTO}, into="before-2026-02-01")
    made = put(datastore, slot("a"), numbers(10))
    assert values_of(datastore, made) == [10]
    assert values_of(datastore, resolve(datastore, "t")) == [2, 3, 10]
    assert resolve(datastore, "t").partitions == ("a", "before-2026-02-01", "c")
    put(datastore, slot("d"), numbers(4))
    assert values_of(datastore, resolve(datastore, "t")) == [2, 3, 4, 10]


def test_folded_partition_is_not_overwritten(datastore: Datastore) -> None:
    put(datastore, slot("a"), numbers(1))
    retire(datastore, "t", {"a"}, into=INTO)
    with pytest.raises(DatasetError, match="holds older partitions that were folded into it"):
        put(datastore, slot(INTO), numbers(2))
    assert values_of(datastore, resolve(datastore, "t")) == [1]


def test_files_keep_their_entries(datastore: Datastore) -> None:
    put_files(datastore, slot("a", "f"), {"one": b"1", "empty": b""})
    put_files(datastore, slot("b", "f"), {"two": b"2"})
    put_files(datastore, slot("c", "f"), {})
    assert retire(datastore, "f", {"a", "b", "c"}, into=INTO) == 3
    folded = resolve(datastore, "f", partitions=[INTO])
    assert contents_of(datastore, folded) == {"one": b"1", "empty": b"", "two": b"2"}
    put_files(datastore, slot("a", "f"), {"one": b"new"})
    assert contents_of(datastore, resolve(datastore, "f")) == {"one": b"new", "two": b"2"}
