"""Folding old partitions of a dataset into one, and taking one back out, without reading data.

A partition is no more than a value that the log has beside each Parquet file. To move a file to
another partition is to add it once more with another value: of two entries for one path the later
counts. So the files stay where they are, in the folder of the partition that they were made for,
and that tells which of them to take back.
"""

import json
import uuid
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from synapse_assets.datasets.delta import (
    Properties,
    add_actions,
    open_existing,
    parquet_files,
    transact,
)
from synapse_assets.datasets.parquet import bound
from synapse_assets.datasets.slot import Slot
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
    moved = 0

    def write(table: "DeltaTable | None", properties: Properties) -> int:
        nonlocal moved
        if table is None:
            table = open_existing(datastore, name)
        adds = _adds(table, choose)
        moved = len(adds)
        if adds:
            table.create_write_transaction(
                [*adds],
                mode="append",
                schema=table.schema(),
                partition_by=table.metadata().partition_columns,
                commit_properties=properties(table.version() + 1),
            )
        return moved

    return transact(
        datastore,
        name,
        key=f"{RETIRED}-{uuid.uuid4().hex}",
        mark=RETIRED,
        metadata={RETIRED: True},
        write=write,
        made=lambda _: moved,
    )


def _adds(
    table: "DeltaTable", choose: Callable[[str, str | None], str | None]
) -> "list[AddAction]":
    from deltalake.transaction import AddAction

    columns = table.metadata().partition_columns
    if not columns:
        return []
    adds = []
    for file in add_actions(table, flatten=False).to_pylist():
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
                json.dumps(stats),
            )
        )
    return adds


def _known(values: dict[str, Any] | None) -> dict[str, Any]:
    known = {n: v if isinstance(v, str) else bound(v) for n, v in (values or {}).items()}
    return {name: value for name, value in known.items() if value is not None}
