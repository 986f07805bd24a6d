"""Random blobs and ticks that end badly, beside a model: every settled content is run once."""

import contextlib
import functools
import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from synapse_assets.arrivals import ledger as ledger_module
from synapse_assets.arrivals import tick as tick_module
from synapse_assets.arrivals.cursor import MAX_CURSOR_BYTES, Cursor
from synapse_assets.arrivals.ledger import Entry, Ledger
from synapse_assets.arrivals.listing import Arrival, Walk, look_at
from synapse_assets.arrivals.orders import Orders
from synapse_assets.arrivals.scan import Ask, Limits, scan
from synapse_assets.datastore.storage import Storage
from synapse_assets.defs.titanic.assets import PATTERNS
from synapse_assets.errors import StorageError
from synapse_assets_tests.arrivals.daemon import run_key
from synapse_assets_tests.contract.conftest import open_store
from synapse_assets_tests.contract.stores import Store

FOLDER = "landing/titanic"
_SETTLE_SECONDS = 30.0
_MAX_BLOBS = 5
_PAGE_FILES = 2
# One begins with the other, and '-' and ' ' come before '.' and '/'.
_ARRIVALS = ("a", "a a", "a-b", "a.b", "aa", "b")
_BLOBS = ("{}.csv", "{}/1.csv", "{}/deep/2.csv", "{}/3")
_NAMES = [blob.format(arrival) for arrival in _ARRIVALS for blob in _BLOBS]
_IGNORED = ["_tmp/1.csv", "a/_SUCCESS", "b/.2.csv", "a.csv.tmp", "aa/2.tmp", ".a.csv"]
NAMES = st.sampled_from(_NAMES + _IGNORED)
# What becomes of a tick.
ENDS = (
    "kept",
    "lost",
    "launched, and not kept",
    "kept, and launched in part",
    "kept, and launched late",
    "cursor reset",
    "crashed",
    "ledger not written",
)
_TICKS = {
    "end": st.sampled_from(ENDS),
    "max_runs": st.sampled_from([1, 2, 100]),
    "after": st.integers(0, 4),
    "seconds": st.sampled_from([0.0, 2.0, 1e9]),
}

# The content of an arrival, as the model knows it: names and etags.
Content = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Run:
    """A run that Dagster has launched."""

    arrival: str
    entry: Entry
    run_key: str
    content: Content


class CrashError(Exception):
    """The process ends in the middle of a tick."""


class Failing:
    """A store that can refuse to write."""

    def __init__(self, store: Storage) -> None:
        self._store = store
        self.is_failing = False

    def __getattr__(self, name: str) -> Any:
        if self.is_failing and name.startswith("write"):
            raise StorageError("The folder of the ledger is full.")
        return getattr(self._store, name)


class Arriving(RuleBasedStateMachine):
    """The real walk, scan, ledger and cursor on a real store; a clock, and Dagster, by hand."""

    store: Store
    operations = 0
    ends: dict[str, int]

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.datastore = Store(self.store.name, self.folder, self.store.variables).open()
        self.is_local = self.store.name == "local"
        self.storage: Any = Failing(self.datastore.storage())
        # Only the folder's own clock can be set; the others are real, and this one runs ahead.
        self.ahead = 0.0
        self.fake = 1_700_000_000.0
        self.changed: dict[str, tuple[Content, float]] = {}
        self.digests: dict[tuple[str, Content], str] = {}
        self.runs: list[Run] = []
        self.late: list[tuple[Ask, Content]] = []
        self.cursor: str | None = None
        self.complete_passes = 0
        self.orders = Orders()
        # Each order that was ever given: the arrival, and the change that was the last.
        self.replayed: set[tuple[str, int]] = set()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.check_all_is_handed_over()
            shutil.rmtree(self.folder)

    # What somebody does to the blobs.

    @rule(name=NAMES, size=st.integers(0, 2), age=st.sampled_from([0, 0, 0, 20, 5_000, -50]))
    def write(self, name: str, size: int, age: int) -> None:
        """Create or overwrite a blob; it may be dated back, or lie in the future."""
        self.count()
        self.put(name, size=size, age=age)

    @rule(names=st.lists(NAMES, min_size=2, max_size=8, unique=True))
    def burst(self, names: list[str]) -> None:
        for name in names:
            self.count()
            self.put(name, size=1, age=0)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        self.count()
        self.storage.remove(self.datastore.uri(FOLDER, name))
        self.note()

    @rule(old=NAMES, new=NAMES)
    def rename(self, old: str, new: str) -> None:
        """Rename a blob, which keeps its date in a folder and on HDFS."""
        self.count()
        uris = [self.datastore.uri(FOLDER, name) for name in (old, new)]
        if old == new or self.storage.stat(uris[0]) is None:
            return
        if self.is_local:
            Path(uris[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(uris[0]).replace(uris[1])
        else:
            content = self.storage.read_bytes(uris[0])
            assert content is not None
            self.storage.write_atomically(uris[1], content)
            self.storage.remove(uris[0])
        self.note()

    @rule(name=NAMES, end=st.sampled_from(ENDS), ticks=st.integers(1, 5), is_quiet=st.booleans())
    def come_and_go(self, name: str, end: str, ticks: int, is_quiet: bool) -> None:
        """Create a blob, have it seen, and delete it: the arrival is as it was before."""
        if self.storage.stat(self.datastore.uri(FOLDER, name)) is not None:
            return
        self.write(name=name, size=1, age=5_000)
        if not self.is_local:
            self.advance(seconds=31)
        for _ in range(ticks):
            self.tick_once(end=end, max_runs=100, after=1, seconds=1e9)
        self.delete(name=name)
        if is_quiet:
            self.be_quiet()

    @rule(seconds=st.sampled_from([0, 1, 10, 31, 100]))
    def advance(self, seconds: int) -> None:
        self.count()
        self.move_clock(seconds)

    @rule(arrival=st.sampled_from(_ARRIVALS))
    def replay(self, arrival: str) -> None:
        """Have an arrival asked for once more, as the command line does it."""
        self.count("replay")
        if arrival in self.look()[0]:
            last = self.ledger().confirm([arrival])[arrival]
            change = -1 if last is None else last.change
            self.replayed.add((arrival, change))
            self.orders = Orders({**self.orders.replay, arrival: change})

    # What becomes of the sensor.

    @rule(ticks=st.lists(st.fixed_dictionaries(_TICKS), min_size=1, max_size=4))
    def tick(self, ticks: list[dict[str, Any]]) -> None:
        for options in ticks:
            self.tick_once(**options)

    def tick_once(self, *, end: str, max_runs: int, after: int, seconds: float) -> None:
        """Evaluate the sensor within its bounds, and let Dagster do with the result as it may."""
        self.count(end)
        self.resume()
        if end == "crashed":
            self.crash(after=after)
            return
        self.storage.is_failing = end == "ledger not written"
        try:
            asked, cursor = self.evaluate(max_runs=max_runs, seconds=seconds)
        except StorageError:
            assert self.storage.is_failing
            return
        finally:
            self.storage.is_failing = False
        self.finish(asked, cursor, end=end, launched=after)

    @rule(damage=st.sampled_from(["all", "ledger", "base", "bytes"]))
    def lose_the_ledger(self, damage: str) -> None:
        """Lose all of the ledger, one of its two files, or the end of one."""
        self.count(f"ledger lost: {damage}")
        uri = self.datastore.uri("_arrivals", "model")
        for file in self.storage.list_files(uri):
            whole = f"{uri}/{file.path}"
            is_base = file.path != "ledger"
            if damage == "bytes":
                content = self.storage.read_bytes(whole)
                assert content is not None
                self.storage.write_atomically(whole, content[:-3])
            elif damage == "all" or is_base == (damage == "base"):
                self.storage.remove(whole)
        # Another process, too: none has it in memory.
        ledger_module._known_bases.clear()

    @rule()
    def be_quiet(self) -> None:
        self.count()
        self.check_all_is_handed_over()

    # The machinery.

    def count(self, end: str | None = None) -> None:
        type(self).operations += 1
        if end is not None:
            self.ends[end] = self.ends.get(end, 0) + 1

    @property
    def now(self) -> float:
        return self.fake if self.is_local else time.time() + self.ahead

    def move_clock(self, seconds: float) -> None:
        self.fake += seconds
        self.ahead += seconds

    def put(self, name: str, *, size: int, age: int) -> None:
        uri = self.datastore.uri(FOLDER, name)
        if self.is_local:
            # No two writes are at the same time, as on a real clock.
            self.move_clock(0.001)
            path = Path(uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * size)
            os.utime(path, (self.now - age, self.now - age))
        else:
            self.storage.write_atomically(uri, b"x" * size)
        self.note()

    def look(self) -> tuple[dict[str, Content], dict[str, float]]:
        """Return each arrival's content, and when its newest blob was written."""
        contents: dict[str, set[tuple[str, str]]] = {}
        newest: dict[str, float] = {}
        for file in self.storage.list_files(self.datastore.uri(FOLDER)):
            path = PurePosixPath(file.path)
            if path.suffix == ".tmp" or any(part[0] in "._" for part in path.parts):
                continue
            arrival = path.parts[0] if len(path.parts) > 1 else path.stem
            contents.setdefault(arrival, set()).add((file.path, file.etag))
            newest[arrival] = max(newest.get(arrival, 0.0), file.modified)
        return {name: frozenset(content) for name, content in contents.items()}, newest

    def note(self) -> None:
        """Remember since when each arrival has its content."""
        contents, _ = self.look()
        for name in {*contents, *self.changed}:
            content = contents.get(name, frozenset())
            if name not in self.changed or self.changed[name][0] != content:
                self.changed[name] = (content, self.now)

    def recall(self, arrivals: Collection[str]) -> dict[str, Entry]:
        latest: dict[str, Entry] = {}
        for run in reversed(self.runs):
            last = latest.get(run.arrival)
            if run.arrival in arrivals and (last is None or run.entry.change > last.change):
                latest[run.arrival] = run.entry
        return latest

    def ledger(self) -> Ledger:
        uri = self.datastore.uri("_arrivals", "model")
        return Ledger(self.storage, uri, recall=self.recall)

    def resume(self) -> None:
        """Launch what an interrupted tick had asked for, as Dagster does before the next one."""
        self.launch(self.late)
        self.late = []

    def crash(self, *, after: int) -> None:
        """Crash while arrivals are looked at."""

        def crashing(found: Iterable[Arrival], **options: Any) -> Any:
            def cut() -> Iterator[Arrival]:
                yield from itertools.islice(found, after)
                raise CrashError

            return scan(cut(), **options)

        with contextlib.suppress(CrashError), mock.patch.object(tick_module, "scan", crashing):
            self.evaluate(max_runs=100, seconds=1e9)

    def launch(self, asked: Iterable[tuple[Ask, Content]]) -> None:
        known = {run.run_key for run in self.runs}
        for ask, content in asked:
            if run_key(ask) not in known:
                self.runs.append(Run(ask.arrival.name, ask.entry, run_key(ask), content))

    def evaluate(self, *, max_runs: int, seconds: float) -> tuple[list[tuple[Ask, Content]], str]:
        contents, newest = self.look()
        ticking = itertools.count()
        limits = Limits(
            settle_seconds=_SETTLE_SECONDS,
            max_runs_per_tick=max_runs,
            max_blobs_per_tick=_MAX_BLOBS,
            max_seconds_per_tick=seconds,
        )
        with (
            mock.patch.object(
                tick_module,
                "Walk",
                functools.partial(Walk, page_size=_PAGE_FILES, clock=lambda: self.now),
            ),
            mock.patch.object(
                tick_module, "look_at", functools.partial(look_at, clock=lambda: self.now)
            ),
            mock.patch.object(
                tick_module,
                "scan",
                functools.partial(vars(tick_module)["scan"], clock=lambda: float(next(ticking))),
            ),
            mock.patch.object(ledger_module, "_MAX_RECENT", 2),
        ):
            tick = tick_module.run_tick(
                self.datastore,
                PATTERNS,
                cursor=Cursor.from_json(self.cursor),
                ledger=self.ledger(),
                now=self.now,
                limits=limits,
                orders=self.orders,
            )
        cursor = tick.cursor.to_json()
        assert len(cursor) <= MAX_CURSOR_BYTES
        self.complete_passes += tick.cursor.position is None
        asked = []
        for ask in tick.asked:
            name = ask.arrival.name
            content = contents[name]
            assert self.digests.setdefault((name, content), ask.arrival.content) == (
                ask.arrival.content
            ), "the content that was asked for is not the one that is there"
            since = max(self.changed[name][1], 0.0)
            assert min(newest[name], since) <= self.now - _SETTLE_SECONDS, "it had not settled"
            asked.append((ask, content))
        return asked, cursor

    def finish(
        self, asked: list[tuple[Ask, Content]], cursor: str, *, end: str, launched: int
    ) -> None:
        if end == "kept":
            self.launch(asked)
        elif end == "launched, and not kept":
            self.launch(asked)
            return
        elif end == "kept, and launched in part":
            self.launch(asked[:launched])
        elif end == "kept, and launched late":
            self.late = asked
        elif end == "lost":
            return
        self.cursor = "{}" if end == "cursor reset" else cursor
        if end == "cursor reset":
            self.launch(asked)

    def check_all_is_handed_over(self) -> None:
        """Let everything settle, and compare what was run with what there was."""
        self.resume()
        self.move_clock(2 * _SETTLE_SECONDS + 100)
        # One to see what was dated ahead, one to ask for it, one that finds nothing.
        for wait in (0.0, 2 * _SETTLE_SECONDS, 0.0):
            self.move_clock(wait)
            self.complete_passes = -(self.cursor is not None and self.is_within_a_pass())
            for _ in range(200):
                asked, cursor = self.evaluate(max_runs=100, seconds=1e9)
                self.finish(asked, cursor, end="kept", launched=0)
                if self.complete_passes > 0:
                    break
            else:
                raise AssertionError("a pass does not come to an end")
        assert not asked
        contents, _ = self.look()
        last = {run.arrival: run.content for run in self.runs}
        for name, content in contents.items():
            assert last.get(name) == content, f"'{name}' was not run as it is"
        for name in last:
            runs = [run for run in self.runs if run.arrival == name]
            for former, latter in itertools.pairwise(runs):
                is_replay = (name, former.entry.change) in self.replayed
                assert is_replay or former.content != latter.content, (
                    f"'{name}' was run twice for the same content"
                )
            if name in contents and name in self.orders.replay:
                assert runs[-1].entry.change > self.orders.replay[name], f"'{name}' not replayed"

    def is_within_a_pass(self) -> bool:
        return Cursor.from_json(self.cursor).position is not None


def run_model(store: Store, *, examples: int, steps: int) -> int:
    """Run the model, print what happened in it, and return the number of operations."""
    counted: type[Any] = type("Counted", (Arriving,), {"store": store, "operations": 0, "ends": {}})
    begun = time.monotonic()
    run_state_machine_as_test(
        counted,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            # Shrinking takes longer than the whole test.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    ends = ", ".join(f"{count} {end}" for end, count in sorted(counted.ends.items()))
    print(f"{counted.operations} operations in {time.monotonic() - begun:.0f} s; ticks: {ends}")
    return int(counted.operations)


def test_every_settled_content_is_run_once_in_a_folder(tmp_path: Path) -> None:
    assert run_model(Store("local", tmp_path), examples=80, steps=100) >= 10_000


def take_a_walk(store: Store, *, steps: int, seed: int) -> str:
    """Run the model once with steps by lot, and return what happened in it.

    Of a few examples, hypothesis makes simple ones.
    """
    counted: type[Any] = type("Counted", (Arriving,), {"store": store, "operations": 0, "ends": {}})
    model = counted()
    lot = random.Random(seed)
    model.start()
    for _ in range(steps):
        name, new = lot.choice(_NAMES + _IGNORED), lot.choice(_NAMES)
        options = {
            "end": lot.choice(ENDS),
            "max_runs": lot.choice([1, 2, 100]),
            "after": lot.randrange(5),
            "seconds": lot.choice([0.0, 2.0, 1e9]),
        }
        step = lot.choices(
            [
                "write",
                "burst",
                "delete",
                "rename",
                "flicker",
                "advance",
                "tick",
                "lose",
                "quiet",
                "replay",
            ],
            weights=[6, 1, 2, 2, 2, 4, 10, 1, 1, 1],
        )[0]
        if step == "write":
            model.write(name=name, size=lot.randrange(3), age=0)
        elif step == "burst":
            model.burst(names=lot.sample(_NAMES, 3))
        elif step == "delete":
            model.delete(name=name)
        elif step == "rename":
            model.rename(old=name, new=new)
        elif step == "advance":
            model.advance(seconds=lot.choice([1, 31, 100]))
        elif step == "flicker":
            model.come_and_go(
                name=new,
                end=lot.choice(ENDS),
                ticks=lot.randrange(1, 5),
                is_quiet=lot.random() < 0.5,
            )
        elif step == "tick":
            model.tick_once(**options)
        elif step == "lose":
            model.lose_the_ledger(damage=lot.choice(["all", "ledger", "base", "bytes"]))
        elif step == "replay":
            model.replay(arrival=lot.choice(_ARRIVALS))
        else:
            model.be_quiet()
    model.teardown()
    return f"{counted.operations} operations, {len(model.runs)} runs, ticks: {counted.ends}"


@pytest.mark.services
@pytest.mark.parametrize(("name", "steps"), [("azurite", 250), ("hdfs", 60)])
def test_every_settled_content_is_run_once_in_a_store(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, steps: int
) -> None:
    store = open_store(request, name, folder=tmp_path)
    seed = int(time.time())
    print(f"seed {seed}: {take_a_walk(store, steps=steps, seed=seed)}")
