"""Arrivals: which blobs form one, and which are none."""

from pathlib import Path

import pytest

from synapse_assets.datasets.landing import find_arrival, list_arrivals
from synapse_assets.datastore import Datastore
from synapse_assets.errors import PartitionNotFoundError

FOLDER = "landing/titanic"


def land(datastore: Datastore, name: str, content: str = "x") -> None:
    path = Path(datastore.uri(FOLDER, name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def names(datastore: Datastore) -> dict[str, list[str | None]]:
    found = list_arrivals(datastore, FOLDER)
    return {arrival: [file.name for file in version.files] for arrival, version in found.items()}


def test_arrival_is_a_folder_or_the_stem_of_a_file(datastore: Datastore) -> None:
    for name in ("Titanic.csv", "2026-11-24/a.csv", "2026-11-24/deep/b.csv", "no suffix"):
        land(datastore, name)
    assert names(datastore) == {
        "2026-11-24": ["2026-11-24/a.csv", "2026-11-24/deep/b.csv"],
        "Titanic": ["Titanic.csv"],
        "no suffix": ["no suffix"],
    }


def test_hidden_and_unfinished_blobs_are_ignored(datastore: Datastore) -> None:
    for name in (".hidden", "_SUCCESS", "a.csv.tmp", "_tmp/a.csv", "b/.c/a.csv", "b/_d", "b/e.tmp"):
        land(datastore, name)
    assert names(datastore) == {}


def test_odd_names_are_kept_as_they_are(datastore: Datastore) -> None:
    for name in ("a b%20.csv", "ü🚢/#?.csv", "*[x]/{y}.csv"):
        land(datastore, name)
    assert sorted(names(datastore)) == ["*[x]", "a b%20", "ü🚢"]
    blob = find_arrival(datastore, FOLDER, "ü🚢").files[0]
    assert Path(datastore.uri(FOLDER), blob.path).read_text() == "x"


def test_reference_tells_sizes_and_a_changed_blob_has_another_etag(datastore: Datastore) -> None:
    land(datastore, "a.csv", "one")
    before = find_arrival(datastore, FOLDER, "a")
    land(datastore, "a.csv", "three")
    after = find_arrival(datastore, FOLDER, "a")
    assert (before.size, after.size) == (3, 5)
    assert before.files[0].etag != after.files[0].etag
    assert find_arrival(datastore, FOLDER, "a") == after
    assert (after.kind, after.name, after.uri) == ("FileDataset", FOLDER, datastore.uri(FOLDER))


def test_empty_blob_arrives_too(datastore: Datastore) -> None:
    land(datastore, "a.csv", "")
    assert find_arrival(datastore, FOLDER, "a").size == 0


def test_missing_arrival_is_told_with_those_that_are_there(datastore: Datastore) -> None:
    with pytest.raises(PartitionNotFoundError, match=r"arrival 'z' is in .*; there is nothing"):
        find_arrival(datastore, FOLDER, "z")
    land(datastore, "a.csv")
    with pytest.raises(PartitionNotFoundError, match=r"there is a. Land it again, or delete"):
        find_arrival(datastore, FOLDER, "z")


def test_landing_folder_below_a_root_with_dots_is_found(tmp_path: Path) -> None:
    datastore = Datastore(root=f"{tmp_path}/elsewhere/../datastore/")
    land(datastore, "a.csv")
    assert list(names(datastore)) == ["a"]
