"""What the benchmark of Spark pools measured, as tables and as a page."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

OURS = "ours"
# How an operator of Airflow's was told to poll.
DEFAULT, SAME_DELAY = "default", "same delay"
SERVICES = {
    "synapse": "AzureSynapseRunSparkBatchOperator",
    "livy": "LivyOperator",
}
_AIM_SECONDS = 1.0
_AIM_SHARE = 0.1


@dataclass(frozen=True)
class Wait:
    """How one batch was waited for.

    Attributes:
        delay: Seconds from the batch's end to the return of the call that waits for it; None if it
            returned earlier.
        requests: How many requests the service had by then.
        store_calls: How many files of the datastore were read or written by then.
    """

    delay: float | None
    requests: int
    store_calls: int


@dataclass(frozen=True)
class Survival:
    """What became of a batch whose service has a fault.

    Attributes:
        should_succeed: Whether a success is the right outcome.
        succeeded: Whether one was reported.
        batches: How many batches had been started when the call returned.
        left_running: How many of these were not at their end then.
        batches_again: How many there were after a second try, where there was one.
    """

    should_succeed: bool
    succeeded: bool
    batches: int
    left_running: int
    batches_again: int | None = None

    @property
    def is_survived(self) -> bool:
        """Whether it was one batch, rightly told of, and nothing of it runs on."""
        is_right = self.succeeded == self.should_succeed
        return is_right and self.batches == 1 and self.left_running == 0


@dataclass(frozen=True)
class Results:
    """Everything that one run measured.

    Attributes:
        machine: What it ran on, in words.
        waits: By seconds of a batch, service, and who waited (`OURS`, `DEFAULT`, `SAME_DELAY`).
        intervals: Seconds between two looks of an operator that has the same delay as ours, by
            seconds of a batch and service.
        faults: By fault, service, and who met it (`OURS`, `DEFAULT`).
    """

    machine: dict[str, str]
    waits: dict[tuple[int, str, str], list[Wait]] = field(default_factory=dict)
    intervals: dict[tuple[int, str], float] = field(default_factory=dict)
    faults: dict[str, dict[tuple[str, str], Survival]] = field(default_factory=dict)

    def delays(self, seconds: int, service: str, who: str) -> list[float]:
        """Return the delays, none of those who did not wait."""
        waits = self.waits.get((seconds, service, who), [])
        return [wait.delay for wait in waits if wait.delay is not None]

    def median(
        self, seconds: int, service: str, who: str, what: Callable[[Wait], int]
    ) -> float | None:
        """Return the median of a count, None if nothing was measured."""
        waits = self.waits.get((seconds, service, who))
        return None if waits is None else statistics.median(map(what, waits))


def format_tables(results: Results) -> str:
    """Return what was measured as Markdown."""
    lines = ["| aim | measured | met |", "|---|---|---|", *_aims(results)]
    lines += [
        "",
        "### Detection and requests",
        "| batch | who | looks every | delay, s | min to max | requests | datastore |",
        "|---|---|---|---|---|---|---|",
        *_waits(results),
        "",
        "### Faults",
        f"| fault | Synapse: ours | {SERVICES['synapse']} | Livy: ours | {SERVICES['livy']} |",
        "|---|---|---|---|---|",
        *_faults(results),
    ]
    return "\n".join(lines) + "\n"


def _aims(results: Results) -> list[str]:
    lines = []
    for seconds, service in results.intervals:
        delays = results.delays(seconds, service, OURS)
        limit = max(_AIM_SECONDS, _AIM_SHARE * seconds)
        lines.append(
            f"| {service}, {seconds} s: detected within {limit:g} s "
            f"| {max(delays):.2f} s at most | {_met(max(delays) <= limit)} |"
        )
    for seconds, service in results.intervals:
        ours = results.median(seconds, service, OURS, _requests)
        theirs = results.median(seconds, service, SAME_DELAY, _requests)
        store = results.median(seconds, service, OURS, lambda wait: wait.store_calls)
        if ours is not None and theirs is not None and store is not None:
            lines.append(
                f"| {service}, {seconds} s: fewer requests than {SERVICES[service]} for the same "
                f"delay | {ours:g} (and {store:g} to the datastore), theirs {theirs:g} "
                f"| {_met(ours < theirs)} |"
            )
    for service, operator in SERVICES.items():
        met, of, theirs_met, theirs_of = 0, 0, 0, 0
        for outcomes in results.faults.values():
            if (service, OURS) in outcomes:
                of += 1
                met += outcomes[service, OURS].is_survived
            if (service, DEFAULT) in outcomes:
                theirs_of += 1
                theirs_met += outcomes[service, DEFAULT].is_survived
        if of:
            lines.append(
                f"| {service}: all faults survived "
                f"| {met} of {of}, {operator} {theirs_met} of {theirs_of} | {_met(met == of)} |"
            )
    return lines


def _waits(results: Results) -> list[str]:
    lines = []
    for (seconds, service, who), waits in results.waits.items():
        delays = [wait.delay for wait in waits if wait.delay is not None]
        store = "-"
        if who == OURS:
            name, interval = f"{service}: ours", "adapts"
            store = f"{statistics.median(wait.store_calls for wait in waits):g}"
        else:
            name = SERVICES[service]
            interval = {"synapse": "60 s (default)", "livy": "never (default)"}[service]
            if who == SAME_DELAY:
                interval = f"{results.intervals[seconds, service]:g} s"
        delay = f"{statistics.median(delays):.2f} | {_extremes(delays)}" if delays else "- | -"
        requests = statistics.median(wait.requests for wait in waits)
        lines.append(f"| {seconds} s | {name} | {interval} | {delay} | {requests:g} | {store} |")
    return lines


def _extremes(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _faults(results: Results) -> list[str]:
    columns = [(service, who) for service in SERVICES for who in (OURS, DEFAULT)]
    return [
        f"| {fault} | {' | '.join(_survival(outcomes.get(column)) for column in columns)} |"
        for fault, outcomes in results.faults.items()
    ]


def _survival(survival: Survival | None) -> str:
    if survival is None:
        return "-"
    if survival.is_survived:
        return "yes"
    said = []
    if survival.succeeded != survival.should_succeed:
        said.append("a success is reported" if survival.succeeded else "a failure is reported")
    if survival.batches != 1:
        said.append(f"{survival.batches} batches")
    if survival.left_running:
        said.append(f"{survival.left_running} left running")
    if survival.batches_again is not None:
        said.append(f"{survival.batches_again} after a second try")
    return f"**no**: {', '.join(said)}"


def _requests(wait: Wait) -> int:
    return wait.requests


def _met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"


def format_page(results: Results) -> str:
    """Return the whole page as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    return f"""# Performance of Spark pools

Written by `make bench-spark`, which measures in one run on one machine, and never by hand.

Machine: {machine}.

The service is a stub on the same machine that speaks Synapse's and Livy's batch APIs and whose
batches sleep, so the figures are of the waiting and not of Spark. A batch of 2 s is in the states
`not_started` and `starting` for 1 s, and in `running` for a little more than 2 s: the end comes at
another part of a second each time, so that no interval is favoured.

| who | what it is |
|---|---|
| ours | `SynapseSparkPool` and `LivySparkPool` through `dg.materialize` of one asset. The stub \
does what the driver of a batch does: it claims the job, and writes manifest and last chunk 0.3 to \
0.7 s before `success` (with a real Livy it was 0.3 and 0.7 s) |
| `{SERVICES["synapse"]}` | Airflow's own, `execute` called outside of a scheduler, as it comes \
(`check_interval` 60 s) and with an interval that gives the same delay as ours |
| `{SERVICES["livy"]}` | the same; as it comes (`polling_interval` 0) it does not wait at all |

- The delay is from the end of the batch, which the stub knows, to the return of the call that
  waits: `ComputeTarget.run`, `execute`. What Dagster and Airflow do afterwards is in neither.
- "Same delay": who looks every n seconds learns of an end n/2 seconds late on average, so the
  interval is twice the mean delay of ours for batches of that length, in tenths of a second (the
  operators document whole seconds, and take these too).
- Requests are those that the service had until then, of all kinds; the aim is about these. Ours
  also follows the step's output in the datastore (here a folder), which is the last column: files
  that were read, looked for or written. It is where the output comes from while the step runs, and
  what tells that the end is near. The operators show no output before the end.
- A fault is survived if there was one batch, its outcome was told rightly, and nothing of it ran on
  when the call returned. Batches run for 3 s, the operators look every second. "After a second
  try": how many batches there were when a failed operator was run once more, as with `retries=1`,
  with what Airflow keeps of the first try (`task_state_store`). Batch ids begin with 1 here: a
  real Livy begins with 0, which `LivyOperator` would take for no id in its second try.
- "Looks" are requests for a batch's state; the second one is broken.

Patched in Airflow, because the stub has neither Entra ID nor TLS: the hook's
`get_sync_default_azure_credential` returns a credential with a constant token, and azure-core's
check that a token goes over https only is left out. The task instance is a stand-in that takes
values for XCom and forgets them; connections come from environment variables.

## Aims and measurements
{format_tables(results)}
## Repeat it
```console
$ make bench-spark                         # Airflow needs Python 3.11 or newer; about 10 minutes
$ make bench-spark BENCH_ARGS=--quick      # a part; writes no page
```
"""
