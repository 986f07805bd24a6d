"""The second way to see what is new: messages of Event Grid in a queue of Azure Queue Storage.

A message says that something happened to a blob. Which arrival it belongs to, its name tells; what
lies there now, a listing of that arrival alone. So a tick costs what is new, and not what is there.
Messages may come late, twice, out of order or about blobs that are gone: none of it matters, since
they only say where to look, and `scan` decides by what it finds.

A message is deleted in the tick after the one that received it, when the cursor that comes back
holds its receipt: that proves that Dagster kept what the tick asked for. If it did not, the message
comes again when its time of being hidden is over. An arrival that is not settled, or that a bound
left for later, is remembered by name in the cursor, and looked at in each tick until it is done; no
message is received while there is no room for its name.

Some are deleted at once, since nothing depends on them: those about other places, and those about
arrivals that the cursor had before. So a burst of blobs in one arrival takes a few ticks, and not
one receipt per blob. A message that cannot be understood, or was received too often without being
deleted, is parked in a queue beside, with the reason.

Event Grid may lose events, and not every change of a store makes one: a pass over the whole
listing, every hour unless told otherwise, is the safety net.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from synapse_assets.arrivals.cursor import Cursor
from synapse_assets.arrivals.inbox import EventState, Inbox, MessageCounts, Place
from synapse_assets.arrivals.ledger import Ledger
from synapse_assets.arrivals.listing import Arrival, TooLargeError, look_at
from synapse_assets.arrivals.orders import NO_ORDERS, Orders
from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.arrivals.scan import Outcome, ScanSettings, is_partition_key, scan
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import for_each_file
from synapse_assets.errors import ConfigurationError

# Of the time that a tick has, for receiving: the rest is for what the messages lead to.
_RECEIVING_SHARE = 0.5
# Listed at a time. No more, since a bound may stop the scan.
_ARRIVALS_AT_A_TIME = 14


@dataclass(frozen=True)
class QueueEvents:
    """Where the messages come from, and how they are taken.

    Attributes:
        queue: The queue that an event subscription sends to. It belongs to one sensor alone.
        account: The storage account of the queue; the datastore's own unless told.
        max_messages: At most so many are received in one tick.
        hidden_seconds: For so long a message that was received comes to nobody else. It must be
            longer than two ticks take; a message of a crashed tick comes again after it.
        full_pass_seconds: The whole listing is passed through at least this often.
    """

    queue: str
    account: str | None = None
    max_messages: int = 1000
    hidden_seconds: int = 300
    full_pass_seconds: float = 3600.0

    def check_interval(self, seconds: float) -> None:
        """Check that a message stays hidden for longer than two ticks.

        Raises:
            ConfigurationError: It does not.
        """
        if self.hidden_seconds <= 2 * seconds:
            raise ConfigurationError(
                f"hidden_seconds is {self.hidden_seconds}, and ticks are {seconds:g} seconds "
                f"apart: take more than {2 * seconds:g}, so that a message is not received again "
                "before it is deleted."
            )


@dataclass(frozen=True)
class EventTick:
    """What one look into the queue came to.

    Attributes:
        outcome: What `scan` made of the arrivals; its cursor holds what the next tick needs.
        counts: How many messages of each kind there were, and how many arrivals.
        parked: Why messages were parked, for the first few.
        wants_full_pass: Whether the whole listing should be passed through before its time. It
            stays so until `passed` is told.
    """

    outcome: Outcome
    counts: MessageCounts
    parked: tuple[str, ...]
    wants_full_pass: bool


def scan_events(
    events: QueueEvents,
    *,
    datastore: Datastore,
    patterns: ArrivalPatterns,
    cursor: Cursor,
    ledger: Ledger,
    now: float,
    settings: ScanSettings,
    orders: Orders = NO_ORDERS,
    clock: Callable[[], float] = time.monotonic,
) -> EventTick:
    """Delete what the last tick received, receive more, and look at the arrivals they name.

    With `max_runs` of zero nothing is received and looked at: the queue keeps it.

    Args:
        events: Where the messages come from.
        datastore: Where the blobs lie.
        patterns: How an arrival is read from a blob's name.
        cursor: The cursor as Dagster gave it back.
        ledger: What was handed over before.
        now: The time, in seconds since 1970.
        settings: Bounds of the tick.
        orders: What somebody told the sensor by hand.
        clock: Tells how long the tick takes, in seconds.

    Raises:
        StorageError: The queue or the store refused something, or was out of reach.
        ConfigurationError: The datastore has no queue.
    """
    started = clock()
    queue = datastore.storage_queue(events.queue, account=events.account)
    state = EventState.read(cursor.events)
    queue.delete(state.receipts)
    kept = dict.fromkeys((*state.names, *orders.open_replays(ledger.get)))
    inbox = Inbox(queue, Place(datastore.location, patterns), kept=kept)
    too_large: set[str] = set()

    def look(name: str) -> Arrival | None:
        try:
            return look_at(
                datastore,
                patterns,
                name,
                max_blobs=settings.max_blobs,
                max_seconds=settings.max_seconds,
            )
        except TooLargeError:
            too_large.add(name)
            return None

    looked_at: dict[str, Arrival | None] = {}
    found: Iterable[Arrival] = ()
    if settings.max_runs > 0:
        inbox.receive(
            at_most=events.max_messages,
            hidden_seconds=events.hidden_seconds,
            until=started + _RECEIVING_SHARE * settings.max_seconds,
            clock=clock,
        )
        found = _look_at(inbox.names, look, noting=looked_at)
    outcome = scan(
        found,
        cursor=cursor,
        ledger=ledger,
        now=now,
        settings=settings,
        orders=orders,
        clock=clock,
    )
    asked = {ask.arrival.name for ask in outcome.asked}
    done = {
        name
        for name, arrival in looked_at.items()
        if name in asked or not _may_change(arrival, ledger, orders)
    }
    # What a tick cannot list, a pass lists in parts.
    left = inbox.state(done, wants_full_pass=state.wants_full_pass or bool(too_large))
    return EventTick(
        outcome=replace(outcome, cursor=replace(outcome.cursor, events=left.write())),
        counts=replace(inbox.counts, arrivals=len(looked_at), kept=len(left.names)),
        parked=tuple(inbox.parked),
        wants_full_pass=left.wants_full_pass,
    )


def passed(cursor: Cursor) -> Cursor:
    """Return the cursor once a full pass has begun: what messages wanted of it is noted no more."""
    state = replace(EventState.read(cursor.events), wants_full_pass=False)
    return replace(cursor, events=state.write())


def _look_at(
    names: Iterable[str],
    look: Callable[[str], Arrival | None],
    *,
    noting: dict[str, Arrival | None],
) -> Iterator[Arrival]:
    """Yield the arrivals of these names that are there; note all that were looked at."""
    waiting = iter(tuple(names))
    while chunk := list(islice(waiting, _ARRIVALS_AT_A_TIME)):
        found = for_each_file(look, chunk)
        for name, arrival in zip(chunk, found, strict=True):
            # The scan takes none that it does not look at.
            noting[name] = arrival
            if arrival is not None:
                yield arrival


def _may_change(arrival: Arrival | None, ledger: Ledger, orders: Orders) -> bool:
    """Tell whether an arrival that no run was asked for is to be looked at again."""
    if arrival is None or not is_partition_key(arrival.name):
        return False
    return not orders.is_done(arrival, ledger.get(arrival.name))
