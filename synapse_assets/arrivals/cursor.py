"""What a sensor remembers from tick to tick: at most 64 KiB of JSON, whatever lies in the store."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from synapse_assets.arrivals.listing import Arrival, Position
from synapse_assets.datastore.queue import Receipt

MAX_CURSOR_BYTES = 64 << 10
# Of that, each of its parts.
MAX_NAMES_BYTES = 10 << 10
MAX_RECEIPTS_BYTES = 12 << 10
_MAX_POSITION_BYTES = 16 << 10
_MAX_WAITING_BYTES = 16 << 10
_VERSION = 2

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Cursor:
    """The cursor of a sensor. Losing it costs time and nothing else.

    Attributes:
        position: Where the pass that is under way goes on; None if the next tick begins one.
        full_pass: When the last complete pass began; None if there was none.
        wants_full_pass: Whether something happened since that only a full pass finds.
        waiting: Arrivals that were written in the future, as the store's clock has it: their
            content, and when that was first seen.
        retries_from: Runs that failed before this time, in seconds since 1970, are dealt with.
        names: Arrivals to look at in the next tick, the oldest first.
        receipts: Messages to delete as soon as this cursor comes back.
    """

    position: Position | None = None
    full_pass: float | None = None
    wants_full_pass: bool = False
    waiting: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    retries_from: float = 0.0
    names: tuple[str, ...] = ()
    receipts: tuple[Receipt, ...] = ()

    def to_json(self) -> str:
        """Return the cursor as the text that Dagster keeps, within MAX_CURSOR_BYTES.

        What would not fit is left out: the youngest of those that wait, or the position. The next
        pass finds it again. Of names and receipts their maker takes as many as are `fitting`.
        """
        position = self.position
        waiting = sorted(self.waiting.items(), key=lambda item: item[1][1])
        return _dump(
            {
                **vars(self),
                "version": _VERSION,
                "position": position if size_of([position]) <= _MAX_POSITION_BYTES else None,
                "waiting": dict(fitting(waiting, _MAX_WAITING_BYTES)),
            }
        )

    @classmethod
    def from_json(cls, text: str | None) -> "Cursor":
        """Return the cursor that a text holds; a new one if it holds none that is understood."""
        try:
            value = json.loads(text or "{}")
            if value.pop("version", None) != _VERSION:
                return cls()
            position = value["position"]
            if position is not None:
                position["open"] = tuple(Arrival(**arrival) for arrival in position["open"])
                value["position"] = Position(**position)
            value["waiting"] = {
                name: (str(content), float(since))
                for name, (content, since) in value["waiting"].items()
            }
            value["names"] = tuple(value["names"])
            value["receipts"] = tuple(Receipt(**receipt) for receipt in value["receipts"])
            return cls(**value)
        # Whatever somebody wrote into the cursor by hand.
        except (AttributeError, KeyError, TypeError, ValueError):
            return cls()


def fitting(values: Iterable[_Value], at_most: int) -> tuple[_Value, ...]:
    """Return the first values, as many as take no more bytes in the cursor than that."""
    kept: list[_Value] = []
    for value in values:
        at_most -= size_of([value])
        if at_most < 0:
            break
        kept.append(value)
    return tuple(kept)


def size_of(values: Iterable[Any]) -> int:
    """Return the bytes that values take in the cursor, at most."""
    return sum(len(_dump(value)) + 2 for value in values)


def _dump(value: Any) -> str:
    # All of it ASCII, so that its length is its size. Data classes become objects.
    return json.dumps(value, separators=(",", ":"), default=vars)
