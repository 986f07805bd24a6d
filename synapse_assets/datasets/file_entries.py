"""The entries of a FileDataset: one row per file, in a small Parquet file."""

import io
import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.version import DataFile
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import Storage
from synapse_assets.errors import StorageError

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
    import pyarrow.parquet as pq

    entries = [
        {
            "name": file.name,
            "path": file.path,
            "size": file.size,
            "etag": file.etag,
            "sha256": file.sha256,
            "properties": [{"key": k, "value": v} for k, v in file.properties.items()],
        }
        for file in staged.files
    ]
    attempt_folder = staged.folder.rpartition("/")[2]
    path = posixpath.join(folder, f"entries-{attempt_folder}.parquet")
    content = io.BytesIO()
    pq.write_table(_to_arrow(entries), content)
    # Atomically: the same attempt may have been committed meanwhile, and have readers.
    datastore.storage().write_atomically(f"{uri}/{path}", content.getvalue())
    return DataFile(path=path, size=len(content.getvalue()), rows=len(entries))


def read(files: Sequence[DataFile], *, uri: str, datastore: Datastore) -> list[DataFile]:
    """Return the entries that the Parquet files `files` hold, by partition and name."""
    import pyarrow.parquet as pq

    storage = datastore.storage()
    entries = [
        DataFile(
            path=row["path"],
            size=row["size"],
            partition=file.partition,
            name=row["name"],
            etag=row["etag"],
            sha256=row["sha256"],
            properties={item["key"]: item["value"] for item in row["properties"]},
        )
        for file in files
        for row in pq.ParquetFile(_content(f"{uri}/{file.path}", storage)).read().to_pylist()
    ]
    return sorted(entries, key=lambda entry: (entry.partition or "", entry.name or ""))


def _content(uri: str, storage: Storage) -> io.BytesIO:
    content = storage.read_bytes(uri)
    if content is None:
        raise StorageError(
            f"{uri}, which lists the files of a version, is gone: the version was vacuumed, or "
            "somebody removed it. Materialize the asset again, or use another version."
        )
    return io.BytesIO(content)


def _to_arrow(entries: Sequence[Mapping[str, Any]]) -> "pa.Table":
    """Return entries as an Arrow table."""
    import pyarrow as pa
    import pyarrow.json as pj

    properties = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))
    schema = pa.schema(
        [
            ("name", pa.string()),
            ("path", pa.string()),
            ("size", pa.int64()),
            ("etag", pa.string()),
            ("sha256", pa.string()),
            ("properties", properties),
        ]
    )
    if not entries:
        return schema.empty_table()
    # Through JSON, since `Table.from_pylist` imports pandas. One block, as long as all of it.
    text = "\n".join(json.dumps(entry) for entry in entries).encode()
    return pj.read_json(
        io.BytesIO(text),
        read_options=pj.ReadOptions(block_size=len(text) + 1),
        parse_options=pj.ParseOptions(explicit_schema=schema),
    )
