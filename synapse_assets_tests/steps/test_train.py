import base64
import json
import random
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import skops.io
from pyspark.sql import SparkSession

from synapse_assets.steps import titanic_rules as rules
from synapse_assets.steps import train as train_module
from synapse_assets.steps.prepare import prepare
from synapse_assets.steps.score import TRUSTED_TYPES
from synapse_assets.steps.train import train
from synapse_assets_tests.steps.conftest import Reports, make_table

_PLOTS = ("survival_by_class_sex_age", "roc", "confusion_matrix")


def _with_outcomes(table: pa.Table, outcomes: list[int]) -> ds.Dataset:
    at = table.schema.get_field_index("survived")
    return ds.dataset(table.set_column(at, "survived", pa.array(outcomes, pa.int32())))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "survival_model"
    path.mkdir()
    return path


@pytest.mark.titanic
@pytest.mark.spark
def test_the_real_file_reaches_82_percent(
    titanic_csv: Path, spark: SparkSession, folder: Path, reports: Reports
) -> None:
    frames = prepare(spark, [str(titanic_csv)], Reports())
    rows = [row.asDict() for row in frames["titanic_prepared"].collect()]
    spark.catalog.clearCache()
    train(ds.dataset(pa.Table.from_pylist(rows)), folder, reports)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["accuracy"] >= 0.82
    assert metrics["folds"] == 5
    assert metrics["rows"] == metrics["rows_cross_validated"] == 891
    assert metrics["majority_class_accuracy"] == pytest.approx(549 / 891)


def test_everything_a_reader_needs_is_written(folder: Path, reports: Reports) -> None:
    table = make_table(300)
    properties = train(ds.dataset(table), folder, reports)["survival_model"]
    assert {path.name for path in folder.iterdir()} == {
        "model.skops",
        "metrics.json",
        "model_card.md",
        "fillings.json",
        *(f"{name}.png" for name in _PLOTS),
    }
    assert set(properties or {}) <= {path.name for path in folder.iterdir()}

    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0.5 < metrics["accuracy"] <= 1
    assert metrics["accuracy"] == pytest.approx(np.mean(metrics["accuracy_of_folds"]))
    assert np.sum(metrics["confusion_matrix"]) == metrics["rows"] == 300
    assert {"accuracy_std", "roc_auc", "log_loss", "versions"} <= set(metrics)
    assert "arrival" not in metrics["features"]

    reported = reports.of["survival_model"]
    for name in ("accuracy", "accuracy_std", "roc_auc", "majority_class_accuracy", "rows"):
        assert reported[name] == round(metrics[name], 4)
    for name in _PLOTS:
        picture = (folder / f"{name}.png").read_bytes()
        assert len(picture) <= 40_000
        assert struct.unpack(">II", picture[16:24])[0] >= 400
        assert reported[name] == {
            "raw_value": f"![{name}](data:image/png;base64,{base64.b64encode(picture).decode()})",
            "type": "md",
        }


def test_the_model_loads_with_types_of_scikit_learn_only_and_predicts(
    folder: Path, reports: Reports
) -> None:
    table = make_table(200)
    train(ds.dataset(table), folder, reports)
    trusted = json.loads((folder / "metrics.json").read_text())["trusted_types"]
    # A new scikit-learn may ask for others: look at them before they are added.
    assert set(trusted) <= TRUSTED_TYPES
    model = skops.io.load(folder / "model.skops", trusted=trusted)
    rows = table.slice(0, 20).to_pandas().assign(ticket="never seen", title="Dr")
    probability = model.predict_proba(rows)[:, 1]
    assert ((probability >= 0) & (probability <= 1)).all()


def test_the_model_knows_what_it_was_made_from(folder: Path, reports: Reports) -> None:
    table = ds.dataset(make_table(50))
    train(table, folder, reports, dataset_version=7, code_version="abc123")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["training_data"] == {"dataset": "titanic_prepared", "version": 7}
    assert metrics["code_version"] == "abc123"
    card = (folder / "model_card.md").read_text()
    assert "50 rows of `titanic_prepared`, version 7." in card
    assert "Code of the training step: version abc123." in card


def test_fillings_are_learnt_from_known_ages_only(folder: Path, reports: Reports) -> None:
    table = make_table(60).to_pandas()
    table["pclass"] = [1, 2, 3] * 20
    table["age"] = [30.125, 40.0, 50.0] * 20
    table["fare"] = [10.0, 20.0, 20.0, 30.0, 20.0, 20.0] * 10
    table["age_imputed"] = table["pclass"] == 2
    train(ds.dataset(pa.Table.from_pandas(table)), folder, reports)
    fillings = rules.Fillings.from_json(json.loads((folder / "fillings.json").read_text()))
    assert {fillings.age_of("Mr", pclass) for pclass in (1, 3)} == {30.13, 50.0}
    # No age of the second class is known: the lower median of all of the title.
    assert fillings.age_of("Mr", 2) in (30.13, 50.0)
    assert fillings.age_of("Rare", 2) == fillings.age == 30.13
    assert [fillings.fare_of(pclass) for pclass in (1, 2, 3)] == [10.0, 20.0, 20.0]


def test_a_table_that_knows_no_age_gets_the_historic_one(folder: Path, reports: Reports) -> None:
    table = make_table(40).to_pandas().assign(age_imputed=True)
    train(ds.dataset(pa.Table.from_pandas(table)), folder, reports)
    assert json.loads((folder / "fillings.json").read_text())["age"] == 28.0


def test_the_same_table_gives_the_same_scores(tmp_path: Path) -> None:
    scores = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train(ds.dataset(make_table(150)), tmp_path / name, Reports())
        scores.append((tmp_path / name / "metrics.json").read_text())
    assert scores[0] == scores[1]


def test_no_fold_knows_the_answers_it_is_judged_by(folder: Path, reports: Reports) -> None:
    """Outcomes drawn by lot cannot be predicted, however few share a ticket."""
    draw = random.Random(3)
    table = make_table(1000)
    train(_with_outcomes(table, [draw.randrange(2) for _ in range(1000)]), folder, reports)
    assert reports.of["survival_model"]["roc_auc"] == pytest.approx(0.5, abs=0.06)


def test_a_large_table_is_cross_validated_on_a_part_and_says_so(
    folder: Path, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_MAX_CROSS_VALIDATED_ROWS", 100)
    monkeypatch.setattr(train_module, "_MAX_TICKETS", 10)
    train(ds.dataset(make_table(300)), folder, reports)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["rows"], metrics["rows_cross_validated"]) == (300, 100)
    assert np.sum(metrics["confusion_matrix"]) == 100
    assert "ticket" not in metrics["features"]
    card = (folder / "model_card.md").read_text()
    assert "over 100 of them, drawn at random" in card
    assert "`ticket` is left out" in card


def test_few_rows_of_one_outcome_give_fewer_folds(folder: Path, reports: Reports) -> None:
    train(_with_outcomes(make_table(20), [1] * 4 + [0] * 16), folder, reports)
    assert json.loads((folder / "metrics.json").read_text())["folds"] == 2


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ([], "titanic_prepared has no rows"),
        ([0] * 9, "Column survived is 0 in every row .* passengers with survived 1"),
        ([1] * 9, "Column survived is 1 in every row .* passengers with survived 0"),
        ([1] * 9 + [0] * 3, "Column survived is 0 in only 3 rows .* at least 4 such passengers"),
    ],
    ids=["empty", "all lost", "all saved", "too few"],
)
def test_a_table_that_teaches_nothing_is_refused(
    outcomes: list[int], message: str, folder: Path, reports: Reports
) -> None:
    table = make_table(20).slice(0, len(outcomes))
    with pytest.raises(ValueError, match=message) as refused:
        train(_with_outcomes(table, outcomes), folder, reports)
    assert str(refused.value).endswith(".")
    assert list(folder.iterdir()) == []


def test_a_table_without_a_column_is_refused(folder: Path, reports: Reports) -> None:
    table = make_table(20).drop_columns(["deck"])
    with pytest.raises(ValueError, match="lacks the column deck: materialize it again"):
        train(ds.dataset(table), folder, reports)
