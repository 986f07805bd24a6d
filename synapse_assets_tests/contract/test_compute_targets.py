"""What every compute target promises: one test body, run over all of them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from synapse_assets.compute.cpu import LocalCpu
from synapse_assets.compute.spark import LocalSpark
from synapse_assets.compute.step import Step
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.table import resolve
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.errors import DatasetNotFoundError, StepFailedError, StepTimeoutError

STEPS = "synapse_assets_tests.example_steps.plain"

Run = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    return Datastore(root=str(tmp_path / "datastore"))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture(params=[LocalCpu, LocalSpark])
def target_class(request: pytest.FixtureRequest) -> type[ComputeTarget]:
    target_class: type[ComputeTarget] = request.param
    return target_class


@pytest.fixture
def run(
    target_class: type[ComputeTarget], datastore: Datastore, instance: dg.DagsterInstance
) -> Run:
    """Return a function that materializes one asset, whose body runs a step."""

    def run_step(
        function: str,
        *,
        asset: str = "numbers",
        timeout: float = 60.0,
        raise_on_error: bool = True,
        check_specs: tuple[dg.AssetCheckSpec, ...] = (),
        **parameters: object,
    ) -> dg.ExecuteInProcessResult:
        @dg.asset(name=asset, check_specs=list(check_specs))
        def the_asset(
            context: dg.AssetExecutionContext, target: ComputeTarget
        ) -> Iterator[dg.MaterializeResult[StagedDataset] | dg.AssetCheckResult]:
            step = Step(f"{STEPS}:{function}", parameters=parameters)
            yield from target.run(step, context=context, inputs={}).get_results()

        return dg.materialize(
            [the_asset],
            resources={
                "target": target_class(datastore=datastore, timeout_seconds=timeout),
                "io_manager": DatasetIOManager(datastore=datastore),
            },
            raise_on_error=raise_on_error,
            instance=instance,
        )

    return run_step


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    (event,) = result.asset_materializations_for_node(asset)
    return {label: value.value for label, value in event.metadata.items()}


def test_step_result_is_committed_and_described(run: Run, datastore: Datastore) -> None:
    result = run("make_rows", rows=5)
    version = resolve(datastore, "numbers")
    assert (version.kind, version.version, version.rows) == ("TabularDataset", 0, 5)
    metadata = metadata_of(result, "numbers")
    assert metadata["note"] == "made here"
    assert metadata["page"] == "# hi"
    assert metadata["dagster/row_count"] == 5
    assert metadata["dagster/uri"] == version.uri


def test_what_a_step_logs_is_in_the_event_log(run: Run, instance: dg.DagsterInstance) -> None:
    result = run("make_rows", rows=7)
    assert "making 7 rows" in [entry.user_message for entry in instance.all_logs(result.run_id)]


def test_files_and_tables_flow_through_one_step(
    target_class: type[ComputeTarget], datastore: Datastore
) -> None:
    @dg.asset
    def numbers(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        step = Step(f"{STEPS}:make_rows")
        return target.run(step, context=context, inputs={}).get_materialize_result()

    @dg.asset
    def names(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        step = Step("synapse_assets_tests.example_steps.files:fill_names")
        return target.run(step, context=context, inputs={}).get_materialize_result()

    @dg.multi_asset(outs={"doubled": dg.AssetOut(), "files": dg.AssetOut()})
    def both(
        context: dg.AssetExecutionContext,
        target: ComputeTarget,
        numbers: DatasetVersion,
        names: DatasetVersion,
    ) -> Iterator[dg.MaterializeResult[StagedDataset] | dg.AssetCheckResult]:
        inputs = {"numbers": numbers, "names": names}
        yield from target.run(Step(f"{STEPS}:split"), context=context, inputs=inputs).get_results()

    dg.materialize(
        [numbers, names, both],
        resources={
            "target": target_class(datastore=datastore),
            "io_manager": DatasetIOManager(datastore=datastore),
        },
    )
    assert resolve(datastore, "doubled").rows == 3
    files = resolve(datastore, "files")
    assert files.kind == "FileDataset"
    (file,) = files.files
    assert (file.name, dict(file.properties)) == ("sub/names.txt", {"count": "2"})
    assert datastore.storage().read_text(files.file("sub/names.txt")) == "a.txt\nb.txt"


def test_same_files_have_the_same_data_version(run: Run) -> None:
    first, second = (
        run("fill", asset="files").asset_materializations_for_node("files")[0] for _ in range(2)
    )
    assert first.tags
    assert second.tags
    assert first.tags["dagster/data_version"] == second.tags["dagster/data_version"]


def test_check_reported_through_pipes_reaches_dagster(run: Run) -> None:
    spec = dg.AssetCheckSpec("enough", asset="numbers")
    result = run("report_check", check_specs=(spec,))
    (evaluation,) = result.get_asset_check_evaluations()
    assert (evaluation.check_name, evaluation.passed) == ("enough", True)


def test_stdout_and_stderr_come_through_apart(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run("print_lines", lines=50_000)
    captured = capfd.readouterr()
    assert [line for line in captured.out.splitlines() if line.startswith("out ")] == [
        f"out {number}" for number in range(50_000)
    ]
    assert [line for line in captured.err.splitlines() if line.startswith("err ")] == [
        f"err {number}" for number in range(50_000)
    ]
    assert "err " not in captured.out


@pytest.mark.parametrize(
    ("function", "asset", "message"),
    [
        ("refuse", "numbers", r"^input\.csv, line 3: the age 'x' is not a number: mend it\.\n"),
        ("refuse", "numbers", "looking at the input"),
        ("crash", "numbers", r"^ZeroDivisionError: division by zero\n"),
        ("return_unknown", "numbers", r"returned \['nobody'\], but its outputs are \['numbers'\]"),
        ("return_nothing", "numbers", "returned NoneType for the output 'numbers'"),
        ("report_unknown_type", "files", "metadata of the type 'hologram'"),
        ("exit_silently", "numbers", "ended without a manifest"),
        ("kill_itself", "numbers", "killed by SIGKILL"),
    ],
)
def test_failed_step_says_why_and_commits_nothing(
    run: Run, datastore: Datastore, function: str, asset: str, message: str
) -> None:
    with pytest.raises(StepFailedError, match=message):
        run(function, asset=asset)
    with pytest.raises(DatasetNotFoundError):
        resolve(datastore, asset)


def test_older_version_stays_readable_after_a_failure(run: Run, datastore: Datastore) -> None:
    run("make_rows", rows=4)
    with pytest.raises(StepFailedError):
        run("crash")
    assert resolve(datastore, "numbers").rows == 4


@pytest.mark.kill
def test_step_killed_while_writing_leaves_the_last_version_whole(
    run: Run, datastore: Datastore
) -> None:
    run("fill", asset="files")
    with pytest.raises(StepFailedError, match="killed by SIGKILL"):
        run("kill_itself_while_writing", asset="files")
    version = resolve(datastore, "files")
    assert [file.name for file in version.files] == ["a.txt"]
    assert datastore.storage().read_text(version.file("a.txt")) == "content"
    run("fill", asset="files", name="b.txt")
    assert [file.name for file in resolve(datastore, "files").files] == ["b.txt"]


def test_unbindable_parameter_is_named(run: Run) -> None:
    with pytest.raises(StepFailedError, match="no parameter for: surprise"):
        run("make_rows", surprise=1)


def test_timeout_ends_the_whole_process_tree(run: Run, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(StepTimeoutError, match="longer than its limit of 8 s and was cancelled"):
        run("run_long", timeout=8.0, pid_file=str(pids))
    assert not [pid for pid in _tree(pids) if _is_alive(pid)]


def test_interruption_ends_the_whole_process_tree(run: Run, tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def interrupt() -> None:
        _wait_for(pids.exists)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises((KeyboardInterrupt, dg.DagsterExecutionInterruptedError)):
        run("run_long", pid_file=str(pids))
    assert not [pid for pid in _tree(pids) if _is_alive(pid)]


@pytest.mark.kill
def test_step_dies_with_a_killed_orchestrator(
    target_class: type[ComputeTarget], datastore: Datastore, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    orchestrator = _orchestrate(target_class, datastore, "run_long", pid_file=str(pids))
    _wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    tree = _tree(pids)
    orchestrator.kill()
    orchestrator.wait()
    _wait_for(lambda: not any(_is_alive(pid) for pid in tree))


@pytest.mark.kill
@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
def test_reexecution_adopts_what_a_killed_orchestrator_left(
    target_class: type[ComputeTarget], datastore: Datastore, tmp_path: Path, moment: str
) -> None:
    counter = tmp_path / "calls"
    home = tmp_path / "dagster_home"
    arguments = {"home": str(home), "counter": str(counter)}
    killed = _orchestrate(target_class, datastore, "count_calls", kill=moment, **arguments)
    assert killed.wait() == -signal.SIGKILL
    committed = moment == "after_commit"
    assert _exists(datastore, "numbers") is committed
    again = _orchestrate(target_class, datastore, "count_calls", reexecute="1", **arguments)
    assert again.wait() == 0
    assert counter.read_text() == "x"
    assert resolve(datastore, "numbers").version == 0


def _exists(datastore: Datastore, name: str) -> bool:
    try:
        resolve(datastore, name)
    except DatasetNotFoundError:
        return False
    return True


def _orchestrate(
    target_class: type[ComputeTarget], datastore: Datastore, function: str, **arguments: str
) -> "subprocess.Popen[bytes]":
    """Run a step from an orchestrator in a process of its own; see `orchestrator.py`."""
    named = [f"--{name}={value}" for name, value in arguments.items()]
    module = "synapse_assets_tests.contract.orchestrator"
    command = [sys.executable, "-m", module, target_class.__name__, datastore.root, function]
    return subprocess.Popen([*command, *named])


def _tree(pid_file: Path) -> list[int]:
    return [int(pid) for pid in pid_file.read_text().split()]


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_for(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
