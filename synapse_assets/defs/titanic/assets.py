"""The assets: a snapshot of each arrival, the prepared table, and the model."""

from collections.abc import Iterator

import dagster as dg

from synapse_assets.compute.spark import SparkOptions
from synapse_assets.compute.step import Step
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.landing import find_arrival
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.defs.titanic import columns
from synapse_assets.sample import SAMPLE_ARRIVAL

GROUP = "titanic"
LANDING_FOLDER = "landing/titanic"
ARRIVALS_NAME = "arrivals"
ARRIVALS = dg.DynamicPartitionsDefinition(name=ARRIVALS_NAME)

LAND = Step("synapse_assets.steps.land:land")
PREPARE = Step("synapse_assets.steps.prepare:prepare")
TRAIN = Step("synapse_assets.steps.train:train")

landing = dg.AssetSpec(
    "landing",
    partitions_def=ARRIVALS,
    group_name=GROUP,
    kinds={"csv"},
    owners=["team:data"],
    description="Blobs as they arrive below landing/titanic. An arrival is a folder, or the stem "
    "of a file.",
)


@dg.asset(
    deps=[landing],
    partitions_def=ARRIVALS,
    group_name=GROUP,
    kinds={"python", "csv"},
    owners=["team:data"],
    code_version=LAND.code_version,
    metadata={"partition_by": "arrival", "dagster/column_schema": columns.input_schema()},
    pool="titanic_input",
)
def titanic_input(
    context: dg.AssetExecutionContext, cpu: ComputeTarget, datastore: Datastore
) -> dg.MaterializeResult[StagedDataset]:
    """An immutable snapshot of one arrival: its files byte for byte, with etags and hashes."""
    arrival = find_arrival(datastore, LANDING_FOLDER, context.partition_key)
    return cpu.run(LAND, context=context, inputs={"landing": arrival}).get_materialize_result()


@dg.multi_asset(
    outs={
        "titanic_prepared": dg.AssetOut(
            group_name=GROUP,
            kinds={"pyspark", "deltalake"},
            owners=["team:data"],
            code_version=PREPARE.code_version,
            metadata={
                "partition_by": "arrival",
                "dagster/column_schema": columns.prepared_schema(),
                "dagster/column_lineage": columns.prepared_lineage(),
            },
            description="One row per passenger: typed columns, missing ages filled, title, "
            "family size and deck derived.",
        ),
        "titanic_quarantined": dg.AssetOut(
            group_name=GROUP,
            kinds={"pyspark", "deltalake"},
            owners=["team:data"],
            code_version=PREPARE.code_version,
            metadata={
                "partition_by": "arrival",
                "dagster/column_lineage": columns.quarantined_lineage(),
            },
            description="One row per refused row of the input, with the reason and its raw text.",
        ),
    },
    partitions_def=ARRIVALS,
    pool="titanic_prepared",
)
def titanic_prepared(
    context: dg.AssetExecutionContext,
    config: SparkOptions,
    spark: ComputeTarget,
    titanic_input: DatasetVersion,
) -> Iterator[dg.MaterializeResult[StagedDataset] | dg.AssetCheckResult]:
    """Prepare one arrival on Spark; every row of it ends in one of the two tables."""
    inputs = {"titanic_input": titanic_input}
    run = spark.run(PREPARE, context=context, inputs=inputs, options=config)
    yield from run.get_results()


@dg.asset(
    group_name=GROUP,
    kinds={"scikitlearn", "python"},
    owners=["team:data"],
    code_version=TRAIN.code_version,
    automation_condition=dg.AutomationCondition.eager(),
    pool="survival_model",
)
def survival_model(
    context: dg.AssetExecutionContext, cpu: ComputeTarget, titanic_prepared: DatasetVersion
) -> dg.MaterializeResult[StagedDataset]:
    """A scikit-learn pipeline that predicts survival, trained on one version of the whole table.

    The generated sample stands in for data only as long as nothing else has arrived.
    """
    arrivals = set(titanic_prepared.partitions)
    if arrivals > {SAMPLE_ARRIVAL}:
        context.log.info(f"The generated arrival '{SAMPLE_ARRIVAL}' is left out of the training.")
        titanic_prepared = titanic_prepared.select(arrivals - {SAMPLE_ARRIVAL})
    run = cpu.run(TRAIN, context=context, inputs={"titanic_prepared": titanic_prepared})
    return run.get_materialize_result()


titanic_pipeline = dg.define_asset_job(
    "titanic_pipeline",
    selection=dg.AssetSelection.groups(GROUP),
    description="Everything from an arrival to the model, in one run.",
)
