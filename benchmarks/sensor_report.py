"""What the benchmark of the sensor measured, as a page."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VARIANTS = ("events", "listing", "naive", "get_s3_keys")
_MIB = 2**20
_EVENT_SECONDS = 0.05
_TICK_SECONDS = 20.0
_CURSOR_BYTES = 64 << 10


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        variant: Who looks for new blobs.
        blobs: Number of blobs that were there before.
        new: Number of new ones.
    """

    variant: str
    blobs: int
    new: int


@dataclass(frozen=True)
class Outcome:
    """What a case cost.

    Attributes:
        case: The case.
        seconds: The ticks of each repetition, until there was nothing left to do.
        asked: Number of runs that were asked for.
        cursor: Largest size of the cursor, in bytes.
        grown: Highest memory of the process less that before the ticks, in bytes.
    """

    case: Case
    seconds: Sequence[Sequence[float]]
    asked: int
    cursor: int
    grown: int

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "Outcome":
        """Return the outcome that a process printed as JSON."""
        return cls(**{**value, "case": Case(**value["case"])})

    @property
    def longest(self) -> float:
        """Median over the repetitions of the longest tick, in seconds."""
        return statistics.median(max(ticks) for ticks in self.seconds)

    @property
    def total(self) -> float:
        """Median over the repetitions of all ticks together, in seconds."""
        return statistics.median(sum(ticks) for ticks in self.seconds)

    @property
    def ticks(self) -> int:
        """Number of ticks until there was nothing left to do."""
        return len(self.seconds[-1])

    def __str__(self) -> str:
        case = self.case
        return (
            f"| {case.blobs:,} | {case.new:,} | {case.variant} | {_time(self.longest)} "
            f"| {self.ticks} | {_time(self.total)} | {self.asked:,} | {_size(self.grown)} "
            f"| {_size(self.cursor)} |"
        )


def format_page(outcomes: Sequence[Outcome], machine: Mapping[str, str]) -> str:
    """Return the whole page as Markdown."""
    ours = [o for o in outcomes if o.case.variant in ("events", "listing")]
    listing = [o for o in ours if o.case.variant == "listing"]
    most = max(o.case.blobs for o in outcomes)
    (ten,) = [o for o in ours if (o.case.variant, o.case.blobs, o.case.new) == ("events", most, 10)]
    few = [o for o in listing if o.case.blobs < most]
    aims = [
        (f"events: 10 new of {most:,}", _time(ten.longest), "50 ms", ten.longest < _EVENT_SECONDS),
        (
            "listing: the longest tick",
            _time(max(o.longest for o in listing)),
            f"{_TICK_SECONDS:g} s and a page",
            max(o.longest for o in listing) < _TICK_SECONDS + 1,
        ),
        (
            f"listing: memory at {most:,} blobs more than at fewer",
            _size(max(0, max(o.grown for o in listing) - max(o.grown for o in few))),
            "20 bytes for each arrival, and 20 MiB",
            max(o.grown for o in listing) < max(o.grown for o in few) + 20 * most + 20 * _MIB,
        ),
        (
            "cursor",
            _size(max(o.cursor for o in ours)),
            "64 KiB",
            max(o.cursor for o in ours) < _CURSOR_BYTES,
        ),
        (
            "each new blob is asked for once",
            "yes" if all(o.asked == o.case.new for o in ours) else "no",
            "yes",
            all(o.asked == o.case.new for o in ours),
        ),
    ]
    judged = "\n".join(
        f"| {what} | {measured} | {aim} | {'yes' if is_met else '**no**'} |"
        for what, measured, aim, is_met in aims
    )
    told = ", ".join(f"{name} {value}" for name, value in machine.items())
    rows = "\n".join(map(str, outcomes))
    return f"""# Performance of the arrival sensor

Written by `make bench-sensor`, which measures in one run on one machine, and never by hand.

Machine: {told}.

No service is asked: a listing client makes the SDK's pages (of 5,000 `BlobProperties`) out of
numbers, and the queue is a list, so latency and the parsing of answers are left out everywhere.
Dagster's database is SQLite in a folder. Each blob is an arrival of its own, which is the most
that there can be; the new ones lie evenly between the others. Ticks go on until there is nothing
left to do, and the runs that they ask for begin. The process is one that has ticked before where
it is measured several times: medians of 3, and of 1 where it takes more than 5 seconds.

| variant | does |
|---|---|
| events | our sensor, told by messages; the whole listing was passed through before |
| listing | our sensor, one pass over the whole listing, 200,000 blobs in a tick at most |
| naive | lists all, and compares with all keys, which are its cursor |
| get_s3_keys | the logic of dagster-aws's function: lists all, sorts by time, returns what comes \
after the last key. It misses what has the time of that key or comes late |

## Aims
| what | measured | aim | met |
|---|---|---|---|
{judged}

## Measurements
| blobs | new | variant | longest tick | ticks | together | asked for | memory grown by | cursor |
|---|---|---|---|---|---|---|---|---|
{rows}

A tick of Dagster ends after 60 seconds.

## Repeat it
```console
$ make bench-sensor
$ python -m benchmarks.sensor --blobs 1000 --new 10 --variants events    # a part; writes no page
```
"""


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
