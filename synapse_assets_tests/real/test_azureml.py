"""A step on Azure ML: MLClient itself, against the stand-in, with the datastore on Azurite."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from synapse_assets.compute.attempt import StepRefusedError, submit
from synapse_assets.compute.batch import Submission
from synapse_assets.compute.cpu import AzureMLCpu, CpuOptions, LocalCpu
from synapse_assets.compute.step import Step
from synapse_assets.compute.sweeper import sweep
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.table import resolve
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import AccountKey, Emulator
from synapse_assets.errors import (
    ConfigurationError,
    DatasetNotFoundError,
    StepFailedError,
    StepTimeoutError,
)
from synapse_assets.services import (
    ML_RESOURCE_GROUP,
    ML_SUBSCRIPTION,
    ML_WORKSPACE,
    AzureMLStandIn,
    Azurite,
)
from synapse_assets_tests.contract.stores import AZURITE, CONTAINER
from synapse_assets_tests.contract.targets import TARGETS

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

STEPS = "synapse_assets_tests.example_steps"
_jobs = TARGETS["AzureMLCpu"].batches

Make = Callable[..., AzureMLCpu]
Knob = Callable[..., Path]
Run = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def datastore(azurite: Azurite, tmp_path: Path) -> Datastore:
    azurite.create_container(CONTAINER)
    return Datastore(
        root=f"az://{CONTAINER}/{tmp_path.name}-{os.getpid()}",
        cloud="emulator",
        credential=Emulator(endpoint=azurite.endpoint),
    )


@pytest.fixture
def make(azureml: AzureMLStandIn, datastore: Datastore) -> Make:
    def make_target(**settings: Any) -> AzureMLCpu:
        return AzureMLCpu(
            **{
                "datastore": datastore,
                "subscription_id": ML_SUBSCRIPTION,
                "resource_group": ML_RESOURCE_GROUP,
                "workspace": ML_WORKSPACE,
                "cloud": "emulator",
                **settings,
            }
        )

    return make_target


@pytest.fixture
def run(make: Make, datastore: Datastore) -> Run:
    """Return a function that materializes one asset, whose body runs a step."""

    def run_step(
        function: str,
        *,
        on: ComputeTarget | None = None,
        options: CpuOptions | None = None,
        asset: str = "numbers",
        inputs: tuple[str, ...] = (),
        **parameters: object,
    ) -> dg.ExecuteInProcessResult:
        @dg.asset(name=asset, deps=list(inputs))
        def the_asset(
            context: dg.AssetExecutionContext, target: ComputeTarget
        ) -> dg.MaterializeResult[StagedDataset]:
            step = Step(f"{STEPS}.{function}", parameters=parameters)
            versions = {name: resolve(datastore, name) for name in inputs}
            done = target.run(step, context=context, inputs=versions, options=options)
            return done.get_materialize_result()

        return dg.materialize(
            [the_asset],
            resources={
                "target": on or make(),
                "io_manager": DatasetIOManager(datastore=datastore),
            },
        )

    return run_step


@pytest.fixture
def knob(azureml: AzureMLStandIn) -> Iterator[Knob]:
    """Return a function that writes one of the files by which the stand-in is told to fail."""
    made: list[Path] = []

    def write(name: str, content: str = "") -> Path:
        file = azureml.folder / name
        file.write_text(content)
        made.append(file)
        return file

    yield write
    for file in made:
        file.unlink(missing_ok=True)


def wait_for(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not after {seconds:.0f} s"
        time.sleep(0.05)


def ignore(_: str) -> None:
    """Take a line that the test does not look at."""


def test_node_gives_inputs_as_arguments_and_variables_and_the_job_tells_what_it_used(
    run: Run, make: Make, datastore: Datastore
) -> None:
    run("plain:make_rows", on=LocalCpu(datastore=datastore))
    numbers = resolve(datastore, "numbers")
    result = run(
        "on_node:tell",
        on=make(price_per_node_hour=0.2),
        options=CpuOptions(
            arguments=["--numbers", "${{inputs.numbers}}"],
            environment_variables={"GREETING": "hello"},
            memory="2g",
            shm_size="1g",
        ),
        asset="told",
        inputs=("numbers",),
    )
    told = resolve(datastore, "told")
    text = datastore.storage().read_text(told.file("lines.txt"))
    assert text == f"--numbers\n{numbers.uri}\n{numbers.uri}\n{numbers.uri}\nhello\n3"
    (event,) = result.asset_materializations_for_node("told")
    metadata = {label: value.value for label, value in event.metadata.items()}
    assert metadata["nodes"] == 1
    assert isinstance(metadata["node_seconds"], float)
    assert metadata["cost"] == pytest.approx(metadata["node_seconds"] * 0.2 / 3600, rel=0.1)
    assert re.fullmatch(
        r"https://.*/runs/told-[0-9a-f]{16}-.*wsid=.*", str(metadata["azureml_studio"])
    )


def test_cluster_is_made_once_by_two_at_a_time(make: Make) -> None:
    said: list[str] = []
    warned: list[str] = []
    errors: list[BaseException] = []
    target = make(cluster="for-two", max_nodes=3)
    barrier = threading.Barrier(2)

    def ensure() -> None:
        try:
            barrier.wait()
            target.ensure_cluster(say=said.append, warn=warned.append)
        except BaseException as e:  # noqa: BLE001 -- told below
            errors.append(e)

    threads = [threading.Thread(target=ensure) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (errors, warned) == ([], [])
    assert 1 <= len(said) <= 2
    found = target.client().get_cluster("for-two")
    assert found is not None
    assert (found.vm_size, found.max_nodes, found.state) == ("STANDARD_D2_V2", 3, "Succeeded")


def test_cluster_that_differs_is_told_and_not_changed(make: Make) -> None:
    make(cluster="of-another").ensure_cluster(say=ignore, warn=ignore)
    warned: list[str] = []
    other = make(cluster="of-another", vm_size="STANDARD_DS3_V2", max_nodes=9, tier="low_priority")
    other.ensure_cluster(say=ignore, warn=warned.append)
    (text,) = warned
    assert "its nodes are STANDARD_D2_V2 and not STANDARD_DS3_V2" in text
    assert "its greatest number of nodes is 4 and not 9" in text
    assert "its tier is dedicated and not low_priority" in text
    assert "idle" not in text
    found = other.client().get_cluster("of-another")
    assert found is not None
    assert (found.vm_size, found.max_nodes) == ("STANDARD_D2_V2", 4)


@pytest.mark.parametrize("status", ["Preparing", "Queued", "Running"])
def test_job_is_cancelled_in_each_of_its_states(
    run: Run, make: Make, datastore: Datastore, knob: Knob, status: str
) -> None:
    """A limit of the state is what cancels it, as an interruption does."""
    before = _jobs()
    knob(f"hold-{status}")
    limits = {
        "Preparing": {"starting_timeout_seconds": 2.0},
        "Queued": {"queued_timeout_seconds": 2.0},
        "Running": {"timeout_seconds": 2.0},
    }[status]
    target = make(**limits)
    with pytest.raises(StepTimeoutError, match="its limit of 2 s"):
        run("plain:make_rows", on=target)
    (job,) = _jobs() - before
    assert target.client().get_batch(job).state == "Canceled"
    with pytest.raises(DatasetNotFoundError):
        resolve(datastore, "numbers")


def test_step_that_finished_is_a_success_though_its_job_does_not_end(
    run: Run, make: Make, datastore: Datastore, knob: Knob
) -> None:
    knob("hold-Finalizing")
    assert run("plain:make_rows", on=make(ending_timeout_seconds=1.0)).success
    assert resolve(datastore, "numbers").version == 0


def test_allocation_that_fails_is_told_in_the_services_words(
    run: Run, datastore: Datastore, knob: Knob
) -> None:
    knob("fail-Queued", "Operation results in exceeding quota limits of Core.")
    with pytest.raises(StepFailedError, match="exceeding quota limits of Core"):
        run("plain:make_rows")


def test_package_that_cannot_be_had_fails_the_job_with_the_reason(run: Run) -> None:
    with pytest.raises(StepFailedError, match=r"ImageBuildFailure: .* for skops==0.0.1"):
        run("plain:make_rows", options=CpuOptions(packages=["skops==0.0.1"]))


def test_job_whose_node_is_taken_away_begins_anew(
    run: Run,
    datastore: Datastore,
    knob: Knob,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    marks = tmp_path / "marks"

    def take_away() -> None:
        wait_for(marks.exists)
        # What it has said by then is stored.
        time.sleep(1.5)
        knob("preempt")

    before = _jobs()
    thread = threading.Thread(target=take_away)
    thread.start()
    assert run("on_node:be_preempted", asset="told", marks=str(marks)).success
    thread.join()
    assert marks.read_text() == "xx"
    assert len(_jobs() - before) == 1
    printed = capfd.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("call ")] == ["call 1", "call 2"]


@pytest.mark.kill
def test_job_of_an_orchestrator_that_was_killed_before_it_knew_is_adopted(
    azureml: AzureMLStandIn, azurite: Azurite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(AZURITE, azurite.endpoint)
    azurite.create_container(CONTAINER)
    counter, gate, log = tmp_path / "calls", tmp_path / "gate", tmp_path / "log"
    parameters = json.dumps({"counter": str(counter), "gate": str(gate)})
    module = "synapse_assets_tests.contract.orchestrator"
    command = [sys.executable, "-m", module, "AzureMLCpu", str(tmp_path), "count_calls"]
    command += [f"--home={tmp_path / 'home'}", f"--parameters={parameters}"]
    before = _jobs()
    killed = subprocess.run([*command, "--kill=posted"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with log.open("wb") as file:
        again = subprocess.Popen([*command, "--reexecute=1"], stdout=file, stderr=file)
    try:
        wait_for(lambda: "it is adopted" in log.read_text())
    finally:
        gate.touch()
    assert again.wait(60) == 0, log.read_text()
    assert counter.read_text() == "x"
    assert len(_jobs() - before) == 1


def test_job_that_is_cancelled_in_studio_is_a_failure(run: Run, make: Make, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    target = make()
    before = _jobs()

    def cancel() -> None:
        wait_for(pids.exists)
        (job,) = _jobs() - before
        target.client().delete_batch(job)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(StepFailedError, match="ended as 'Canceled'"):
        run("plain:run_long", on=target, pid_file=str(pids))
    thread.join()


def test_nodes_of_a_job_work_together_and_the_first_one_commits(
    run: Run,
    make: Make,
    azureml: AzureMLStandIn,
    datastore: Datastore,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run("plain:make_rows", on=LocalCpu(datastore=datastore))
    before = _jobs()
    target = make(price_per_node_hour=0.2)
    result = run(
        "on_node:add_ranks",
        on=target,
        options=CpuOptions(instance_count=3),
        asset="told",
        inputs=("numbers",),
    )
    told = resolve(datastore, "told")
    assert [(file.name, file.properties) for file in told.files] == [("0.txt", {"from": "0"})]
    assert datastore.storage().read_text(told.file("0.txt")) == str(3 * 3 + 0 + 1 + 2)
    assert told.version == 0
    (event,) = result.asset_materializations_for_node("told")
    metadata = {label: value.value for label, value in event.metadata.items()}
    assert (metadata["rank"], metadata["nodes"]) == (0, 3)
    assert isinstance(metadata["node_seconds"], float)
    assert metadata["cost"] == pytest.approx(metadata["node_seconds"] * 0.2 / 3600, rel=0.1)
    (job,) = _jobs() - before
    kept = Path(azureml.folder / "requests.log").read_text()
    (request,) = [line for line in kept.splitlines() if f"/jobs/{job} " in line]
    properties = json.loads(request.partition("{")[1] + request.partition("{")[2])["properties"]
    assert properties["resources"]["instanceCount"] == 3
    assert properties["distribution"] == {
        "distributionType": "PyTorch",
        "processCountPerInstance": 1,
    }
    # Of the others it is the service that keeps what they print.
    printed = capfd.readouterr().out
    assert "node 0 of 3" in printed
    assert "node 1 of 3" not in printed
    log = "\n".join(target.client().get_batch_logs(job, size=100).lines)
    assert re.search(r"\[user_logs/std_log_process_2.txt\]\n(.*\n)*node 2 of 3", log)


@pytest.mark.parametrize("waits", [True, False], ids=["node 0 waits", "node 0 is done"])
def test_failure_of_a_node_is_that_of_the_step(
    run: Run, make: Make, datastore: Datastore, waits: bool
) -> None:
    before = _jobs()
    target = make()
    with pytest.raises(StepRefusedError, match=r"^Node 1: the half of node 1") as error:
        run(
            "on_node:fail_on_node_1",
            on=target,
            options=CpuOptions(instance_count=2),
            asset="told",
            waits=waits,
        )
    assert "'user_logs/std_log_process_1.txt'" in str(error.value)
    assert "in fail_on_node_1" in str(error.value)
    (job,) = _jobs() - before
    assert target.client().get_batch(job).state == "Failed"
    with pytest.raises(DatasetNotFoundError):
        resolve(datastore, "told")


def test_job_of_several_nodes_is_cancelled_on_each(run: Run, make: Make, tmp_path: Path) -> None:
    target = make()
    before = _jobs()

    def cancel() -> None:
        wait_for(lambda: all((tmp_path / rank).exists() for rank in "01"))
        (job,) = _jobs() - before
        target.client().delete_batch(job)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(StepFailedError, match="ended as 'Canceled'"):
        run(
            "on_node:linger",
            on=target,
            options=CpuOptions(instance_count=2),
            asset="told",
            folder=str(tmp_path),
        )
    thread.join()
    for rank in "01":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / rank).read_text()), 0)


def test_job_of_more_nodes_than_the_cluster_ever_has_is_refused_and_would_wait(
    run: Run, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _jobs()
    options = CpuOptions(instance_count=5)
    with pytest.raises(ConfigurationError, match="4 nodes at most, and instance_count is 5"):
        run("plain:make_rows", options=options)
    assert _jobs() == before
    monkeypatch.setattr(AzureMLCpu, "capacity", lambda *_: contextlib.nullcontext())
    with pytest.raises(StepTimeoutError, match="waited longer than its limit of 2 s"):
        run("plain:make_rows", on=make(queued_timeout_seconds=2.0), options=options)


def test_sweeper_ends_a_job_that_nobody_has_adopted(
    make: Make, datastore: Datastore, knob: Knob
) -> None:
    knob("hold-Queued")
    target = make()
    target.ensure_cluster(say=ignore, warn=ignore)
    bundle = Step(f"{STEPS}.plain:make_rows").bundle().upload(datastore)
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.add_run(dg.DagsterRun("job", status=dg.DagsterRunStatus.STARTED))
        submission = Submission.new(
            datastore,
            "numbers-0123456789abcdef",
            fingerprint="f",
            bundle=bundle,
            extras=(),
            run_id=run.run_id,
        )
        batch = target.batch(submission, target.asked())
        submit(batch, {})
        assert "is in progress" in str(sweep(target, instance))
        instance.report_run_failed(run)
        swept = sweep(target, instance, now=lambda: time.time() + 3600)
    assert [line.split(" (")[0] for line in swept.cancelled] == [f"Batch {submission.name}"]
    wait_for(lambda: target.client().get_batch(submission.name).state == "Canceled")


def test_no_secret_is_sent_to_the_service(
    run: Run, azureml: AzureMLStandIn, datastore: Datastore
) -> None:
    before = _jobs()
    run("plain:make_rows")
    (job,) = _jobs() - before
    kept = Path(azureml.folder / "requests.log").read_text()
    (request,) = [line for line in kept.splitlines() if f"/jobs/{job} " in line]
    secrets = datastore.process_environment()
    key = re.search(r"AccountKey=([^;]+);", str(secrets))
    assert key is not None
    assert key[1] not in request
    assert "connection_string" not in request


def test_what_cannot_be_run_is_refused_before_anything_is_sent(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="an account key or a SAS is none"):
        make(cloud="public", credential=AccountKey(key="a2V5")).client()
    local = Datastore(root=str(tmp_path))
    target = make(cloud="public", datastore=local)
    with pytest.raises(ConfigurationError, match="Azure storage alone"):
        target.check(target.asked())
    with pytest.raises(ConfigurationError, match="instance_count is 0; it must be at least 1"):
        make().check(CpuOptions(instance_count=0))


def test_nothing_heavy_is_imported_before_a_cluster_is_used() -> None:
    code = (
        "import sys, synapse_assets.definitions\n"
        "from synapse_assets.compute.cpu import AzureMLCpu\n"
        "print([m for m in ('azure.ai.ml', 'azure.core', 'marshmallow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
