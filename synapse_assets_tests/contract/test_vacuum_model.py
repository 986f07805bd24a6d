"""Random sequences of commits, crashes, restores and vacuums, with a clock that jumps ahead."""

import datetime as dt
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.maintenance import list_versions, restore
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import commit, resolve
from synapse_assets.datasets.vacuum import Retention, vacuum
from synapse_assets.errors import DatasetNotFoundError, StagedFilesError
from synapse_assets_tests.contract.stores import Store
from synapse_assets_tests.datasets.staging import contents_of, rows_of, stage_files, stage_table
from synapse_assets_tests.datasets.staging import numbers as rows

SLOTS = (
    Slot("whole"),
    *(Slot("parts", "part", key) for key in ("a", "%2F")),
    *(Slot("files", "part", key) for key in ("a", "../b")),
)
NAMES = sorted({slot.name for slot in SLOTS})
_MAX_RETENTION_SECONDS = 0.2
# What a version holds: the number of the attempt by partition; None for an unpartitioned one.
Content = dict[str | None, int]


@dataclass
class Version:
    """A version, and when the next one took its place, as this machine's clock tells."""

    content: Content
    superseded: float | None = None


class Vacuums(RuleBasedStateMachine):
    """Three datasets; every version that a vacuum had to keep is read after it."""

    store: Store

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.datastore = Store(self.store.name, self.folder).open()
        self.versions: dict[str, list[Version]] = {name: [] for name in NAMES}
        # The newest cutoff of all vacuums of a dataset.
        self.vacuumed: dict[str, float] = dict.fromkeys(NAMES, 0.0)
        self.staged: list[tuple[Slot, int, StagedDataset, float]] = []
        self.number = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(slot=st.sampled_from(SLOTS), is_late=st.booleans())
    def write(self, slot: Slot, is_late: bool) -> None:
        """Stage an attempt, and commit it unless it crashes or comes late to it."""
        self.number += 1
        if slot.name == "files":
            contents = {f"{i}": b"%d" % self.number for i in range(self.number % 3)}
            contents["number"] = b"%d" % self.number
            staged = stage_files(self.datastore, slot, contents)
        else:
            staged = stage_table(self.datastore, slot, *[rows(self.number)] * (self.number % 2 + 1))
        self.staged.append((slot, self.number, staged, time.time()))
        if not is_late:
            self.commit_late(-1)

    @precondition(lambda self: self.staged)
    @rule(index=st.integers(0, 3))
    def commit_late(self, index: int) -> None:
        slot, number, staged, when = self.staged.pop(index % len(self.staged) if index >= 0 else -1)
        made = self.versions[slot.name]
        try:
            commit(self.datastore, staged, slot=slot)
        except StagedFilesError:
            # Nothing but a vacuum for which the files were old can have taken them. Some stores
            # tell whole seconds only.
            assert int(when) <= self.vacuumed[slot.name]
            return
        before = made[-1].content if made else {}
        self._add(slot.name, {**before, slot.partition: number})

    @precondition(lambda self: any(self.versions.values()))
    @rule(data=st.data())
    def go_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name in NAMES if self.versions[name]]))
        made = self.versions[name]
        number = data.draw(st.integers(0, len(made) - 1))
        try:
            restored = restore(self.datastore, name, number)
        except DatasetNotFoundError:
            superseded = made[number].superseded
            assert superseded is not None
            assert superseded < self.vacuumed[name]
            return
        if restored.version == len(made):
            self._add(name, made[number].content)
        assert self._read(name, None) == made[number].content

    @precondition(lambda self: any(self.versions.values()))
    @rule(
        data=st.data(),
        ahead=st.floats(0, 2 * _MAX_RETENTION_SECONDS),
        retention=st.floats(0, _MAX_RETENTION_SECONDS),
    )
    def clean(self, data: st.DataObject, ahead: float, retention: float) -> None:
        name = data.draw(st.sampled_from([name for name in NAMES if self.versions[name]]))
        now = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=ahead)
        kept = dt.timedelta(seconds=retention)
        # Not more than the log's own milliseconds tell.
        cutoff = (now - kept).timestamp() + 0.002
        self.vacuumed[name] = max(self.vacuumed[name], cutoff)
        vacuum(self.datastore, name, retention=Retention(kept, True, now), dry_run=False)
        made = self.versions[name]
        if resolve(self.datastore, name).version == len(made):
            self._add(name, made[-1].content)
        for number, version in self._needed(name):
            assert self._read(name, number) == version.content

    @invariant()
    def every_needed_version_is_listed_as_readable(self) -> None:
        for name, made in getattr(self, "versions", {}).items():
            if made:
                listed = {v.version: v for v in list_versions(self.datastore, name)}
                assert sorted(listed) == list(range(len(made)))
                assert all(listed[number].is_readable for number, _ in self._needed(name))

    def _needed(self, name: str) -> Iterator[tuple[int, Version]]:
        for number, version in enumerate(self.versions[name]):
            if version.superseded is None or version.superseded >= self.vacuumed[name]:
                yield number, version

    def _add(self, name: str, content: Content) -> None:
        made = self.versions[name]
        if made:
            (newest,) = (v for v in list_versions(self.datastore, name) if v.version == len(made))
            made[-1].superseded = newest.committed.timestamp()
        made.append(Version(content))

    def _read(self, name: str, number: int | None) -> Content:
        version = resolve(self.datastore, name, version=number)
        content: Content = {}
        if name == "files":
            for key in version.partitions:
                files = contents_of(self.datastore, version.select({key}))
                content[key] = int(files["number"])
                assert len(files) == content[key] % 3 + 1
            return content
        for row in rows_of(self.datastore, version):
            assert content.setdefault(row.get("part"), row["x"]) == row["x"]
        for partition, found in content.items():
            assert sum(f.partition == partition for f in version.files) == found % 2 + 1
        return content


@pytest.mark.timeout(600)
def test_vacuum_never_removes_what_a_version_within_the_retention_needs(store: Store) -> None:
    machine = type("VacuumsOfStore", (Vacuums,), {"store": store})
    run_state_machine_as_test(
        machine,
        settings=settings(
            # A commit to a server takes a hundred times as long.
            max_examples=30 if store.name == "local" else 3,
            stateful_step_count=20,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
