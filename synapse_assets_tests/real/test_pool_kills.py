"""An orchestrator is killed at every stage of a batch's life: nothing runs twice, or for nobody."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from synapse_assets.compute.client import RemoteBatch
from synapse_assets.compute.spark.livy import HttpLivyClient
from synapse_assets.compute.spark.pool import SparkPool
from synapse_assets.compute.sweeper import Sweep, sweep
from synapse_assets.datasets.table import resolve
from synapse_assets.datastore import Datastore
from synapse_assets.errors import DatasetNotFoundError
from synapse_assets.services import Livy, SynapseEmulator
from synapse_assets_tests.contract.conftest import open_store
from synapse_assets_tests.contract.targets import LIVY, SYNAPSE, TARGETS, Target
from synapse_assets_tests.real.state_proxy import StateProxy

pytestmark = [pytest.mark.services, pytest.mark.kill]

# The state of Livy that stands for each state of ours. Livy on this machine is never in the first
# two for long.
_STATES = {"posted": None, "queued": "not_started", "starting": "starting", "running": "running"}
_WAIT_SECONDS = 90.0
_GONE_SECONDS = 15.0


@pytest.fixture(scope="module")
def livy_proxy(livy: Livy) -> Iterator[StateProxy]:
    with StateProxy(livy.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def synapse(livy_proxy: StateProxy) -> Iterator[SynapseEmulator]:
    with SynapseEmulator(livy_url=livy_proxy.url) as emulator:
        yield emulator


@pytest.fixture
def target(
    request: pytest.FixtureRequest, livy_proxy: StateProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Target]:
    target = TARGETS[request.param]
    monkeypatch.setenv(LIVY, livy_proxy.url)
    if "synapse_emulator" in target.services:
        monkeypatch.setenv(SYNAPSE, request.getfixturevalue("synapse").endpoint)
    yield target
    livy_proxy.state = None


@pytest.fixture
def datastore(request: pytest.FixtureRequest, target: Target, tmp_path: Path) -> Datastore:
    return open_store(request, target.store, folder=tmp_path).open()


class Orchestrators:
    """Starts orchestrators of one test, each in a process of its own; see `orchestrator.py`.

    Attributes:
        counter: Has a mark for each time that the step was run.
        gate: The step waits until this file is there.
        log: What the last one said.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.counter = folder / "calls"
        self.gate = folder / "gate"
        self.log = folder / "log"
        self.home = folder / "home"
        module = "synapse_assets_tests.contract.orchestrator"
        parameters = json.dumps({"counter": str(self.counter), "gate": str(self.gate)})
        self._command = [sys.executable, "-m", module, target.name, str(folder), "count_calls"]
        self._command += [f"--home={self.home}", f"--parameters={parameters}"]
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str) -> "subprocess.Popen[bytes]":
        with self.log.open("wb") as log:
            process = subprocess.Popen([*self._command, *options], stdout=log, stderr=log)
        self._started.append(process)
        return process

    def stop(self) -> None:
        """End what a failed test has left."""
        self.gate.touch()
        for process in self._started:
            process.kill()
            process.wait()

    def run_and_die(self, moment: str) -> None:
        killed = self.start(f"--kill={moment}")
        assert killed.wait(_WAIT_SECONDS) == -signal.SIGKILL, self.log.read_text()

    def adopts(self) -> bool:
        return "it is adopted" in self.log.read_text()


@pytest.fixture
def orchestrators(target: Target, tmp_path: Path) -> Iterator[Orchestrators]:
    orchestrators = Orchestrators(target, tmp_path)
    yield orchestrators
    orchestrators.stop()


@pytest.fixture
def new_batches(livy: Livy) -> Callable[[], list[RemoteBatch]]:
    """Return a function that returns the batches in Livy's own list that the test has made."""
    client = HttpLivyClient(livy.url)
    known = {batch.id for batch in client.all_batches()}
    return lambda: [batch for batch in client.all_batches() if batch.id not in known]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("target", "moment"),
    [
        *(("LivySparkPool", moment) for moment in _STATES),
        *(("SynapseSparkPool", moment) for moment in ("posted", "queued")),
    ],
    indirect=["target"],
)
def test_reexecution_adopts_the_batch_of_a_killed_orchestrator(
    moment: str,
    orchestrators: Orchestrators,
    datastore: Datastore,
    livy_proxy: StateProxy,
    new_batches: Callable[[], list[RemoteBatch]],
) -> None:
    livy_proxy.state = _STATES[moment]
    orchestrators.run_and_die(moment)
    with pytest.raises(DatasetNotFoundError):
        resolve(datastore, "numbers")
    again = orchestrators.start("--reexecute=1")
    wait_for(orchestrators.adopts)
    livy_proxy.state = None
    orchestrators.gate.touch()
    assert again.wait(_WAIT_SECONDS) == 0, orchestrators.log.read_text()
    assert orchestrators.counter.read_text() == "x"
    assert [batch.state for batch in new_batches()] == ["success"]
    assert resolve(datastore, "numbers").version == 0


@pytest.mark.parametrize("target", ["LivySparkPool"], indirect=True)
@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
def test_reexecution_commits_what_a_finished_batch_left_and_starts_none(
    moment: str,
    orchestrators: Orchestrators,
    datastore: Datastore,
    new_batches: Callable[[], list[RemoteBatch]],
) -> None:
    orchestrators.gate.touch()
    orchestrators.run_and_die(moment)
    again = orchestrators.start("--reexecute=1")
    assert again.wait(_WAIT_SECONDS) == 0, orchestrators.log.read_text()
    assert orchestrators.counter.read_text() == "x"
    assert [batch.state for batch in new_batches()] == ["success"]
    assert resolve(datastore, "numbers").version == 0


@pytest.mark.parametrize("target", ["LivySparkPool", "SynapseSparkPool"], indirect=True)
def test_sweeper_ends_what_nobody_has_adopted(
    target: Target,
    orchestrators: Orchestrators,
    datastore: Datastore,
    new_batches: Callable[[], list[RemoteBatch]],
) -> None:
    orchestrators.run_and_die("running")
    (batch,) = new_batches()
    processes = processes_of(batch)

    def look(timeout: float) -> Sweep:
        pool = target.make(datastore=datastore, orphaned_timeout_seconds=timeout)
        assert isinstance(pool, SparkPool)
        swept = sweep(pool, instance)
        assert swept.problem is None
        return swept

    with dg.DagsterInstance.from_config(str(orchestrators.home)) as instance:
        (run,) = instance.get_runs()
        assert f"the run {run.run_id} is in progress" in str(look(0.0))
        # As Dagster does, when it finds that the process has gone.
        instance.report_run_failed(run)
        assert "for 15 min more a re-execution" in str(look(15 * 60.0))
        assert not any(is_gone(process) for process in processes)
        (said,) = look(0.0).cancelled
    # The emulator adds to the name, since Livy takes none twice.
    assert str(batch.name).partition(" ")[0] in said
    started = time.monotonic()
    wait_for(lambda: all(map(is_gone, processes)), seconds=_GONE_SECONDS)
    print(f"gone after {time.monotonic() - started:.1f} s: {len(processes)} processes")
    assert not [b for b in new_batches() if b.state in ("starting", "running")]


def processes_of(batch: RemoteBatch) -> list[psutil.Process]:
    """Return the processes of a running batch: its JVM, and the Python of its driver."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # one that just ended
            if str(batch.name) in process.cmdline():
                found |= {process, *process.children(recursive=True)}
    kinds = {process: process.name().rstrip("0123456789.") for process in found}
    assert {"java", "python"} <= set(kinds.values())
    return [process for process, kind in kinds.items() if kind in ("java", "python")]


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(condition: Callable[[], bool], *, seconds: float = _WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {seconds:g} s"
        time.sleep(0.1)
