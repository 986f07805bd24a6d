"""MLflow is told of a training: the real one, and one that keeps books."""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow.dataset as ds
import pytest

from synapse_assets.steps.tracking import track
from synapse_assets.steps.train import train
from synapse_assets_tests.steps.conftest import Reports, make_table

METRICS = {"accuracy", "accuracy_std", "roc_auc", "log_loss", "majority_class_accuracy"}


class Books(ModuleType):
    """Stands in for mlflow: the functions of it that `track` calls, and what they hear."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.parameters: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.tags: dict[str, str] = {}
        self.artifacts: list[str] = []

    @contextlib.contextmanager
    def start_run(self) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(info=SimpleNamespace(run_id="run-1"))

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags.update(tags)

    def log_params(self, params: dict[str, Any]) -> None:
        self.parameters.update(params)

    def log_metrics(self, metrics: dict[str, float]) -> None:
        self.metrics.update(metrics)

    def log_artifact(self, local_path: str) -> None:
        self.artifacts.append(Path(local_path).name)


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Books:
    books = Books()
    monkeypatch.setitem(sys.modules, "mlflow", books)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@mlflow.invalid")
    return books


def _train(folder: Path) -> None:
    table = ds.dataset(make_table(60))
    train(table, folder, Reports(), dataset_version=7, code_version="abc123")


def _track(tmp_path: Path) -> None:
    track(parameters={}, metrics={"accuracy": 0.8}, tags={"none": None}, artifact=tmp_path)


def test_training_is_told_with_what_it_was_made_from(books: Books, tmp_path: Path) -> None:
    _train(tmp_path)
    assert books.tags == {
        "dataset": "titanic_prepared",
        "dataset_version": "7",
        "code_version": "abc123",
    }
    assert set(books.metrics) == METRICS
    assert books.parameters["rows"] == 60
    assert books.parameters["max_iter"] == 60
    assert books.parameters["model"] == "HistGradientBoostingClassifier"
    assert books.artifacts == ["model_card.md"]


def test_nobody_is_told_unless_the_variable_is_set(
    books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    _track(tmp_path)
    assert not books.metrics


def test_missing_mlflow_is_a_warning_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.invalid")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    _train(tmp_path)
    assert (tmp_path / "model.skops").exists()
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "mlflow cannot be imported" in warning.getMessage()
    assert "Install mlflow-skinny where the step runs" in warning.getMessage()


def test_refusing_server_is_a_warning_without_its_password(
    books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(params: dict[str, Any]) -> None:
        raise RuntimeError("https://user:secret@mlflow.invalid/api: 403\nbody")

    monkeypatch.setattr(books, "log_params", refuse)
    _track(tmp_path)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "RuntimeError: https://mlflow.invalid/api: 403. Look at MLFL" in record.getMessage()


def test_real_mlflow_has_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its own words on the store of files, which needs no server.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = importlib.import_module("mlflow")
    store, folder = tmp_path / "mlruns", tmp_path / "survival_model"
    folder.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.as_uri())
    _train(folder)
    assert not [r for r in caplog.records if r.name.startswith("synapse") and r.levelno > 20]
    client = mlflow.MlflowClient(tracking_uri=store.as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("Default").experiment_id])
    assert run.info.status == "FINISHED"
    assert (run.data.tags["dataset_version"], run.data.tags["code_version"]) == ("7", "abc123")
    assert set(run.data.metrics) == METRICS
    assert run.data.params["rows"] == "60"
    (card,) = client.list_artifacts(run.info.run_id)
    assert card.path == "model_card.md"
