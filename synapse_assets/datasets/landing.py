"""The landing folder: blobs as they arrive, and the arrivals they form.

An arrival is a folder below the landing folder, or the stem of a file that lies in it:
'landing/titanic/2026-11-24/a.csv' belongs to '2026-11-24', 'landing/titanic/Titanic.csv' is
'Titanic'. Re-landed blobs rewrite their own arrival, and many blobs are still few partitions.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.errors import PartitionNotFoundError


def find_arrival(datastore: Datastore, folder: str, arrival: str) -> DatasetVersion:
    """Return a reference to the blobs of one arrival, as they lie there now.

    Args:
        datastore: Where the landing folder lies.
        folder: The landing folder below the datastore's root, for example 'landing/titanic'.
        arrival: Name of the arrival.

    Raises:
        PartitionNotFoundError: No blob of the arrival is there.
    """
    found = list_arrivals(datastore, folder)
    if arrival not in found:
        names = ", ".join(sorted(found)[:5]) or "nothing"
        raise PartitionNotFoundError(
            f"No blob of the arrival '{arrival}' is in {datastore.uri(folder)}; there is {names}. "
            "Land it again, or delete the partition."
        )
    return found[arrival]


def list_arrivals(datastore: Datastore, folder: str) -> dict[str, DatasetVersion]:
    """Return the arrivals below a landing folder, each with a reference to its blobs."""
    uri = datastore.uri(folder)
    blobs: dict[str, list[DataFile]] = defaultdict(list)
    for path, info in _list(datastore, uri):
        relative = PurePosixPath(path).relative_to(uri)
        is_hidden = any(part.startswith((".", "_")) for part in relative.parts)
        if is_hidden or relative.suffix == ".tmp":
            continue
        arrival = relative.parts[0] if len(relative.parts) > 1 else relative.stem
        blobs[arrival].append(
            DataFile(path=str(relative), size=info["size"], name=str(relative), etag=_etag(info))
        )
    return {
        arrival: DatasetVersion(
            name=folder, uri=uri, kind="FileDataset", version=0, files=tuple(files)
        )
        for arrival, files in blobs.items()
    }


def _list(datastore: Datastore, uri: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return iter(sorted(datastore.filesystem().find(uri, detail=True).items()))


def _etag(info: dict[str, Any]) -> str:
    """Return the store's tag of a blob's content; on a file system its time and size stand in."""
    return str(info.get("etag") or f"{info['mtime']:.6f}-{info['size']}")
