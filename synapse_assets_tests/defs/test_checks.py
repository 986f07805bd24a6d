import json
from pathlib import Path
from typing import Any, cast

import dagster as dg
import polars as pl
import pytest

from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.defs.titanic import checks
from synapse_assets.defs.titanic.columns import PREPARED
from synapse_assets_tests.datasets.staging import put

_TYPES: dict[str, Any] = {
    "long": pl.Int64,
    "integer": pl.Int32,
    "double": pl.Float64,
    "string": pl.String,
    "boolean": pl.Boolean,
}
_ROW = {
    "passenger_id": 1,
    "survived": 1,
    "pclass": 3,
    "name": "Doe, Mr. John",
    "sex": "male",
    "age": 30.0,
    "sib_sp": 0,
    "parch": 0,
    "ticket": "1",
    "fare": 7.5,
    "cabin": None,
    "embarked": "S",
    "title": "Mr",
    "family_size": 1,
    "is_alone": True,
    "deck": "U",
    "age_imputed": False,
}


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    return Datastore(root=str(tmp_path))


def table_of(rows: int, name: str = "titanic_prepared") -> DatasetVersion:
    files = (DataFile(path="a.parquet", size=1, rows=rows, partition="x"),)
    return DatasetVersion(name, "/nowhere", "TabularDataset", 0, files, partition_by="arrival")


def input_of(*rows: int) -> DatasetVersion:
    files = tuple(
        DataFile(path=f"{i}", size=1, name=f"{i}.csv", properties={"rows": str(count)})
        for i, count in enumerate(rows)
    )
    return DatasetVersion("titanic_input", "/nowhere", "FileDataset", 0, files)


def prepared(datastore: Datastore, *rows: dict[str, Any], **types: Any) -> DatasetVersion:
    schema = {name: _TYPES[column.type] for name, column in PREPARED.items()} | types
    frame = pl.DataFrame([_ROW | row for row in rows], schema=schema)
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    return put(datastore, Slot("titanic_prepared"), table)


def evaluate(check: Any, **arguments: Any) -> dg.AssetCheckResult:
    return cast("dg.AssetCheckResult", check(**arguments))


@pytest.mark.parametrize(
    ("rows_in", "kept", "refused", "passed"),
    [((10,), 8, 2, True), ((4, 6), 10, 0, True), ((0,), 0, 0, True), ((10,), 8, 1, False)],
)
def test_rows_are_conserved(
    rows_in: tuple[int, ...], kept: int, refused: int, passed: bool
) -> None:
    result = evaluate(
        checks.rows_are_conserved,
        titanic_prepared=table_of(kept),
        titanic_quarantined=table_of(refused, "titanic_quarantined"),
        titanic_input=input_of(*rows_in),
    )
    assert result.passed is passed
    assert f"{sum(rows_in)} rows" in (result.description or "")


def test_declared_columns_pass_and_another_type_fails(datastore: Datastore) -> None:
    good = prepared(datastore, {})
    assert evaluate(checks.columns_are_as_declared, titanic_prepared=good).passed
    fields = json.loads(good.schema or "")
    fields["fields"][5]["type"] = "string"
    bad = DatasetVersion(
        good.name, good.uri, good.kind, good.version, good.files, json.dumps(fields)
    )
    result = evaluate(checks.columns_are_as_declared, titanic_prepared=bad)
    assert not result.passed
    assert result.description == "age is string instead of double"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"pclass": 4}, "pclass lies between 3 and 4, and 1 to 3 is allowed"),
        ({"survived": 2}, "survived lies between 1 and 2, and 0 to 1 is allowed"),
        ({"pclass": None}, "pclass is missing in 1 rows"),
        ({"fare": -1.0}, "fare lies between -1.0 and"),
    ],
)
def test_value_out_of_range_is_named(
    datastore: Datastore, bad: dict[str, Any], message: str
) -> None:
    version = prepared(datastore, {}, bad)
    result = evaluate(checks.values_are_in_range, titanic_prepared=version, datastore=datastore)
    assert not result.passed
    assert message in (result.description or "")


def test_many_refused_rows_are_a_warning() -> None:
    result = evaluate(
        checks.few_rows_are_refused,
        titanic_quarantined=table_of(6),
        titanic_prepared=table_of(94),
    )
    assert not result.passed
    assert result.severity is dg.AssetCheckSeverity.WARN


@pytest.mark.parametrize(("accuracy", "passed"), [(0.7, True), (0.6, False), (0.5, False)])
def test_model_has_to_beat_the_majority_class(
    datastore: Datastore, tmp_path: Path, accuracy: float, passed: bool
) -> None:
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"accuracy": accuracy, "majority_class_accuracy": 0.6}))
    files = (DataFile(path="metrics.json", size=1, name="metrics.json"),)
    model = DatasetVersion("survival_model", str(tmp_path), "FileDataset", 0, files)
    result = evaluate(checks.model_beats_majority_class, survival_model=model, datastore=datastore)
    assert result.passed is passed
