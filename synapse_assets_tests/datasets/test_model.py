"""Random sequences of what writers and readers do, compared with a model that keeps it all."""

import tempfile
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import commit, resolve
from synapse_assets.datastore import Datastore
from synapse_assets.errors import DatasetNotFoundError
from synapse_assets_tests.datasets.staging import (
    contents_of,
    numbers,
    rows_of,
    stage_files,
    stage_table,
)

SLOTS = (
    Slot("whole"),
    *(Slot("parts", "part", key) for key in ("a", "%2F", "../a")),
    Slot("files"),
)
# What a version holds: the number of the attempt by partition; None for an unpartitioned one.
Content = dict[str | None, int]


@dataclass
class Attempt:
    """An attempt, and the version that it made, if it has made one."""

    slot: Slot
    number: int
    staged: StagedDataset
    made: list[int] = field(default_factory=list)


class Writers(RuleBasedStateMachine):
    """Commits, repeats and crashes on three datasets."""

    attempts = Bundle("attempts")

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.datastore = Datastore(root=self.folder.name)
        self.versions: dict[str, list[Content]] = {slot.name: [] for slot in SLOTS}
        self.numbers = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @rule(target=attempts, slot=st.sampled_from(SLOTS))
    def stage_and_crash(self, slot: Slot) -> Attempt:
        """Stage files of an attempt; unless a later rule commits it, that was the end of it."""
        return self._stage(slot)

    @rule(target=attempts, slot=st.sampled_from(SLOTS))
    def stage_and_commit(self, slot: Slot) -> Attempt:
        attempt = self._stage(slot)
        self._commit(attempt)
        return attempt

    @rule(attempt=attempts)
    def commit_for_the_first_time_or_again(self, attempt: Attempt) -> None:
        self._commit(attempt)

    @rule(target=attempts, attempt=attempts)
    def try_once_more_and_commit(self, attempt: Attempt) -> Attempt:
        """A second try of an attempt, with files of its own, counts only if the first did not."""
        again = self._stage(attempt.slot, name=attempt.staged.attempt)
        again.made = attempt.made
        if attempt.made:
            again.number = attempt.number
        else:
            attempt.number = again.number
        self._commit(again)
        return again

    @rule(target=attempts, attempt=consumes(attempts))
    def forget(self, attempt: Attempt) -> object:
        return multiple()

    @precondition(lambda self: any(self.versions.values()))
    @rule(data=st.data())
    def read_an_old_version(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, made in self.versions.items() if made]))
        version = data.draw(st.integers(0, len(self.versions[name]) - 1))
        assert self._read(name, version) == self.versions[name][version]

    @invariant()
    def newest_version_is_the_last_commit(self) -> None:
        for name, made in getattr(self, "versions", {}).items():
            try:
                version = resolve(self.datastore, name)
            except DatasetNotFoundError:
                assert made == []
            else:
                assert version.version == len(made) - 1

    def _stage(self, slot: Slot, name: str | None = None) -> Attempt:
        self.numbers += 1
        number = self.numbers
        if slot.name == "files":
            contents = {"number": b"%d" % number}
            staged = stage_files(self.datastore, slot, contents, attempt=name)
        else:
            tables = [numbers(number)] * (number % 3 + 1)
            staged = stage_table(self.datastore, slot, *tables, attempt=name)
        return Attempt(slot, number, staged)

    def _commit(self, attempt: Attempt) -> None:
        slot, made = attempt.slot, self.versions[attempt.slot.name]
        version = commit(self.datastore, attempt.staged, slot=slot)
        if not attempt.made:
            attempt.made.append(len(made))
            made.append({**(made[-1] if made else {}), slot.partition: attempt.number})
        assert version == resolve(
            self.datastore,
            slot.name,
            version=attempt.made[0],
            partitions=None if slot.partition is None else [slot.partition],
        )
        assert self._read(slot.name, None) == made[-1]

    def _read(self, name: str, number: int | None) -> Content:
        version = resolve(self.datastore, name, version=number)
        if name == "files":
            return {None: int(contents_of(self.datastore, version)["number"])}
        content: Content = {}
        for row in rows_of(self.datastore, version):
            assert content.setdefault(row.get("part"), row["x"]) == row["x"]
        for partition, found in content.items():
            assert sum(f.partition == partition for f in version.files) == found % 3 + 1
        return content


TestWriters = Writers.TestCase
TestWriters.settings = settings(
    max_examples=30,
    stateful_step_count=15,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
