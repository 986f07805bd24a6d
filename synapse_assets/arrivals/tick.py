"""One tick: where arrivals are looked for, and what the next tick has to know.

Those that are known by name come first: what somebody told the sensor to ask for once more, what
former ticks left, and what messages are about. Then the pass over the whole listing goes on; where
messages tell what is new, only if one is due. Both are bounded, and what is left comes next.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from synapse_assets.arrivals.cursor import Cursor
from synapse_assets.arrivals.events import Inbox, QueueEvents
from synapse_assets.arrivals.ledger import Ledger
from synapse_assets.arrivals.listing import Arrival, Position, TooLargeError, Walk, look_at
from synapse_assets.arrivals.orders import NO_ORDERS, Orders
from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.arrivals.scan import Ask, Limits, Outcome, is_partition_key, scan
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import for_each_file

# Of the time that a tick has, for what is known by name: a pass is to come on even while messages
# never end. And of that, for receiving them: the rest is for what they lead to.
_NAMED_SHARE = 0.5
_RECEIVING_SHARE = 0.25
# Listed at a time. No more, since a bound may stop the scan.
_ARRIVALS_AT_A_TIME = 14


@dataclass(frozen=True)
class Tick:
    """What one tick came to.

    Attributes:
        asked: The runs to ask for.
        cursor: What the next tick has to know.
        said: What was seen, as parts of a sentence.
        refused: Names that cannot be those of partitions, in quotation marks; the first hundred.
    """

    asked: tuple[Ask, ...]
    cursor: Cursor
    said: tuple[str, ...]
    refused: tuple[str, ...]


def run_tick(
    datastore: Datastore,
    patterns: ArrivalPatterns,
    *,
    cursor: Cursor,
    ledger: Ledger,
    now: float,
    limits: Limits,
    orders: Orders = NO_ORDERS,
    events: QueueEvents | None = None,
) -> Tick:
    """Look for new arrivals, within the limits.

    With `max_runs_per_tick` of zero nothing is received and looked at: the queue keeps it.

    Args:
        datastore: Where the blobs lie.
        patterns: Which of them form an arrival.
        cursor: The cursor as Dagster gave it back.
        ledger: What was handed over before.
        now: Seconds since 1970.
        limits: The bounds.
        orders: What somebody told the sensor by hand.
        events: Where messages come from, if they do.

    Raises:
        StorageError: The queue or the store refused something, or was out of reach.
        ConfigurationError: The datastore has no queue.
    """
    started = time.monotonic()
    max_blobs, max_seconds = limits.max_blobs_per_tick, limits.max_seconds_per_tick
    queue = events and datastore.storage_queue(events.queue, account=events.account)
    if queue:
        queue.delete(cursor.receipts)
    names = dict.fromkeys((*cursor.names, *orders.open_replays(ledger.get)))
    inbox = Inbox(datastore.location, patterns, names)
    looked_at: dict[str, Arrival | None] = {}
    walk = Walk(
        datastore,
        patterns,
        position=cursor.position or Position(now),
        max_blobs=max_blobs,
        max_seconds=max_seconds,
    )
    is_passing = False

    def look(name: str) -> Arrival | None:
        try:
            return look_at(datastore, patterns, name, max_blobs=max_blobs, max_seconds=max_seconds)
        except TooLargeError:
            # A pass takes it in parts.
            inbox.wants_full_pass = True
            return None

    def find() -> Iterator[Arrival]:
        nonlocal is_passing
        if queue and events:
            until = started + _RECEIVING_SHARE * max_seconds
            inbox.receive(queue, events, until=until)
        to_look_at = iter(tuple(inbox.names))
        while time.monotonic() - started < _NAMED_SHARE * max_seconds:
            chunk = list(islice(to_look_at, _ARRIVALS_AT_A_TIME))
            if not chunk:
                break
            found = for_each_file(look, chunk)
            looked_at.update(zip(chunk, found, strict=True))
            yield from filter(None, found)
        is_passing = (
            events is None
            or cursor.position is not None
            or cursor.wants_full_pass
            or inbox.wants_full_pass
            or cursor.full_pass is None
            or now - cursor.full_pass >= events.full_pass_seconds
        )
        if is_passing:
            yield from (arrival for arrival in walk if not looked_at.get(arrival.name))

    outcome = scan(
        find(), waiting=cursor.waiting, ledger=ledger, now=now, limits=limits, orders=orders
    )
    done = {ask.arrival.name for ask in outcome.asked}
    done |= {
        name
        for name, found in looked_at.items()
        if found is None or not is_partition_key(name) or orders.is_done(found, ledger.get(name))
    }
    left, receipts = inbox.left(done)
    after = replace(
        cursor,
        wants_full_pass=cursor.wants_full_pass or inbox.wants_full_pass,
        waiting=outcome.waiting,
        names=left,
        receipts=receipts,
    )
    said = [f"{inbox}, {_count(len(looked_at), 'arrival')} looked at"] if events else []
    said += inbox.parked
    if is_passing:
        if cursor.position is None:
            after = replace(after, wants_full_pass=False)
        after = _passed(after, walk, settle_seconds=limits.settle_seconds)
        said.append(
            f"{_count(walk.position.blobs, 'blob')} in "
            f"{_count(walk.position.arrivals, 'arrival')} in {patterns.folder or 'the datastore'}, "
            f"{len(outcome.asked) or 'none'} of them new or changed"
        )
    said += _remarks(outcome, settle_seconds=limits.settle_seconds)
    if outcome.bound or after.position is not None:
        said.append(f"the next tick goes on, since {outcome.bound or 'there are many blobs'}")
    return Tick(outcome.asked, after, tuple(said), tuple(outcome.refused.first))


def _passed(cursor: Cursor, walk: Walk, *, settle_seconds: float) -> Cursor:
    """Return the cursor after a part of a pass, or the end of it."""
    if not walk.is_complete:
        return replace(cursor, position=walk.position)
    begun = walk.position.begun
    return replace(
        cursor,
        position=None,
        full_pass=begun,
        # Without what this pass would have settled if it were there.
        waiting={n: w for n, w in cursor.waiting.items() if w[1] + settle_seconds > begun},
    )


def _remarks(outcome: Outcome, *, settle_seconds: float) -> Iterator[str]:
    """Yield what is to be said of arrivals that no run is asked for."""
    settling, refused = outcome.settling, outcome.refused
    if settling.count:
        verb = "waits" if settling.count == 1 else "wait"
        within = f"within {settle_seconds:g} seconds"
        yield f"{settling.count:,} changed {within} and {verb}: {settling}"
    if refused.count:
        what = "a partition" if refused.count == 1 else "partitions"
        yield f"{refused.count:,} cannot be {what}: {refused}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
