"""The environment variables that this package reads, and their defaults."""

import os
from pathlib import Path

DEPLOYMENT = "SYNAPSE_ASSETS_DEPLOYMENT"
DATASTORE = "SYNAPSE_ASSETS_DATASTORE"
# Logins to Azure storage; with neither, the identity of the machine or of the Azure CLI.
STORAGE_KEY = "SYNAPSE_ASSETS_STORAGE_KEY"
STORAGE_SAS = "SYNAPSE_ASSETS_STORAGE_SAS"
# Azurite's Blob endpoint, where it is not on its usual port.
AZURITE = "SYNAPSE_ASSETS_AZURITE"
# A Synapse workspace (its name, or its development endpoint) and its Spark pool.
SYNAPSE = "SYNAPSE_ASSETS_SYNAPSE"
SPARK_POOL = "SYNAPSE_ASSETS_SPARK_POOL"
# A Livy server that runs the Spark steps in place of a Synapse pool or of this machine.
LIVY = "SYNAPSE_ASSETS_LIVY"
DAGSTER_HOME = "DAGSTER_HOME"


def deployment() -> str:
    """Return the chosen deployment."""
    return os.environ.get(DEPLOYMENT) or "local"


def project_folder() -> Path:
    """Return the folder that holds workspace.yaml: the checkout, or where we were called."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "workspace.yaml").exists() else Path.cwd()


def state_folder() -> Path:
    """Return the folder of the project for what runs leave behind; git ignores it."""
    return project_folder() / ".synapse_assets"


def dagster_home() -> Path:
    """Return where Dagster keeps its records."""
    return Path(os.environ.get(DAGSTER_HOME) or state_folder() / "dagster_home")
