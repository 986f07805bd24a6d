from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from synapse_assets.compute.spark import LocalSpark
from synapse_assets.compute.step import Step
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.table import resolve
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore

PARTITIONS = dg.StaticPartitionsDefinition(["a", "b/../c"])


@dg.asset(partitions_def=PARTITIONS)
def numbers(context: dg.AssetExecutionContext) -> pl.DataFrame:
    rows = 10 if context.partition_key == "a" else 0
    return pl.DataFrame({"n": range(rows)}, schema={"n": pl.Int64})


@dg.multi_asset(
    outs={"even": dg.AssetOut(), "odd": dg.AssetOut()},
    partitions_def=PARTITIONS,
)
def split(
    context: dg.AssetExecutionContext, spark: LocalSpark, numbers: DatasetVersion
) -> Iterator[dg.MaterializeResult[StagedDataset] | dg.AssetCheckResult]:
    step = Step("synapse_assets_tests.example_steps.on_spark:split", {"parts": 3})
    yield from spark.run(step, context=context, inputs={"numbers": numbers}).get_results()


@pytest.mark.spark
def test_step_with_two_outputs_runs_on_spark_for_each_partition(tmp_path: Path) -> None:
    datastore = Datastore(root=str(tmp_path))
    with dg.DagsterInstance.ephemeral() as instance:
        for partition in PARTITIONS.get_partition_keys():
            dg.materialize(
                [numbers, split],
                partition_key=partition,
                instance=instance,
                resources={
                    "spark": LocalSpark(
                        datastore=datastore, master="local[1]", conf={"spark.app.name": "test"}
                    ),
                    "io_manager": DatasetIOManager(datastore=datastore),
                },
            )
    even, odd = resolve(datastore, "even"), resolve(datastore, "odd")
    assert (even.rows, odd.rows) == (5, 5)
    assert even.partitions == ("a", "b/../c")
    frame = pl.scan_delta(even.uri).sort("n").collect()
    assert frame.to_dicts() == [{"n": n, "partition_key": "a"} for n in (0, 2, 4, 6, 8)]
    # What Spark calls a timestamp is UTC in the table.
    assert pl.scan_delta(odd.uri).collect_schema()["at"] == pl.Datetime("us", "UTC")
