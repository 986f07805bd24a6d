"""The same four assets and five checks on plain Dagster, as its documentation shows them.

Spark lives in the orchestrator's process (dagster-pyspark), an IO manager keeps Spark frames as
Parquet and everything else by pickle, the checks read the data, and one call of
`execute_in_process` on a persistent instance runs it all, as `synapse-assets run` does. The
work is the same functions; the model reads Parquet through Arrow, the fastest way there is.

Usage: python -m benchmarks.plain_dagster INPUT FOLDER SPARK_CONF_JSON
"""

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.dataset as ds
from dagster_pyspark import PySparkResource
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from synapse_assets.defs.titanic.columns import PREPARED
from synapse_assets.steps.land import land
from synapse_assets.steps.prepare import prepare
from synapse_assets.steps.train import train


class ParquetOrPickle(dg.ConfigurableIOManager):
    pyspark: dg.ResourceDependency[PySparkResource]
    folder: str

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        path = self._path(context)
        if isinstance(obj, DataFrame):
            obj.write.mode("overwrite").parquet(str(path))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(obj))

    def load_input(self, context: dg.InputContext) -> Any:
        path = self._path(context)
        if context.dagster_type.typing_type is DataFrame:
            return self.pyspark.spark_session.read.parquet(str(path))
        if context.dagster_type.typing_type is ds.Dataset:
            return ds.dataset(path)
        return pickle.loads(path.read_bytes())

    def _path(self, context: dg.InputContext | dg.OutputContext) -> Path:
        return Path(self.folder, *context.asset_key.path)


class Files(dg.ConfigurableResource["Files"]):
    source: str
    folder: str

    def new_folder(self, name: str) -> Path:
        path = Path(self.folder, "files", name)
        path.mkdir(parents=True)
        return path


def _reporter(metadata: dict[str, dict[str, Any]]) -> Callable[..., None]:
    def report(output: str, /, **values: Any) -> None:
        metadata[output] = {
            name: dg.MetadataValue.md(value["raw_value"]) if isinstance(value, dict) else value
            for name, value in values.items()
        }

    return report


@dg.asset
def titanic_input(files: Files) -> dg.Output[dict[str, int]]:
    metadata: dict[str, dict[str, Any]] = {}
    folder = files.new_folder("titanic_input")
    quarantined = files.new_folder("titanic_quarantined_files")
    found = land([Path(files.source)], folder, quarantined, _reporter(metadata))
    properties = found["titanic_input"]
    rows = {str(folder / name): int(values["rows"]) for name, values in properties.items()}
    return dg.Output(rows, metadata=metadata["titanic_input"])


@dg.multi_asset(outs={"titanic_prepared": dg.AssetOut(), "titanic_quarantined": dg.AssetOut()})
def prepared(
    pyspark: PySparkResource, titanic_input: dict[str, int]
) -> Iterator[dg.Output[DataFrame]]:
    metadata: dict[str, dict[str, Any]] = {}
    tables = prepare(pyspark.spark_session, list(titanic_input), _reporter(metadata))
    for name, table in tables.items():
        yield dg.Output(table, output_name=name, metadata=metadata.get(name, {}))


@dg.asset
def survival_model(files: Files, titanic_prepared: ds.Dataset) -> dg.Output[Path]:
    metadata: dict[str, dict[str, Any]] = {}
    folder = files.new_folder("survival_model")
    train(titanic_prepared, folder, _reporter(metadata))
    return dg.Output(folder, metadata=metadata["survival_model"])


@dg.asset_check(
    asset="titanic_prepared",
    additional_ins={
        "titanic_input": dg.AssetIn("titanic_input"),
        "titanic_quarantined": dg.AssetIn("titanic_quarantined"),
    },
    blocking=True,
)
def rows_are_conserved(
    titanic_prepared: DataFrame, titanic_quarantined: DataFrame, titanic_input: dict[str, int]
) -> dg.AssetCheckResult:
    rows = titanic_prepared.count() + titanic_quarantined.count()
    return dg.AssetCheckResult(passed=rows == sum(titanic_input.values()))


@dg.asset_check(asset="titanic_prepared", blocking=True)
def columns_are_as_declared(titanic_prepared: DataFrame) -> dg.AssetCheckResult:
    found = {field.name: field.dataType.typeName() for field in titanic_prepared.schema}
    declared = {name: column.type for name, column in PREPARED.items()}
    return dg.AssetCheckResult(passed=found == declared)


@dg.asset_check(asset="titanic_prepared", blocking=True)
def values_are_in_range(titanic_prepared: DataFrame) -> dg.AssetCheckResult:
    ranges = {name: column.allowed for name, column in PREPARED.items() if column.allowed}
    bad = [
        F.count_if(F.col(name).isNull() | ~F.col(name).between(*allowed)).alias(name)
        for name, allowed in ranges.items()
    ]
    counts = titanic_prepared.agg(*bad).collect()[0].asDict()
    return dg.AssetCheckResult(passed=not any(counts.values()), metadata=counts)


@dg.asset_check(
    asset="titanic_quarantined",
    additional_ins={"titanic_prepared": dg.AssetIn("titanic_prepared")},
)
def few_rows_are_refused(
    titanic_quarantined: DataFrame, titanic_prepared: DataFrame
) -> dg.AssetCheckResult:
    refused = titanic_quarantined.count()
    return dg.AssetCheckResult(
        passed=refused <= 0.05 * (refused + titanic_prepared.count()),
        severity=dg.AssetCheckSeverity.WARN,
    )


@dg.asset_check(asset="survival_model")
def model_beats_majority_class(survival_model: Path) -> dg.AssetCheckResult:
    metrics = json.loads((survival_model / "metrics.json").read_text())
    return dg.AssetCheckResult(passed=metrics["accuracy"] > metrics["majority_class_accuracy"])


def main() -> None:
    source, folder, conf = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    pyspark = PySparkResource(spark_config=conf)
    definitions = dg.Definitions(
        assets=[titanic_input, prepared, survival_model],
        asset_checks=[
            rows_are_conserved,
            columns_are_as_declared,
            values_are_in_range,
            few_rows_are_refused,
            model_beats_majority_class,
        ],
        jobs=[dg.define_asset_job("titanic")],
        resources={
            "pyspark": pyspark,
            "io_manager": ParquetOrPickle(pyspark=pyspark, folder=folder),
            "files": Files(source=source, folder=folder),
        },
    )
    with dg.DagsterInstance.get() as instance:
        result = definitions.resolve_job_def("titanic").execute_in_process(instance=instance)
    checks = result.get_asset_check_evaluations()
    sys.exit(not (result.success and len(checks) == 5 and all(check.passed for check in checks)))


if __name__ == "__main__":
    main()
