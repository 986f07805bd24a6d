"""Every store that keeps the contract; a further one is one more entry."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from synapse_assets.datastore import Datastore

STORES: dict[str, Callable[[Path], Datastore]] = {
    "local": lambda folder: Datastore(root=str(folder / "datastore")),
}


@dataclass(frozen=True)
class Store:
    """A store as it is told to another process, which a resource cannot be.

    Attributes:
        name: Name of the store in STORES.
        folder: A folder of its own, for what the store keeps on this machine.
    """

    name: str
    folder: Path

    def open(self) -> Datastore:
        """Return a datastore in the store."""
        return STORES[self.name](self.folder)
