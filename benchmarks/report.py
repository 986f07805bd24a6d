"""The tables, and whether the aims were met: computed from what was measured."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.measure import HAS_PSS, Measurement

_SMALL, _LARGE = 891, 2_000_000
_MIB = 2**20


@dataclass(frozen=True)
class Results:
    """Everything that one run of the benchmark measured.

    Attributes:
        machine: What it ran on, in words.
        repeats: How often each variant ran.
        runs: Measurements of time by rows and variant.
        memory: Measurements of memory, the same way.
        imports: Seconds by what was imported.
    """

    machine: dict[str, str]
    repeats: int
    runs: dict[tuple[int, str], list[Measurement]] = field(default_factory=dict)
    memory: dict[tuple[int, str], list[Measurement]] = field(default_factory=dict)
    imports: dict[str, list[float]] = field(default_factory=dict)

    def seconds(self, rows: int, variant: str) -> float:
        """Return the median wall time; KeyError if it was not measured."""
        return statistics.median(run.seconds for run in self.runs[rows, variant])

    def own_memory(self, rows: int, variant: str) -> float:
        """Return the median peak memory of the first process, in bytes."""
        return statistics.median(run.own for run in self.memory[rows, variant])

    def import_ratio(self) -> float:
        """Return what importing our definitions costs, as a multiple of importing Dagster."""
        ours, dagster = (
            statistics.median(self.imports[f"import {name}"])
            for name in ("synapse_assets.definitions", "dagster")
        )
        return ours / dagster


# What is aimed at, at most how much of it, its unit, and how it is computed.
_AIMS: tuple[tuple[str, float, str, Callable[[Results], float]], ...] = (
    (
        f"ours / plain at {_LARGE:,} rows",
        1.0,
        "",
        lambda r: r.seconds(_LARGE, "ours") / r.seconds(_LARGE, "plain"),
    ),
    (
        f"ours / bare at {_LARGE:,} rows",
        1.1,
        "",
        lambda r: r.seconds(_LARGE, "ours") / r.seconds(_LARGE, "bare"),
    ),
    (
        f"ours - bare at {_SMALL} rows",
        8.0,
        " s",
        lambda r: r.seconds(_SMALL, "ours") - r.seconds(_SMALL, "bare"),
    ),
    (
        f"orchestrator's own memory at {_LARGE:,} rows / at {_SMALL} rows (it does not grow)",
        1.05,
        "",
        lambda r: r.own_memory(_LARGE, "ours") / r.own_memory(_SMALL, "ours"),
    ),
    ("import synapse_assets.definitions / import dagster", 1.2, "", Results.import_ratio),
)


def format_tables(results: Results) -> str:
    """Return the tables as Markdown."""
    return "\n".join([*_aims(results), "", *_runs(results), "", *_ratios(results)]) + "\n"


def format_page(results: Results) -> str:
    """Return the whole page as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    memory = (
        "the proportional set size (PSS), which counts shared pages once"
        if HAS_PSS
        else "the resident set size (RSS), which counts shared pages in each process"
    )
    return f"""# Performance

Written by `make bench`, which measures in one run on one machine, and never by hand.

Machine: {machine}.

| variant | what it is |
|---|---|
| bare | the same steps as two scripts, one after the other, without an orchestrator |
| plain | the same four assets and five checks by hand: Spark in the orchestrator's process, an IO \
manager of Parquet and pickle, checks that read the data |
| ours | `synapse-assets run` with a fresh `DAGSTER_HOME` and datastore; Spark's JVM maps the \
archive of its classes that `make` prepares when it installs |
| ours, again | the same command a second time: nothing is to be done |

All call the same step functions, with the same Spark properties, on the same generated input
(seed 1912). `plain` and `ours` both call `execute_in_process` on a persistent instance.

- Time is of whole processes, from start to end; medians of {results.repeats}, interleaved, another
  variant first each time.
- Memory is of one further run each, whose time does not count, since to look takes time from what
  is looked at. It is the highest sum over the process and all its descendants, looked at four times
  a second: {memory}.
- The process's own peak is that of the one process that was started: of `ours`, the orchestrator
  without the steps; of `bare`, the larger of its two scripts.

## Aims and measurements
{format_tables(results)}
## Repeat it
```console
$ make bench
$ python -m benchmarks.run --rows 891 --repeats 1 --variants bare ours   # a part; writes no page
```
The figures say something where nothing else runs on the machine: compare `load before` (runnable
processes, over one minute, before the start) with the number of cores.
"""


def _aims(results: Results) -> list[str]:
    lines = ["| aim | at most | measured | met |", "|---|---|---|---|"]
    for name, limit, unit, compute in _AIMS:
        try:
            measured = compute(results)
        except KeyError:
            shown, met = "not measured", "-"
        else:
            shown = f"{measured:.2f}{unit}"
            met = "yes" if measured <= limit else "**no**"
        lines.append(f"| {name} | {limit:g}{unit} | {shown} | {met} |")
    return lines


def _runs(results: Results) -> list[str]:
    lines = [
        "| rows | variant | seconds | min to max | all processes, MiB | own peak, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for (rows, variant), runs in results.runs.items():
        memory = results.memory[rows, variant]
        tree = statistics.median(run.tree for run in memory) / _MIB
        own = results.own_memory(rows, variant) / _MIB
        lines.append(
            f"| {rows:,} | {variant} | {_spread([run.seconds for run in runs])} "
            f"| {tree:,.0f} | {own:,.0f} |"
        )
    for name, seconds in results.imports.items():
        lines.append(f"| - | `{name}` | {_spread(seconds)} | - | - |")
    return lines


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f}"


def _ratios(results: Results) -> list[str]:
    lines = ["| rows | ours / bare | ours / plain | ours - bare |", "|---|---|---|---|"]
    for rows in dict.fromkeys(rows for rows, _ in results.runs):
        by_variant = {
            variant: results.seconds(rows, variant)
            for variant in ("bare", "plain", "ours")
            if (rows, variant) in results.runs
        }
        if len(by_variant) == 3:
            bare, plain, ours = by_variant.values()
            lines.append(
                f"| {rows:,} | {ours / bare:.2f} | {ours / plain:.2f} | {ours - bare:.1f} s |"
            )
    return lines
