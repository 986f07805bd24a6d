"""Tells an MLflow server of a training, where the environment names one."""

import importlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# Azure ML sets it for its jobs, and with it the run that the job belongs to.
_TRACKING_URI = "MLFLOW_TRACKING_URI"
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/@\s]*@")


def track(
    *,
    parameters: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, Any],
    artifact: Path,
) -> None:
    """Log a training as an MLflow run, if MLFLOW_TRACKING_URI is set.

    A training is not lost because nobody could be told of it: where mlflow is not installed or
    its server refuses, the log has a warning.

    Args:
        parameters: What the model was trained with.
        metrics: What it scored.
        tags: What it was made from; None is left out.
        artifact: A file to keep with the run.
    """
    if not os.environ.get(_TRACKING_URI):
        return
    try:
        # By name, since a step may only import what is installed where it is shipped from.
        mlflow = importlib.import_module("mlflow")
    except ImportError as e:
        logger.warning(
            "%s is set, but mlflow cannot be imported (%s), so that MLflow is not told of this "
            "training. Install mlflow-skinny where the step runs (on Azure ML azureml-mlflow, "
            "too), or unset the variable.",
            _TRACKING_URI,
            e,
        )
        return
    try:
        with mlflow.start_run() as run:
            mlflow.set_tags({name: str(tag) for name, tag in tags.items() if tag is not None})
            mlflow.log_params(dict(parameters))
            mlflow.log_metrics(dict(metrics))
            mlflow.log_artifact(str(artifact))
        logger.info("MLflow has this training as run %s", run.info.run_id)
    except Exception as e:  # noqa: BLE001 - whatever an MLflow plugin raises, the model is there
        reason = _LOGIN_IN_URL.sub("", f"{type(e).__name__}: {e}").partition("\n")[0]
        logger.warning(
            "MLflow was not told of this training, or not of all of it: %s. Look at %s and at the "
            "server, and materialize the model again if the record matters.",
            reason,
            _TRACKING_URI,
        )
