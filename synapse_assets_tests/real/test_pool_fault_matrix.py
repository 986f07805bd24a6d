"""Every fault at every call between a Spark pool's client and its service.

It runs against `fake_livy`, and its half for Synapse has the project's own façade in front of that.
"""

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from synapse_assets_tests.real.fake_livy import Plan
from synapse_assets_tests.real.fault_proxy import ALL_FAULTS, FaultKind, Request, Rule
from synapse_assets_tests.real.pool_bench import (
    CLIENTS,
    Bench,
    Outcome,
    Try,
    is_get,
    is_list,
    is_log,
)

# It needs none of the real services, but minutes.
pytestmark = pytest.mark.services

CALLS = (
    "POST",
    "list",
    "GET queued",
    "GET starting",
    "GET running",
    "GET ended",
    "DELETE",
    "GET deleted",
    "log",
)
_PHASES = {
    "GET queued": "not_started",
    "GET starting": "starting",
    "GET running": "running",
    "GET ended": "running",
}
_FOR_EVER = 1_000_000
_WORKERS = 24
_RETRY_AFTER = 1
_LIMIT_SECONDS = 0.8
# How long a fault that stays may go on before it is an error.
_PATIENCE_SECONDS = 1.5
# No cell takes longer, whatever is broken.
_LONGEST_SECONDS = 30.0


@dataclass(frozen=True)
class Cell:
    """One step of the matrix.

    Attributes:
        client: Which client.
        call: The call that is broken.
        fault: How.
        times: How often.
    """

    client: str
    call: str
    fault: FaultKind
    times: int = 1

    def __str__(self) -> str:
        """Return its name."""
        often = "" if self.times == 1 else " for ever"
        return f"{self.client}: {self.call}: {self.fault}{often}"


def plan_of(cell: Cell) -> Plan:
    """Return a batch that comes to the call that is broken."""
    if cell.call in ("DELETE", "GET deleted"):
        return Plan(seconds=0.1, is_endless=True)
    if cell.call == "log":
        return Plan(seconds=0.1, state="dead", leaves="nothing", log_lines=120)
    is_told_to_be_gone = cell.fault == "404 before" and cell.call == "GET queued"
    if cell.times > 1 and (cell.call in ("list", "GET running") or is_told_to_be_gone):
        return Plan(seconds=0.1, is_endless=True)
    return Plan(seconds=0.1, held=_PHASES.get(cell.call))


def rules_of(cell: Cell, step: Try) -> list[Rule]:
    """Return what breaks the call."""

    has_ended = threading.Event()

    def watch(status: int, content: bytes) -> tuple[int, bytes]:
        if json.loads(content)["state"] in ("dead", "success"):
            has_ended.set()
        return status, content

    def go_on() -> None:
        step.plan.release.set()
        if cell.call == "GET ended":
            # The first answer that tells of the end is the broken one.
            step.batches[-1].join()

    def is_in_phase(request: Request) -> bool:
        phase = _PHASES[cell.call]
        return is_get(request) and (cell.times > 1 or step.batches[-1].state == phase)

    def is_after_delete(request: Request) -> bool:
        return is_get(request) and any(seen.method == "DELETE" for seen in step.proxy.seen)

    matches: dict[str, Callable[[Request], bool]] = {
        "POST": lambda request: request.method == "POST",
        "list": is_list,
        "GET queued": is_in_phase,
        "GET starting": is_in_phase,
        "GET running": is_in_phase,
        "GET ended": is_in_phase,
        "DELETE": lambda request: request.method == "DELETE",
        "GET deleted": is_after_delete,
        "log": lambda request: is_log(request) or (is_get(request) and has_ended.is_set()),
    }
    rule = Rule(
        cell.fault,
        matches=matches[cell.call],
        times=cell.times,
        retry_after=_RETRY_AFTER if cell.fault == "429 before" else None,
        before=go_on,
    )
    if cell.call == "list":
        # A client looks there when an answer was lost.
        return [Rule("reset after", matches=matches["POST"]), rule]
    if cell.call == "log" and cell.client == "synapse":
        # It has no other log than the end that comes with the batch.
        state = Rule(
            matches=lambda request: is_get(request) and not has_ended.is_set(),
            times=_FOR_EVER,
            rewrite=watch,
        )
        return [state, rule]
    return [rule]


def expected(cell: Cell) -> str:
    """Return what has to come of a cell where the fault happens once."""
    if cell.call == "POST" and cell.fault in ("403 before", "404 before"):
        return "failed"
    if cell.call in ("DELETE", "GET deleted"):
        return "timeout"
    return "failed" if cell.call == "log" else "green"


def expected_for_ever(cell: Cell) -> str:
    """Return what has to come of a cell where the fault stays."""
    is_done = cell.fault.endswith(" after") or cell.fault in ("truncated", "reset within")
    if cell.call == "POST":
        refused = cell.fault in ("401 before", "403 before", "404 before")
        return "green" if is_done else "failed" if refused else "unavailable"
    if cell.call == "list":
        # Nobody can know whether it runs.
        return "unavailable+1 (told)"
    if cell.call == "GET queued" and cell.fault != "404 before":
        # It finishes while nobody can see it, and the manifest decides. What the service says
        # that there is not is not waited for.
        return "green"
    if cell.call in ("GET queued", "GET running"):
        refused = cell.fault in ("401 before", "403 before", "404 before")
        return "failed" if refused else "unavailable"
    if cell.call == "DELETE":
        return "timeout" if is_done else "timeout+1 (told)"
    return "timeout" if cell.call == "GET deleted" else "failed"


def run_cell(bench: Bench, cell: Cell) -> Outcome:
    is_brief = cell.times == 1
    has_limit = cell.call in ("DELETE", "GET deleted")
    with bench.step(
        cell.client,
        plan_of(cell),
        timeout=_LIMIT_SECONDS if has_limit else 60.0,
        patience=20.0 if is_brief else _PATIENCE_SECONDS,
    ) as step:
        step.proxy.break_next(*rules_of(cell, step))
        outcome = step.outcome()
        seen = step.proxy.seen
        hits = [request for request in seen if request.fault == cell.fault]
        outcome.was_hit = len(hits) == 1 if is_brief and cell.call != "list" else bool(hits)
        if cell.fault == "429 before" and is_brief and hits:
            later = [request.at - hits[0].at for request in seen if request.at > hits[0].at]
            outcome.came_back_after = min(later, default=None)
    return outcome


def problems_of(cell: Cell, outcome: Outcome, right: str) -> Iterator[str]:
    """Yield what is wrong with an outcome."""
    if not outcome.was_hit:
        yield "the fault did not happen"
    if str(outcome) != right:
        yield f"it came to '{outcome}', not '{right}'"
    if outcome.posted > 1:
        yield f"{outcome.posted} batches were made"
    if outcome.ran > 1 or (outcome.ended == "green" and outcome.ran != 1):
        yield f"{outcome.ran} batches ran"
    if outcome.ended != "green" and outcome.has_manifest:
        yield "an error although the step has finished"
    if outcome.seconds > _LONGEST_SECONDS:
        yield f"it took {outcome.seconds:.1f} s"
    if outcome.came_back_after is not None and outcome.came_back_after < _RETRY_AFTER * 0.95:
        yield f"the service was asked again after {outcome.came_back_after:.2f} s"
    if outcome.ended != "green" and not outcome.message.strip():
        yield "the error says nothing"


def table_of(outcomes: dict[Cell, Outcome], client: str) -> str:
    """Return the outcomes as a table: fault by call."""
    calls = [call for call in CALLS if any(cell.call == call for cell in outcomes)]
    rows = [["", *calls]]
    for fault in ALL_FAULTS:
        row = [
            str(o)
            for call in calls
            for c, o in outcomes.items()
            if c.client == client and c.call == call and c.fault == fault
        ]
        if row:
            rows.append([fault, *row])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [" | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def check_matrix(
    bench: Bench,
    cells: Sequence[Cell],
    right: Callable[[Cell], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run all cells, print what came of them, and fail if one is not right."""
    started = time.monotonic()
    with ThreadPoolExecutor(_WORKERS) as pool:
        outcomes = dict(zip(cells, pool.map(lambda c: run_cell(bench, c), cells), strict=True))
    wrong = [
        f"{cell}: {problem}\n    {outcome.message[:500]}"
        for cell, outcome in outcomes.items()
        for problem in problems_of(cell, outcome, right(cell))
    ]
    with capsys.disabled():
        for client in CLIENTS:
            print(f"\n\n{client}\n{table_of(outcomes, client)}")
        counts = Counter(str(outcome) for outcome in outcomes.values())
        print(f"\n{len(outcomes)} cells in {time.monotonic() - started:.0f} s: {dict(counts)}")
        ran = Counter(outcome.ran for outcome in outcomes.values())
        print(f"batches that ran in a cell: {dict(ran)}; wrong: {len(wrong)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.services
def test_a_fault_at_any_call_starts_no_second_batch_and_leaves_none(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [Cell(*each) for each in itertools.product(CLIENTS, CALLS, ALL_FAULTS)]
    check_matrix(bench, cells, expected, capsys)


@pytest.mark.services
def test_a_fault_that_stays_ends_in_time_and_says_what_may_run(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = [call for call in CALLS if call not in ("GET starting", "GET ended")]
    faults = [fault for fault in ALL_FAULTS if fault not in ("refused", "slow")]
    cells = [Cell(*each, times=_FOR_EVER) for each in itertools.product(CLIENTS, calls, faults)]
    check_matrix(bench, cells, expected_for_ever, capsys)
