"""The landing folder: blobs as they arrive, and the arrivals they form.

An arrival is a folder below the landing folder, or the stem of a file that lies in it:
'landing/titanic/2026-11-24/a.csv' belongs to '2026-11-24', 'landing/titanic/Titanic.csv' is
'Titanic'. Re-landed blobs rewrite their own arrival, and many blobs are still few partitions.
"""

from collections import defaultdict
from pathlib import PurePosixPath

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
    for blob in datastore.storage().list_files(uri):
        path = PurePosixPath(blob.path)
        is_hidden = any(part.startswith((".", "_")) for part in path.parts)
        if is_hidden or path.suffix == ".tmp":
            continue
        arrival = path.parts[0] if len(path.parts) > 1 else path.stem
        blobs[arrival].append(
            DataFile(path=blob.path, size=blob.size, name=blob.path, etag=blob.etag)
        )
    return {
        arrival: DatasetVersion(
            name=folder, uri=uri, kind="FileDataset", version=0, files=tuple(files)
        )
        for arrival, files in blobs.items()
    }
