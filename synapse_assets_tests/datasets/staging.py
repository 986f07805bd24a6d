"""What a finished attempt leaves behind, made by hand, on any datastore."""

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import commit
from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.datastore import Datastore

_numbers = itertools.count()


def stage_table(
    datastore: Datastore, slot: Slot, *tables: pa.Table, attempt: str | None = None
) -> StagedDataset:
    """Write each table as one Parquet file of a fresh attempt folder."""
    attempt = attempt or f"attempt-{next(_numbers)}"
    target = slot.fresh_target(datastore, attempt=attempt)
    files = []
    for index, table in enumerate(tables):
        path = f"{target.folder}/part-{index}-{target.folder.rpartition('/')[2]}.parquet"
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        content = sink.getvalue().to_pybytes()
        datastore.filesystem().pipe_file(f"{target.uri}/{path}", content)
        files.append(DataFile(path=path, size=len(content), rows=table.num_rows))
    return StagedDataset(
        attempt=attempt,
        kind="TabularDataset",
        folder=target.folder,
        files=tuple(files),
        rows=sum(table.num_rows for table in tables),
    )


def stage_files(
    datastore: Datastore, slot: Slot, contents: Mapping[str, bytes], *, attempt: str | None = None
) -> StagedDataset:
    """Write each content as one file of a fresh attempt folder."""
    attempt = attempt or f"attempt-{next(_numbers)}"
    target = slot.fresh_target(datastore, attempt=attempt)
    files = []
    for name, content in contents.items():
        path = f"{target.files_folder}/{name}"
        datastore.filesystem().pipe_file(f"{target.uri}/{path}", content)
        sha256 = hashlib.sha256(content).hexdigest()
        files.append(DataFile(path=path, size=len(content), name=name, sha256=sha256))
    return StagedDataset(
        attempt=attempt, kind="FileDataset", folder=target.files_folder, files=tuple(files)
    )


def numbers(*values: int | None) -> pa.Table:
    return pa.table({"x": pa.array(values, pa.int64())})


def put(datastore: Datastore, slot: Slot, *tables: pa.Table) -> DatasetVersion:
    return commit(datastore, stage_table(datastore, slot, *tables), slot=slot)


def put_files(datastore: Datastore, slot: Slot, contents: Mapping[str, bytes]) -> DatasetVersion:
    return commit(datastore, stage_files(datastore, slot, contents), slot=slot)


def rows_of(datastore: Datastore, version: DatasetVersion) -> list[dict[str, Any]]:
    """Return a version's rows, read file by file and without any Delta library."""
    rows = []
    for file in version.files:
        content = datastore.filesystem().cat_file(f"{version.uri}/{file.path}")
        assert len(content) == file.size
        found = pq.ParquetFile(pa.BufferReader(content)).read().to_pylist()
        assert len(found) == file.rows
        own = {} if version.partition_by is None else {version.partition_by: file.partition}
        rows += [{**row, **own} for row in found]
    return rows


def values_of(datastore: Datastore, version: DatasetVersion) -> list[Any]:
    """Return the values of column x, sorted."""
    return sorted(row["x"] for row in rows_of(datastore, version))


def contents_of(datastore: Datastore, version: DatasetVersion) -> dict[str, bytes]:
    """Return the user's own files of a version by name, checked against their hashes."""
    contents = {}
    for file in version.files:
        assert file.name is not None
        content = datastore.filesystem().cat_file(version.file(file.name))
        assert hashlib.sha256(content).hexdigest() == file.sha256
        contents[file.name] = content
    return contents
