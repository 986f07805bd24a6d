"""What a sensor remembers from tick to tick: at most 64 KiB of JSON, whatever lies in the store."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from synapse_assets.arrivals.listing import Arrival, Position

MAX_CURSOR_BYTES = 64 << 10
# Of that, the part of the second way of seeing what is new.
MAX_EVENTS_BYTES = 24 << 10
_MAX_POSITION_BYTES = 16 << 10
_MAX_WAITING_BYTES = 16 << 10
_VERSION = 1


@dataclass(frozen=True)
class Counts:
    """What was seen.

    Attributes:
        blobs: Blobs that the store listed.
        arrivals: Arrivals that they form.
        settling: Arrivals that still change.
        asked: Arrivals that a run was asked for.
        refused: Arrivals whose name cannot be that of a partition.
    """

    blobs: int = 0
    arrivals: int = 0
    settling: int = 0
    asked: int = 0
    refused: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


@dataclass(frozen=True)
class Cursor:
    """The cursor of a sensor. Losing it costs time and nothing else.

    Attributes:
        position: Where the pass that is under way goes on; None if the next tick begins one.
        pass_started: When that pass began, in seconds since 1970.
        pass_counts: What it has seen.
        full_pass: When the last complete pass began; None if there was none.
        waiting: Arrivals that were written in the future, as the store's clock has it: their
            content, and when that was first seen.
        retries_from: Runs that failed before this time, in seconds since 1970, are dealt with.
        events: What the second way of seeing what is new keeps here, as JSON values of
            MAX_EVENTS_BYTES at most.
    """

    position: Position | None = None
    pass_started: float | None = None
    pass_counts: Counts = Counts()
    full_pass: float | None = None
    waiting: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    retries_from: float = 0.0
    events: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the cursor as the text that Dagster keeps, within MAX_CURSOR_BYTES.

        What would not fit is left out: the youngest of those that wait, or the position. The next
        pass finds it again.

        Raises:
            ValueError: `events` takes more than its part.
        """
        events = dict(self.events)
        if _size(events) > MAX_EVENTS_BYTES:
            raise ValueError(f"The events in the cursor take more than {MAX_EVENTS_BYTES} bytes.")
        position = None if self.position is None else asdict(self.position)
        begins_anew = position is None or _size(position) > _MAX_POSITION_BYTES
        return _dump(
            {
                "version": _VERSION,
                "position": None if begins_anew else position,
                "pass_started": None if begins_anew else self.pass_started,
                "pass_counts": asdict(Counts() if begins_anew else self.pass_counts),
                "full_pass": self.full_pass,
                "waiting": _oldest(self.waiting),
                "retries_from": self.retries_from,
                "events": events,
            }
        )

    @classmethod
    def from_json(cls, text: str | None) -> "Cursor":
        """Return the cursor that a text holds; a new one if it holds none that is understood."""
        try:
            value = json.loads(text or "{}")
            if value.get("version") != _VERSION:
                return cls()
            position = value["position"]
            return cls(
                position=None
                if position is None
                else Position(
                    page=position["page"],
                    open=tuple(Arrival(**arrival) for arrival in position["open"]),
                ),
                pass_started=value["pass_started"],
                pass_counts=Counts(**value["pass_counts"]),
                full_pass=value["full_pass"],
                waiting={
                    name: (str(content), float(since))
                    for name, (content, since) in value["waiting"].items()
                },
                retries_from=float(value["retries_from"]),
                events=dict(value["events"]),
            )
        # Whatever somebody wrote into the cursor by hand.
        except (AttributeError, KeyError, TypeError, ValueError):
            return cls()


def _oldest(waiting: Mapping[str, tuple[str, float]]) -> dict[str, tuple[str, float]]:
    """Return those that wait longest, as many as there is room for."""
    kept: dict[str, tuple[str, float]] = {}
    size = 0
    for name, known in sorted(waiting.items(), key=lambda item: item[1][1]):
        size += _size({name: known})
        if size > _MAX_WAITING_BYTES:
            break
        kept[name] = known
    return kept


def _size(value: Any) -> int:
    return len(_dump(value))


def _dump(value: Any) -> str:
    # All of it ASCII, so that its length is its size.
    return json.dumps(value, separators=(",", ":"))
