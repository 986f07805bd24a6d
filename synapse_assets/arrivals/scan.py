"""The engine: which of the arrivals that were found are new and settled, and to be asked for."""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from synapse_assets.arrivals.cursor import Counts, Cursor
from synapse_assets.arrivals.ledger import Entry, Ledger
from synapse_assets.arrivals.listing import Arrival
from synapse_assets.arrivals.orders import NO_ORDERS, Orders

_NAMES_TOLD = 100
_MAX_WAITING = 1_000
# What Dagster does not take in a partition key; lone surrogates, which no database takes, stand for
# bytes of a local name that are no text.
_REFUSED = re.compile("[\\a\\b\\f\\n\\r\\t\\v\\0\\ud800-\\udfff]|\\.\\.\\.")


@dataclass(frozen=True)
class ScanSettings:
    """The bounds of one tick.

    Attributes:
        settle_seconds: An arrival is settled once nothing of it has changed for so long.
        max_runs: At most so many runs are asked for.
        max_seconds: No further arrival is looked at after this time.
        max_blobs: An arrival with more blobs is not listed at once.
    """

    settle_seconds: float = 30.0
    max_runs: int = 100
    max_seconds: float = 20.0
    max_blobs: int = 200_000


@dataclass(frozen=True)
class Ask:
    """A run that is to be asked for.

    Attributes:
        arrival: The arrival.
        change: How many times a run was asked for another content of it before.
    """

    arrival: Arrival
    change: int

    @property
    def entry(self) -> Entry:
        """What the ledger will hold once the run is there."""
        return Entry(self.arrival.content, self.change)

    @property
    def run_key(self) -> str:
        """The key by which Dagster knows the run: '<arrival>:<content>:<change>'."""
        return f"{self.arrival.name}:{self.arrival.content}:{self.change}"


@dataclass(frozen=True)
class Outcome:
    """What a scan came to.

    Attributes:
        asked: The runs to ask for.
        cursor: The cursor with what was learnt (`waiting`), and all else as it was given.
        counts: What was seen; the blobs are those of the arrivals that were looked at.
        settling: Names of arrivals that still change, the first hundred.
        refused: Names that cannot be those of partitions, the first hundred.
        is_exhausted: Whether all that was found was looked at.
        reason: Which bound was reached otherwise.
    """

    asked: tuple[Ask, ...]
    cursor: Cursor
    counts: Counts
    settling: tuple[str, ...]
    refused: tuple[str, ...]
    is_exhausted: bool
    reason: str


def scan(
    found: Iterable[Arrival],
    *,
    cursor: Cursor,
    ledger: Ledger,
    now: float,
    settings: ScanSettings,
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
        cursor: What the last tick remembered.
        ledger: What was handed over.
        now: Seconds since 1970.
        settings: The bounds.
        orders: What somebody told the sensor by hand.
        clock: Measures the time that is spent here, in seconds.

    Raises:
        StorageError: The ledger could not be written. Then nothing may be asked for.
    """
    begun = clock()
    ledger.settle(now)
    waiting = dict(cursor.waiting)
    asked: list[Ask] = []
    # What is to be asked for, as far as the ledger knows.
    candidates: list[Arrival] = []
    settling: list[str] = []
    refused: list[str] = []
    blobs = looked_at = not_settled = not_named = 0
    arrivals = iter(found)
    reason = ""
    while True:
        if len(asked) + len(candidates) >= settings.max_runs:
            asked += _confirmed(candidates, ledger, orders)
            candidates = []
        if len(asked) >= settings.max_runs:
            reason = f"{settings.max_runs} runs are the most in one tick"
            break
        if clock() - begun > settings.max_seconds:
            reason = f"{settings.max_seconds:g} seconds are the most for one tick"
            break
        arrival = next(arrivals, None)
        if arrival is None:
            break
        blobs += arrival.blobs
        looked_at += 1
        if not is_partition_key(arrival.name):
            not_named += 1
            if len(refused) < _NAMES_TOLD:
                refused.append(arrival.name)
        elif orders.is_done(arrival, ledger.get(arrival.name)):
            waiting.pop(arrival.name, None)
        elif not _is_settled(arrival, waiting, now=now, seconds=settings.settle_seconds):
            not_settled += 1
            if len(settling) < _NAMES_TOLD:
                settling.append(arrival.name)
        else:
            waiting.pop(arrival.name, None)
            candidates.append(arrival)
    asked += _confirmed(candidates, ledger, orders)
    ledger.doubt([ask.arrival.name for ask in asked], now=now)
    ledger.save()
    return Outcome(
        asked=tuple(asked),
        cursor=replace(cursor, waiting=waiting),
        counts=Counts(
            blobs=blobs,
            arrivals=looked_at,
            settling=not_settled,
            asked=len(asked),
            refused=not_named,
        ),
        settling=tuple(settling),
        refused=tuple(refused),
        is_exhausted=not reason,
        reason=reason,
    )


def _confirmed(candidates: Sequence[Arrival], ledger: Ledger, orders: Orders) -> list[Ask]:
    """Return those that are to be asked for, by what Dagster's runs tell of them."""
    last = ledger.confirm([arrival.name for arrival in candidates])
    return [
        Ask(arrival, change=0 if entry is None else entry.change + 1)
        for arrival in candidates
        for entry in [last[arrival.name]]
        if not orders.is_done(arrival, entry)
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
