"""Airflow's end of the benchmark of Spark pools: calls `execute` of its operators, once per case.

It runs where Airflow is installed, and nothing of ours. There is no scheduler; what a worker hands
to a task is a stand-in. Two things are patched, since the stub has neither Entra ID nor TLS:
- where the hook makes a DefaultAzureCredential, it gets one with a constant token;
- azure-core's check that a token goes over https only is left out.
"""

import json
import os
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from airflow.providers.apache.livy.operators.livy import LivyOperator
from airflow.providers.microsoft.azure.hooks import synapse as synapse_hook
from airflow.providers.microsoft.azure.operators.synapse import AzureSynapseRunSparkBatchOperator
from azure.core.credentials import AccessToken
from azure.core.pipeline.policies import _authentication
from azure.synapse.spark.models import SparkBatchJobOptions

from benchmarks.spark_worker import serve

_PACKAGES = (
    "apache-airflow",
    "apache-airflow-providers-microsoft-azure",
    "apache-airflow-providers-apache-livy",
)
_YEAR = 365 * 24 * 60 * 60


class _ConstantToken:
    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken("emulator", int(time.time()) + _YEAR)


class _TaskInstance:
    """As much of a task instance as the operators use."""

    stats_tags: Mapping[str, str] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        """Take a value and forget it."""


class _StateStore(dict[str, Any]):
    """What Airflow keeps of a task from one try to the next."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


def run(case: Mapping[str, Any]) -> Mapping[str, Any]:
    context = {"ti": _TaskInstance(), "task_state_store": _StateStore()}
    outcome = _try(case, context)
    if not outcome["succeeded"] and case.get("retries"):
        outcome["again"] = _try(case, context)
    return outcome


def _try(case: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    operator = _operator(case)
    try:
        operator.execute(context)
    except Exception as e:  # noqa: BLE001 -- whatever it raises is the outcome
        message = f"{type(e).__name__}: {e}".partition("\n")[0]
        return {"returned_at": time.time(), "succeeded": False, "message": message}
    return {"returned_at": time.time(), "succeeded": True, "message": ""}


def _operator(case: Mapping[str, Any]) -> Any:
    connection: dict[str, Any] = {"conn_type": case["service"], "host": case["url"]}
    if case["service"] == "livy":
        os.environ["AIRFLOW_CONN_LIVY_DEFAULT"] = json.dumps(connection)
        interval = {} if case["interval"] is None else {"polling_interval": case["interval"]}
        return LivyOperator(task_id="bench", file="sleep.py", **interval)
    connection["conn_type"] = "azure_synapse"
    connection["extra"] = {"subscriptionId": "none"}
    os.environ["AIRFLOW_CONN_AZURE_SYNAPSE_DEFAULT"] = json.dumps(connection)
    interval = {} if case["interval"] is None else {"check_interval": case["interval"]}
    payload = SparkBatchJobOptions(
        name="bench",
        file="sleep.py",
        driver_memory="7g",
        driver_cores=4,
        executor_memory="7g",
        executor_cores=4,
        executor_count=1,
    )
    return AzureSynapseRunSparkBatchOperator(
        task_id="bench", spark_pool="spark01", payload=payload, **interval
    )


def _patch() -> None:
    synapse_hook.get_sync_default_azure_credential = lambda **_: _ConstantToken()
    setattr(_authentication, "_enforce_https", lambda _: None)  # noqa: B010 -- its type is generic


if __name__ == "__main__":
    _patch()
    serve(run, {package: metadata.version(package) for package in _PACKAGES})
