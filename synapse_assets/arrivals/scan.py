"""The engine: which of the arrivals that were found are new and settled, and to be asked for."""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from synapse_assets.arrivals.ledger import Entry, Ledger
from synapse_assets.arrivals.listing import Arrival
from synapse_assets.arrivals.orders import NO_ORDERS, Orders
from synapse_assets.arrivals.runs import RetryPolicy

_NAMES_KEPT = 100
_NAMES_TOLD = 5
_MAX_WAITING = 1_000
# What Dagster does not take in a partition key; lone surrogates, which no database takes, stand for
# bytes of a local name that are no text.
_REFUSED = re.compile("[\\a\\b\\f\\n\\r\\t\\v\\0\\ud800-\\udfff]|\\.\\.\\.")


@dataclass(frozen=True)
class Limits:
    """How much a sensor does.

    Attributes:
        settle_seconds: An arrival is settled once nothing of it has changed for so long.
        max_runs_per_tick: At most so many runs are asked for in one tick.
        max_queued_runs: None is asked for while so many wait to begin.
        max_blobs_per_tick: No further page is listed after so many blobs, and no arrival with more
            of them at once.
        max_seconds_per_tick: Nor after this time; Dagster ends a tick after 60 seconds.
        retries: When a failed arrival is asked for again.
    """

    settle_seconds: float = 30.0
    max_runs_per_tick: int = 100
    max_queued_runs: int = 500
    max_blobs_per_tick: int = 200_000
    max_seconds_per_tick: float = 20.0
    retries: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass
class Names:
    """Names of arrivals: how many there are, and the first hundred."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Add a name."""
        self.count += 1
        if self.count <= _NAMES_KEPT:
            self.first.append(name)

    def __str__(self) -> str:
        told = self.first[:_NAMES_TOLD]
        more = self.count - len(told)
        return ", ".join(told) + (f" and {more:,} more" if more else "")


@dataclass(frozen=True)
class Ask:
    """A run that is to be asked for.

    Attributes:
        arrival: The arrival.
        entry: What the ledger will hold once the run is there.
    """

    arrival: Arrival
    entry: Entry


@dataclass(frozen=True)
class Outcome:
    """What a scan came to.

    Attributes:
        asked: The runs to ask for.
        waiting: `Cursor.waiting` with what was learnt.
        settling: Arrivals that still change.
        refused: Those whose names cannot be those of partitions, in quotation marks.
        bound: Which bound was reached; nothing if all that was found was looked at.
    """

    asked: tuple[Ask, ...]
    waiting: Mapping[str, tuple[str, float]]
    settling: Names
    refused: Names
    bound: str


def scan(
    found: Iterable[Arrival],
    *,
    waiting: Mapping[str, tuple[str, float]],
    ledger: Ledger,
    now: float,
    limits: Limits,
    orders: Orders = NO_ORDERS,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Look at arrivals and return those that a run is to be asked for.

    An arrival is new if its content is another than the one that was handed over last, whatever
    any clock says. It is settled if its newest blob is old enough, or if it stayed the same for
    that long since it was first seen: clocks may differ. The ledger is written before this
    returns, so that the runs may be asked for.

    Args:
        found: The arrivals; none is taken from it after a bound was reached.
        waiting: `Cursor.waiting`.
        ledger: What was handed over.
        now: Seconds since 1970.
        limits: The bounds.
        orders: What somebody told the sensor by hand.
        clock: Measures the time that is spent here, in seconds.

    Raises:
        StorageError: The ledger could not be written. Then nothing may be asked for.
    """
    begun = clock()
    ledger.settle(now)
    waiting = dict(waiting)
    asked: list[Ask] = []
    # What is to be asked for, as far as the ledger knows.
    candidates: list[Arrival] = []
    settling, refused = Names(), Names()
    arrivals = iter(found)
    max_runs, max_seconds = limits.max_runs_per_tick, limits.max_seconds_per_tick
    bound = ""
    while True:
        if len(asked) + len(candidates) >= max_runs:
            asked += _confirmed(candidates, ledger, orders)
            candidates = []
        if len(asked) >= max_runs:
            bound = f"{max_runs} runs are the most in one tick"
            break
        if clock() - begun > max_seconds:
            bound = f"{max_seconds:g} seconds are the most for one tick"
            break
        arrival = next(arrivals, None)
        if arrival is None:
            break
        if not is_partition_key(arrival.name):
            refused.add(repr(arrival.name))
        elif orders.is_done(arrival, ledger.get(arrival.name)):
            waiting.pop(arrival.name, None)
        elif not _is_settled(arrival, waiting, now=now, seconds=limits.settle_seconds):
            settling.add(arrival.name)
        else:
            waiting.pop(arrival.name, None)
            candidates.append(arrival)
    asked += _confirmed(candidates, ledger, orders)
    ledger.doubt([ask.arrival.name for ask in asked], now=now)
    ledger.save()
    return Outcome(tuple(asked), waiting, settling, refused, bound)


def _confirmed(candidates: Sequence[Arrival], ledger: Ledger, orders: Orders) -> list[Ask]:
    """Return those that are to be asked for, by what Dagster's runs tell of them."""
    last = ledger.confirm([arrival.name for arrival in candidates])
    return [
        Ask(arrival, Entry.after(last[arrival.name], arrival.content))
        for arrival in candidates
        if not orders.is_done(arrival, last[arrival.name])
    ]


def is_partition_key(name: str) -> bool:
    """Tell whether Dagster takes a name for that of a partition."""
    return _REFUSED.search(name) is None


def _is_settled(
    arrival: Arrival,
    waiting: dict[str, tuple[str, float]],
    *,
    now: float,
    seconds: float,
) -> bool:
    """Tell whether an arrival changes no more, and note in `waiting` what only time can tell."""
    # One that was read over several ticks may have changed since it was begun.
    seen = min(now, arrival.begun)
    if seconds <= 0 or arrival.newest_modified <= seen - seconds:
        return True
    content, since = waiting.get(arrival.name, ("", now))
    if content == arrival.content and seen - since >= seconds:
        return True
    if content != arrival.content:
        # The time of what was not written in the future tells soon enough.
        if arrival.newest_modified > now and len(waiting) < _MAX_WAITING:
            waiting[arrival.name] = (arrival.content, now)
        else:
            waiting.pop(arrival.name, None)
    return False
