"""The assets: a snapshot of each arrival, the prepared table, and the model."""

import datetime as dt
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from synapse_assets.arrivals import ArrivalPatterns, take_arrival
from synapse_assets.compute.attempt import FINAL
from synapse_assets.compute.cpu import CpuOptions
from synapse_assets.compute.spark import SparkOptions
from synapse_assets.compute.step import Step
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.defs.titanic import automation, columns
from synapse_assets.sample import SAMPLE_ARRIVAL

GROUP = "titanic"
LANDING_FOLDER = "landing/titanic"
# A folder is an arrival, and so is a file beside it.
PATTERNS = ArrivalPatterns.parse(
    [f"{LANDING_FOLDER}/{name}" for name in ("{arrival}/**", "{arrival}.*", "{arrival}")]
)
ARRIVALS_NAME = "arrivals"
ARRIVALS = dg.DynamicPartitionsDefinition(name=ARRIVALS_NAME)

# Nobody hears of it on the first day: what was never made has no age, and so it is not red either
# where somebody tries this out and leaves it alone.
FRESHNESS = dg.FreshnessPolicy.time_window(
    warn_window=dt.timedelta(hours=24), fail_window=dt.timedelta(days=365)
)

_MAX_REASONS = 5

LAND = Step("synapse_assets.steps.land:land")
PREPARE = Step("synapse_assets.steps.prepare:prepare")
TRAIN = Step("synapse_assets.steps.train:train")

with warnings.catch_warnings():
    # Partitions of a check are a preview.
    warnings.simplefilter("ignore", dg.PreviewWarning)
    FILES_ARE_READABLE = dg.AssetCheckSpec(
        "files_are_readable",
        asset="titanic_input",
        description="Every file of the arrival can be read; a warning where some can, since "
        "those go on.",
        blocking=True,
        partitions_def=ARRIVALS,
    )


def _out(step: Step, description: str, *, kinds: set[str], **more: Any) -> dg.AssetOut:
    """Return an output of a step that keeps one partition per arrival."""
    return dg.AssetOut(
        group_name=GROUP,
        owners=["team:data"],
        kinds=kinds,
        code_version=step.code_version,
        metadata={"partition_by": "arrival", **more.pop("metadata", {})},
        description=description,
        **more,
    )


landing = dg.AssetSpec(
    "landing",
    partitions_def=ARRIVALS,
    group_name=GROUP,
    kinds={"csv"},
    owners=["team:data"],
    description="Blobs as they arrive below landing/titanic. An arrival is a folder, or the stem "
    "of a file.",
)


@dg.multi_asset(
    outs={
        "titanic_input": _out(
            LAND,
            "An immutable snapshot of one arrival: its files byte for byte, with etags and hashes.",
            kinds={"python", "csv"},
            metadata={"dagster/column_schema": columns.input_schema()},
        ),
        "titanic_quarantined_files": _out(
            LAND,
            "The files of an arrival that cannot be read, byte for byte, each with the reason; "
            "usually none.",
            kinds={"python", "file"},
        ),
    },
    deps=[landing],
    check_specs=[FILES_ARE_READABLE],
    partitions_def=ARRIVALS,
    pool="titanic_input",
)
def titanic_input(
    context: dg.AssetExecutionContext,
    config: CpuOptions,
    cpu: ComputeTarget,
    datastore: Datastore,
) -> Iterator[dg.MaterializeResult[StagedDataset] | dg.AssetCheckResult]:
    """Take in one arrival; its unreadable files do not keep the others back."""
    arrival = take_arrival(context, datastore, PATTERNS)
    run = cpu.run(LAND, context=context, inputs={"landing": arrival}, options=config)
    snapshot = run.get_materialize_result("titanic_input")
    quarantined = run.get_materialize_result("titanic_quarantined_files")
    readable = len(snapshot.value.files)
    reasons = {file.name or "": file.properties["reason"] for file in quarantined.value.files}
    yield quarantined
    if readable:
        yield snapshot
    yield check_files(readable, reasons)
    if not readable:
        # The snapshot that was there stays, and so does all that was made of it.
        raise dg.Failure(
            f"No file of the arrival '{context.partition_key}' can be read: "
            f"{format_reasons(reasons)}",
            metadata=FINAL,
            allow_retries=False,
        )


def check_files(readable: int, reasons: Mapping[str, str]) -> dg.AssetCheckResult:
    """Return what there is to say of an arrival's files.

    Args:
        readable: How many can be read.
        reasons: Why each of the others cannot, by its name.
    """
    files = readable + len(reasons)
    severity = dg.AssetCheckSeverity.WARN if readable else dg.AssetCheckSeverity.ERROR
    description = f"{files:,} {'file' if files == 1 else 'files'}"
    if reasons:
        description = f"{len(reasons):,} of {description} unreadable: {format_reasons(reasons)}"
    return dg.AssetCheckResult(
        asset_key="titanic_input",
        check_name=FILES_ARE_READABLE.name,
        passed=not reasons,
        severity=severity,
        description=description,
        metadata={"readable": readable, "unreadable": len(reasons)},
    )


def format_reasons(reasons: Mapping[str, str]) -> str:
    """Return why files cannot be read, in a few sentences."""
    told = list(reasons.values())[:_MAX_REASONS]
    more = len(reasons) - len(told)
    return " ".join(told) + (f" And {more:,} more, in titanic_quarantined_files." if more else "")


@dg.multi_asset(
    outs={
        "titanic_prepared": _out(
            PREPARE,
            "One row per passenger: typed columns, missing ages filled, title, family size and "
            "deck derived.",
            kinds={"pyspark", "deltalake"},
            metadata={
                "dagster/column_schema": columns.prepared_schema(),
                "dagster/column_lineage": columns.prepared_lineage(),
            },
            automation_condition=automation.with_new_content(),
            freshness_policy=FRESHNESS,
        ),
        "titanic_quarantined": _out(
            PREPARE,
            "One row per refused row of the input, with the reason and its raw text.",
            kinds={"pyspark", "deltalake"},
            metadata={"dagster/column_lineage": columns.quarantined_lineage()},
            automation_condition=automation.with_new_content(),
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
    automation_condition=automation.once_per_burst(),
    pool="survival_model",
)
def survival_model(
    context: dg.AssetExecutionContext,
    config: CpuOptions,
    cpu: ComputeTarget,
    titanic_prepared: DatasetVersion,
) -> dg.MaterializeResult[StagedDataset]:
    """A scikit-learn pipeline that predicts survival, trained on one version of the whole table.

    The generated sample stands in for data only as long as nothing else has arrived.
    """
    arrivals = set(titanic_prepared.partitions)
    if arrivals > {SAMPLE_ARRIVAL}:
        context.log.info(f"The generated arrival '{SAMPLE_ARRIVAL}' is left out of the training.")
        titanic_prepared = titanic_prepared.select(arrivals - {SAMPLE_ARRIVAL})
    run = cpu.run(
        TRAIN,
        context=context,
        inputs={"titanic_prepared": titanic_prepared},
        parameters={
            "dataset_version": titanic_prepared.version,
            "code_version": TRAIN.code_version,
        },
        options=config,
    )
    return run.get_materialize_result()


titanic_arrival = dg.define_asset_job(
    "titanic_arrival",
    selection=dg.AssetSelection.assets(titanic_input),
    description="Takes in one arrival; what is made of it follows by automation.",
)

titanic_pipeline = dg.define_asset_job(
    "titanic_pipeline",
    selection=dg.AssetSelection.groups(GROUP),
    tags=automation.WHOLE,
    description="Everything from an arrival to the model, in one run.",
)
