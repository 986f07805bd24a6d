"""What breaks between AzureMLCpu and its workspace: one job, one version, or an error that helps.

MLClient and run history's client go through a proxy that ends their connections, or answers in the
stand-in's place. Jobs are processes, and what they make is committed on Azurite.
"""

import itertools
import queue
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dagster as dg
import pytest

from synapse_assets.compute import batches
from synapse_assets.compute.batch import BatchState
from synapse_assets.compute.cpu import AzureMLCpu
from synapse_assets.compute.step import Step
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.table import resolve
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import Emulator
from synapse_assets.errors import ComputeError, DatasetNotFoundError
from synapse_assets.services import (
    ML_RESOURCE_GROUP,
    ML_SUBSCRIPTION,
    ML_WORKSPACE,
    AzureMLStandIn,
    Azurite,
)
from synapse_assets.services.azureml import TLS
from synapse_assets.services.process import HOST
from synapse_assets_tests.contract.stores import CONTAINER
from synapse_assets_tests.real import fault_proxy
from synapse_assets_tests.real.fault_proxy import FaultKind, FaultProxy, Request, Rule
from synapse_assets_tests.real.haste import hurried
from synapse_assets_tests.real.pool_bench import SHORT, is_told

pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(300),
    # What is silenced for a moment in one thread is not so in another one.
    pytest.mark.filterwarnings("ignore::dagster.PreviewWarning", "ignore::DeprecationWarning"),
]

# What a step's life asks for: the requests, and in which life they are broken once, and for ever.
CALLS: Mapping[str, tuple[Sequence[str], str | None, str | None]] = {
    "GET workspace": (["GET .*/workspaces/[^/]+"], "cluster", "cluster"),
    "GET cluster": (["GET .*/computes/{cluster}"], "cluster", "cluster"),
    "PUT cluster": (["PUT .*/computes/{cluster}"], "cluster", "cluster"),
    "PUT environment": (["PUT .*/environments/.*"], "finish", "wait"),
    "PUT job": (["PUT .*/jobs/[^/]+"], "finish", "wait"),
    "GET job": (["GET .*/jobs/[^/]+"], "finish", "wait"),
    "POST cancel": (["POST .*/cancel"], "wait", "wait"),
    "GET cancelled": (["GET .*/jobs/[^/]+"], "wait", "wait"),
    # Each of the three once: a step that fails takes a while.
    "GET all that tells": (["GET /discovery", "GET /history/.*", "GET /logs/.*"], "fail", None),
    "GET discovery": (["GET /discovery"], None, "finish"),
    "GET history": (["GET /history/.*"], None, "finish"),
    "GET log": (["GET /logs/.*"], None, "fail"),
}
# What there is to do: make a cluster; have a step finish; have one fail; cancel one that waits.
LIVES = ("cluster", "finish", "fail", "wait")
DROPPED: tuple[FaultKind, ...] = ("reset before", "reset after", "reset within")
ANSWERED: tuple[FaultKind, ...] = ("500 before", "503 after", "429 before")
FAULTS: tuple[FaultKind, ...] = ("refused", *DROPPED, *ANSWERED, "404 before")
_FOR_EVER = 1_000_000
_LANES = 8
_RETRY_AFTER = 1
_DOWN_SECONDS = 1.0
_LIMIT_SECONDS = 0.5
# How long a fault that stays may go on before it is an error.
_PATIENCE_SECONDS = 1.5
# No cell takes longer, whatever is broken.
_LONGEST_SECONDS = 30.0


@dataclass(frozen=True)
class Cell:
    """One step, or one cluster, of the matrix.

    Attributes:
        call: The call that is broken.
        fault: How.
        times: How often.
    """

    call: str
    fault: FaultKind
    times: int = 1

    @property
    def life(self) -> str | None:
        """What there is to do, None for nothing."""
        _, once, for_ever = CALLS[self.call]
        return once if self.times == 1 else for_ever


@dataclass
class Outcome:
    """What came of one cell.

    Attributes:
        ended: 'green', or the name of our error.
        message: What that says.
        jobs: How many jobs the service made.
        left: How many of them go on.
        has_cluster: Whether the cluster was made that was wanted.
        version: The version that was committed, None for none.
        hits: How often the fault happened.
        seconds: How long it took.
        came_back_after: How long after each 429 the service was asked again, in seconds.
    """

    ended: str
    message: str = ""
    jobs: int = 0
    left: int = 0
    has_cluster: bool = False
    version: int | None = None
    hits: int = 0
    seconds: float = 0.0
    came_back_after: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        """Return it as it stands in the table."""
        left = f"+{self.left}" if self.left else ""
        told = " (told)" if is_told(self.message) else ""
        return f"{SHORT.get(self.ended, self.ended)}{left}{told}"


@dataclass
class Lane:
    """A proxy, and the client that goes through it: the one of its resource group."""

    group: str
    proxy: FaultProxy

    def target(self, datastore: Datastore, **settings: Any) -> AzureMLCpu:
        return AzureMLCpu(
            datastore=datastore,
            subscription_id=ML_SUBSCRIPTION,
            resource_group=self.group,
            workspace=ML_WORKSPACE,
            cloud="emulator",
            **settings,
        )


@dataclass
class Bench:
    """The stand-in behind the proxies of some lanes, each of which has one cell at a time."""

    azureml: AzureMLStandIn
    datastore: Datastore
    lanes: "queue.Queue[Lane]" = field(default_factory=queue.Queue)
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def run(self, cells: Sequence[Cell]) -> dict[Cell, Outcome]:
        """Run cells, those of one life after those of another."""
        outcomes: dict[Cell, Outcome] = {}
        for life in LIVES:
            own = [cell for cell in cells if cell.life == life]
            hold = self.azureml.folder / "hold-Queued"
            if life == "wait":
                hold.touch()
            try:
                with ThreadPoolExecutor(_LANES) as pool:
                    outcomes |= zip(own, pool.map(self.run_cell, own), strict=True)
            finally:
                hold.unlink(missing_ok=True)
        return outcomes

    def run_cell(self, cell: Cell) -> Outcome:
        """Run one cell and look at what came of it."""
        lane = self.lanes.get()
        try:
            return self._run_cell(cell, lane)
        finally:
            lane.proxy.break_next()
            self.lanes.put(lane)

    def _run_cell(self, cell: Cell, lane: Lane) -> Outcome:
        number = next(self.numbers)
        datastore = Datastore(
            root=self.datastore.uri(str(number)),
            cloud="emulator",
            credential=self.datastore.credential,
        )
        patience = 20.0 if cell.times == 1 else _PATIENCE_SECONDS
        is_cancelled = cell.life == "wait" and cell.call != "GET job"
        target = lane.target(
            datastore,
            unreachable_timeout_seconds=patience,
            ending_timeout_seconds=patience,
            queued_timeout_seconds=_LIMIT_SECONDS if is_cancelled else 60.0,
            **({"cluster": f"cell-{number}"} if cell.life == "cluster" else {}),
        )
        client, proxy = target.client(), lane.proxy
        client._history_url = None  # asked for once in a client's life

        def matches(request: Request, pattern: str) -> bool:
            is_early = cell.call == "GET cancelled" and not any(
                seen.path.endswith("/cancel") for seen in proxy.seen
            )
            text = f"{request.method} {request.path}"
            return not is_early and re.fullmatch(pattern, text) is not None

        patterns = [each.format(cluster=target.cluster) for each in CALLS[cell.call][0]]
        retry_after = _RETRY_AFTER if cell.fault == "429 before" else None
        proxy.break_next(
            *(
                Rule(
                    cell.fault,
                    partial(matches, pattern=pattern),
                    times=cell.times,
                    retry_after=retry_after,
                )
                for pattern in patterns
            )
        )
        started = time.monotonic()
        if cell.life == "cluster":
            outcome = make_cluster(target)
        else:
            function = "crash" if cell.life == "fail" else "make_rows"
            outcome = materialize(target, function)
            while outcome.ended == "SystemError" and "AST" in outcome.message:
                # CPython 3.11 counts the depths of all threads that parse as one: the step's code
                # could not be bundled, and nothing has been asked for.
                outcome = materialize(target, function)
        outcome.seconds = time.monotonic() - started
        seen = proxy.seen
        proxy.break_next()
        hits = [request for request in seen if request.fault is not None]
        outcome.hits = len(hits)
        for hit in hits if cell.fault == "429 before" else ():
            again = [r.at - hit.at for r in seen if r.at > hit.at and r.target == hit.target]
            outcome.came_back_after.append(min(again, default=0.0))
        names = {
            request.path.rpartition("/")[2]
            for request in seen
            if request.method == "PUT" and "/jobs/" in request.path
        }
        jobs = [job for name in names for job in client.find_batches(name)]
        outcome.jobs = len(jobs)
        running = [job for job in jobs if job.phase not in (BatchState.ENDING, BatchState.ENDED)]
        outcome.left = len(running)
        for job in running:
            client.delete_batch(job.id)
        if cell.life == "cluster":
            cluster = client.get_cluster(target.cluster)
            outcome.has_cluster = cluster is not None and cluster.state == "Succeeded"
        with suppress(DatasetNotFoundError):
            outcome.version = resolve(datastore, "numbers").version
        return outcome


def make_cluster(target: AzureMLCpu) -> Outcome:
    warned: list[str] = []
    try:
        target.ensure_cluster(say=lambda _: None, warn=warned.append)
    except ComputeError as e:
        return Outcome(type(e).__name__, str(e))
    assert warned == []
    return Outcome("green")


def materialize(target: AzureMLCpu, function: str) -> Outcome:
    """Materialize an asset whose step runs on a target."""
    step = Step(f"synapse_assets_tests.example_steps.plain:{function}")

    @dg.asset
    def numbers(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        return target.run(step, context=context, inputs={}).get_materialize_result()

    result = dg.materialize(
        [numbers],
        resources={"target": target, "io_manager": DatasetIOManager(datastore=target.datastore)},
        raise_on_error=False,
    )
    if result.success:
        return Outcome("green")
    failure = result.failure_data_for_node("numbers")
    assert failure is not None
    assert failure.error is not None
    cause = failure.error.cause or failure.error
    return Outcome(cause.cls_name or "", cause.message)


@pytest.fixture(scope="module")
def bench(
    azureml: AzureMLStandIn, azurite: Azurite, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    azurite.create_container(CONTAINER)
    folder = tmp_path_factory.mktemp("azureml-faults")
    # Every new connection reads what it trusts: not all that certifi knows.
    begin = "-----BEGIN CERTIFICATE-----"
    authority = (azureml.folder / TLS / "trusted.pem").read_text().rpartition(begin)[2]
    (folder / "trusted.pem").write_text(f"{begin}{authority}")
    datastore = Datastore(
        root=f"az://{CONTAINER}/{folder.parent.name}-faults",
        cloud="emulator",
        credential=Emulator(endpoint=azurite.endpoint),
    )
    bench = Bench(azureml, datastore)
    with hurried(), ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("REQUESTS_CA_BUNDLE", str(folder / "trusted.pem"))
        patch.setattr(fault_proxy, "_DOWN_SECONDS", _DOWN_SECONDS)
        # A request of MLClient takes a while.
        patch.setattr(batches, "_MIN_POLL_SECONDS", 0.3)
        for number in range(_LANES):
            proxy = stack.enter_context(FaultProxy(port=azureml.port, tls=azureml.folder / TLS))
            lane = Lane(f"{ML_RESOURCE_GROUP}-{number}", proxy)
            with pytest.MonkeyPatch.context() as own:
                url = f"https://{HOST}:{proxy.port}/metadata/endpoints"
                own.setenv("ARM_CLOUD_METADATA_URL", url)
                # The client takes its cloud for good when it is used first.
                lane.target(datastore).client().ping()
            bench.lanes.put(lane)
        make_cluster(lane.target(datastore))
        yield bench


def expected(cell: Cell) -> str:
    """Return what has to come of a cell where the fault happens once."""
    return {"fail": "failed", "wait": "timeout"}.get(cell.life or "", "green")


def expected_for_ever(cell: Cell) -> str:
    """Return what has to come of a cell where the fault stays."""
    # The service has done it, and the client does not know.
    is_done = cell.fault != "reset before"
    return {
        "GET workspace": "unavailable",
        "GET cluster": "unavailable",
        # Of what was done another call tells.
        "PUT cluster": "green" if is_done else "unavailable",
        "PUT environment": "unavailable",
        "PUT job": "timeout" if is_done else "unavailable",
        "GET job": "unavailable (told)",
        "GET discovery": "green",
        "GET history": "green",
        "GET log": "failed",
        "POST cancel": "timeout" if is_done else "timeout+1 (told)",
        "GET cancelled": "timeout (told)",
    }[cell.call]


def problems_of(cell: Cell, outcome: Outcome, right: str) -> Iterator[str]:
    """Yield what is wrong with an outcome."""
    once = len(CALLS[cell.call][0])
    if outcome.hits != once if cell.times == 1 else not outcome.hits:
        yield f"the fault happened {outcome.hits} times"
    if str(outcome) != right:
        yield f"it came to '{outcome}', not '{right}'"
    is_made = cell.life != "cluster" and right != "unavailable"
    if outcome.jobs != is_made:
        yield f"{outcome.jobs} jobs were made"
    if outcome.has_cluster != (cell.life == "cluster" and outcome.ended == "green"):
        yield "the cluster is there" if outcome.has_cluster else "the cluster is not there"
    is_committed = cell.life != "cluster" and outcome.ended == "green"
    if outcome.version != (0 if is_committed else None):
        yield f"version {outcome.version} was committed"
    if outcome.seconds > _LONGEST_SECONDS:
        yield f"it took {outcome.seconds:.1f} s"
    if min(outcome.came_back_after, default=_RETRY_AFTER) < _RETRY_AFTER * 0.95:
        yield f"the service was asked again after {min(outcome.came_back_after):.2f} s"
    if cell.life == "fail" and "division by zero" not in outcome.message:
        yield "the error does not tell why the step failed"
    is_lost = cell.call == "GET log"
    if cell.life == "fail" and ("log could not be read" in outcome.message) != is_lost:
        yield "the log's loss is not told" if is_lost else "the log was lost"
    if outcome.ended == "ServiceUnavailableError" and not is_helpful(outcome.message):
        yield "the error does not name place, operation and remedy"


def is_helpful(message: str) -> bool:
    """Tell whether an error of a service out of reach names place, operation and remedy."""
    place = r"The cluster [\w-]+ of the Azure ML workspace stand-in"
    operation = r"(could not be had|did not start the job|does not tell how the job is)"
    remedy = r"Look whether it answers.*, and run (this|the step) again\."
    return re.search(f"{place} {operation}.*{remedy}", message) is not None


def table_of(outcomes: Mapping[Cell, Outcome]) -> str:
    """Return the outcomes as a table: call by fault."""
    faults = [fault for fault in FAULTS if any(cell.fault == fault for cell in outcomes)]
    rows = [["", *faults]]
    for call in CALLS:
        found = {cell.fault: str(o) for cell, o in outcomes.items() if cell.call == call}
        if found:
            rows.append([call, *(found.get(fault, "") for fault in faults)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [" | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


@pytest.mark.parametrize("is_brief", [True, False], ids=["once", "for ever"])
def test_a_fault_at_any_call_starts_no_second_job_and_commits_once_or_says_what_to_do(
    bench: Bench, capsys: pytest.CaptureFixture[str], is_brief: bool
) -> None:
    if is_brief:
        cells = [
            Cell(call, fault)
            for call, fault in itertools.product(CALLS, FAULTS)
            # Elsewhere it is an answer, and no fault.
            if fault != "404 before" or call == "GET job"
        ]
    else:
        cells = [Cell(*each, times=_FOR_EVER) for each in itertools.product(CALLS, DROPPED)]
    started = time.monotonic()
    outcomes = bench.run(cells)
    seconds = time.monotonic() - started
    right = expected if is_brief else expected_for_ever
    wrong = [
        f"{cell}: {problem}\n    {outcome.message[:500]}"
        for cell, outcome in outcomes.items()
        for problem in problems_of(cell, outcome, right(cell))
    ]
    with capsys.disabled():
        print(f"\n\n{table_of(outcomes)}")
        counts = Counter(map(str, outcomes.values()))
        print(f"\n{len(outcomes)} cells in {seconds:.0f} s: {dict(counts)}")
        jobs = Counter(outcome.jobs for outcome in outcomes.values())
        versions = Counter(outcome.version for outcome in outcomes.values())
        print(f"jobs in a cell: {dict(jobs)}; version: {dict(versions)}; wrong: {len(wrong)}")
    assert not wrong, "\n".join(wrong)


def test_an_endpoint_that_goes_away_for_good_ends_the_step_and_says_what_may_run(
    bench: Bench,
) -> None:
    hold = bench.azureml.folder / "hold-Queued"
    hold.touch()
    gone, other = bench.lanes.get(), bench.lanes.get()
    settings: dict[str, Any] = {
        "unreachable_timeout_seconds": _PATIENCE_SECONDS,
        "ending_timeout_seconds": _PATIENCE_SECONDS,
    }
    try:
        # No lane takes its port: it is gone for all that follows.
        is_get = partial(re.search, "/jobs/")
        gone.proxy.break_next(
            Rule(
                "reset before",
                lambda request: request.method == "GET" and is_get(request.path) is not None,
                before=partial(gone.proxy.__exit__, None, None, None),
            )
        )
        outcome = materialize(gone.target(bench.datastore, **settings), "make_rows")
        (name,) = {r.path.rpartition("/")[2] for r in gone.proxy.seen if "/jobs/" in r.path}
        client = other.target(bench.datastore).client()
        (job,) = client.find_batches(name)
        client.delete_batch(name)
    finally:
        hold.unlink()
        bench.lanes.put(other)
    assert str(outcome) == "unavailable (told)"
    assert is_helpful(outcome.message)
    assert job.phase is BatchState.QUEUED
    with pytest.raises(DatasetNotFoundError):
        resolve(bench.datastore, "numbers")


@pytest.mark.parametrize("fault", ["refused", *DROPPED])
def test_a_cloud_that_cannot_be_asked_for_is_asked_for_again(
    bench: Bench, fault: FaultKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client asks what the cloud is when it is used first, and only for one of one's own."""
    lane = bench.lanes.get()
    try:
        url = f"https://{HOST}:{lane.proxy.port}/metadata/endpoints"
        monkeypatch.setenv("ARM_CLOUD_METADATA_URL", url)
        lane.proxy.break_next(Rule(fault, lambda request: request.path.startswith("/metadata")))
        fresh = Lane(f"{lane.group}-{fault.replace(' ', '-')}", lane.proxy)
        assert str(make_cluster(fresh.target(bench.datastore))) == "green"
        assert [r.fault for r in lane.proxy.seen if r.fault] == [fault]
    finally:
        lane.proxy.break_next()
        bench.lanes.put(lane)
