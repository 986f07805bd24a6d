"""Random blobs, messages and crashes against what has to come of them; no service is needed.

The queue is a model of Azure's: a message that was received is hidden for a while, comes again
after it with a new receipt, and is deleted by its last receipt only.
"""

import contextlib
import itertools
import math
import random
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, cast
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st

from synapse_assets.arrivals.cursor import Cursor
from synapse_assets.arrivals.events import QueueEvents
from synapse_assets.arrivals.ledger import Entry, Ledger
from synapse_assets.arrivals.listing import Arrival, Walk, look_at
from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.arrivals.scan import Limits
from synapse_assets.arrivals.tick import Tick, run_tick
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.location import Location
from synapse_assets.datastore.queue import Message, Receipt, StorageQueue
from synapse_assets.datastore.storage import LocalStorage
from synapse_assets_tests.arrivals.daemon import run_key
from synapse_assets_tests.arrivals.event_messages import cloud_event, event_grid_event, plain

_PATTERNS = ArrivalPatterns.parse(["in/{arrival}/*.csv", "in/{arrival}.csv"])
_HIDDEN_SECONDS = 60
# The end of a tick: all was kept, or it crashed there.
_End = Literal["kept", "deleted", "received", "looked at", "returned"]


class CrashError(Exception):
    """The process ends in the middle of a tick."""


class ModelQueue(StorageQueue):
    """A queue in memory, with a clock that a test moves."""

    def __init__(self, order: random.Random) -> None:
        super().__init__(url="http://nowhere", name="arrivals", credential=None)
        self.now = 0.0
        self.bodies: dict[str, str] = {}
        self.parked: list[str] = []
        self._order = order
        self._visible_at: dict[str, float] = {}
        self._received: dict[str, int] = {}

    def send(self, body: str) -> None:
        name = f"{len(self._received):036}"
        self.bodies[name] = body
        self._visible_at[name], self._received[name] = self.now, 0

    def receive(self, *, at_most: int, hidden_seconds: int) -> list[Message]:
        visible = [name for name in self.bodies if self._visible_at[name] <= self.now]
        self._order.shuffle(visible)
        for name in visible[:at_most]:
            self._visible_at[name] = self.now + hidden_seconds
            self._received[name] += 1
        return [
            Message(Receipt(name, str(self._received[name])), self.bodies[name], times)
            for name in visible[:at_most]
            for times in [self._received[name]]
        ]

    def delete(self, receipts: Iterable[Receipt]) -> None:
        for receipt in receipts:
            if str(self._received[receipt.id]) == receipt.pop_receipt:
                self.bodies.pop(receipt.id, None)

    def sibling(self, name: str) -> StorageQueue:
        return _Parking(self.parked)


class _Parking(StorageQueue):
    def __init__(self, bodies: list[str]) -> None:
        super().__init__(url="http://nowhere", name="poison", credential=None)
        self._bodies = bodies

    def put(self, body: str) -> None:
        self._bodies.append(body)


class World:
    """A container in a folder, its queue, and a Dagster that keeps what a tick returned.

    Attributes:
        runs: The contents that runs were made for, in order, for each arrival.
        lost: Whether a change was made of which no message tells.
    """

    def __init__(self, folder: Path, order: random.Random) -> None:
        self.queue = ModelQueue(order)
        self.runs: dict[str, list[str]] = {}
        self.lost = False
        self._keys: set[str] = set()
        self._folder = folder
        self._order = order
        # Messages alone must do, as long as none is lost.
        self._text = Cursor(full_pass=0.0).to_json()
        self.location = Location.parse(
            "az://landing/lake", account=None, cloud=get_cloud("emulator")
        )

    def uri(self, *parts: str) -> str:
        return str(self._folder.joinpath(*parts))

    def storage(self) -> LocalStorage:
        return LocalStorage()

    def storage_queue(self, name: str, *, account: str | None) -> StorageQueue:
        return self.queue

    @property
    def datastore(self) -> Datastore:
        # It has all that a tick asks of one; a real one on a folder has no queue.
        return cast("Datastore", self)

    def change(self, path: str, *, keep: bool, told: int) -> None:
        """Write or remove a blob, and send so many messages of it."""
        if keep:
            self.storage().write_atomically(self.uri(path), b"1")
        else:
            self.storage().remove(self.uri(path))
        self.lost = self.lost or told == 0
        schema = self._order.choice([event_grid_event, cloud_event])
        what = "BlobCreated" if keep else "BlobDeleted"
        for _ in range(told):
            self.queue.send(plain(schema(f"lake/{path}", what=what)))

    def tick(self, end: _End, *, max_runs: int, full_pass: bool = False) -> None:
        events = QueueEvents(
            queue="arrivals",
            hidden_seconds=_HIDDEN_SECONDS,
            full_pass_seconds=0.0 if full_pass else math.inf,
        )
        with contextlib.suppress(CrashError), _crashing(self.queue, end):
            tick = run_tick(
                self.datastore,
                _PATTERNS,
                cursor=Cursor.from_json(self._text),
                ledger=self._ledger(),
                now=self.queue.now,
                limits=Limits(settle_seconds=0.0, max_runs_per_tick=max_runs),
                events=events,
            )
            if end == "kept":
                self._keep(tick)

    def _ledger(self) -> Ledger:
        return Ledger(self.storage(), self.uri("_arrivals", "model"), recall=self._recall)

    def _recall(self, arrivals: Collection[str]) -> dict[str, Entry]:
        return {n: Entry(r[-1], len(r) - 1) for n, r in self.runs.items() if r and n in arrivals}

    def _keep(self, tick: Tick) -> None:
        keys = [run_key(ask) for ask in tick.asked]
        # Dagster compares a tick's keys with those of former ticks, not with each other.
        assert len(set(keys)) == len(keys)
        for ask in tick.asked:
            if run_key(ask) not in self._keys:
                self._keys.add(run_key(ask))
                self.runs.setdefault(ask.arrival.name, []).append(ask.arrival.content)
        self._text = tick.cursor.to_json()

    def contents(self) -> dict[str, str]:
        return {a.name: a.content for a in Walk(self.datastore, _PATTERNS)}


@contextlib.contextmanager
def _crashing(queue: ModelQueue, end: _End) -> Iterator[None]:
    """Let the tick crash at a place of its way."""

    def crash(*_: Any, **__: Any) -> Any:
        raise CrashError

    where = "synapse_assets.arrivals.tick.look_at"
    if end == "deleted":
        with patch.object(queue, "receive", crash):
            yield
    elif end == "received":
        with patch(where, crash):
            yield
    elif end == "looked at":
        # Not at the first: a part of the arrivals was seen.
        calls = iter(range(2))

        def last(*a: Any, **bounds: Any) -> Arrival | None:
            return look_at(*a, **bounds) if next(calls, None) is not None else crash()

        with patch(where, last):
            yield
    else:
        yield


_PATHS = [f"in/{arrival}/{blob}.csv" for arrival in "12345678" for blob in "ab"] + ["in/1.csv"]
_ENDS: list[_End] = ["kept", "kept", "kept", "deleted", "received", "looked at", "returned"]
_CHANGE = st.tuples(
    st.just("change"), st.sampled_from(_PATHS), st.booleans(), st.sampled_from([0, 1, 1, 1, 2])
)
_TICK = st.tuples(st.just("tick"), st.sampled_from(_ENDS), st.sampled_from([0, 1, 1, 2]))
_WAIT = st.tuples(st.just("wait"), st.sampled_from([30.0, 61.0]))
# Long ones: short ones hardly ever leave anything for a later tick.
_STEPS = st.lists(_CHANGE | _TICK | _WAIT, min_size=30, max_size=60)


_PARKED_IN_A_CRASH: list[tuple[Any, ...]] = [
    ("tick", "kept", 0),
    ("change", "in/1/b.csv", True, 1),
    *[("wait", 61.0), ("tick", "received", 1)] * 6,
]


@settings(max_examples=100, deadline=None)
@example(_PARKED_IN_A_CRASH, 0, False)
@given(_STEPS, st.integers(0, 1000), st.booleans())
def test_every_content_that_stays_is_handed_over_once_whatever_crashes(
    steps: list[tuple[Any, ...]], seed: int, loses: bool
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="synapse-assets-"))
    try:
        world = World(folder, random.Random(seed))
        for what, *rest in steps:
            if what == "change":
                world.change(rest[0], keep=rest[1], told=rest[2] if loses else max(1, rest[2]))
            elif what == "tick":
                world.tick(rest[0], max_runs=rest[1])
            else:
                world.queue.now += rest[0]
        for _ in range(3):
            world.queue.now += _HIDDEN_SECONDS + 1
            # Without a lost message, messages alone must do.
            world.tick("kept", max_runs=1000, full_pass=world.lost)
        for name, content in world.contents().items():
            assert world.runs[name][-1] == content
        for runs in world.runs.values():
            assert all(one != next_ for one, next_ in itertools.pairwise(runs))
        assert world.queue.bodies == {}
    finally:
        shutil.rmtree(folder)
