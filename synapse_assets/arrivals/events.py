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

import json
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from synapse_assets.arrivals.cursor import MAX_NAMES_BYTES, MAX_RECEIPTS_BYTES, fitting, size_of
from synapse_assets.arrivals.event_grid import BlobEvent, read_events
from synapse_assets.arrivals.pattern import ANY_ARRIVAL, ArrivalPatterns
from synapse_assets.datastore.location import Location
from synapse_assets.datastore.queue import Message, Receipt, StorageQueue

# Received more often than this, a message was never worked off: something is wrong with it, or
# with what it leads to.
_MAX_RECEIVED = 5
# A receipt takes 90 bytes or so.
_MAX_RECEIPTS = 128
# One request brings no more messages, and a name has this many bytes or so.
_PAGE = 32
_NAME_BYTES = 64
# A message has at most 64 KiB: https://learn.microsoft.com/rest/api/storageservices/put-message
_MAX_PARKED_BYTES = 48 << 10
_REASONS_TOLD = 5


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


@dataclass
class Inbox:
    """What a tick looks at by name: what former ticks left, and what its messages are about.

    Attributes:
        location: Where the blobs lie.
        patterns: Which of them form an arrival.
        names: Arrivals to look at, in the order in which they were named. If the tick crashes,
            the next one has those of the beginning again.
        received: Number of messages.
        beside: How many of them led to no arrival, by what they are.
        parked: Why messages were parked, for the first few.
        wants_full_pass: Whether something happened that only a full pass finds.
    """

    location: Location
    patterns: ArrivalPatterns
    names: dict[str, None]
    received: int = 0
    beside: Counter[str] = field(default_factory=Counter)
    parked: list[str] = field(default_factory=list)
    wants_full_pass: bool = False

    def __post_init__(self) -> None:
        """Note what needs no message."""
        self._kept = frozenset(self.names)
        # Messages that have to stay until the cursor is safe, and what they are about.
        self._held: list[tuple[Receipt, frozenset[str]]] = []

    def __str__(self) -> str:
        """Return what was received, as a part of a sentence."""
        beside = ", ".join(f"{count} {what}" for what, count in sorted(self.beside.items()))
        return f"{self.received} messages" + (f" ({beside})" if beside else "")

    def receive(self, queue: StorageQueue, events: QueueEvents, *, until: float) -> None:
        """Receive messages until there are no more, or a bound is reached.

        Args:
            queue: Where they are.
            events: How they are taken.
            until: No further request is made after this time, by the monotonic clock.

        Raises:
            StorageError: The queue refused it, or was out of reach.
        """
        room = MAX_NAMES_BYTES - _PAGE * _NAME_BYTES
        while time.monotonic() < until and size_of(self.names) <= room:
            room_for_receipts = _MAX_RECEIPTS - len(self._held)
            asked = min(_PAGE, room_for_receipts, events.max_messages - self.received)
            if asked <= 0:
                return
            page = queue.receive(at_most=asked, hidden_seconds=events.hidden_seconds)
            self.received += len(page)
            queue.delete([m.receipt for m in page if not self._holds(m, queue)])
            if len(page) < _PAGE:
                return

    def left(self, done: Collection[str]) -> tuple[tuple[str, ...], tuple[Receipt, ...]]:
        """Return the names and receipts for the cursor, if these arrivals are done with."""
        names = fitting((name for name in self.names if name not in done), MAX_NAMES_BYTES)
        # A message about an arrival that found no room comes again.
        safe = {*done, *names, ANY_ARRIVAL}
        receipts = (receipt for receipt, about in self._held if about <= safe)
        return names, fitting(receipts, MAX_RECEIPTS_BYTES)

    def _holds(self, message: Message, queue: StorageQueue) -> bool:
        """Sort a message; return whether it has to stay until the cursor is safe."""
        if message.received > _MAX_RECEIVED:
            reason = f"it was received {message.received} times and never worked off"
            self._park(message, queue, reason=reason)
            # What it was about is not forgotten; so it goes only when the cursor has the wish.
            about = {ANY_ARRIVAL}
        else:
            try:
                events = read_events(message.body)
            except ValueError as e:
                self._park(message, queue, reason=str(e))
                return False
            about = {a for e in events for a in arrivals_of(e, self.location, self.patterns)}
            if not about:
                is_other = all(event.kind == "other" for event in events)
                self.beside["about other things" if is_other else "about other places"] += 1
        self.wants_full_pass |= ANY_ARRIVAL in about
        self.names.update(dict.fromkeys(sorted(about - {ANY_ARRIVAL})))
        if about <= self._kept:
            return False
        self._held.append((message.receipt, frozenset(about)))
        return True

    def _park(self, message: Message, queue: StorageQueue, *, reason: str) -> None:
        """Put a message into the queue beside; who receives it then deletes it here."""
        body = message.body
        while True:
            parked = json.dumps(
                {
                    "reason": reason,
                    "id": message.receipt.id,
                    "received": message.received,
                    "is_whole": body == message.body,
                    "body": body,
                }
            )
            if len(parked) <= _MAX_PARKED_BYTES:
                break
            body = body[: len(body) // 2]
        where = f"{queue.name}-poison"
        queue.sibling(where).put(parked)
        self.beside["parked"] += 1
        if len(self.parked) < _REASONS_TOLD:
            self.parked.append(f"message {message.receipt.id} is parked in {where}: {reason}")


def arrivals_of(event: BlobEvent, location: Location, patterns: ArrivalPatterns) -> set[str]:
    """Return the arrivals that an event may have changed, maybe ANY_ARRIVAL among them."""
    if event.account not in ("", location.account):
        return set()
    root = location.path.strip("/")
    below = f"{root}/" if root else ""
    match = patterns.match_folder if event.kind == "folder" else patterns.match
    found = {
        match(name[len(below) :])
        for container, name in event.places
        if container == location.container and f"{name}/".startswith(below)
    }
    return {arrival for arrival in found if arrival}
