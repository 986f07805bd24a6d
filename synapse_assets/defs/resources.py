"""Which datastore, Spark pool and CPU each deployment uses. Nothing else decides that."""

import os
from typing import Any

import dagster as dg

from synapse_assets.compute.cpu import LocalCpu
from synapse_assets.compute.spark import LocalSpark
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ConfigurationError
from synapse_assets.settings import DATASTORE, DEPLOYMENT, deployment, state_folder

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
    if name in ("emulated", "azure"):
        raise ConfigurationError(
            f"{DEPLOYMENT}={name} is planned and not there yet: unset it, or set it to 'local'."
        )
    if name != "local":
        raise ConfigurationError(f"{DEPLOYMENT}={name} is unknown: set it to 'local'.")
    chosen = DATASTORE in os.environ
    root = dg.EnvVar(DATASTORE) if chosen else str(state_folder() / "datastore")
    datastore = Datastore(root=root)
    return {
        "datastore": datastore,
        "io_manager": DatasetIOManager(datastore=datastore),
        "spark": LocalSpark(datastore=datastore),
        "cpu": LocalCpu(datastore=datastore),
    }
