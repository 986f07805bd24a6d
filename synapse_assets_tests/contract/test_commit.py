"""What a commit makes, and what a reference to a version goes on to mean."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import column_bounds, commit, resolve
from synapse_assets.datastore import Datastore
from synapse_assets.errors import DatasetNotFoundError, PartitionNotFoundError
from synapse_assets_tests.datasets.staging import (
    contents_of,
    numbers,
    put,
    put_files,
    rows_of,
    stage_files,
    stage_table,
    values_of,
)

WHOLE = Slot("whole")
A, B = (Slot("parts", "part", partition) for partition in "ab")

HOSTILE_KEYS = [
    "../",
    "..",
    ".",
    "=",
    "part=b",
    "%2F",
    " ",
    " a ",
    "é",
    "e\N{COMBINING ACUTE ACCENT}",
    "日本🚢",
    "x" * 1_000,
    "/" * 1_000,
    "/",
    "+",
    "#",
    "?",
    ":",
    "it's",
    '"',
    "\\",
    "a\nb",
    "*[a]{b}",
    "null",
    "__HIVE_DEFAULT_PARTITION__",
]
HOSTILE_NAMES = [
    "a",
    "a/b",
    "a/b/c",
    "a.b",
    "..",
    "../..",
    "a/../b",
    ".",
    "_x",
    "_delta_log",
    "~5Fx",
    "%",
    "%5Fx",
    "a%2Fb",
    "#",
    "?",
    "a b",
    "日本🚢",
]


def test_first_commit_makes_version_0_and_each_further_one_the_next(datastore: Datastore) -> None:
    assert [put(datastore, WHOLE, numbers(i)).version for i in range(3)] == [0, 1, 2]


def test_dataset_that_was_never_made_is_not_found(datastore: Datastore) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"'whole' does not exist.*Materialize"):
        resolve(datastore, "whole")
    assert not datastore.filesystem().exists(datastore.uri("whole"))


def test_reference_goes_on_meaning_its_version(datastore: Datastore) -> None:
    first = put(datastore, WHOLE, numbers(1, 2), numbers(3))
    put(datastore, WHOLE, numbers(4))
    assert values_of(datastore, first) == [1, 2, 3]
    assert resolve(datastore, "whole", version=0) == first
    assert values_of(datastore, resolve(datastore, "whole")) == [4]


def test_version_that_never_was_is_not_found(datastore: Datastore) -> None:
    put(datastore, WHOLE, numbers(1))
    with pytest.raises(DatasetNotFoundError, match=r"Version 7 of .* never existed, or was vacuum"):
        resolve(datastore, "whole", version=7)


def test_overwrite_of_one_partition_leaves_the_others_untouched(datastore: Datastore) -> None:
    put(datastore, A, numbers(1))
    of_b = put(datastore, B, numbers(2), numbers(3))
    put(datastore, A, numbers(4))
    assert resolve(datastore, "parts", partitions=["b"]).files == of_b.files
    assert values_of(datastore, resolve(datastore, "parts")) == [2, 3, 4]
    assert values_of(datastore, resolve(datastore, "parts", version=1)) == [1, 2, 3]


def test_commit_returns_its_own_partition_only(datastore: Datastore) -> None:
    put(datastore, A, numbers(1))
    version = put(datastore, B, numbers(2))
    assert rows_of(datastore, version) == [{"x": 2, "part": "b"}]
    assert version.partitions == ("b",)


def test_partitions_without_data_are_left_out_if_one_has_some(datastore: Datastore) -> None:
    put(datastore, A, numbers(1))
    assert resolve(datastore, "parts", partitions=["a", "z"]).partitions == ("a",)
    assert resolve(datastore, "parts", partitions=[]).files == ()
    with pytest.raises(
        PartitionNotFoundError, match=r"'parts' .version 0. has no data for .* y, z"
    ):
        resolve(datastore, "parts", partitions=["y", "z"])


def test_no_partition_key_reaches_another_partition(datastore: Datastore) -> None:
    slots = [Slot("parts", "part", key) for key in HOSTILE_KEYS]
    for values in (itertools.repeat(-1), itertools.count()):
        # A name node takes half a second for each file.
        with ThreadPoolExecutor() as pool:
            staged = pool.map(lambda s, v: stage_table(datastore, s, numbers(v)), slots, values)
        for slot, files in zip(slots, staged, strict=True):
            commit(datastore, files, slot=slot)
    whole = resolve(datastore, "parts")
    found = {row["part"]: row["x"] for row in rows_of(datastore, whole)}
    assert found == {key: index for index, key in enumerate(HOSTILE_KEYS)}
    assert len(whole.files) == len(HOSTILE_KEYS)
    for index, key in enumerate(HOSTILE_KEYS):
        assert values_of(datastore, resolve(datastore, "parts", partitions=[key])) == [index]


def test_no_name_reaches_another_dataset(datastore: Datastore) -> None:
    def make(index: int, name: str) -> None:
        put(datastore, Slot(name), numbers(index))
        put_files(datastore, Slot(f"files of/{name}"), {"f": b"%d" % index})

    with ThreadPoolExecutor() as pool:
        list(pool.map(make, itertools.count(), HOSTILE_NAMES))
    for index, name in enumerate(HOSTILE_NAMES):
        version = resolve(datastore, name)
        assert (version.version, values_of(datastore, version)) == (0, [index])
        files = resolve(datastore, f"files of/{name}")
        assert contents_of(datastore, files) == {"f": b"%d" % index}
    uris = {resolve(datastore, name).uri for name in HOSTILE_NAMES}
    assert len(uris) == len(HOSTILE_NAMES)
    assert {uri.rpartition("/")[0] for uri in uris} == {datastore.uri()}


def test_same_attempt_committed_twice_makes_one_version(datastore: Datastore) -> None:
    staged = stage_table(datastore, A, numbers(1))
    first = commit(datastore, staged, slot=A)
    assert commit(datastore, staged, slot=A) == first
    assert resolve(datastore, "parts").version == 0


def test_same_attempt_is_found_after_other_commits_came_between(datastore: Datastore) -> None:
    staged = stage_table(datastore, A, numbers(1))
    first = commit(datastore, staged, slot=A)
    for number in range(3):
        put(datastore, A if number else B, numbers(number))
    assert commit(datastore, staged, slot=A) == first
    assert resolve(datastore, "parts").version == 3


def test_same_attempt_is_found_when_the_log_is_a_checkpoint(datastore: Datastore) -> None:
    staged = stage_table(datastore, WHOLE, numbers(1))
    first = commit(datastore, staged, slot=WHOLE)
    newest = put(datastore, WHOLE, numbers(2))
    options = datastore.delta_storage_options()
    DeltaTable(newest.uri, storage_options=options).create_checkpoint()
    assert commit(datastore, staged, slot=WHOLE) == first
    assert resolve(datastore, "whole") == newest


def test_second_try_of_a_committed_attempt_changes_nothing(datastore: Datastore) -> None:
    first = commit(datastore, stage_table(datastore, WHOLE, numbers(1), attempt="a"), slot=WHOLE)
    again = stage_table(datastore, WHOLE, numbers(2), attempt="a")
    assert commit(datastore, again, slot=WHOLE) == first
    assert values_of(datastore, resolve(datastore, "whole")) == [1]


def test_one_attempt_commits_to_several_datasets(datastore: Datastore) -> None:
    for slot in (WHOLE, A):
        commit(datastore, stage_table(datastore, slot, numbers(1), attempt="both"), slot=slot)
    assert resolve(datastore, "whole").version == resolve(datastore, "parts").version == 0


def test_table_without_rows_is_a_version(datastore: Datastore) -> None:
    put(datastore, WHOLE, numbers(1))
    version = put(datastore, WHOLE, numbers())
    assert (version.rows, rows_of(datastore, version)) == (0, [])
    assert '"x"' in (version.schema or "")


def test_empty_partition_replaces_a_full_one(datastore: Datastore) -> None:
    put(datastore, A, numbers(1))
    put(datastore, A, numbers())
    assert resolve(datastore, "parts", partitions=["a"]).rows == 0


class TestFiles:
    def test_files_keep_names_contents_and_properties(self, datastore: Datastore) -> None:
        contents = {"a.csv": b"x\n1\n", "plots/roc 100%.png": b"\x89PNG", "empty": b"", "ü#?": b"u"}
        version = put_files(datastore, Slot("files"), contents)
        assert contents_of(datastore, version) == contents
        assert version == resolve(datastore, "files")
        assert (version.kind, version.schema, version.rows) == ("FileDataset", None, 0)

    def test_dataset_without_files_is_a_version(self, datastore: Datastore) -> None:
        put_files(datastore, Slot("files"), {"a": b"1"})
        assert put_files(datastore, Slot("files"), {}).files == ()
        assert resolve(datastore, "files").version == 1

    def test_partition_without_files_is_found_once_it_was_made(self, datastore: Datastore) -> None:
        slot = Slot("files", "part", "a")
        put_files(datastore, slot, {})
        assert resolve(datastore, "files", partitions=["a"]).files == ()

    def test_old_versions_keep_their_files(self, datastore: Datastore) -> None:
        first = put_files(datastore, Slot("files", "part", "a"), {"f": b"1"})
        put_files(datastore, Slot("files", "part", "b"), {"f": b"2"})
        put_files(datastore, Slot("files", "part", "a"), {"f": b"3"})
        assert contents_of(datastore, first) == {"f": b"1"}
        newest = resolve(datastore, "files")
        assert [(file.partition, file.name) for file in newest.files] == [("a", "f"), ("b", "f")]

    def test_same_attempt_committed_twice_leaves_readers_alone(self, datastore: Datastore) -> None:
        staged = stage_files(datastore, Slot("files"), {"f": b"1"})
        first = commit(datastore, staged, slot=Slot("files"))
        put_files(datastore, Slot("files"), {"f": b"2"})
        assert commit(datastore, staged, slot=Slot("files")) == first
        assert contents_of(datastore, first) == {"f": b"1"}


def test_staged_files_are_not_seen_before_the_commit(datastore: Datastore) -> None:
    with_files = Slot("files")
    stage_table(datastore, WHOLE, numbers(1))
    stage_files(datastore, with_files, {"f": b"1"})
    for slot in (WHOLE, with_files):
        with pytest.raises(DatasetNotFoundError):
            resolve(datastore, slot.name)
    before = put(datastore, WHOLE, numbers(2))
    stage_table(datastore, WHOLE, numbers(3))
    assert resolve(datastore, "whole") == before


def test_table_stays_readable_by_the_oldest_reader(datastore: Datastore) -> None:
    now = pa.table({"at": pa.array([time.time_ns() // 1000], pa.timestamp("us", "UTC"))})
    evolving = Slot("parts", "part", "a", "evolve")
    put(datastore, A, numbers(1))
    put(datastore, evolving, now)
    options = datastore.delta_storage_options()
    uri = resolve(datastore, "parts").uri
    protocol = DeltaTable(uri, storage_options=options).protocol()
    assert (protocol.min_reader_version, protocol.min_writer_version) <= (1, 2)


class TestBounds:
    def test_bounds_are_those_of_the_files_of_the_reference(self, datastore: Datastore) -> None:
        put(datastore, A, numbers(1, None), numbers(5))
        put(datastore, B, numbers(9))
        bounds = column_bounds(datastore, resolve(datastore, "parts", partitions=["a"]))
        assert list(bounds) == ["x"]
        assert (bounds["x"].lower, bounds["x"].upper, bounds["x"].nulls) == (1, 5, 1)

    def test_file_without_rows_bounds_nothing(self, datastore: Datastore) -> None:
        put(datastore, WHOLE, numbers(), numbers(3))
        bounds = column_bounds(datastore, resolve(datastore, "whole"))["x"]
        assert (bounds.lower, bounds.upper, bounds.nulls) == (3, 3, 0)

    def test_partition_keys_do_not_confuse_the_files(self, datastore: Datastore) -> None:
        for index, key in enumerate(["%2F", "/", "%252F"]):
            put(datastore, Slot("parts", "part", key), numbers(index))
        for index, key in enumerate(["%2F", "/", "%252F"]):
            version = resolve(datastore, "parts", partitions=[key])
            assert column_bounds(datastore, version)["x"].upper == index
