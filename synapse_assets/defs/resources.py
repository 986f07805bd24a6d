"""Which datastore, Spark pool and CPU each deployment uses. Nothing else decides that."""

import os
from typing import Any

import dagster as dg

from synapse_assets.compute.cpu import AzureMLCpu, LocalCpu
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
from synapse_assets.services import ABFS_JARS, CONTAINER, SYNAPSE_POOL, SYNAPSE_PORT
from synapse_assets.settings import (
    AZURITE,
    AZURITE_QUEUE,
    CLOUD,
    DATASTORE,
    DEPLOYMENT,
    LIVY,
    ML_CLUSTER,
    ML_WORKSPACE,
    RESOURCE_GROUP,
    SPARK_POOL,
    STORAGE_KEY,
    STORAGE_SAS,
    SUBSCRIPTION,
    SYNAPSE,
    deployment,
    state_folder,
)

# What the deployment 'azure' cannot do without.
_AZURE = (DATASTORE, SYNAPSE, SPARK_POOL, SUBSCRIPTION, RESOURCE_GROUP, ML_WORKSPACE)

# A step waits for a process or a cluster, so a run needs no fresh interpreter for each: the fork
# server has imported everything once.
_EXECUTOR = dg.multiprocess_executor.configured(
    {"start_method": {"forkserver": {"preload_modules": ["synapse_assets.definitions"]}}}
)


@dg.definitions
def resources() -> dg.Definitions:
    """Return the resources of the chosen deployment.

    Raises:
        ConfigurationError: The deployment is unknown, or the environment does not name all of it.
    """
    return dg.Definitions(resources=resources_of(deployment()), executor=_EXECUTOR)


def resources_of(name: str) -> dict[str, Any]:
    """Return the resources of a deployment, by resource key.

    Raises:
        ConfigurationError: The deployment is unknown, or the environment does not name all of it.
    """
    if name not in ("local", "emulated", "azure"):
        raise ConfigurationError(
            f"{DEPLOYMENT}={name} is unknown: set it to 'local', 'emulated' or 'azure'."
        )
    missing = [variable for variable in _AZURE if variable not in os.environ]
    if name == "azure" and missing:
        raise ConfigurationError(f"{DEPLOYMENT}={name} is not complete: set {', '.join(missing)}.")
    cloud = _cloud(name)
    datastore = _emulated_datastore() if cloud == "emulator" else _datastore(cloud)
    return {
        "datastore": datastore,
        "io_manager": DatasetIOManager(datastore=datastore),
        "spark": _spark(name, datastore),
        "cpu": _cpu(name, datastore),
    }


def _cloud(name: str) -> str:
    """Return the cloud that a deployment is in."""
    if name == "azure":
        return os.environ.get(CLOUD, "public")
    return "emulator" if name == "emulated" else "public"


def _cpu(name: str, datastore: Datastore) -> ComputeTarget:
    """Return what runs the other steps."""
    if name != "azure":
        return LocalCpu(datastore=datastore)
    return AzureMLCpu(
        subscription_id=dg.EnvVar(SUBSCRIPTION),
        resource_group=dg.EnvVar(RESOURCE_GROUP),
        workspace=dg.EnvVar(ML_WORKSPACE),
        cluster=dg.EnvVar(ML_CLUSTER) if ML_CLUSTER in os.environ else "cpucluster",
        cloud=_cloud(name),
        datastore=datastore,
    )


def _spark(name: str, datastore: Datastore) -> ComputeTarget:
    """Return what runs the Spark steps: the Livy server that the environment names, if it does."""
    if LIVY in os.environ:
        return LivySparkPool(url=dg.EnvVar(LIVY), datastore=datastore)
    if name == "local":
        return LocalSpark(datastore=datastore, abfs_jars=str(ABFS_JARS.folder))
    return SynapseSparkPool(
        workspace=(
            dg.EnvVar(SYNAPSE) if SYNAPSE in os.environ else f"http://127.0.0.1:{SYNAPSE_PORT}"
        ),
        pool=dg.EnvVar(SPARK_POOL) if SPARK_POOL in os.environ else SYNAPSE_POOL,
        cloud=_cloud(name),
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


def _datastore(cloud: str) -> Datastore:
    """Return the datastore that the environment names, a folder of the project by default."""
    credential: Credential = DefaultChain()
    if STORAGE_KEY in os.environ:
        credential = AccountKey(key=dg.EnvVar(STORAGE_KEY))
    elif STORAGE_SAS in os.environ:
        credential = SasToken(token=dg.EnvVar(STORAGE_SAS))
    root = _root(str(state_folder() / "datastore"))
    return Datastore(root=root, cloud=cloud, credential=credential)


def _emulated_datastore() -> Datastore:
    """Return the datastore on Azurite, unless the environment names HDFS."""
    variables = {"endpoint": AZURITE, "queue_endpoint": AZURITE_QUEUE}
    endpoints: dict[str, Any] = {
        field: dg.EnvVar(name) for field, name in variables.items() if name in os.environ
    }
    credential = Emulator(**endpoints)
    return Datastore(root=_root(f"az://{CONTAINER}"), cloud="emulator", credential=credential)


def _root(default: str) -> str:
    return dg.EnvVar(DATASTORE) if DATASTORE in os.environ else default
