"""A sample of the faults on a real Livy, with real batches."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from synapse_assets.compute.spark.livy import HttpLivyClient
from synapse_assets.compute.spark.options import SparkOptions
from synapse_assets.compute.spark.pool import LivySparkPool, SparkPool, SynapseSparkPool
from synapse_assets.compute.step import Step
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.table import resolve
from synapse_assets.datastore import Datastore
from synapse_assets.services import SYNAPSE_POOL, Livy, SynapseEmulator
from synapse_assets.services.process import HOST
from synapse_assets_tests.real.fault_proxy import FaultKind, FaultProxy, Request, Rule
from synapse_assets_tests.real.pool_bench import is_get, is_list

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
    pool: SparkPool, instance: dg.DagsterInstance, function: str = "make_rows", **parameters: Any
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
