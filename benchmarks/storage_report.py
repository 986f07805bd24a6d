"""What the benchmark of the stores measured, as a table and as a page."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

_MIB = 2**20


@dataclass(frozen=True)
class Comparison:
    """The same work done in several ways.

    Attributes:
        what: The work, in words.
        seconds: Times by variant, the variant that is judged first.
        at_most: Aim for the first variant's median as a multiple of the best other one's; None if
            there is none.
    """

    what: str
    seconds: dict[str, list[float]]
    at_most: float | None = None

    @property
    def medians(self) -> dict[str, float]:
        """Median time by variant."""
        return {name: statistics.median(values) for name, values in self.seconds.items()}

    @property
    def ratio(self) -> float:
        """The first variant's time as a multiple of the best other one's."""
        first, *others = self.medians.values()
        return first / min(others)


@dataclass(frozen=True)
class Memory:
    """How far a process grew while it worked.

    Attributes:
        what: The work, in words.
        grown: Its highest resident memory less that of the idle process, in bytes.
    """

    what: str
    grown: int


@dataclass(frozen=True)
class Results:
    """Everything that one run measured.

    Attributes:
        machine: What it ran on, in words.
        repeats: How often each variant ran.
        comparisons: What was compared, by part of the benchmark.
        memory: Growth of processes.
    """

    machine: dict[str, str]
    repeats: int
    comparisons: dict[str, list[Comparison]] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)


def format_tables(results: Results) -> str:
    """Return what was measured as Markdown."""
    lines: list[str] = []
    for part, comparisons in results.comparisons.items():
        lines += [
            f"### {part}",
            "| what | ours | the other | ratio | aim: at most | met |",
            "|---|---|---|---|---|---|",
            *map(_row, comparisons),
            "",
        ]
    if results.memory:
        lines += ["### Memory", "| what | grown by | aim: at most | met |", "|---|---|---|---|"]
        lines += [
            f"| {m.what} | {m.grown / _MIB:.0f} MiB | 100 MiB | {_met(m.grown <= 100 * _MIB)} |"
            for m in results.memory
        ]
    return "\n".join(lines).rstrip() + "\n"


def _row(comparison: Comparison) -> str:
    (_, ours), *others = comparison.seconds.items()
    shown = "<br>".join(f"{_spread(values)} {name}" for name, values in others)
    aim, met = "-", "-"
    if comparison.at_most is not None:
        aim = f"{comparison.at_most:.2f}"
        met = _met(comparison.ratio <= comparison.at_most)
    return (
        f"| {comparison.what} | {_spread(ours)} | {shown} | {comparison.ratio:.2f} | {aim} "
        f"| {met} |"
    )


def _spread(values: Sequence[float]) -> str:
    """Return the median, and the extremes behind it, in a unit that fits."""
    unit, factor = ("s", 1.0) if statistics.median(values) >= 1 else ("ms", 1_000.0)
    low, middle, high = (
        f"{value * factor:.3g}" for value in (min(values), statistics.median(values), max(values))
    )
    return f"**{middle} {unit}** ({low} to {high})"


def _met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"


def format_page(results: Results) -> str:
    """Return the whole page as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    return f"""# Performance of the stores

Written by `make bench-storage`, which measures in one run on one machine, and never by hand.

Machine: {machine}.

The store is Azurite on the same machine, so the figures are of the work around the network and not
of Azure: the server takes one of the cores, and latency is next to nothing. "local" is a folder.
Medians of {results.repeats} (lowest to highest), the variants in turning order. The ratio is ours
to the best of the others. Throughput of at least 0.95 of the raw library's is a ratio of at most
1.05.

| part | ours | the others |
|---|---|---|
| Files | what a FileDataset output does (`Path` written by its type handler) and what an input \
does (`list[Path]` loaded); both include the sha256 of every byte | azure-storage-blob with 8 MiB \
blocks, 4 connections for a large file, 8 threads for many; adlfs `put` and `get`. None hashes |
| Tables | type handler and commit; `resolve`, type handler and `collect`. "token login" is the \
way through adlfs that logins by token take, the others go through pyarrow's own file system | \
`write_deltalake`; `polars.scan_delta` and `scan_parquet` with `collect` |
| Commits | files that were staged before: check that each is there at its size, read each footer, \
make its statistics, commit, return the reference | "floor": `create_write_transaction` alone, \
given the same files with ready-made statistics; "write_deltalake": makes as many files with as \
many rows, by partition, and so includes writing them |
| Many versions | after 1,005 versions, half way between two checkpoints | after the first; the \
log was made by commits to a folder and copied to Azurite |
| References | `resolve` and `to_json` of a table of 10 GB | of 1 KB in as many files; the files \
are faked: the log names them with their sizes, and nothing reads them |

A commit replaces a version of the same files, which is how a materialization replaces a table.

## Aims and measurements
{format_tables(results)}
## Repeat it
```console
$ make bench-storage
$ python -m benchmarks.storage --only files --scale 0.02 --repeats 1    # a part; writes no page
```
"""
