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
# Azurite's Queue endpoint, likewise.
AZURITE_QUEUE = "SYNAPSE_ASSETS_AZURITE_QUEUE"
# A Synapse workspace (its name, or its development endpoint) and its Spark pool.
SYNAPSE = "SYNAPSE_ASSETS_SYNAPSE"
SPARK_POOL = "SYNAPSE_ASSETS_SPARK_POOL"
# A Livy server that runs the Spark steps in place of a Synapse pool or of this machine.
LIVY = "SYNAPSE_ASSETS_LIVY"
# The Azure ML workspace of the deployment 'azure', and its cluster.
SUBSCRIPTION = "SYNAPSE_ASSETS_SUBSCRIPTION"
RESOURCE_GROUP = "SYNAPSE_ASSETS_RESOURCE_GROUP"
ML_WORKSPACE = "SYNAPSE_ASSETS_ML_WORKSPACE"
ML_CLUSTER = "SYNAPSE_ASSETS_ML_CLUSTER"
# The cloud of that deployment; 'emulator' where stand-ins of this machine take Azure's place.
CLOUD = "SYNAPSE_ASSETS_CLOUD"
# Who is told of failed runs and checks: a webhook, or readers of mail. Nobody by default.
ALERT_WEBHOOK = "SYNAPSE_ASSETS_ALERT_WEBHOOK"
ALERT_MAIL_TO = "SYNAPSE_ASSETS_ALERT_MAIL_TO"
ALERT_MAIL_FROM = "SYNAPSE_ASSETS_ALERT_MAIL_FROM"
ALERT_MAIL_PASSWORD = "SYNAPSE_ASSETS_ALERT_MAIL_PASSWORD"  # noqa: S105 -- a variable's name
ALERT_MAIL_SERVER = "SYNAPSE_ASSETS_ALERT_MAIL_SERVER"
# Where Dagster's UI is, for links in alerts.
UI_URL = "SYNAPSE_ASSETS_UI_URL"
# Downloads and data of `synapse-assets services`.
SERVICES = "SYNAPSE_ASSETS_SERVICES"
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
