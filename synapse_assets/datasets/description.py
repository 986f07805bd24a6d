"""What a materialization's metadata says about the version that it made."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_PREVIEW_ROWS = 5
_BUFFER_BYTES = 64 * 1024
_MAX_CELL = 40
_MAX_FILES_LISTED = 20


def describe(
    version: DatasetVersion, *, whole: DatasetVersion, datastore: Datastore
) -> Mapping[str, dg.MetadataValue]:
    """Return metadata on a version: where it lies, what it holds, and a preview.

    Args:
        version: What the materialization wrote: the whole dataset, or one partition of it.
        whole: The same version with all partitions.
        datastore: Where the dataset lies.
    """
    metadata: dict[str, dg.MetadataValue] = {
        "dagster/uri": dg.MetadataValue.text(version.uri),
        "kind": dg.MetadataValue.text(version.kind),
        "version": dg.MetadataValue.int(version.version),
        "files": dg.MetadataValue.int(len(version.files)),
        "size_bytes": dg.MetadataValue.int(version.size),
    }
    if version.kind == "FileDataset":
        return {**metadata, "content": dg.MetadataValue.md(_file_list(version))}
    metadata["dagster/row_count"] = dg.MetadataValue.int(whole.rows)
    if version.partition_by is not None:
        metadata["dagster/partition_row_count"] = dg.MetadataValue.int(version.rows)
    metadata["dagster/column_schema"] = dg.MetadataValue.table_schema(column_schema(version))
    metadata["preview"] = dg.MetadataValue.md(_preview(version, datastore))
    return metadata


def column_schema(version: DatasetVersion) -> dg.TableSchema:
    """Return the columns of a table's version as Dagster shows them."""
    fields = json.loads(version.schema or '{"fields": []}')["fields"]
    return dg.TableSchema(
        [dg.TableColumn(name=f["name"], type=_type_name(f["type"])) for f in fields]
    )


def _type_name(delta_type: Any) -> str:
    return delta_type if isinstance(delta_type, str) else str(delta_type["type"])


def _file_list(version: DatasetVersion) -> str:
    rows = [
        [file.name or file.path, f"{file.size:,}", (file.sha256 or "")[:12]]
        for file in version.files[:_MAX_FILES_LISTED]
    ]
    if len(version.files) > _MAX_FILES_LISTED:
        rows.append([f"… {len(version.files) - _MAX_FILES_LISTED:,} more", "", ""])
    return _markdown(["file", "bytes", "sha256"], rows)


def _preview(version: DatasetVersion, datastore: Datastore) -> str:
    """Return the first rows as Markdown; reads one page per column of one file."""
    import pyarrow.parquet as pq

    first = next((file for file in version.files if file.rows), None)
    if first is None:
        return "no rows"
    storage = datastore.storage()
    path = storage.arrow_path(f"{version.uri}/{first.path}")
    # One column at a time, each through a small buffer: otherwise Arrow reads the columns whole,
    # and the orchestrator would grow with them.
    with pq.ParquetFile(
        path, filesystem=storage.arrow_filesystem(), buffer_size=_BUFFER_BYTES, pre_buffer=False
    ) as file:
        names = file.schema_arrow.names
        columns = [[_python(value) for value in _head(file, name).column(0)] for name in names]
    return _markdown(names, [list(row) for row in zip(*columns, strict=True)])


def _head(file: "pq.ParquetFile", column: str) -> "pa.RecordBatch":
    batches = file.iter_batches(batch_size=_PREVIEW_ROWS, columns=[column], use_threads=False)
    return next(batches)


def _python(value: Any) -> Any:
    """Return an Arrow scalar as a Python value, in words where Python has none."""
    try:
        return value.as_py()
    except (OverflowError, ValueError):
        return f"a {value.type} beyond what Python can show"


def _markdown(header: list[str], rows: list[list[Any]]) -> str:
    return "\n".join(
        "| " + " | ".join(_cell(value) for value in row) + " |"
        for row in [header, ["---"] * len(header), *rows]
    )


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    text = text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 1]}…"
    return text.replace("|", "\\|").replace("\n", " ")
