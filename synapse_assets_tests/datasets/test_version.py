"""The reference itself: what it tells, and how it travels to where a step runs."""

import json

import pytest

from synapse_assets.datasets.attempt import attempt_key
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import resolve
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.errors import DatasetNotFoundError
from synapse_assets_tests.datasets.staging import numbers, put, put_files


def test_reference_survives_json(datastore: Datastore) -> None:
    versions = [
        put(datastore, Slot("t", "part", "ü/%2F"), numbers(1), numbers()),
        put_files(datastore, Slot("f"), {"a/b": b"1"}),
        put_files(datastore, Slot("empty"), {}),
    ]
    for version in versions:
        assert DatasetVersion.from_json(json.loads(json.dumps(version.to_json()))) == version


def test_file_is_found_by_its_name(datastore: Datastore) -> None:
    version = put_files(datastore, Slot("f"), {"metrics.json": b"{}", "plots/roc.png": b""})
    assert datastore.storage().read_text(version.file("metrics.json")) == "{}"
    with pytest.raises(DatasetNotFoundError, match=r"no file 'x'. It has: metrics.json, plots/roc"):
        version.file("x")


def test_selection_keeps_the_files_of_its_partitions(datastore: Datastore) -> None:
    put(datastore, Slot("t", "part", "a"), numbers(1, 2))
    put(datastore, Slot("t", "part", "b"), numbers(3))
    version = resolve(datastore, "t")
    assert version.select({"a"}).rows == 2
    assert version.select({"b", "c"}).partitions == ("b",)


def test_attempt_key_is_the_same_for_the_same_try_only() -> None:
    keys = [
        attempt_key(root_run_id=run, step_key=step, partition=partition)
        for run in ("r", "s")
        for step in ("a", "a b", "a/b", "x" * 100)
        for partition in (None, "p", "q")
    ]
    assert len(set(keys)) == len(keys)
    again = attempt_key(root_run_id="s", step_key="x" * 100, partition="q")
    assert again == keys[-1]
    assert all(set(key) <= set(again + "ab_-0123456789abcdef") for key in keys)
    assert max(len(key) for key in keys) < 100
