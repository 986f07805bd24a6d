"""The entries of a FileDataset: one row per file, in a small Parquet file."""

import io
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING

from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.version import DataFile
from synapse_assets.datastore import Datastore

if TYPE_CHECKING:
    import pyarrow as pa

# The user's own files lie in a folder that begins with an underscore: Delta's VACUUM, which does
# not know of them, leaves such folders alone.
FILES_FOLDER = "_files"


def write(staged: StagedDataset, *, uri: str, folder: str, datastore: Datastore) -> DataFile:
    """Write the entries of staged files and return the Parquet file that holds them.

    Writing them again, after a crash before the commit, puts the same bytes in the same place.

    Args:
        staged: The files, as the attempt's manifest lists them.
        uri: Location of the dataset.
        folder: Folder of the partition, relative to `uri`; '' for none.
        datastore: Where the dataset lies.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "name": file.name,
            "path": file.path,
            "size": file.size,
            "etag": file.etag,
            "sha256": file.sha256,
            "properties": list(file.properties.items()),
        }
        for file in staged.files
    ]
    attempt_folder = staged.folder.rpartition("/")[2]
    path = posixpath.join(folder, f"entries-{attempt_folder}.parquet")
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), content)
    # Atomically: the same attempt may have been committed meanwhile, and have readers.
    datastore.write_atomically(f"{uri}/{path}", content.getvalue())
    return DataFile(path=path, size=len(content.getvalue()), rows=len(rows))


def read(files: Sequence[DataFile], *, uri: str, datastore: Datastore) -> list[DataFile]:
    """Return the entries that the Parquet files `files` hold, by partition and name."""
    import pyarrow.parquet as pq

    filesystem = datastore.arrow_filesystem()
    entries = [
        DataFile(
            path=row["path"],
            size=row["size"],
            partition=file.partition,
            name=row["name"],
            etag=row["etag"],
            sha256=row["sha256"],
            properties=dict(row["properties"]),
        )
        for file in files
        for row in pq.ParquetFile(f"{uri}/{file.path}", filesystem=filesystem).read().to_pylist()
    ]
    return sorted(entries, key=lambda entry: (entry.partition or "", entry.name or ""))


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            ("name", pa.string()),
            ("path", pa.string()),
            ("size", pa.int64()),
            ("etag", pa.string()),
            ("sha256", pa.string()),
            ("properties", pa.map_(pa.string(), pa.string())),
        ]
    )
