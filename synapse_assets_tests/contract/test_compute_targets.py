"""What every compute target promises: one test body, run over all of them.

A batch on a pool takes seconds. So what only the runner does, which is the same code everywhere, is
tried on this machine's targets alone; each such test says so.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pyarrow as pa
import pytest

from synapse_assets.compute.cpu import LocalCpu
from synapse_assets.compute.step import Step
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.table import resolve
from synapse_assets.datastore import Datastore
from synapse_assets.errors import DatasetNotFoundError, StepFailedError, StepTimeoutError
from synapse_assets_tests.contract.stores import Store
from synapse_assets_tests.contract.targets import (
    LOCAL,
    POOLS,
    SPARK,
    TARGETS,
    Target,
    on,
    parameters,
)

STEPS = "synapse_assets_tests.example_steps"

Run = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def datastore(target_store: Store) -> Datastore:
    return target_store.open()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def run(target: Target, datastore: Datastore, instance: dg.DagsterInstance) -> Run:
    """Return a function that materializes one asset, whose body runs a step."""

    def run_step(
        function: str,
        *,
        asset: str = "numbers",
        timeout: float = 300.0,
        on: ComputeTarget | None = None,
        check_specs: tuple[dg.AssetCheckSpec, ...] = (),
        **parameters: object,
    ) -> dg.ExecuteInProcessResult:
        @dg.asset(name=asset, check_specs=list(check_specs))
        def the_asset(
            context: dg.AssetExecutionContext, target: ComputeTarget
        ) -> Iterator[dg.MaterializeResult[StagedDataset] | dg.AssetCheckResult]:
            step = Step(f"{STEPS}.{function}", parameters=parameters)
            yield from target.run(step, context=context, inputs={}).get_results()

        return dg.materialize(
            [the_asset],
            resources={
                "target": on or target.make(datastore=datastore, timeout_seconds=timeout),
                "io_manager": DatasetIOManager(datastore=datastore),
            },
            instance=instance,
        )

    return run_step


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    (event,) = result.asset_materializations_for_node(asset)
    return {label: value.value for label, value in event.metadata.items()}


def test_step_result_is_committed_and_described(
    run: Run, datastore: Datastore, instance: dg.DagsterInstance
) -> None:
    result = run("plain:make_rows", rows=5)
    version = resolve(datastore, "numbers")
    assert (version.kind, version.version, version.rows) == ("TabularDataset", 0, 5)
    metadata = metadata_of(result, "numbers")
    assert metadata["note"] == "made here"
    assert metadata["page"] == "# hi"
    assert metadata["dagster/row_count"] == 5
    assert metadata["dagster/uri"] == version.uri
    assert "making 5 rows" in [entry.user_message for entry in instance.all_logs(result.run_id)]


def test_files_and_tables_flow_through_one_step(
    target: Target, datastore: Datastore, run: Run
) -> None:
    """Several inputs, which another target wrote, and several outputs."""

    @dg.multi_asset(
        deps=["numbers", "names"], outs={"doubled": dg.AssetOut(), "files": dg.AssetOut()}
    )
    def both(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> Iterator[dg.MaterializeResult[StagedDataset] | dg.AssetCheckResult]:
        inputs = {name: resolve(target.datastore, name) for name in ("numbers", "names")}
        step = Step(f"{STEPS}.plain:split")
        yield from target.run(step, context=context, inputs=inputs).get_results()

    run("plain:make_rows", on=LocalCpu(datastore=datastore))
    run("files:fill_names", asset="names", on=LocalCpu(datastore=datastore))
    dg.materialize(
        [both],
        resources={
            "target": target.make(datastore=datastore),
            "io_manager": DatasetIOManager(datastore=datastore),
        },
    )
    assert resolve(datastore, "doubled").rows == 3
    files = resolve(datastore, "files")
    assert files.kind == "FileDataset"
    (file,) = files.files
    assert (file.name, dict(file.properties)) == ("sub/names.txt", {"count": "2"})
    assert datastore.storage().read_text(files.file("sub/names.txt")) == "a.txt\nb.txt"


@pytest.mark.spark
@pytest.mark.timeout(400)
@on(SPARK)
def test_output_of_200_parts_is_one_version(run: Run, datastore: Datastore) -> None:
    run("on_spark:make_parts", rows=1000, parts=200)
    version = resolve(datastore, "numbers")
    assert (len(version.files), version.rows) == (200, 1000)


# Of a pool left out: the orchestrator makes it from hashes that the runner takes.
@on(LOCAL)
def test_same_files_have_the_same_data_version(run: Run) -> None:
    first, second = (
        run("plain:fill", asset="files").asset_materializations_for_node("files")[0]
        for _ in range(2)
    )
    assert first.tags
    assert second.tags
    assert first.tags["dagster/data_version"] == second.tags["dagster/data_version"]


def test_what_a_step_says_comes_through_complete_and_apart(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = dg.AssetCheckSpec("enough", asset="numbers")
    result = run("plain:say_much", lines=100_000, check_specs=(spec,))
    (evaluation,) = result.get_asset_check_evaluations()
    assert (evaluation.check_name, evaluation.passed) == ("enough", True)
    captured = capfd.readouterr()
    assert [line for line in captured.out.splitlines() if line.startswith("out ")] == [
        f"out {number}" for number in range(100_000)
    ]
    assert [line for line in captured.err.splitlines() if line.startswith("err ")] == [
        f"err {number}" for number in range(100_000)
    ]
    assert "err " not in captured.out


FAILURES = [
    *parameters(
        TARGETS,
        *("plain:refuse", "numbers"),
        r"(?s)^input\.csv, line 3: the age 'x' is not a number: mend it\.\n.*looking at the input",
    ),
    *parameters(TARGETS, "plain:exit_silently", "numbers", "ended without a manifest"),
    # Of a pool left out: the runner finds these out, and how it tells is tried above.
    *parameters(LOCAL, "plain:crash", "numbers", r"^ZeroDivisionError: division by zero\n"),
    *parameters(
        LOCAL,
        *("plain:return_unknown", "numbers"),
        r"returned \['nobody'\], but its outputs are \['numbers'\]",
    ),
    *parameters(
        LOCAL,
        *("plain:return_nothing", "numbers"),
        "returned NoneType for the output 'numbers'",
    ),
    *parameters(LOCAL, "plain:report_unknown_type", "files", "metadata of the type 'hologram'"),
    # Of a pool left out: the test below kills a step there.
    *parameters(LOCAL, "plain:kill_itself", "numbers", "killed by SIGKILL"),
]


@pytest.mark.parametrize(("target", "function", "asset", "message"), FAILURES, indirect=["target"])
def test_failed_step_says_why_and_commits_nothing(
    run: Run, datastore: Datastore, function: str, asset: str, message: str
) -> None:
    with pytest.raises(StepFailedError, match=message):
        run(function, asset=asset)
    with pytest.raises(DatasetNotFoundError):
        resolve(datastore, asset)


# Of a pool left out: the error is made from what the runner wrote, as above.
@pytest.mark.parametrize(
    ("target", "function", "tries"),
    [
        *parameters(LOCAL, "plain:refuse", 1),
        *parameters(LOCAL, "plain:crash", 2),
    ],
    indirect=["target"],
)
def test_refused_input_is_not_tried_again(
    target: Target, datastore: Datastore, function: str, tries: int
) -> None:
    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def numbers(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        step = Step(f"{STEPS}.{function}")
        return target.run(step, context=context, inputs={}).get_materialize_result()

    result = dg.materialize(
        [numbers],
        resources={
            "target": target.make(datastore=datastore),
            "io_manager": DatasetIOManager(datastore=datastore),
        },
        raise_on_error=False,
    )
    started = (dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_RESTARTED)
    assert len([e for e in result.all_events if e.event_type in started]) == tries


# Of a pool left out: the test below leaves an older version readable, too.
@on(LOCAL)
def test_older_version_stays_readable_after_a_failure(run: Run, datastore: Datastore) -> None:
    run("plain:make_rows", rows=4)
    with pytest.raises(StepFailedError):
        run("plain:crash")
    assert resolve(datastore, "numbers").rows == 4


@pytest.mark.kill
def test_step_killed_while_writing_leaves_the_last_version_whole(
    run: Run, target: Target, datastore: Datastore
) -> None:
    # Another target writes what is there before and after: a batch of a pool takes seconds.
    cpu = LocalCpu(datastore=datastore)
    run("plain:fill", asset="files", on=cpu)
    with pytest.raises(StepFailedError, match=target.killed):
        run("plain:kill_itself_while_writing", asset="files")
    version = resolve(datastore, "files")
    assert [file.name for file in version.files] == ["a.txt"]
    assert datastore.storage().read_text(version.file("a.txt")) == "content"
    run("plain:fill", asset="files", name="b.txt", on=cpu)
    assert [file.name for file in resolve(datastore, "files").files] == ["b.txt"]


# Of a pool left out: the runner binds the parameters.
@on(LOCAL)
def test_unbindable_parameter_is_named(run: Run) -> None:
    with pytest.raises(StepFailedError, match="no parameter for: surprise"):
        run("plain:make_rows", surprise=1)


def test_timeout_ends_the_whole_process_tree(run: Run, target: Target, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    # Long enough for the step to begin, where that takes a cluster.
    limit = 20.0 if target.services else 8.0
    with pytest.raises(StepTimeoutError, match=f"longer than its limit of {limit:g} s and was"):
        run("plain:run_long", timeout=limit, pid_file=str(pids))
    _wait_for_end(_tree(pids), seconds=target.last_breath)


def test_interruption_ends_the_whole_process_tree(run: Run, target: Target, tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def interrupt() -> None:
        _wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises((KeyboardInterrupt, dg.DagsterExecutionInterruptedError)):
        run("plain:run_long", pid_file=str(pids))
    _wait_for_end(_tree(pids), seconds=target.last_breath)


# Of a pool the promise is another one: the batch outlives its orchestrator, and is adopted.
@pytest.mark.kill
@on(LOCAL)
def test_step_dies_with_a_killed_orchestrator(target: Target, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    orchestrator = _orchestrate(target, tmp_path, "run_long", {"pid_file": str(pids)})
    _wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    orchestrator.kill()
    orchestrator.wait()
    _wait_for_end(_tree(pids), seconds=30.0)


@pytest.mark.kill
@on(POOLS)
def test_reexecution_adopts_the_running_batch_of_a_killed_orchestrator(
    target: Target, datastore: Datastore, tmp_path: Path
) -> None:
    counter, gate = tmp_path / "calls", tmp_path / "gate"
    home = str(tmp_path / "dagster_home")
    parameters = {"counter": str(counter), "gate": str(gate)}
    before = target.batches()
    killed = _orchestrate(target, tmp_path, "count_calls", parameters, home=home)
    _wait_for(lambda: counter.exists() and counter.read_text() == "x")
    killed.kill()
    killed.wait()
    log = tmp_path / "log"
    again = _orchestrate(
        target, tmp_path, "count_calls", parameters, log=log, home=home, reexecute="1"
    )
    _wait_for(lambda: "it is adopted" in log.read_text())
    assert not _exists(datastore, "numbers")
    gate.touch()
    assert again.wait() == 0
    assert counter.read_text() == "x"
    assert len(target.batches() - before) == 1
    assert resolve(datastore, "numbers").version == 0
    # What it printed while nobody was there is not lost.
    assert "counted" in log.read_text().splitlines()


@pytest.mark.kill
@pytest.mark.parametrize(
    ("target", "moment"),
    [
        *parameters(TARGETS, "before_commit"),
        # Of a pool left out: the commit is done, and no target is asked any more.
        *parameters(LOCAL, "after_commit"),
    ],
    indirect=["target"],
)
def test_reexecution_adopts_what_a_killed_orchestrator_left(
    target: Target, datastore: Datastore, tmp_path: Path, moment: str
) -> None:
    counter = tmp_path / "calls"
    home = str(tmp_path / "dagster_home")
    parameters = {"counter": str(counter)}
    killed = _orchestrate(target, tmp_path, "count_calls", parameters, home=home, kill=moment)
    assert killed.wait() == -signal.SIGKILL
    committed = moment == "after_commit"
    assert _exists(datastore, "numbers") is committed
    again = _orchestrate(target, tmp_path, "count_calls", parameters, home=home, reexecute="1")
    assert again.wait() == 0
    assert counter.read_text() == "x"
    assert resolve(datastore, "numbers").version == 0


def test_partitions_run_side_by_side_each_as_a_batch_of_its_own(
    target: Target, datastore: Datastore, tmp_path: Path
) -> None:
    """Each waits until it has seen the others: they only end if all of them run at once."""
    days = ["a b", "c%2Fd", "e"]
    before = target.batches()
    runs = [
        _orchestrate(
            target,
            tmp_path,
            "meet",
            {"folder": str(tmp_path / "met"), "number": number, "others": len(days) - 1},
            partition=day,
        )
        for number, day in enumerate(days)
    ]
    assert [run.wait() for run in runs] == [0, 0, 0]
    if target.name in POOLS:
        assert len(target.batches() - before) == len(days)
    loaded: list[tuple[str, int]] = []

    @dg.asset
    def check(numbers: pa.Table) -> None:
        loaded.extend((row["day"], row["n"]) for row in numbers.to_pylist())

    numbers = dg.AssetSpec("numbers", partitions_def=dg.StaticPartitionsDefinition(days))
    dg.materialize(
        [numbers, check], resources={"io_manager": DatasetIOManager(datastore=datastore)}
    )
    assert sorted(loaded) == [
        (day, number) for number, day in enumerate(days) for _ in range(number + 1)
    ]


def _exists(datastore: Datastore, name: str) -> bool:
    try:
        resolve(datastore, name)
    except DatasetNotFoundError:
        return False
    return True


def _orchestrate(
    target: Target,
    folder: Path,
    function: str,
    parameters: dict[str, Any],
    *,
    log: Path | None = None,
    **options: str,
) -> "subprocess.Popen[bytes]":
    """Run a step from an orchestrator in a process of its own; see `orchestrator.py`."""
    module = "synapse_assets_tests.contract.orchestrator"
    command = [sys.executable, "-m", module, target.name, str(folder), function]
    command += [f"--parameters={json.dumps(parameters)}"]
    command += [f"--{name}={value}" for name, value in options.items()]
    if log is None:
        return subprocess.Popen(command)
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def _tree(pid_file: Path) -> list[int]:
    return [int(pid) for pid in pid_file.read_text().split()]


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_for_end(pids: list[int], *, seconds: float) -> None:
    """Return when no process is alive any more, after so many seconds at the latest."""
    if seconds:
        _wait_for(lambda: not any(map(_is_alive, pids)), seconds=seconds)
    assert [pid for pid in pids if _is_alive(pid)] == []


def _wait_for(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
