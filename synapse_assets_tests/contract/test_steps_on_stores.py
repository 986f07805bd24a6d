"""Steps on every kind of compute, with what they read and write in every store."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
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
from synapse_assets.datastore.credentials import Emulator
from synapse_assets.errors import DatasetNotFoundError
from synapse_assets.services import ABFS_JARS
from synapse_assets_tests.contract.stores import Store

STEPS = "synapse_assets_tests.example_steps"
DAYS = dg.StaticPartitionsDefinition(["a b", "c%2Fd"])

Results = Iterator[dg.MaterializeResult[StagedDataset] | dg.AssetCheckResult]


@pytest.fixture(params=["cpu", "spark"])
def target(request: pytest.FixtureRequest, store: Store, datastore: Datastore) -> ComputeTarget:
    if request.param == "cpu":
        return LocalCpu(datastore=datastore)
    if store.name == "azurite":
        request.getfixturevalue("spark_abfs_jars")
    return LocalSpark(datastore=datastore, abfs_jars=str(ABFS_JARS.folder), driver_memory="1g")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "home").mkdir()
    settings = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(tmp_path / "home"), settings) as instance:
        yield instance


def run(target: ComputeTarget, *assets: Any, **options: Any) -> dg.ExecuteInProcessResult:
    io_manager = DatasetIOManager(datastore=target.datastore)
    return dg.materialize(assets, resources={"target": target, "io_manager": io_manager}, **options)


def test_files_and_partitions_flow_from_step_to_step(
    target: ComputeTarget, datastore: Datastore, instance: dg.DagsterInstance
) -> None:
    @dg.asset(partitions_def=DAYS, metadata={"partition_by": "day"})
    def numbers(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        step = Step(f"{STEPS}.plain:make_rows", {"rows": len(context.partition_key)})
        return target.run(step, context=context, inputs={}).get_materialize_result()

    @dg.asset
    def names(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        step = Step(f"{STEPS}.files:fill_names")
        return target.run(step, context=context, inputs={}).get_materialize_result()

    @dg.multi_asset(outs={"doubled": dg.AssetOut(), "files": dg.AssetOut()})
    def both(
        context: dg.AssetExecutionContext,
        target: ComputeTarget,
        numbers: DatasetVersion,
        names: DatasetVersion,
    ) -> Results:
        step = Step(f"{STEPS}.plain:split")
        inputs = {"numbers": numbers, "names": names}
        yield from target.run(step, context=context, inputs=inputs).get_results()

    run(target, names, instance=instance)
    for day in DAYS.get_partition_keys():
        run(target, numbers, instance=instance, partition_key=day)
    run(target, numbers, names, both, instance=instance, selection=[both])
    assert resolve(datastore, "doubled").rows == sum(map(len, DAYS.get_partition_keys()))
    files = resolve(datastore, "files")
    assert datastore.storage().read_text(files.file("sub/names.txt")) == "a.txt\nb.txt"
    assert files.files[0].properties == {"count": "2"}


@pytest.mark.spark
def test_spark_writes_and_reads_partitions(
    store: Store,
    datastore: Datastore,
    instance: dg.DagsterInstance,
    request: pytest.FixtureRequest,
) -> None:
    if store.name == "azurite":
        request.getfixturevalue("spark_abfs_jars")
    spark = LocalSpark(datastore=datastore, abfs_jars=str(ABFS_JARS.folder), driver_memory="1g")

    @dg.asset(partitions_def=DAYS, metadata={"partition_by": "day"})
    def ids(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        step = Step(f"{STEPS}.by_day:make_ids", {"count": len(context.partition_key)})
        return target.run(step, context=context, inputs={}).get_materialize_result()

    @dg.asset
    def counts(
        context: dg.AssetExecutionContext, target: ComputeTarget, ids: DatasetVersion
    ) -> dg.MaterializeResult[StagedDataset]:
        step = Step(f"{STEPS}.by_day:count_by_day")
        return target.run(step, context=context, inputs={"ids": ids}).get_materialize_result()

    for day in DAYS.get_partition_keys():
        run(spark, ids, instance=instance, partition_key=day)
    run(spark, ids, counts, instance=instance, selection=[counts])
    loaded: dict[str, Any] = {}

    @dg.asset
    def check(counts: pa.Table) -> None:
        loaded["rows"] = counts.to_pylist()

    run(spark, ids, counts, check, instance=instance, selection=[check])
    found = sorted((row["day"], row["ids"]) for row in loaded["rows"])
    assert found == [("a b", 3), ("c%2Fd", 5)]


def test_files_may_be_none(datastore: Datastore, instance: dg.DagsterInstance) -> None:
    function = "fill_names_of"
    cpu = LocalCpu(datastore=datastore)

    @dg.asset(partitions_def=DAYS)
    def files(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        step = Step(f"{STEPS}.files:{function}")
        return target.run(step, context=context, inputs={}).get_materialize_result()

    day, other = DAYS.get_partition_keys()
    for partition in (day, other):
        assert run(cpu, files, instance=instance, partition_key=partition).success
    function = "fill_nothing"
    assert run(cpu, files, instance=instance, partition_key=day).success
    assert resolve(datastore, "files", partitions=[day]).files == ()
    assert len(resolve(datastore, "files").files) == 1


@pytest.mark.kill
def test_killed_step_leaves_nothing_to_see_and_can_be_run_again(
    target: ComputeTarget, datastore: Datastore, instance: dg.DagsterInstance
) -> None:
    function = "fill_and_die"

    @dg.asset
    def files(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        step = Step(f"{STEPS}.files:{function}")
        return target.run(step, context=context, inputs={}).get_materialize_result()

    result = run(target, files, instance=instance, raise_on_error=False)
    assert not result.success
    (failure,) = result.get_step_failure_events()
    assert signal.SIGKILL.name in str(failure.step_failure_data.error)
    with pytest.raises(DatasetNotFoundError):
        resolve(datastore, "files")
    function = "fill_names_of"
    assert run(target, files, instance=instance).success
    assert [file.name for file in resolve(datastore, "files").files] == ["whole.txt"]


def test_no_secret_is_in_what_a_run_leaves_behind(
    store: Store,
    datastore: Datastore,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    target = LocalSpark(datastore=datastore, abfs_jars=str(ABFS_JARS.folder), driver_memory="1g")
    if store.name != "azurite":
        pytest.skip(f"the store '{store.name}' takes no secret")
    assert isinstance(datastore.credential, Emulator)
    # The emulator's key takes the ways that every secret takes.
    secrets = datastore.hadoop_configuration().secret.values()
    (key,) = set(secrets)

    @dg.asset
    def lines(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        step = Step(f"{STEPS}.processes:tell_command_lines")
        return target.run(step, context=context, inputs={}).get_materialize_result()

    run(target, lines, instance=instance)
    storage = datastore.storage()
    seen = storage.read_text(resolve(datastore, "lines").file("seen.txt")) or ""
    assert "java" in seen
    left = {"seen": seen.encode(), "printed": "".join(capfd.readouterr()).encode()}
    left |= {
        file.path: storage.read_bytes(datastore.uri(file.path)) or b""
        for file in storage.list_files(datastore.uri())
    }
    left |= {str(p): p.read_bytes() for p in (tmp_path / "home").rglob("*") if p.is_file()}
    left["events"] = "".join(map(str, instance.all_logs(instance.get_runs()[0].run_id))).encode()
    left["reprs"] = f"{datastore!r} {target!r} {datastore.hadoop_configuration()!r}".encode()
    assert len(left) > 10
    assert any("job.json" in name for name in left)
    assert any(".db" in name for name in left)
    assert [name for name, content in left.items() if key.encode() in content] == []
