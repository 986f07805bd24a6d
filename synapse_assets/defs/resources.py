"""Which datastore, Spark pool and CPU each deployment uses. Nothing else decides that."""

import os
from typing import Any

import dagster as dg

from synapse_assets.compute.cpu import LocalCpu
from synapse_assets.compute.spark import (
    LivySparkPool,
    LocalSpark,
    SparkOptions,
    SynapseSparkPool,
)
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import (
    AccountKey,
    Credential,
    DefaultChain,
    Emulator,
    SasToken,
)
from synapse_assets.errors import ConfigurationError
from synapse_assets.services import (
    CONTAINER,
    SYNAPSE_POOL,
    SYNAPSE_PORT,
    abfs_jars_folder,
)
from synapse_assets.settings import (
    AZURITE,
    DATASTORE,
    DEPLOYMENT,
    LIVY,
    SPARK_POOL,
    STORAGE_KEY,
    STORAGE_SAS,
    SYNAPSE,
    deployment,
    state_folder,
)

# A step waits for a process or a cluster, so a run needs no fresh interpreter for each: the fork
# server has imported everything once.
_EXECUTOR = dg.multiprocess_executor.configured(
    {"start_method": {"forkserver": {"preload_modules": ["synapse_assets.definitions"]}}}
)


@dg.definitions
def resources() -> dg.Definitions:
    """Return the resources of the chosen deployment.

    Raises:
        ConfigurationError: The deployment is unknown, or not there yet.
    """
    return dg.Definitions(resources=resources_of(deployment()), executor=_EXECUTOR)


def resources_of(name: str) -> dict[str, Any]:
    """Return the resources of a deployment, by resource key.

    Raises:
        ConfigurationError: The deployment is unknown, or not there yet.
    """
    if name == "azure":
        raise ConfigurationError(
            f"{DEPLOYMENT}={name} is planned and not there yet: unset it, or set it to 'local' or "
            "'emulated'."
        )
    if name not in ("local", "emulated"):
        raise ConfigurationError(
            f"{DEPLOYMENT}={name} is unknown: set it to 'local' or 'emulated'."
        )
    datastore = _emulated_datastore() if name == "emulated" else _datastore()
    return {
        "datastore": datastore,
        "io_manager": DatasetIOManager(datastore=datastore),
        "spark": _spark(name, datastore),
        "cpu": LocalCpu(datastore=datastore),
    }


def _spark(name: str, datastore: Datastore) -> ComputeTarget:
    """Return what runs the Spark steps: the Livy server that the environment names, if it does."""
    if LIVY in os.environ:
        return LivySparkPool(url=dg.EnvVar(LIVY), datastore=datastore)
    if name == "local":
        return LocalSpark(datastore=datastore, abfs_jars=str(abfs_jars_folder()))
    return SynapseSparkPool(
        workspace=(
            dg.EnvVar(SYNAPSE) if SYNAPSE in os.environ else f"http://127.0.0.1:{SYNAPSE_PORT}"
        ),
        pool=dg.EnvVar(SPARK_POOL) if SPARK_POOL in os.environ else SYNAPSE_POOL,
        cloud="emulator",
        datastore=datastore,
        # The size that the how-to gives its step.
        options=SparkOptions(
            driver_memory="7g",
            driver_cores=4,
            executor_memory="7g",
            executor_cores=4,
            num_executors=1,
        ),
        node_size="Small",
        max_nodes=3,
    )


def _datastore() -> Datastore:
    """Return the datastore that the environment names, a folder of the project by default."""
    credential: Credential = DefaultChain()
    if STORAGE_KEY in os.environ:
        credential = AccountKey(key=dg.EnvVar(STORAGE_KEY))
    elif STORAGE_SAS in os.environ:
        credential = SasToken(token=dg.EnvVar(STORAGE_SAS))
    return Datastore(root=_root(str(state_folder() / "datastore")), credential=credential)


def _emulated_datastore() -> Datastore:
    """Return the datastore on Azurite, unless the environment names HDFS."""
    credential = Emulator()
    if AZURITE in os.environ:
        credential = Emulator(endpoint=dg.EnvVar(AZURITE))
    return Datastore(root=_root(f"az://{CONTAINER}"), cloud="emulator", credential=credential)


def _root(default: str) -> str:
    return dg.EnvVar(DATASTORE) if DATASTORE in os.environ else default
