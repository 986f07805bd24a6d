"""A step on Azure ML: MLClient itself, against the stand-in, with the datastore on Azurite."""

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

from synapse_assets.compute.attempt import Attempt
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


def count_spoilt(file: Path, fault: str) -> int:
    """Return how many requests the stand-in has spoilt."""
    return file.with_name("requests.log").read_text().splitlines().count(f"FAULT {fault}")


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


# What is spoilt in one run: METHOD PATTERN STATUS MOMENT COUNT [RETRY_AFTER].
FAULTS = [
    ["PUT /jobs/ 504 after 1", "PUT /environments/ 504 after 1", "GET /jobs/ 404 before 1"],
    [
        "PUT /jobs/ 503 before 2",
        "PUT /environments/ 500 before 2",
        "GET /jobs/ 503 before 3",
        "GET /computes/ 503 before 2",
        "GET /history/ 503 before 2",
    ],
    ["PUT /jobs/ 429 before 2 1", "GET /jobs/ 429 before 2 1"],
]


@pytest.mark.parametrize("faults", FAULTS, ids=["answers are lost", "services fail", "too many"])
def test_spoilt_requests_make_no_second_job_and_no_failure(
    run: Run, datastore: Datastore, knob: Knob, faults: list[str]
) -> None:
    before = _jobs()
    file = knob("faults", "".join(f"{fault}\n" for fault in faults))
    assert run("plain:make_rows").success
    assert len(_jobs() - before) == 1
    assert resolve(datastore, "numbers").version == 0
    for fault in faults:
        assert count_spoilt(file, fault) == int(fault.split()[4])


@pytest.mark.parametrize(
    "fault",
    ["PUT /computes/ 504 after 1", "PUT /computes/ 503 before 1", "GET /computes/ 500 before 2"],
)
def test_spoilt_requests_leave_a_cluster(make: Make, knob: Knob, fault: str) -> None:
    name = re.sub("[^A-Za-z0-9]+", "-", fault).strip("-")
    file = knob("faults", f"{fault}\n")
    target = make(cluster=name)
    target.ensure_cluster(say=ignore, warn=ignore)
    found = target.client().get_cluster(name)
    assert found is not None
    assert found.state == "Succeeded"
    assert count_spoilt(file, fault) == int(fault.split()[4])


@pytest.mark.parametrize("fault", ["POST /cancel 503 before 2", "POST /cancel 504 after 1"])
def test_spoilt_requests_leave_no_job_that_was_to_be_cancelled(
    run: Run, make: Make, knob: Knob, tmp_path: Path, fault: str
) -> None:
    before = _jobs()
    file = knob("faults", f"{fault}\n")
    target = make(timeout_seconds=2.0)
    with pytest.raises(StepTimeoutError, match="its limit of 2 s"):
        run("plain:run_long", on=target, pid_file=str(tmp_path / "pids"))
    (job,) = _jobs() - before
    assert target.client().get_batch(job).state == "Canceled"
    assert count_spoilt(file, fault) == int(fault.split()[4])


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


def test_sweeper_ends_a_job_that_nobody_has_adopted(
    make: Make, datastore: Datastore, knob: Knob
) -> None:
    knob("hold-Queued")
    target = make()
    target.ensure_cluster(say=ignore, warn=ignore)
    attempt = Attempt.of("numbers-0123456789abcdef", datastore=datastore, work={})
    bundle = Step(f"{STEPS}.plain:make_rows").bundle().upload(datastore)
    submission = attempt.new_submission(bundle=bundle, extras=())
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.add_run(dg.DagsterRun("job", status=dg.DagsterRunStatus.STARTED))
        service = target.batch_service(None)
        job = attempt.submit(service, submission, job={}, run_id=run.run_id)
        assert "is in progress" in str(sweep(target, instance))
        instance.report_run_failed(run)
        swept = sweep(target, instance, now=lambda: time.time() + 3600)
    assert [line.split(" (")[0] for line in swept.cancelled] == [f"Batch {job}"]
    wait_for(lambda: target.client().get_batch(job).state == "Canceled")


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
    with pytest.raises(ConfigurationError, match="Azure storage alone"):
        make(cloud="public", datastore=local).batch_service(None)
    with pytest.raises(ConfigurationError, match="a step runs on one node"):
        make().batch_service(CpuOptions(instance_count=5))


def test_nothing_heavy_is_imported_before_a_cluster_is_used() -> None:
    code = (
        "import sys, synapse_assets.definitions\n"
        "from synapse_assets.compute.cpu import AzureMLCpu\n"
        "print([m for m in ('azure.ai.ml', 'azure.core', 'marshmallow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
