"""The messages of one tick, sorted by what becomes of them, and what the cursor keeps of them."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any, TypeVar

from synapse_assets.arrivals.event_grid import BlobEvent, read_events
from synapse_assets.arrivals.pattern import ArrivalPattern, ArrivalPatterns
from synapse_assets.datastore.location import Location
from synapse_assets.datastore.queue import Message, Receipt, StorageQueue

POISON_SUFFIX = "-poison"

# Received more often than this, a message was never worked off: something is wrong with it, or
# with what it leads to.
_MAX_RECEIVED = 5
# Together they stay below what the cursor has for events.
_MAX_NAMES_BYTES = 10 << 10
_MAX_RECEIPTS_BYTES = 12 << 10
# A receipt takes 90 bytes or so.
_MAX_RECEIPTS = 128
# One request brings no more messages, and a name has this many bytes or so.
_PAGE = 32
_NAME_BYTES = 64
# A message has at most 64 KiB: https://learn.microsoft.com/rest/api/storageservices/put-message
_MAX_PARKED_BYTES = 48 << 10
_REASONS_TOLD = 5

_Value = TypeVar("_Value", str, Receipt)


@dataclass(frozen=True)
class MessageCounts:
    """Messages of one tick.

    Attributes:
        received: All of them.
        elsewhere: Those about other accounts, containers or names.
        unrelated: Those about something that changes no blob.
        parked: Those that were parked.
        arrivals: Arrivals that were looked at, some of which earlier ticks left.
        kept: Arrivals that the next tick looks at again.
    """

    received: int = 0
    elsewhere: int = 0
    unrelated: int = 0
    parked: int = 0
    arrivals: int = 0
    kept: int = 0

    def __str__(self) -> str:
        """Return what was seen, as a part of a sentence."""
        beside = [
            f"{count} {what}"
            for count, what in (
                (self.elsewhere, "about other places"),
                (self.unrelated, "about other things"),
                (self.parked, "parked"),
            )
            if count
        ]
        return f"{self.received} messages" + (f" ({', '.join(beside)})" if beside else "")


@dataclass(frozen=True)
class EventState:
    """What the cursor holds between ticks.

    Attributes:
        receipts: Messages to delete as soon as this state comes back.
        names: Arrivals to look at again, the oldest first.
        wants_full_pass: Whether something happened that only a full pass finds.
    """

    receipts: tuple[Receipt, ...] = ()
    names: tuple[str, ...] = ()
    wants_full_pass: bool = False

    @classmethod
    def read(cls, events: Mapping[str, Any]) -> "EventState":
        """Return the state that `Cursor.events` holds."""
        return cls(
            receipts=tuple(Receipt(*receipt) for receipt in events.get("receipts", ())),
            names=tuple(events.get("names", ())),
            wants_full_pass=bool(events.get("full_pass")),
        )

    def write(self) -> dict[str, Any]:
        """Return the state as `Cursor.events` holds it."""
        values = {
            "receipts": [[receipt.id, receipt.pop_receipt] for receipt in self.receipts],
            "names": list(self.names),
            "full_pass": self.wants_full_pass,
        }
        return {key: value for key, value in values.items() if value}


@dataclass(frozen=True)
class Place:
    """What the messages of one sensor are about."""

    location: Location
    patterns: ArrivalPatterns

    def arrivals_of(self, event: BlobEvent) -> tuple[set[str], bool]:
        """Return the arrivals that an event may have changed, and whether it may be any."""
        arrivals: set[str] = set()
        may_be_any = False
        if event.account in ("", self.location.account):
            for container, name in event.places:
                path = self._below_root(name) if container == self.location.container else None
                if path is None:
                    continue
                if event.kind == "folder":
                    named, any_ = self._of_folder(path)
                else:
                    named, any_ = self.patterns.match(path), False
                arrivals |= {named} if named else set()
                may_be_any |= any_
        return arrivals, may_be_any

    def _below_root(self, name: str) -> str | None:
        """Return the path of a blob or folder below the datastore's root, None if it is not."""
        root = self.location.path.strip("/")
        if not root or name == root:
            return name.removeprefix(root)
        return name[len(root) + 1 :] if name.startswith(f"{root}/") else None

    def _of_folder(self, path: str) -> tuple[str | None, bool]:
        """Return the arrival that lies in a folder, and whether there may be others in it."""
        head = self.patterns.head
        inside = f"{path.strip('/')}/".removeprefix("/")
        if head.startswith(inside):
            return None, True
        if not inside.startswith(head):
            return None, False
        first = inside[len(head) :].partition("/")[0]
        # A folder is an arrival where patterns go on with '/', and none where they have no '/'.
        if all(_is_simple(pattern) for pattern in self.patterns.patterns):
            return first or None, False
        return None, True


def _is_simple(pattern: ArrivalPattern) -> bool:
    """Tell whether a folder in the place of the arrival is the arrival, or has none in it."""
    rest = pattern.text[len(pattern.head) :].partition("}")[2]
    return rest.startswith("/") or ("/" not in rest and "**" not in rest)


class Inbox:
    """The messages of one tick, sorted by what becomes of them.

    Attributes:
        names: Arrivals to look at, in the order in which they were named.
        parked: Why messages were parked, for the first few.
        counts: How many of each kind there were.
    """

    def __init__(self, queue: StorageQueue, place: Place, *, kept: Collection[str]) -> None:
        self._queue = queue
        self._place = place
        # The cursor has these: if the tick crashes, it comes back with them.
        self._kept = frozenset(kept)
        self._held: list[tuple[Receipt, frozenset[str]]] = []
        self._wants_full_pass = False
        self.names: dict[str, None] = dict.fromkeys(kept)
        self.parked: list[str] = []
        self.counts = MessageCounts()

    def receive(
        self, *, at_most: int, hidden_seconds: int, until: float, clock: Callable[[], float]
    ) -> None:
        """Receive messages until there are no more, or a bound is reached.

        Args:
            at_most: The largest number of messages.
            hidden_seconds: For so long a message comes to nobody else.
            until: No further request is made after this time.
            clock: Tells the time.

        Raises:
            StorageError: The queue refused it, or was out of reach.
        """
        room = _MAX_NAMES_BYTES - _PAGE * _NAME_BYTES
        while clock() < until and _bytes_of(self.names) <= room:
            asked = min(_PAGE, _MAX_RECEIPTS - len(self._held), at_most - self.counts.received)
            page = self._queue.receive(at_most=asked, hidden_seconds=hidden_seconds)
            self._queue.delete([m.receipt for m in page if not self._holds(m)])
            self.counts = replace(self.counts, received=self.counts.received + len(page))
            if len(page) < _PAGE:
                return

    def state(self, done: set[str], *, wants_full_pass: bool) -> EventState:
        """Return what the next tick needs, if these arrivals are done with."""
        names = _fitting((name for name in self.names if name not in done), _MAX_NAMES_BYTES)
        settled = done | set(names)
        # A message about an arrival that found no room comes again.
        receipts = (receipt for receipt, about in self._held if about <= settled)
        return EventState(
            receipts=_fitting(receipts, _MAX_RECEIPTS_BYTES),
            names=names,
            wants_full_pass=wants_full_pass or self._wants_full_pass,
        )

    def _holds(self, message: Message) -> bool:
        """Sort a message; return whether it has to stay until the cursor is safe."""
        if message.received > _MAX_RECEIVED:
            self._park(message, f"it was received {message.received} times and never worked off")
            # What it was about is not forgotten; so it goes only when the cursor has the wish.
            self._wants_full_pass = True
            self._held.append((message.receipt, frozenset()))
            return True
        try:
            found = read_events(message.body)
        except ValueError as e:
            self._park(message, str(e))
            return False
        about: set[str] = set()
        may_be_any = False
        for event in found:
            arrivals, any_ = self._place.arrivals_of(event)
            about |= arrivals
            may_be_any |= any_
        if may_be_any:
            self._wants_full_pass = True
        elif not about:
            if all(event.kind == "other" for event in found):
                self.counts = replace(self.counts, unrelated=self.counts.unrelated + 1)
            else:
                self.counts = replace(self.counts, elsewhere=self.counts.elsewhere + 1)
        self.names.update(dict.fromkeys(sorted(about)))
        if about <= self._kept and not may_be_any:
            return False
        self._held.append((message.receipt, frozenset(about)))
        return True

    def _park(self, message: Message, reason: str) -> None:
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
        self._queue.sibling(f"{self._queue.name}{POISON_SUFFIX}").put(parked)
        if len(self.parked) < _REASONS_TOLD:
            where = self._queue.name + POISON_SUFFIX
            self.parked.append(f"message {message.receipt.id} is parked in {where}: {reason}")
        self.counts = replace(self.counts, parked=self.counts.parked + 1)


def _fitting(values: Iterable[_Value], at_most: int) -> tuple[_Value, ...]:
    """Return the first values, as many as take no more bytes in the cursor than that."""
    fitting: list[_Value] = []
    for value in values:
        at_most -= _bytes_of([astuple(value) if isinstance(value, Receipt) else value])
        if at_most < 0:
            break
        fitting.append(value)
    return tuple(fitting)


def _bytes_of(values: Iterable[Any]) -> int:
    """Return what values take in the cursor, at most."""
    return sum(len(json.dumps(value)) + 2 for value in values)
