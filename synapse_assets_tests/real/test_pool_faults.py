"""What breaks between a Spark pool's client and its service: one batch, and a right outcome.

The matrix runs against `fake_livy`, and its half for Synapse has the project's own façade in front
of that. A sample of it runs against a real Livy.
"""

import contextlib
import itertools
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError

from synapse_assets.compute import attempt as attempts
from synapse_assets.compute import batches, calls, chunk_reader
from synapse_assets.compute.attempt import Attempt
from synapse_assets.compute.batch import BatchService, Submission
from synapse_assets.compute.spark.livy import HttpLivyClient
from synapse_assets.compute.spark.options import SparkOptions
from synapse_assets.compute.spark.pool import LivySparkPool, SparkPool, SynapseSparkPool
from synapse_assets.compute.step import Step
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import resolve
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ComputeError, StepFailedError
from synapse_assets.services import SYNAPSE_POOL, Livy, SynapseEmulator
from synapse_assets.services.process import HOST
from synapse_assets_tests.real import fault_proxy
from synapse_assets_tests.real.fake_livy import Batch, FakeLivy, Plan
from synapse_assets_tests.real.fault_proxy import (
    ALL_FAULTS,
    FaultKind,
    FaultProxy,
    Request,
    Rule,
)

# Most of it needs none of the real services, but minutes.
pytestmark = pytest.mark.services

CLIENTS = ("livy", "synapse")
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

Rewrite = Callable[[dict[str, Any]], tuple[int, Any]]


# --- One step, with its service behind a proxy --------------------------------------------------


@dataclass
class Outcome:
    """What came of one step.

    Attributes:
        ended: 'green', or the name of our error.
        message: What that says.
        posted: How many batches the service made.
        ran: How many of them did the work.
        left: How many still ran when the step had ended.
        has_manifest: Whether the proof is there in the end.
        was_hit: Whether the fault happened at all.
        seconds: How long it took.
        came_back_after: How long after a 429 the service was asked again, in seconds.
    """

    ended: str
    message: str = ""
    posted: int = 0
    ran: int = 0
    left: int = 0
    has_manifest: bool = False
    was_hit: bool = True
    seconds: float = 0.0
    came_back_after: float | None = None

    @property
    def is_told(self) -> bool:
        """Whether the message says that something may still run."""
        return "may still run" in self.message or "If it has, end it" in self.message

    def __str__(self) -> str:
        """Return it as it stands in the table."""
        short = {
            "green": "green",
            "StepFailedError": "failed",
            "StepTimeoutError": "timeout",
            "ServiceUnavailableError": "unavailable",
        }
        left = f"+{self.left}" if self.left else ""
        return f"{short[self.ended]}{left}{' (told)' if left and self.is_told else ''}"


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


@dataclass
class Try:
    """One step that is tried.

    Attributes:
        key: Its attempt.
        client: Which client.
        proxy: Between client and service.
        plan: What the batch does.
        pool: The resource.
        service: Its verbs.
        attempt: The attempt.
    """

    key: str
    client: str
    proxy: FaultProxy
    plan: Plan
    pool: SparkPool
    service: BatchService
    attempt: Attempt
    fake: FakeLivy

    @property
    def batches(self) -> list[Batch]:
        return self.fake.batches_of(self.key)

    def new_submission(self) -> tuple[Submission, dict[str, Any]]:
        """Return a submission and the job file that goes with it."""
        submission = self.attempt.new_submission(bundle="no bundle", extras=["no launcher"])
        target = Slot("numbers").fresh_target(self.attempt.datastore, attempt=self.key)
        job = {
            "attempt": self.key,
            "step": {
                "module": "synapse_assets_tests.example_steps.plain",
                "function": "make_rows",
                "parameters": {},
            },
            "engine": "spark",
            "inputs": {},
            "outputs": {"numbers": asdict(target)},
            "manifest": self.attempt.uri(submission, "manifest.json"),
            "failure": self.attempt.uri(submission, "failure.json"),
            "claim": self.attempt.uri(submission, "claim"),
            "output": submission.output,
            "pipes": {},
        }
        return submission, job

    def run(self) -> dict[str, Any]:
        """Submit and wait, as `ComputeTarget.run` does."""
        submission, job = self.new_submission()
        reader = self.service.message_reader(submission)
        handler: Any = None  # no message comes
        with reader.read_messages(handler):
            batch_id = self.attempt.submit(self.service, submission, job=job, run_id="run")
            return self.attempt.wait(
                self.service, batch_id, submission, limits=self.pool.limits(), say=lambda _: None
            )

    def outcome(self) -> Outcome:
        """Run it and look at what came of it."""
        started = time.monotonic()
        try:
            manifest = self.run()
        except ComputeError as e:
            outcome = Outcome(type(e).__name__, str(e))
        else:
            outcome = Outcome("green")
            assert manifest["attempt"] == self.key
            assert manifest["outputs"]["numbers"]["rows"] == 3
        outcome.seconds = time.monotonic() - started
        # A driver that has written its manifest has a few things left to do.
        deadline = time.monotonic() + 0.3
        while any(batch.runs for batch in self.batches) and time.monotonic() < deadline:
            time.sleep(0.01)
        outcome.left = sum(batch.runs for batch in self.batches)
        outcome.posted = len(self.batches)
        outcome.ran = sum(batch.is_claimed for batch in self.batches)
        last = self.attempt.last_submission()
        outcome.has_manifest = last is not None and self.attempt.manifest(last[0]) is not None
        for batch in self.batches:
            batch.killed.set()
        return outcome


@dataclass
class Bench:
    """The services behind the proxies of all cells."""

    fake: FakeLivy
    emulator: SynapseEmulator
    folder: Path
    pools: Iterator[str] = field(default_factory=lambda: map("spark{}".format, itertools.count()))

    @contextlib.contextmanager
    def step(
        self,
        client: str,
        plan: Plan,
        *,
        timeout: float = 60.0,
        patience: float = 20.0,
        datastore: Datastore | None = None,
    ) -> Iterator[Try]:
        """Yield a step of a pool of its own."""
        key = f"step-{uuid.uuid4().hex[:16]}"
        self.fake.plan(key, plan)
        datastore = datastore or Datastore(root=str(self.folder / key))
        port = self.fake.port if client == "livy" else self.emulator.port
        with FaultProxy(port=port) as proxy:
            settings: dict[str, Any] = {
                "datastore": datastore,
                "timeout_seconds": timeout,
                "queued_timeout_seconds": patience,
                "starting_timeout_seconds": 20.0,
                "ending_timeout_seconds": patience,
                "unreachable_timeout_seconds": patience,
            }
            url = f"http://{HOST}:{proxy.port}"
            pool: SparkPool = (
                LivySparkPool(url=url, **settings)
                if client == "livy"
                else SynapseSparkPool(
                    workspace=url, pool=next(self.pools), cloud="emulator", **settings
                )
            )
            attempt = Attempt(key, datastore=datastore, fingerprint="f")
            service = pool.batch_service(None)
            yield Try(key, client, proxy, plan, pool, service, attempt, self.fake)


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Make what waits for seconds wait for tenths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_MIN_POLL_SECONDS", 0.05)
        patch.setattr(calls, "_PAUSES", (0.05, 0.1, 0.2, 0.3))
        patch.setattr(batches, "_LOOKS", (0.0, 0.1, 0.2, 0.3))
        patch.setattr(attempts, "_FIRST_POLL_SECONDS", 0.05)
        patch.setattr(chunk_reader, "_POLL_SECONDS", 0.05)
        patch.setattr(fault_proxy, "_DOWN_SECONDS", 0.3)
        patch.setattr(fault_proxy, "_TRICKLE_SECONDS", 0.3)
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    pools = [f"spark{number}" for number in range(500)]
    with (
        hurried(),
        FakeLivy() as fake,
        SynapseEmulator(livy_url=fake.url, pools=pools) as emulator,
    ):
        yield Bench(fake, emulator, tmp_path_factory.mktemp("faults"))


# --- The matrix ---------------------------------------------------------------------------------


def is_list(request: Request) -> bool:
    return request.method == "GET" and request.path.endswith("/batches")


def is_get(request: Request) -> bool:
    return request.method == "GET" and request.path.rpartition("/")[2].isdecimal()


def is_log(request: Request) -> bool:
    return request.path.endswith("/log")


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
    is_done = cell.fault in ("reset after", "500 after", "503 after", "truncated")
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


# --- What the service says and is not so --------------------------------------------------------


def in_state(step: Try, *states: str) -> Callable[[Request], bool]:
    """Return what matches a look at a batch that is in one of these states in truth."""
    return lambda request: is_get(request) and step.batches[-1].state in states


def saying(**fields: Any) -> Callable[[int, bytes], tuple[int, bytes]]:
    """Return what puts other values into an answer about a batch."""

    def rewrite(status: int, content: bytes) -> tuple[int, bytes]:
        return status, json.dumps({**json.loads(content), **fields}).encode()

    return rewrite


def answering(status: int, content: bytes) -> Callable[[int, bytes], tuple[int, bytes]]:
    return lambda *_: (status, content)


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("state", "times"), [("hibernating", 3), ("starting", 2), ("not_started", 1)]
)
def test_a_state_that_is_unknown_or_goes_backwards_changes_nothing(
    bench: Bench, client: str, state: str, times: int
) -> None:
    plan = Plan(seconds=0.1, held="running")
    with bench.step(client, plan) as step:
        step.proxy.break_next(
            Rule(
                matches=in_state(step, "running"),
                skip=1,
                times=times,
                rewrite=saying(state=state),
            ),
            Rule(matches=in_state(step, "running"), skip=2, before=plan.release.set),
        )
        outcome = step.outcome()
    assert (str(outcome), outcome.ran, outcome.posted) == ("green", 1, 1), outcome.message


def test_a_state_that_stays_unknown_ends_by_the_limit_and_the_manifest_counts(
    bench: Bench, client: str
) -> None:
    with bench.step(client, Plan(seconds=0.1), timeout=1.5, patience=1.0) as step:
        rewrite = saying(state="hibernating", result="Uncertain")
        step.proxy.break_next(Rule(matches=is_get, times=_FOR_EVER, rewrite=rewrite))
        outcome = step.outcome()
    assert (str(outcome), outcome.ran) == ("green", 1), outcome.message


@pytest.mark.parametrize("state", ["success", "dead", "killed", "error"])
def test_an_end_that_is_told_too_early_is_no_success_and_leaves_nothing(
    bench: Bench, client: str, state: str
) -> None:
    with bench.step(client, Plan(seconds=0.1, is_endless=True)) as step:
        rule = Rule(matches=in_state(step, "running"), skip=1, rewrite=saying(state=state))
        step.proxy.break_next(rule)
        outcome = step.outcome()
    assert (str(outcome), outcome.ran) == ("failed", 1)
    assert "ended without a manifest" in outcome.message


@pytest.mark.parametrize(
    ("state", "leaves", "right"),
    [
        ("success", "nothing", "failed"),
        ("success", "failure", "failed"),
        ("dead", "manifest", "green"),
        ("error", "manifest", "green"),
        ("dead", "failure", "failed"),
        ("dead", "nothing", "failed"),
    ],
)
def test_the_manifest_and_not_the_state_is_the_proof(
    bench: Bench, client: str, state: str, leaves: str, right: str
) -> None:
    with bench.step(client, Plan(seconds=0.1, state=state, leaves=leaves)) as step:
        outcome = step.outcome()
    assert (str(outcome), outcome.ran, outcome.posted) == (right, 1, 1), outcome.message
    assert ("input.csv, line 3" in outcome.message) == (leaves == "failure")


def test_a_batch_that_vanishes_after_its_manifest_is_a_success(bench: Bench, client: str) -> None:
    with bench.step(client, Plan(seconds=0.1)) as step:
        gone = Rule(
            "404 before",
            matches=lambda request: is_get(request) and step.batches[-1].state == "success",
            times=_FOR_EVER,
        )
        step.proxy.break_next(gone)
        outcome = step.outcome()
    assert (str(outcome), outcome.ran) == ("green", 1), outcome.message


def test_a_batch_that_vanishes_while_it_runs_is_told_and_adopted_by_its_manifest(
    bench: Bench, client: str
) -> None:
    plan = Plan(seconds=0.1, held="running")
    with bench.step(client, plan) as step:
        rule = Rule("404 before", matches=is_get, skip=3, times=_FOR_EVER, before=bench.fake.forget)
        step.proxy.break_next(rule)
        with pytest.raises(StepFailedError, match="may still run"):
            step.run()
        (batch,) = step.batches
        assert batch.runs
        # What the service has forgotten goes on, and a re-execution finds what it left.
        plan.release.set()
        batch.join()
        last = step.attempt.last_submission()
        assert last is not None
        assert step.attempt.manifest(last[0]) is not None


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b"[]", b"null", b"<html>Sign in</html>", b'{"id": null, "state": null}'],
    ids=repr,
)
def test_an_answer_to_the_post_that_says_nothing_starts_no_second_batch(
    bench: Bench, client: str, answer: bytes
) -> None:
    with bench.step(client, Plan(seconds=0.1)) as step:
        rewrite = answering(200, answer)
        step.proxy.break_next(Rule(matches=lambda r: r.method == "POST", rewrite=rewrite))
        outcome = step.outcome()
    assert (str(outcome), outcome.ran, outcome.posted) == ("green", 1, 1), outcome.message


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b"null", b'{"sessions": null}'], ids=repr)
@pytest.mark.parametrize("call", ["list", "GET"])
def test_an_answer_that_is_not_livys_is_asked_for_again(
    bench: Bench, client: str, call: str, answer: bytes
) -> None:
    with bench.step(client, Plan(seconds=0.1)) as step:
        matches = is_list if call == "list" else is_get
        step.proxy.break_next(
            Rule("reset after" if call == "list" else None, matches=lambda r: r.method == "POST"),
            Rule(matches=matches, rewrite=answering(200, answer)),
        )
        outcome = step.outcome()
    assert (str(outcome), outcome.ran, outcome.posted) == ("green", 1, 1), outcome.message


def test_a_list_that_lags_behind_hides_no_batch(bench: Bench, client: str) -> None:
    """Livy refuses the name the second time; of Synapse's two batches one does the work."""
    with bench.step(client, Plan(seconds=0.5, list_lag=1.0)) as step:
        step.proxy.break_next(Rule("reset after", matches=lambda r: r.method == "POST"))
        if client == "synapse":
            # The façade lists what it knows itself.
            step.proxy.break_next(
                Rule("reset after", matches=lambda r: r.method == "POST"),
                Rule(
                    matches=is_list,
                    times=4,
                    rewrite=answering(200, b'{"from": 0, "total": 0, "sessions": []}'),
                ),
            )
        outcome = step.outcome()
    assert (str(outcome), outcome.ran) == ("green", 1), outcome.message
    assert outcome.posted == (1 if client == "livy" else 2)


def test_cancelling_ends_both_batches_of_a_submission(bench: Bench) -> None:
    with bench.step("synapse", Plan(seconds=0.1, is_endless=True), timeout=0.8) as step:
        step.proxy.break_next(
            Rule("reset after", matches=lambda r: r.method == "POST"),
            Rule(
                matches=is_list,
                times=4,
                rewrite=answering(200, b'{"from": 0, "total": 0, "sessions": []}'),
            ),
        )
        outcome = step.outcome()
    assert (str(outcome), outcome.ran, outcome.posted) == ("timeout", 1, 2), outcome.message


def test_what_the_pool_has_no_room_for_waits(bench: Bench, client: str) -> None:
    """A refusal that passes is waited for as long as a batch may be queued."""
    with bench.step(client, Plan(seconds=0.1)) as step:
        busy = "Your pool only has 4 vcores available: AVAILABLE_COMPUTE_CAPACITY_EXCEEDED"
        content = json.dumps({"Message": busy, "msg": busy}).encode()
        tries = itertools.count()

        def refuse(status: int, answer: bytes) -> tuple[int, bytes]:
            next(tries)
            step.batches[-1].killed.set()
            bench.fake.forget_batch(step.batches[-1].id)
            return 400, content

        step.proxy.break_next(Rule(matches=lambda r: r.method == "POST", times=2, rewrite=refuse))
        outcome = step.outcome()
        lists = [request for request in step.proxy.seen if is_list(request)]
    assert (str(outcome), next(tries)) == ("green", 2), outcome.message
    assert lists == []


def test_a_login_that_fails_is_said_soon_and_starts_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Expired:
        def get_token(self, *scopes: str, **options: Any) -> AccessToken:
            raise ClientAuthenticationError("AADSTS7000222: the client secret has expired")

    with bench.step("synapse", Plan()) as step:
        monkeypatch.setattr(step.pool.client()._credential, "credential", Expired())  # type: ignore[attr-defined]
        outcome = step.outcome()
        assert step.proxy.seen == []
    assert (str(outcome), outcome.posted) == ("failed", 0)
    assert "the client secret has expired" in outcome.message
    assert outcome.seconds < 5


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_service_that_sends_a_post_elsewhere_is_not_followed(
    bench: Bench, client: str, status: int
) -> None:
    with bench.step(client, Plan(), patience=2.0) as step:
        step.proxy.break_next(
            Rule(matches=lambda r: r.method == "POST", rewrite=answering(status, b"{}"))
        )
        outcome = step.outcome()
        assert len([seen for seen in step.proxy.seen if seen.method == "POST"]) == 1
    assert str(outcome).startswith("failed")
    assert f"HTTP {status}" in outcome.message


# --- Interruptions ------------------------------------------------------------------------------


class Interruption(BaseException):
    """What Dagster raises in the middle of anything when a run is cancelled."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interruption_in_the_middle_of_the_post_leaves_no_batch(
    bench: Bench, client: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench.step(client, Plan(seconds=0.1, is_endless=True)) as step:
        real = step.pool.client()
        post = real.post_batch

        def interrupted(request: Any) -> Any:
            if moment == "after":
                post(request)
            raise Interruption

        monkeypatch.setattr(real, "post_batch", interrupted)
        with pytest.raises(Interruption):
            step.run()
        assert [batch.runs for batch in step.batches] == ([False] if moment == "after" else [])


def test_an_interruption_while_it_waits_leaves_no_batch(
    bench: Bench, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench.step(client, Plan(seconds=0.1, is_endless=True)) as step:

        def interrupted(batch_id: str, *, seconds: float) -> None:
            if step.batches[-1].state == "running":
                raise Interruption
            time.sleep(0.05)

        monkeypatch.setattr(step.service, "wait", interrupted)
        with pytest.raises(Interruption):
            step.run()
        (batch,) = step.batches
        assert not batch.runs


def test_an_interruption_is_not_hidden_by_a_service_that_is_down(
    bench: Bench, client: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with bench.step(client, Plan(seconds=0.1, is_endless=True), patience=1.0) as step:

        def interrupted(batch_id: str, *, seconds: float) -> None:
            step.proxy.break_next(Rule("503 before", times=_FOR_EVER))
            raise Interruption

        monkeypatch.setattr(step.service, "wait", interrupted)
        with pytest.raises(Interruption):
            step.run()
        assert "may still run" in caplog.text
        for batch in step.batches:
            batch.killed.set()


# --- Adoption -----------------------------------------------------------------------------------


def test_a_batch_whose_id_was_never_told_is_found_again(bench: Bench, client: str) -> None:
    with bench.step(client, Plan(seconds=0.3)) as step:
        submission, job = step.new_submission()
        storage = step.attempt.datastore.storage()
        storage.write_atomically(submission.job_file, json.dumps(job).encode())
        request = step.pool.request(submission, step.pool.asked())
        posted = step.pool.client().post_batch(request)
        step.proxy.break_next(
            Rule("503 before", matches=is_list), Rule("truncated", matches=is_list)
        )
        found = step.service.find(submission)
        assert found == posted.id
        manifest = step.attempt.wait(step.service, found, submission, limits={}, say=lambda _: None)
    assert manifest["attempt"] == step.key
    assert len(step.batches) == 1


def test_a_batch_is_found_beyond_the_first_page(bench: Bench, client: str) -> None:
    with bench.step(client, Plan(seconds=0.05)) as step:
        storage = step.attempt.datastore.storage()
        others = []
        real = step.pool.client()
        for _ in range(real.page_size + 1):
            submission, job = step.new_submission()
            storage.write_atomically(submission.job_file, json.dumps(job).encode())
            request = step.pool.request(submission, step.pool.asked())
            others.append((submission, real.post_batch(request).id))
        assert step.service.find(others[-1][0]) == others[-1][1]
        assert step.service.find(step.new_submission()[0]) is None


# --- The service itself is killed ---------------------------------------------------------------


@pytest.mark.services
def test_a_facade_that_is_killed_and_started_again_leaves_the_manifest_to_decide(
    bench: Bench, tmp_path: Path
) -> None:
    """It forgets its batches, and they go on behind it."""
    with SynapseEmulator(livy_url=bench.fake.url, folder=tmp_path / "emulator") as emulator:
        own = Bench(bench.fake, emulator, tmp_path, pools=itertools.repeat("spark01"))
        plan = Plan(seconds=0.1, held="running")
        with own.step("synapse", plan, patience=10.0) as step:

            def restart() -> None:
                emulator.kill()
                emulator.start()

            rule = Rule("reset before", matches=in_state(step, "running"), before=restart)
            step.proxy.break_next(rule)
            with pytest.raises(StepFailedError, match="may still run"):
                step.run()
            (batch,) = step.batches
            assert batch.runs
            plan.release.set()
            batch.join()
            last = step.attempt.last_submission()
            assert last is not None
            assert step.attempt.manifest(last[0]) is not None


@pytest.mark.services
def test_a_facade_that_stays_down_ends_the_step_in_time(bench: Bench, tmp_path: Path) -> None:
    with SynapseEmulator(livy_url=bench.fake.url, folder=tmp_path / "emulator") as emulator:
        own = Bench(bench.fake, emulator, tmp_path, pools=itertools.repeat("spark01"))
        with own.step("synapse", Plan(seconds=0.1, is_endless=True), patience=2.0) as step:
            rule = Rule("reset before", matches=in_state(step, "running"), before=emulator.kill)
            step.proxy.break_next(rule)
            outcome = step.outcome()
    assert str(outcome) == "unavailable+1 (told)"
    assert outcome.seconds < 10


# --- A sample on a real Livy, with real batches -------------------------------------------------

_REAL_LIMIT_SECONDS = 6.0


@dataclass(frozen=True)
class RealCell:
    """One fault at one call of a real batch.

    Attributes:
        client: Which client.
        call: The call that is broken.
        fault: How.
        function: The step.
        right: What has to come of it.
        after_post: What is broken at the POST before; None for nothing.
    """

    client: str
    call: str
    fault: FaultKind
    function: str = "make_rows"
    right: str = "green"
    after_post: FaultKind | None = None

    def __str__(self) -> str:
        """Return its name."""
        return f"{self.client}-{self.call}-{self.fault}".replace(" ", "_")


REAL = (
    RealCell("livy", "POST", "reset after"),
    RealCell("livy", "GET", "404 before"),
    RealCell("livy", "DELETE", "reset before", "run_long", "StepTimeoutError"),
    RealCell("synapse", "GET", "refused"),
    RealCell("synapse", "list", "truncated", after_post="reset after"),
    RealCell("synapse", "DELETE", "404 before", "run_long", "StepTimeoutError"),
)


def real_pool(client: str, url: str, datastore: Datastore, **settings: Any) -> SparkPool:
    small = SparkOptions(
        driver_memory="1g", driver_cores=1, executor_memory="1g", executor_cores=1, num_executors=1
    )
    settings = {"datastore": datastore, "options": small, **settings}
    if client == "livy":
        return LivySparkPool(url=url, **settings)
    return SynapseSparkPool(workspace=url, pool=SYNAPSE_POOL, cloud="emulator", **settings)


def materialize(
    pool: SparkPool,
    instance: dg.DagsterInstance,
    function: str = "make_rows",
    **parameters: Any,
) -> dg.ExecuteInProcessResult:
    """Materialize an asset whose step runs on a pool."""
    step = Step(f"synapse_assets_tests.example_steps.plain:{function}", parameters=parameters)

    @dg.asset
    def numbers(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        return target.run(step, context=context, inputs={}).get_materialize_result()

    return dg.materialize(
        [numbers],
        instance=instance,
        resources={"target": pool, "io_manager": DatasetIOManager(datastore=pool.datastore)},
        raise_on_error=False,
    )


def error_of(result: dg.ExecuteInProcessResult) -> tuple[str, str]:
    """Return class and message of what a step failed with, in front of what Dagster adds."""
    error = result.failure_data_for_node("numbers")
    assert error is not None
    assert error.error is not None
    cause = error.error.cause or error.error
    return cause.cls_name or "", cause.message


def spark_drivers(folder: Path) -> list[int]:
    """Return the processes of this machine that run a batch with a job file in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if str(folder) in command and "job.json" in command:
            found.append(process.pid)
    return found


def wait_until_none(look: Callable[[], Sequence[Any]], *, seconds: float) -> Sequence[Any]:
    deadline = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@pytest.mark.services
@pytest.mark.parametrize("cell", REAL, ids=str)
def test_a_fault_on_a_real_livy_starts_no_second_batch_and_leaves_none(
    cell: RealCell, livy: Livy, synapse_emulator: SynapseEmulator, tmp_path: Path
) -> None:
    datastore = Datastore(root=str(tmp_path / "datastore"))
    port = livy.port if cell.client == "livy" else synapse_emulator.port
    matches: dict[str, Callable[[Request], bool]] = {
        "POST": lambda request: request.method == "POST",
        "list": is_list,
        "GET": is_get,
        "DELETE": lambda request: request.method == "DELETE",
    }
    rules = [Rule(cell.fault, matches=matches[cell.call], skip=int(cell.call == "GET"))]
    if cell.after_post is not None:
        rules.insert(0, Rule(cell.after_post, matches=matches["POST"]))
    is_long = cell.function == "run_long"
    parameters = {"pid_file": str(tmp_path / "pids")} if is_long else {}
    with FaultProxy(port=port) as proxy, dg.DagsterInstance.ephemeral() as instance:
        proxy.break_next(*rules)
        pool = real_pool(
            cell.client,
            f"http://{HOST}:{proxy.port}",
            datastore,
            timeout_seconds=_REAL_LIMIT_SECONDS if is_long else 60.0,
        )
        result = materialize(pool, instance, cell.function, **parameters)
        assert cell.fault in [request.fault for request in proxy.seen]
    ended = "green" if result.success else error_of(result)[0]
    assert ended == cell.right, "" if result.success else error_of(result)[1]
    if result.success:
        assert resolve(datastore, "numbers").rows == 3
    (claim,) = (tmp_path / "datastore").glob("_attempts/*/*/claim")
    asked = [
        batch
        for batch in HttpLivyClient(livy.url).all_batches()
        if claim.parent.name in (batch.name or "")
    ]
    # Livy forgets what was deleted.
    assert len(asked) == (0 if is_long else 1)
    assert wait_until_none(lambda: spark_drivers(tmp_path), seconds=15.0) == []


@pytest.mark.services
@pytest.mark.parametrize(
    ("client", "is_quick"),
    [("synapse", True), ("livy", False)],
    ids=["finishes meanwhile", "is lost"],
)
def test_a_real_livy_that_is_killed_and_started_again_leaves_the_manifest_to_decide(
    livy: Livy, synapse_emulator: SynapseEmulator, client: str, is_quick: bool, tmp_path: Path
) -> None:
    """Livy keeps nothing of its batches, and spark-submit goes on while it is down."""
    datastore = Datastore(root=str(tmp_path / "datastore"))
    pid_file = tmp_path / "pids"

    def restart() -> None:
        while not pid_file.exists():
            time.sleep(0.1)
        livy.kill()
        while is_quick and not list((tmp_path / "datastore").glob("_attempts/*/*/manifest.json")):
            time.sleep(0.1)
        # What the batches of the old one have left goes here.
        livy.start()

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    url = livy.url if client == "livy" else synapse_emulator.endpoint
    pool = real_pool(client, url, datastore, timeout_seconds=120.0)
    seconds = 2.0 if is_quick else 120.0
    with dg.DagsterInstance.ephemeral() as instance:
        started = time.monotonic()
        result = materialize(pool, instance, "run_long", pid_file=str(pid_file), seconds=seconds)
    thread.join()
    assert time.monotonic() - started < 100.0
    assert result.success is is_quick, "" if result.success else error_of(result)
    if not is_quick:
        name, message = error_of(result)
        assert name == "StepFailedError", message
        assert "ended without a manifest" in message
        assert "may still run" in message
    assert wait_until_none(lambda: spark_drivers(tmp_path), seconds=15.0) == []
