"""Where datasets lie, and which part of one an asset replaces."""

import dagster as dg
import pytest

from synapse_assets.datasets.slot import Slot, dataset_uri
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ConfigurationError


def test_asset_key_becomes_one_folder(datastore: Datastore) -> None:
    assert dataset_uri(datastore, "titanic/prepared") == datastore.uri("titanic.prepared")


@pytest.mark.parametrize("name", ["", "/", "//", "a/", "/a", "a//b"])
def test_name_with_an_empty_part_is_refused(datastore: Datastore, name: str) -> None:
    with pytest.raises(ConfigurationError, match="has an empty part"):
        dataset_uri(datastore, name)


def test_slot_of_an_asset_has_its_metadata() -> None:
    key = dg.AssetKey(["a", "b"])
    metadata = {"partition_by": "arrival", "schema_change": "evolve"}
    assert Slot.of_asset(key, partition="x", metadata=metadata) == Slot(
        "a/b", "arrival", "x", "evolve"
    )
    assert Slot.of_asset(key, partition="x", metadata={}).partition_by == "partition_key"
    assert Slot.of_asset(key, partition=None, metadata=metadata).partition_by is None


def test_unknown_schema_change_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"schema_change='merge'.*'refuse' or 'evolve'"):
        Slot.of_asset(dg.AssetKey("a"), partition=None, metadata={"schema_change": "merge"})


def test_empty_partition_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="empty text as its key"):
        Slot("a", "part", "")


@pytest.mark.parametrize("partition", ["../../x", "..", "/", "x" * 1_000, "🚢" * 200])
@pytest.mark.parametrize("column", ["part", "../part", "a/b"])
def test_folder_of_a_partition_is_one_component(partition: str, column: str) -> None:
    folder = Slot("a", column, partition).folder
    assert "/" not in folder
    assert folder not in (".", "..")
    assert len(folder.encode()) < 255


def test_long_partitions_that_begin_alike_have_their_own_folders() -> None:
    assert Slot("a", "p", "x" * 999 + "y").folder != Slot("a", "p", "x" * 999 + "z").folder


def test_each_try_of_an_attempt_has_fresh_folders(datastore: Datastore) -> None:
    slot = Slot("a", "part", "b")
    first, second = (slot.fresh_target(datastore, attempt="t") for _ in "12")
    assert first.folder != second.folder
    assert first.files_folder != second.files_folder
    assert first.folder.startswith("part=b/t-")
    assert first.files_folder.startswith("_files/t-")
