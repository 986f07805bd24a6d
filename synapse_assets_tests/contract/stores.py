"""Every store that keeps the contract; a further one is one more entry."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import Emulator

# Environment variables that say where the real services of the tests answer. The fixtures set
# them, so that other processes find them, too.
AZURITE = "SYNAPSE_ASSETS_TEST_AZURITE"
HDFS = "SYNAPSE_ASSETS_TEST_HDFS"
CONTAINER = "contract"


def _local(folder: Path) -> Datastore:
    return Datastore(root=str(folder / "datastore"))


def _azurite(folder: Path) -> Datastore:
    return Datastore(
        root=f"az://{CONTAINER}/{_name(folder)}",
        cloud="emulator",
        credential=Emulator(endpoint=os.environ[AZURITE]),
    )


def _hdfs(folder: Path) -> Datastore:
    return Datastore(root=f"{os.environ[HDFS]}/{_name(folder)}")


def _name(folder: Path) -> str:
    """Return a name for what one test keeps in a store that all of them share."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:16]


STORES: dict[str, Callable[[Path], Datastore]] = {
    "local": _local,
    "azurite": _azurite,
    "hdfs": _hdfs,
}


@dataclass(frozen=True)
class Store:
    """A store as it is told to another process, which a resource cannot be.

    Attributes:
        name: Name of the store in STORES.
        folder: A folder of its own, for what the store keeps on this machine.
        variables: Environment variables that say where its service answers.
    """

    name: str
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> Datastore:
        """Return a datastore in the store."""
        # The server that forks such processes may be older than the service.
        os.environ.update(self.variables)
        return STORES[self.name](self.folder)
