"""Every compute target that keeps the contract; a further one is one more entry."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from synapse_assets.compute.cpu import AzureMLCpu, LocalCpu
from synapse_assets.compute.login import EMULATOR_TOKEN
from synapse_assets.compute.spark import LocalSpark
from synapse_assets.compute.spark.livy import HttpLivyClient
from synapse_assets.compute.spark.options import SparkOptions
from synapse_assets.compute.spark.pool import LivySparkPool, SynapseSparkPool
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datastore import Datastore
from synapse_assets.services import (
    ML_RESOURCE_GROUP,
    ML_SUBSCRIPTION,
    ML_WORKSPACE,
    SYNAPSE_POOL,
)

# Environment variables that say where the real services of the tests answer, as in `stores`.
LIVY = "SYNAPSE_ASSETS_TEST_LIVY"
SYNAPSE = "SYNAPSE_ASSETS_TEST_SYNAPSE"

# What a small machine has room for three times.
_SMALL = SparkOptions(
    driver_memory="1g", driver_cores=1, executor_memory="1g", executor_cores=1, num_executors=1
)


@dataclass(frozen=True)
class Target:
    """One kind of compute target, and what truly differs between them.

    Attributes:
        name: Its name in TARGETS.
        make: Returns the resource for a datastore, with settings that all of them have.
        engine: What its steps run on.
        store: Name of the store in `stores` that it is tried with.
        services: Fixtures of what has to be there beside the store.
        killed: What the failure of a step says that was killed, as a pattern.
        last_breath: How long processes may outlive a batch that is said to have ended, in seconds.
        batches: Returns the ids of all batches that the service knows, whoever asked for them.
    """

    name: str
    make: Callable[..., ComputeTarget]
    engine: str
    store: str = "local"
    services: Sequence[str] = ()
    killed: str = "the process was killed by SIGKILL"
    last_breath: float = 0.0
    batches: Callable[[], set[str]] = set


def _local_spark(*, datastore: Datastore, **settings: Any) -> ComputeTarget:
    return LocalSpark(datastore=datastore, driver_memory="1g", **settings)


def _livy(*, datastore: Datastore, **settings: Any) -> ComputeTarget:
    return LivySparkPool(datastore=datastore, url=os.environ[LIVY], options=_SMALL, **settings)


def _synapse(*, datastore: Datastore, **settings: Any) -> ComputeTarget:
    return SynapseSparkPool(
        datastore=datastore,
        workspace=os.environ[SYNAPSE],
        pool=SYNAPSE_POOL,
        cloud="emulator",
        options=_SMALL,
        **settings,
    )


def _batches_of_livy() -> set[str]:
    return {batch.id for batch in HttpLivyClient(os.environ[LIVY]).all_batches()}


def _azureml(*, datastore: Datastore, **settings: Any) -> ComputeTarget:
    return AzureMLCpu(
        datastore=datastore,
        subscription_id=ML_SUBSCRIPTION,
        resource_group=ML_RESOURCE_GROUP,
        workspace=ML_WORKSPACE,
        cloud="emulator",
        **settings,
    )


def _jobs_of_azureml() -> set[str]:
    metadata = urlsplit(os.environ["ARM_CLOUD_METADATA_URL"])
    answer = requests.get(
        f"{metadata.scheme}://{metadata.netloc}/subscriptions/{ML_SUBSCRIPTION}/resourceGroups/"
        f"{ML_RESOURCE_GROUP}/providers/Microsoft.MachineLearningServices/workspaces/"
        f"{ML_WORKSPACE}/jobs",
        headers={"Authorization": f"Bearer {EMULATOR_TOKEN}"},
        timeout=30,
    )
    return {job["name"] for job in answer.json()["value"]}


# A pool tells of the Java process, which says nothing of the signal that ended Python's.
_ON_A_POOL: Mapping[str, Any] = {
    "engine": "spark",
    "killed": "ended as 'dead'",
    "last_breath": 15.0,
    "batches": _batches_of_livy,
}

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("LocalCpu", LocalCpu, engine="python"),
        Target("LocalSpark", _local_spark, engine="spark"),
        Target("LivySparkPool", _livy, services=("livy",), **_ON_A_POOL),
        Target(
            "SynapseSparkPool",
            _synapse,
            store="azurite",
            services=("livy", "synapse_emulator"),
            **_ON_A_POOL,
        ),
        Target(
            "AzureMLCpu",
            _azureml,
            engine="python",
            store="azurite",
            services=("azureml",),
            killed="exited with status code 137",
            last_breath=5.0,
            batches=_jobs_of_azureml,
        ),
    )
}
LOCAL = tuple(name for name, target in TARGETS.items() if not target.services)
POOLS = tuple(name for name, target in TARGETS.items() if target.services)
SPARK = tuple(name for name, target in TARGETS.items() if target.engine == "spark")


def parameters(names: Iterable[str], *values: Any) -> list[Any]:
    """Return parameter sets for the fixture `target`, each followed by other values."""
    return [
        pytest.param(name, *values, marks=[pytest.mark.services] if name in POOLS else [])
        for name in names
    ]


def on(names: Iterable[str]) -> pytest.MarkDecorator:
    """Return the decorator of a test that holds for some targets only."""
    return pytest.mark.parametrize("target", parameters(names), indirect=True)
