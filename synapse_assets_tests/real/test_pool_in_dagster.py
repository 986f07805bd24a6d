"""A real `dagster dev`: what its UI does to a run reaches the batch on the pool."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from synapse_assets.compute.client import RemoteBatch
from synapse_assets.compute.spark.livy import HttpLivyClient
from synapse_assets.datasets.table import resolve
from synapse_assets.datastore import Datastore
from synapse_assets.services import Livy, SynapseEmulator
from synapse_assets_tests.contract.conftest import open_store
from synapse_assets_tests.contract.targets import LIVY, SYNAPSE, TARGETS
from synapse_assets_tests.real.pool_definitions import POOL_FOLDER, POOL_TARGET
from synapse_assets_tests.real.test_pool_kills import is_gone, processes_of, wait_for

pytestmark = [pytest.mark.services, pytest.mark.kill, pytest.mark.timeout(400)]

_MODULE = "synapse_assets_tests.real.pool_definitions"
_ENDS = ("SUCCESS", "FAILURE", "CANCELED")
_START_SECONDS = 150.0
_RUN_SECONDS = 150.0
_STOP_SECONDS = 30.0
# From the click on 'Terminate' to the end of the last process on the cluster.
_CANCEL_SECONDS = 15.0

# The mutations of Dagster's own UI.
_LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_TERMINATE = """mutation($id: String!) { terminateRun(runId: $id) {
  __typename ... on TerminateRunFailure { message } } }"""
_REEXECUTE = """mutation($params: ReexecutionParams!) {
  launchRunReexecution(reexecutionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_STATUS = """query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"""


@dataclass(frozen=True)
class Server:
    """A running `dagster dev`, whose pool is one of the targets.

    Attributes:
        url: Where it listens.
        home: Its DAGSTER_HOME, by which its processes are known.
        datastore: Where the assets go.
    """

    url: str
    home: Path
    datastore: Datastore

    def ask(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of GraphQL's one field."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/graphql", body, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            (answer,) = json.load(response)["data"].values()
        assert isinstance(answer, dict)
        return answer

    def launch(self, function: str, **parameters: str) -> str:
        """Launch a run of the job, as the launchpad does, and return its id."""
        selector = {
            "jobName": "the_job",
            "repositoryName": "__repository__",
            "repositoryLocationName": _MODULE,
        }
        config = {"ops": {"numbers": {"config": {"function": function, "parameters": parameters}}}}
        params = {"selector": selector, "mode": "default", "runConfigData": json.dumps(config)}
        answer = self.ask(_LAUNCH, {"params": params})
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def reexecute(self, run_id: str) -> str:
        """Click 'Re-execute from failure', and return the id of the new run."""
        params = {"parentRunId": run_id, "strategy": "FROM_FAILURE"}
        answer = self.ask(_REEXECUTE, {"params": params})
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def status(self, run_id: str) -> str:
        return str(self.ask(_STATUS, {"id": run_id})["status"])

    def processes(self) -> list[psutil.Process]:
        """Return every process of this server, also those that lost their parent."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DAGSTER_HOME") == str(self.home):
                    found.append(process)
            except psutil.Error:  # another user's process, or one that just ended
                continue
        return found


@pytest.fixture(scope="module", params=["SynapseSparkPool"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    target = TARGETS[request.param]
    livy: Livy = request.getfixturevalue("livy")
    synapse: SynapseEmulator = request.getfixturevalue("synapse_emulator")
    folder = tmp_path_factory.mktemp("dagster")
    store = open_store(request, target.store, folder=folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = Server(f"http://127.0.0.1:{port}", folder / "home", store.open())
    running.home.mkdir()
    (running.home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    environment = {
        **os.environ,
        **store.variables,
        "DAGSTER_HOME": str(running.home),
        POOL_TARGET: target.name,
        POOL_FOLDER: str(folder),
        LIVY: livy.url,
        SYNAPSE: synapse.endpoint,
    }
    command = [sys.executable, "-m", "dagster", "dev", "-m", _MODULE, "-p", str(port)]
    log = folder / "dagster.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, cwd=Path(__file__).parents[2]
        )
    try:
        wait_for(lambda: _answers(running, process, log), seconds=_START_SECONDS)
        yield running
    finally:
        processes = running.processes()
        process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(processes, timeout=_STOP_SECONDS)
        for left in alive:
            left.kill()
        process.wait(_STOP_SECONDS)


def _answers(running: Server, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with urllib.request.urlopen(f"{running.url}/server_info", timeout=10):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@pytest.fixture
def new_batches(livy: Livy) -> Callable[[], list[RemoteBatch]]:
    """Return a function that returns the batches in Livy's own list that the test has made."""
    client = HttpLivyClient(livy.url)
    known = {batch.id for batch in client.all_batches()}
    return lambda: [batch for batch in client.all_batches() if batch.id not in known]


def test_terminating_a_run_ends_the_real_spark_process(
    server: Server, new_batches: Callable[[], list[RemoteBatch]], tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    run_id = server.launch("run_long", pid_file=str(pids))
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2, seconds=_RUN_SECONDS)
    (batch,) = new_batches()
    processes = processes_of(batch)
    # Those that the step itself has started.
    processes += [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    started = time.monotonic()
    assert server.ask(_TERMINATE, {"id": run_id})["__typename"] == "TerminateRunSuccess"
    wait_for(lambda: all(map(is_gone, processes)), seconds=_CANCEL_SECONDS)
    gone = time.monotonic() - started
    wait_for(lambda: server.status(run_id) in _ENDS, seconds=_RUN_SECONDS)
    canceled = time.monotonic() - started
    print(f"terminateRun: Spark was gone after {gone:.1f} s, the run ended after {canceled:.1f} s")
    assert server.status(run_id) == "CANCELED"
    assert not [b for b in new_batches() if b.state in ("starting", "running")]


def test_reexecution_from_the_ui_adopts_the_batch_of_a_killed_run(
    server: Server, new_batches: Callable[[], list[RemoteBatch]], tmp_path: Path
) -> None:
    counter, gate = tmp_path / "calls", tmp_path / "gate"
    run_id = server.launch("count_calls", counter=str(counter), gate=str(gate))
    wait_for(counter.exists, seconds=_RUN_SECONDS)
    for process in _workers(server):
        process.kill()
    # The code server finds that the run's process has gone.
    wait_for(lambda: server.status(run_id) == "FAILURE", seconds=_RUN_SECONDS)
    again = server.reexecute(run_id)
    gate.touch()
    wait_for(lambda: server.status(again) in _ENDS, seconds=_RUN_SECONDS)
    assert server.status(again) == "SUCCESS"
    assert counter.read_text() == "x"
    assert [batch.state for batch in new_batches()] == ["success"]
    assert resolve(server.datastore, "numbers").version == 0


def _workers(server: Server) -> list[psutil.Process]:
    """Return the processes of all runs: what the code server has spawned, and their steps."""
    found = [
        process
        for process in server.processes()
        if any("spawn_main" in part for part in process.cmdline())
    ]
    assert found
    return found
