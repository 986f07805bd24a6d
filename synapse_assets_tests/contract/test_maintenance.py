"""Versions, restore and vacuum: what is needed stays, what is not goes, and all of it is known."""

import datetime as dt
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest import mock

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from synapse_assets.datasets import delta, maintenance
from synapse_assets.datasets import vacuum as vacuum_module
from synapse_assets.datasets.maintenance import list_datasets, list_versions, restore
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import commit, resolve
from synapse_assets.datasets.vacuum import (
    DEFAULT_RETENTION,
    Amount,
    Retention,
    VacuumReport,
    vacuum,
    vacuum_attempts,
)
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import Storage, StoredFile
from synapse_assets.errors import (
    ConfigurationError,
    DatasetError,
    DatasetNotFoundError,
    StagedFilesError,
    UnsupportedTableError,
)
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

# Some of those that the tests of commits try all of.
HOSTILE_KEYS = ["../", "part=b", "%2F", "é", "x" * 1_000, "a\nb"]
HOSTILE_NAMES = ["a", "a/b", "a.b", "../..", "_delta_log", "~5Fx", "日本🚢"]

WHOLE = Slot("whole")
EVOLVING = Slot("whole", schema_change="evolve")
FILES = Slot("files")
A, B = (Slot("parts", "part", partition) for partition in "ab")
FILES_A, FILES_B = (Slot("files", "part", partition) for partition in "ab")


def later(**delta: float) -> dt.datetime:
    """Return a time to come, for which all that is there now is old."""
    return dt.datetime.now(dt.timezone.utc) + dt.timedelta(**delta)


def clean(datastore: Datastore, name: str, *, dry_run: bool = False) -> VacuumReport:
    """Remove all that the newest version does not need."""
    return vacuum(datastore, name, retention=Retention(now=later(days=30)), dry_run=dry_run)


def stored(datastore: Datastore, name: str) -> dict[str, int]:
    """Return the files of a dataset, without its log, and their sizes."""
    files = datastore.storage().list_files(resolve(datastore, name).uri)
    return {file.path: file.size for file in files if not file.path.startswith("_delta_log/")}


class TestVersions:
    def test_each_says_what_it_holds_and_how_it_came_to_be(self, datastore: Datastore) -> None:
        before = dt.datetime.now(dt.timezone.utc) - dt.timedelta(seconds=1)
        put(datastore, A, numbers(1))
        staged = stage_table(datastore, B, numbers(2, 3), numbers(4), attempt="of_b")
        commit(datastore, staged, slot=B)
        put(datastore, A, numbers())
        restore(datastore, "parts", 1)
        found = list_versions(datastore, "parts")
        assert [(v.version, v.operation, v.partition) for v in found] == [
            (3, "restore of 1", None),
            (2, "commit", "a"),
            (1, "commit", "b"),
            (0, "commit", "a"),
        ]
        for version in found:
            resolved = resolve(datastore, "parts", version=version.version)
            assert (version.files, version.rows) == (len(resolved.files), resolved.rows)
            assert (version.size, version.is_readable) == (resolved.size, True)
            assert version.committed.tzinfo is dt.timezone.utc
            assert before <= version.committed <= later()
        assert [version.attempt for version in found][2] == "of_b"

    def test_of_files_the_users_own_are_counted(self, datastore: Datastore) -> None:
        put_files(datastore, FILES_A, {"one": b"1", "two": b"22"})
        put_files(datastore, FILES_B, {"three": b"333"})
        put_files(datastore, FILES_A, {})
        found = list_versions(datastore, "files")
        assert [(v.files, v.size, v.rows) for v in found] == [
            (1, 3, None),
            (3, 6, None),
            (2, 3, None),
        ]

    def test_what_was_vacuumed_is_listed_and_not_readable(self, datastore: Datastore) -> None:
        for number in range(3):
            put(datastore, WHOLE, numbers(number))
        clean(datastore, "whole")
        found = [(v.version, v.operation, v.is_readable) for v in list_versions(datastore, "whole")]
        assert found == [
            (3, "vacuum", True),
            (2, "commit", True),
            (1, "commit", False),
            (0, "commit", False),
        ]

    def test_versions_before_the_oldest_kept_log_entry_are_left_out(
        self, datastore: Datastore
    ) -> None:
        for number in range(4):
            put(datastore, A if number % 2 else B, numbers(number, number))
        options = datastore.delta_storage_options()
        uri = resolve(datastore, "parts").uri
        delta = DeltaTable(uri, storage_options=options)
        delta.alter.set_table_properties({"delta.logRetentionDuration": "interval 0 seconds"})
        put(datastore, A, numbers(9))
        DeltaTable(uri, storage_options=options).create_checkpoint()
        put(datastore, B, numbers(10))
        DeltaTable(uri, storage_options=options).cleanup_metadata()
        found = list_versions(datastore, "parts")
        assert [(version.version, version.rows) for version in found] == [(6, 2), (5, 3)]
        with pytest.raises(DatasetNotFoundError, match=r"Version 0 of .* cannot be read"):
            restore(datastore, "parts", 0)

    def test_cost_is_one_listing_and_no_version_is_opened(self, datastore: Datastore) -> None:
        for number in range(4):
            put(datastore, WHOLE, numbers(number))
        with mock.patch.object(delta, "open_table", wraps=delta.open_table) as opened:
            list_versions(datastore, "whole")
        assert opened.call_count == 1

    def test_unknown_dataset_is_not_found(self, datastore: Datastore) -> None:
        calls: list[Callable[[], object]] = [
            lambda: list_versions(datastore, "whole"),
            lambda: restore(datastore, "whole", 0),
            lambda: clean(datastore, "whole"),
        ]
        stage_table(datastore, WHOLE, numbers(1))
        for call in calls:
            with pytest.raises(DatasetNotFoundError, match="'whole' does not exist"):
                call()


def test_datasets_are_those_with_a_version_by_their_own_names(datastore: Datastore) -> None:
    assert list_datasets(datastore) == []
    for name in HOSTILE_NAMES:
        put(datastore, Slot(name), numbers(1))
    stage_table(datastore, Slot("never_committed"), numbers(1))
    datastore.storage().write_atomically(
        datastore.uri("landing", "titanic", "_delta_log", "x"), b""
    )
    datastore.storage().write_atomically(datastore.uri("_attempts", "a", "record.json"), b"{}")
    assert list_datasets(datastore) == sorted(HOSTILE_NAMES)


class TestRestore:
    def test_old_content_becomes_the_newest_version_and_all_versions_stay(
        self, datastore: Datastore
    ) -> None:
        first = put(datastore, WHOLE, numbers(1, 2), numbers(3))
        second = put(datastore, WHOLE, numbers(4))
        restored = restore(datastore, "whole", 0)
        assert (restored.version, restored.files) == (2, first.files)
        assert restored == resolve(datastore, "whole")
        assert values_of(datastore, restored) == [1, 2, 3]
        assert resolve(datastore, "whole", version=0) == first
        assert resolve(datastore, "whole", version=1) == second

    def test_partitions_go_back_together(self, datastore: Datastore) -> None:
        put(datastore, A, numbers(1))
        put(datastore, A, numbers(2))
        put(datastore, B, numbers(3))
        restored = restore(datastore, "parts", 0)
        assert rows_of(datastore, restored) == [{"x": 1, "part": "a"}]
        restored = restore(datastore, "parts", 2)
        assert {row["part"]: row["x"] for row in rows_of(datastore, restored)} == {"a": 2, "b": 3}

    def test_files_come_back(self, datastore: Datastore) -> None:
        put_files(datastore, FILES_A, {"f": b"1", "g": b"2"})
        put_files(datastore, FILES_B, {"h": b"3"})
        put_files(datastore, FILES_A, {})
        restored = restore(datastore, "files", 1)
        assert contents_of(datastore, restored) == {"f": b"1", "g": b"2", "h": b"3"}
        assert (restored.version, restored.kind) == (3, "FileDataset")

    def test_columns_go_back_with_the_rows_and_can_change_again(self, datastore: Datastore) -> None:
        first = put(datastore, WHOLE, numbers(1))
        put(datastore, EVOLVING, pa.table({"y": ["one"], "z": [1.5]}))
        restored = restore(datastore, "whole", 0)
        assert restored.schema == first.schema
        assert rows_of(datastore, restored) == [{"x": 1}]
        assert values_of(datastore, put(datastore, WHOLE, numbers(5))) == [5]
        restored = restore(datastore, "whole", 1)
        assert rows_of(datastore, restored) == [{"y": "one", "z": 1.5}]

    def test_the_newest_version_and_one_like_it_change_nothing(self, datastore: Datastore) -> None:
        put(datastore, WHOLE, numbers(1))
        newest = put(datastore, WHOLE, numbers(2))
        assert restore(datastore, "whole", 1) == newest
        restored = restore(datastore, "whole", 0)
        assert restore(datastore, "whole", 0) == restored
        assert resolve(datastore, "whole").version == 2

    @pytest.mark.parametrize("version", [-1, 1, 99, 2**63])
    def test_version_that_never_was_is_refused(self, datastore: Datastore, version: int) -> None:
        put(datastore, WHOLE, numbers(1))
        with pytest.raises(DatasetNotFoundError, match=rf"ersion {version}\b"):
            restore(datastore, "whole", version)
        assert resolve(datastore, "whole").version == 0

    def test_vacuumed_table_is_refused(self, datastore: Datastore) -> None:
        put(datastore, WHOLE, numbers(1))
        put(datastore, WHOLE, numbers(2))
        clean(datastore, "whole")
        before = resolve(datastore, "whole")
        with pytest.raises(DatasetNotFoundError, match="Version 0 of 'whole' was vacuumed: 1 of"):
            restore(datastore, "whole", 0)
        assert resolve(datastore, "whole") == before

    def test_one_missing_file_is_enough_to_refuse(self, datastore: Datastore) -> None:
        first = put_files(datastore, FILES, {"f": b"1", "g": b"2"})
        put_files(datastore, FILES, {})
        datastore.storage().remove(first.file("g"))
        with pytest.raises(DatasetNotFoundError, match=r"1 of its 2 files are gone .*/g for exam"):
            restore(datastore, "files", 0)
        assert resolve(datastore, "files").version == 1

    def test_attempts_that_came_later_are_still_known_as_committed(
        self, datastore: Datastore
    ) -> None:
        early = stage_table(datastore, WHOLE, numbers(1), attempt="early")
        late = stage_table(datastore, WHOLE, numbers(2), attempt="late")
        made = [commit(datastore, staged, slot=WHOLE) for staged in (early, late)]
        restored = restore(datastore, "whole", 0)
        DeltaTable(
            restored.uri, storage_options=datastore.delta_storage_options()
        ).create_checkpoint()
        for staged, version in zip((early, late), made, strict=True):
            assert commit(datastore, staged, slot=WHOLE) == version
        assert resolve(datastore, "whole") == restored

    def test_hostile_partitions_come_back(self, datastore: Datastore) -> None:
        for key in HOSTILE_KEYS:
            put(datastore, Slot("parts", "part", key), numbers(1))
        whole = resolve(datastore, "parts")
        for key in HOSTILE_KEYS:
            put(datastore, Slot("parts", "part", key), numbers(2))
        restored = restore(datastore, "parts", whole.version)
        assert {f.path for f in restored.files} == {f.path for f in whole.files}
        assert len(rows_of(datastore, restored)) == len(HOSTILE_KEYS)
        # Were one of the names misread, its file would look like one that nobody needs.
        report = clean(datastore, "parts")
        assert report.removed["superseded"].files == len(HOSTILE_KEYS)
        assert report.removed["abandoned"].files == 0
        assert len(rows_of(datastore, resolve(datastore, "parts"))) == len(HOSTILE_KEYS)

    def test_table_that_asks_for_more_than_we_write_is_refused(self, datastore: Datastore) -> None:
        put(datastore, WHOLE, numbers(1))
        uri = put(datastore, WHOLE, numbers(2)).uri
        options = datastore.delta_storage_options()
        properties = {"delta.minReaderVersion": "3", "delta.minWriterVersion": "7"}
        DeltaTable(uri, storage_options=options).alter.set_table_properties(properties)
        with pytest.raises(UnsupportedTableError, match="protocol 3/7"):
            restore(datastore, "whole", 0)
        with pytest.raises(UnsupportedTableError, match="protocol 3/7"):
            clean(datastore, "whole")

    def test_two_at_once_both_land(self, datastore: Datastore) -> None:
        for number in range(3):
            put(datastore, WHOLE, numbers(number))
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda n: restore(datastore, "whole", n % 2), range(8)))
        # Each finds the newest version with its content, or makes one.
        for number, version in enumerate(made):
            assert values_of(datastore, version) == [number % 2]
        history = [v.operation for v in list_versions(datastore, "whole")][:-3]
        assert set(history) == {"restore of 0", "restore of 1"}
        assert all(a != b for a, b in itertools.pairwise(history))

    def test_commit_that_comes_between_is_not_lost(self, datastore: Datastore) -> None:
        put(datastore, WHOLE, numbers(1))
        put(datastore, WHOLE, numbers(2))
        check = maintenance._check_restorable

        def check_late(*arguments: object, **named: object) -> None:
            check(*arguments, **named)  # type: ignore[arg-type]
            if resolve(datastore, "whole").version == 1:
                put(datastore, WHOLE, numbers(3))

        with mock.patch.object(maintenance, "_check_restorable", check_late):
            assert restore(datastore, "whole", 0).version == 3
        assert values_of(datastore, resolve(datastore, "whole", version=2)) == [3]


class TestVacuum:
    def test_young_files_stay_whatever_they_are(self, datastore: Datastore) -> None:
        put(datastore, WHOLE, numbers(1))
        put(datastore, WHOLE, numbers(2))
        stage_table(datastore, WHOLE, numbers(3))
        before = stored(datastore, "whole")
        report = vacuum(datastore, "whole", dry_run=False)
        assert report.removed == {"superseded": Amount(), "abandoned": Amount()}
        assert report.kept == Amount(3, sum(before.values()))
        assert stored(datastore, "whole") == before
        assert resolve(datastore, "whole").version == 1

    def test_version_superseded_within_the_retention_stays_however_old_it_is(
        self, datastore: Datastore
    ) -> None:
        first = put(datastore, WHOLE, numbers(1))
        second = put(datastore, WHOLE, numbers(2))
        put(datastore, WHOLE, numbers(3))
        # The retention begins between the commits of versions 1 and 2: version 1 was the newest
        # then. Nothing is old yet, so the files' own age is left out of it.
        committed = {v.version: v.committed for v in list_versions(datastore, "whole")}
        now = committed[2] + DEFAULT_RETENTION
        list_files = type(datastore.storage()).list_files

        def list_as_old(storage: Storage, uri: str) -> list[StoredFile]:
            return [replace(file, modified=0.0) for file in list_files(storage, uri)]

        with mock.patch.object(type(datastore.storage()), "list_files", list_as_old):
            report = vacuum(datastore, "whole", retention=Retention(now=now), dry_run=False)
        assert report.removed["superseded"].files == 1
        assert values_of(datastore, second) == [2]
        with pytest.raises(FileNotFoundError):
            values_of(datastore, first)

    def test_superseded_and_abandoned_are_told_apart(self, datastore: Datastore) -> None:
        put(datastore, A, numbers(1))
        put(datastore, A, numbers(2), numbers(3))
        stage_table(datastore, B, numbers(4), numbers(5))
        before = stored(datastore, "parts")
        planned = clean(datastore, "parts", dry_run=True)
        assert stored(datastore, "parts") == before
        assert resolve(datastore, "parts").version == 1
        report = clean(datastore, "parts")
        assert report.removed == planned.removed
        assert {reason: amount.files for reason, amount in report.removed.items()} == {
            "superseded": 1,
            "abandoned": 2,
        }
        after = stored(datastore, "parts")
        assert report.kept == Amount(2, sum(after.values()))
        removed = sum(amount.size for amount in report.removed.values())
        assert removed == sum(before.values()) - sum(after.values())
        assert values_of(datastore, resolve(datastore, "parts")) == [2, 3]

    def test_the_users_own_files_go_with_their_version(self, datastore: Datastore) -> None:
        put_files(datastore, FILES_A, {"f": b"1", "in/folder": b"22"})
        put_files(datastore, FILES_B, {"g": b"3"})
        put_files(datastore, FILES_A, {"f": b"4"})
        stage_files(datastore, FILES_A, {"f": b"5", "h": b"6", "i": b""})
        report = clean(datastore, "files")
        # Two of the user's own and their entries; and three that have no entries yet.
        assert {reason: amount.files for reason, amount in report.removed.items()} == {
            "superseded": 3,
            "abandoned": 3,
        }
        newest = resolve(datastore, "files")
        assert sorted(file.size for file in newest.files) == [1, 1]
        assert len(stored(datastore, "files")) == 4
        for version in newest.partitions:
            contents_of(datastore, newest.select({version}))

    def test_what_another_program_keeps_in_hidden_folders_is_left_alone(
        self, datastore: Datastore
    ) -> None:
        uri = put(datastore, Slot("_whole"), numbers(1)).uri
        for path in ("_symlink_format_manifest/manifest", ".hidden", "_notes"):
            datastore.storage().write_atomically(f"{uri}/{path}", b"x")
        log = sorted(
            file.path
            for file in datastore.storage().list_files(uri)
            if file.path.startswith("_delta_log/")
        )
        attempt = stage_table(datastore, Slot("_whole"), numbers(1), attempt="_whole")
        assert attempt.folder.startswith("_whole-")
        report = clean(datastore, "_whole")
        assert report.removed == {
            "superseded": Amount(),
            "abandoned": Amount(1, attempt.files[0].size),
        }
        paths = [file.path for file in datastore.storage().list_files(uri)]
        assert set(log) < set(paths)
        assert {"_symlink_format_manifest/manifest", ".hidden", "_notes"} < set(paths)

    def test_second_one_has_nothing_to_do_and_commits_nothing(self, datastore: Datastore) -> None:
        put(datastore, WHOLE, numbers(1))
        put(datastore, WHOLE, numbers(2))
        clean(datastore, "whole")
        before = resolve(datastore, "whole")
        report = clean(datastore, "whole")
        assert report.removed == {"superseded": Amount(), "abandoned": Amount()}
        assert resolve(datastore, "whole") == before

    @pytest.mark.parametrize("survivors", range(6))
    def test_interrupted_it_can_be_run_again(self, datastore: Datastore, survivors: int) -> None:
        put_files(datastore, FILES, {"f": b"1", "g": b"2", "h": b"3"})
        newest = put_files(datastore, FILES, {"f": b"4"})
        remove = vacuum_module._remove

        def remove_some(datastore: Datastore, uris: list[str]) -> None:
            for uri in uris:
                if len(removed) == survivors:
                    raise KeyboardInterrupt
                remove(datastore, [uri])
                removed.append(uri)

        removed: list[str] = []
        with mock.patch.object(vacuum_module, "_remove", remove_some):
            try:
                clean(datastore, "files")
            except KeyboardInterrupt:
                assert survivors < 4
        assert contents_of(datastore, resolve(datastore, "files")) == {"f": b"4"}
        # From the moment at which it was announced, the old version is given up as a whole.
        states = {v.version: v.is_readable for v in list_versions(datastore, "files")}
        assert states == {0: False, 1: True, 2: True}
        with pytest.raises(DatasetNotFoundError, match="was vacuumed"):
            restore(datastore, "files", 0)
        clean(datastore, "files")
        assert len(stored(datastore, "files")) == 2
        assert resolve(datastore, "files").files == newest.files

    def test_missing_file_of_the_newest_version_stops_it(self, datastore: Datastore) -> None:
        put(datastore, WHOLE, numbers(1))
        newest = put(datastore, WHOLE, numbers(2))
        datastore.storage().remove(f"{newest.uri}/{newest.files[0].path}")
        with pytest.raises(DatasetError, match=r"Nothing was removed from 'whole': 1 files"):
            clean(datastore, "whole")
        assert values_of(datastore, restore(datastore, "whole", 0)) == [1]

    def test_restore_that_is_at_work_meanwhile_is_refused(self, datastore: Datastore) -> None:
        put(datastore, WHOLE, numbers(1))
        put(datastore, WHOLE, numbers(2))
        check = maintenance._check_restorable

        def check_before_vacuum(*arguments: object, **named: object) -> None:
            check(*arguments, **named)  # type: ignore[arg-type]
            # All is there, and now a vacuum says that it goes. It has removed nothing yet.
            cutoff = later(days=30).timestamp()
            vacuum_module._announce(datastore, "whole", cutoff=cutoff)

        with (
            mock.patch.object(maintenance, "_check_restorable", check_before_vacuum),
            pytest.raises(DatasetNotFoundError, match="was vacuumed"),
        ):
            restore(datastore, "whole", 0)

    def test_restore_before_it_is_announced_saves_the_files(self, datastore: Datastore) -> None:
        put(datastore, WHOLE, numbers(1))
        put(datastore, WHOLE, numbers(2))
        announce = vacuum_module._announce

        def announce_after_restore(*arguments: object, **named: object) -> int:
            restore(datastore, "whole", 0)
            return announce(*arguments, **named)  # type: ignore[arg-type]

        with mock.patch.object(vacuum_module, "_announce", announce_after_restore):
            clean(datastore, "whole")
        assert values_of(datastore, resolve(datastore, "whole")) == [1]

    def test_attempt_older_than_the_retention_is_refused_and_not_half_committed(
        self, datastore: Datastore
    ) -> None:
        newest = put(datastore, WHOLE, numbers(1))
        staged = stage_table(datastore, WHOLE, numbers(2))
        clean(datastore, "whole")
        with pytest.raises(StagedFilesError, match="is missing"):
            commit(datastore, staged, slot=WHOLE)
        assert resolve(datastore, "whole") == newest

    @pytest.mark.parametrize(("hours", "force"), [(167.9, False), (0, False), (-1, True)])
    def test_short_retention_has_to_be_forced(self, hours: float, force: bool) -> None:
        with pytest.raises(ConfigurationError, match=r"too short.*Keep 168 hours"):
            Retention(dt.timedelta(hours=hours), force)

    def test_forced_it_may_leave_nothing_but_the_newest_version(self, datastore: Datastore) -> None:
        put(datastore, WHOLE, numbers(1))
        put(datastore, WHOLE, numbers(2))
        nothing = Retention(dt.timedelta(), force=True, now=later(seconds=2))
        report = vacuum(datastore, "whole", retention=nothing, dry_run=False)
        assert report.removed["superseded"].files == 1

    def test_longer_retention_after_a_shorter_one(self, datastore: Datastore) -> None:
        put_files(datastore, FILES, {"f": b"1"})
        put_files(datastore, FILES, {"f": b"2"})
        clean(datastore, "files")
        put_files(datastore, FILES, {"f": b"3"})
        vacuum(datastore, "files", retention=Retention(dt.timedelta(days=365)), dry_run=False)
        assert contents_of(datastore, resolve(datastore, "files", version=1)) == {"f": b"2"}


class TestAttempts:
    def test_old_records_go_and_young_ones_stay(self, datastore: Datastore) -> None:
        for name in ("record.json", "job.json", "manifest.json"):
            datastore.storage().write_atomically(datastore.uri("_attempts", "old", name), b"{}")
        attempts, bundles = vacuum_attempts(datastore, dry_run=False)
        assert (attempts.removed["abandoned"], attempts.kept) == (Amount(), Amount(3, 6))
        attempts, _ = vacuum_attempts(
            datastore, retention=Retention(now=later(days=30)), dry_run=True
        )
        assert attempts.removed["abandoned"] == Amount(3, 6)
        assert len(datastore.storage().list_files(datastore.uri("_attempts"))) == 3
        vacuum_attempts(datastore, retention=Retention(now=later(days=30)), dry_run=False)
        assert datastore.storage().list_files(datastore.uri("_attempts")) == []
        assert bundles.kept == Amount()

    @pytest.mark.parametrize(
        ("record", "stays"),
        [
            (b'{"bundle": "/data/_bundles/a.zip"}', True),
            (b'{"bundle": "/data/_bundles/b.zip"}', False),
            (b'{"batch_id": "7"}', True),
            (None, False),
        ],
        ids=["named_by_a_young_attempt", "another_is_named", "attempt_names_none", "no_attempt"],
    )
    def test_old_bundle_stays_while_an_attempt_may_need_it(
        self, datastore: Datastore, record: bytes | None, stays: bool
    ) -> None:
        datastore.storage().write_atomically(datastore.uri("_bundles", "a.zip"), b"zip")
        if record is not None:
            datastore.storage().write_atomically(
                datastore.uri("_attempts", "young", "record.json"), record
            )
        list_files = type(datastore.storage()).list_files

        def list_as_old(storage: Storage, uri: str) -> list[StoredFile]:
            files = list_files(storage, uri)
            is_old = uri.endswith("_bundles")
            return [replace(file, modified=0.0) for file in files] if is_old else files

        with mock.patch.object(type(datastore.storage()), "list_files", list_as_old):
            vacuum_attempts(datastore, dry_run=False)
        left = datastore.storage().list_files(datastore.uri("_bundles"))
        assert bool(left) is stays
