"""Folding old partitions of a dataset into one, and taking one back out, without reading data.

A partition is no more than a value that the log has beside each Parquet file. To move a file to
another partition is to add it once more with another value: of two entries for one path the later
counts. So the files stay where they are, in the folder of the partition that they were made for,
and that tells which of them to take back.
"""

import datetime as dt
import decimal
import json
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from synapse_assets.datasets.schema import check_protocol
from synapse_assets.datasets.slot import Slot, dataset_uri
from synapse_assets.datasets.table import (
    conflict_error,
    explained,
    open_existing,
    parquet_files,
    tries,
)
from synapse_assets.datastore import Datastore
from synapse_assets.errors import DatasetError

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction

# The application transaction by which the log tells that a dataset has folded partitions.
RETIRED = "retired"


def retire(datastore: Datastore, name: str, partitions: Collection[str], *, into: str) -> int:
    """Move the files of some partitions of a dataset into one, and return how many were moved.

    It is one commit; none if no partition has files.

    Raises:
        DatasetNotFoundError: There is no such dataset.
        UnsupportedTableError: The oldest supported reader could not read it.
        CommitConflictError: Other writers kept winning.
        StorageError: The store could not be reached, or refused.
    """
    return _move(datastore, name, lambda _, p: into if p in partitions and p != into else None)


def take_back(datastore: Datastore, table: "DeltaTable", slot: Slot) -> "DeltaTable":
    """Return the table of a slot that is about to be replaced, with all of its files in it.

    Raises:
        DatasetError: The slot holds folded partitions, which nothing can make again.
        CommitConflictError: Other writers kept winning.
        StorageError: The store could not be reached, or refused.
    """
    if slot.partition is None or table.transaction_version(RETIRED) is None:
        return table
    folder = f"{slot.folder}/"
    files = [(f.path, f.partition) for f in parquet_files(table, slot.partition_by)]
    if any(p == slot.partition and not path.startswith(folder) for path, p in files):
        raise DatasetError(
            f"The partition '{slot.partition}' of '{slot.name}' holds older partitions that were "
            "folded into it, and stays as it is. To make one of them again, land its data anew."
        )
    if not any(p != slot.partition and path.startswith(folder) for path, p in files):
        return table
    own = slot.partition
    _move(
        datastore,
        slot.name,
        lambda path, p: own if path.startswith(folder) and p != own else None,
    )
    return open_existing(datastore, slot.name)


def _move(datastore: Datastore, name: str, choose: Callable[[str, str | None], str | None]) -> int:
    """Move the files for which `choose`, told path and partition, returns another partition."""
    from deltalake import CommitProperties, Transaction
    from deltalake.exceptions import CommitFailedError

    uri = dataset_uri(datastore, name)
    conflict: CommitFailedError | None = None
    for _ in tries():
        table = open_existing(datastore, name)
        check_protocol(table, uri)
        adds = _adds(table, choose)
        if not adds:
            return 0
        properties = CommitProperties(
            custom_metadata={RETIRED: len(adds)},
            # As in `table.commit`: the state has to be looked at again before each try.
            max_commit_retries=0,
            app_transactions=[Transaction(RETIRED, table.version() + 1, int(time.time() * 1000))],
        )
        try:
            with explained("move partitions of", uri):
                table.create_write_transaction(
                    [*adds],
                    mode="append",
                    schema=table.schema(),
                    partition_by=table.metadata().partition_columns,
                    commit_properties=properties,
                )
        except CommitFailedError as e:
            conflict = e
        else:
            return len(adds)
    raise conflict_error(name, uri) from conflict


def _adds(
    table: "DeltaTable", choose: Callable[[str, str | None], str | None]
) -> "list[AddAction]":
    import pyarrow as pa
    from deltalake.transaction import AddAction

    columns = table.metadata().partition_columns
    if not columns:
        return []
    with explained("read", table.table_uri):
        files = pa.RecordBatchReader.from_stream(table.get_add_actions()).read_all()
    adds = []
    for file in files.to_pylist():
        path = unquote(file["path"])
        partition = choose(path, file["partition"][columns[0]])
        if partition is None:
            continue
        stats = {
            "numRecords": file["num_records"],
            "minValues": _known(file.get("min")),
            "maxValues": _known(file.get("max")),
            "nullCount": _known(file.get("null_count")),
        }
        adds.append(
            AddAction(
                path,
                file["size_bytes"],
                {columns[0]: partition},
                file["modification_time"],
                # No row is new: who reads the changes of the table reads none of them again.
                False,
                json.dumps(stats, default=_to_json),
            )
        )
    return adds


def _known(values: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (values or {}).items() if value is not None}


def _to_json(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        utc = value if value.tzinfo is None else value.astimezone(dt.timezone.utc)
        return utc.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
    if isinstance(value, decimal.Decimal):
        return float(value)
    return value.isoformat()
