"""The environment variables that this package reads, and their defaults."""

import os
from pathlib import Path

DEPLOYMENT = "SYNAPSE_ASSETS_DEPLOYMENT"
DATASTORE = "SYNAPSE_ASSETS_DATASTORE"

_DATASTORE_FOLDER = ".synapse_assets/datastore"


def deployment() -> str:
    """Return the chosen deployment."""
    return os.environ.get(DEPLOYMENT) or "local"


def set_defaults(project: Path) -> None:
    """Set what is not set: the datastore is a folder of the project."""
    os.environ.setdefault(DATASTORE, str(project / _DATASTORE_FOLDER))
