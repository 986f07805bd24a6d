"""One dataset as a Delta table: resolving a version of it, and committing a new one.

A TabularDataset is a Delta table. A FileDataset is a small Delta table of file entries
(`file_entries`), so that both kinds have one way to commit, to pin and to travel in time.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from synapse_assets.datasets import file_entries
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.delta import (
    Properties,
    add_actions,
    explained,
    open_existing,
    open_table,
    parquet_files,
    transact,
)
from synapse_assets.datasets.parquet import LARGEST_FLOATS, Footer, read_footers
from synapse_assets.datasets.retirement import take_back
from synapse_assets.datasets.schema import delta_schema, evolve_schema, kind_of
from synapse_assets.datasets.slot import Slot, dataset_uri
from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import LocalStorage
from synapse_assets.errors import (
    DatasetNotFoundError,
    PartitionNotFoundError,
    StagedFilesError,
    UnsupportedTableError,
)

if TYPE_CHECKING:
    from deltalake import DeltaTable, Schema
    from deltalake.transaction import AddAction

# What the log says of a commit, beside its attempt: the size of the files that it brought.
SIZE = "size_bytes"

# Every so many versions a checkpoint sums up the log. Whoever opens the table reads each entry
# since then, so it is as often as Spark does it, and not as seldom as deltalake does by default.
_CHECKPOINT_INTERVAL = 10
# To look through all of the log for what has expired is half of what a commit to a table of a
# thousand versions costs.
_CLEANUP_INTERVAL = 100


def resolve(
    datastore: Datastore,
    name: str,
    *,
    version: int | None = None,
    partitions: Iterable[str] | None = None,
) -> DatasetVersion:
    """Return a reference to a version of a dataset: the newest, or the one asked for.

    Args:
        datastore: Where the dataset lies.
        name: Name of the dataset.
        version: Number of the version; None for the newest.
        partitions: Restricts the reference to these partitions; None for all of them. Partitions
            without data are left out as long as one of them has some.

    Raises:
        DatasetNotFoundError: There is no such dataset or version.
        PartitionNotFoundError: None of the partitions has data.
    """
    uri = dataset_uri(datastore, name)
    table = open_existing(datastore, name, version=version)
    partition_by = next(iter(table.metadata().partition_columns), None)
    files = parquet_files(table, partition_by)
    wanted = None if partitions is None else set(partitions)
    if wanted is not None:
        files = [file for file in files if file.partition in wanted]
    if wanted and not files:
        asked = ", ".join(sorted(wanted)[:5]) + (", …" if len(wanted) > 5 else "")
        raise PartitionNotFoundError(
            f"Dataset '{name}' (version {table.version()}) has no data for the partition(s) "
            f"{asked}. Materialize them first."
        )
    kind = kind_of(table)
    if kind == "FileDataset":
        files = file_entries.read(files, uri=uri, datastore=datastore)
    return DatasetVersion(
        name=name,
        uri=uri,
        kind=kind,
        version=table.version(),
        files=tuple(files),
        schema=table.schema().to_json() if kind == "TabularDataset" else None,
        partition_by=partition_by,
    )


@dataclass(frozen=True)
class Bounds:
    """What the log knows of one column's values.

    Attributes:
        lower: A value that none is below; None if the log does not know.
        upper: A value that none is above; None if the log does not know.
        nulls: Number of missing values; None if the log does not know.
    """

    lower: Any
    upper: Any
    nulls: int | None


def column_bounds(datastore: Datastore, version: DatasetVersion) -> Mapping[str, Bounds]:
    """Return the bounds of a table's columns over the files of a version, from its log alone.

    The cost depends on the number of files, and not on the number of rows.
    """
    table = open_table(datastore, version.uri, version=version.version)
    if table is None:
        raise DatasetNotFoundError(f"Dataset '{version.name}' is gone from {version.uri}.")
    own = {file.path for file in version.files}
    actions = [
        action
        for action in add_actions(table).to_pylist()
        # A file without rows bounds nothing.
        if unquote(action["path"]) in own and action["num_records"] != 0
    ]
    bounds = {}
    for field in table.schema().fields:
        if field.name == version.partition_by:
            continue
        lows, highs, nulls = (
            [action.get(f"{statistic}.{field.name}") for action in actions]
            for statistic in ("min", "max", "null_count")
        )
        bounds[field.name] = Bounds(
            lower=None if None in lows else min(lows, default=None),
            upper=None
            if None in highs or not highs or max(highs) in LARGEST_FLOATS.values()
            else max(highs),
            nulls=None if None in nulls else sum(nulls),
        )
    return bounds


def commit(datastore: Datastore, staged: StagedDataset, *, slot: Slot) -> DatasetVersion:
    """Make staged files the new content of a slot, in one atomic transaction.

    Committing the same attempt again changes nothing and returns the version that it made.

    Args:
        datastore: Where the dataset lies.
        staged: The files, as the attempt's manifest lists them.
        slot: The dataset, and the partition of it, whose content they become.

    Returns:
        A reference to the new version, restricted to the slot.

    Raises:
        StagedFilesError: Storage does not hold what the manifest lists; nothing was committed.
        SchemaChangedError: The columns would change and the slot does not allow it.
        UnsupportedTableError: The oldest supported reader could not read the result.
        CommitConflictError: Other writers kept winning.
        StorageError: The store could not be reached, or refused; the same attempt may be committed
            again, whether or not this commit arrived.
    """
    from deltalake import PostCommitHookProperties
    from deltalake.transaction import create_table_with_add_actions

    uri = dataset_uri(datastore, slot.name)

    def write(table: "DeltaTable | None", properties: Properties) -> DatasetVersion:
        new = content.result()
        schema = new.schema
        if table is not None:
            table = take_back(datastore, table, slot)
        version = 0 if table is None else table.version() + 1
        if table is None:
            create_table_with_add_actions(
                datastore.delta_uri(uri),
                schema,
                new.adds,
                mode="error",
                partition_by=slot.partition_columns,
                name=slot.name,
                description=staged.kind,
                configuration={"delta.checkpointInterval": str(_CHECKPOINT_INTERVAL)},
                storage_options=datastore.delta_storage_options(),
                commit_properties=properties(version),
            )
        else:
            schema = evolve_schema(table, schema, kind=staged.kind, slot=slot)
            table.create_write_transaction(
                [*new.adds],
                mode="overwrite",
                schema=schema,
                partition_by=slot.partition_columns,
                partition_filters=[(slot.partition_by, "=", slot.partition)]
                if slot.partition_by is not None and slot.partition is not None
                else None,
                commit_properties=properties(version),
                post_commithook_properties=PostCommitHookProperties(
                    # None: as the table's own properties say.
                    cleanup_expired_logs=None if version % _CLEANUP_INTERVAL == 0 else False
                ),
            )
        # What `resolve` would return, without reading back what was just written.
        return DatasetVersion(
            name=slot.name,
            uri=uri,
            kind=staged.kind,
            version=version,
            files=new.files,
            schema=schema.to_json() if staged.kind == "TabularDataset" else None,
            partition_by=slot.partition_by,
        )

    _check_files(datastore, uri, staged)
    with ThreadPoolExecutor(1) as reader:
        # The staged files are read while the log is opened: each is a chain of requests.
        content = reader.submit(_new_content, datastore, uri, staged, slot)
        return transact(
            datastore,
            slot.name,
            key=staged.attempt,
            metadata={
                "attempt": staged.attempt,
                # Of a FileDataset the log itself knows the size of the entries only.
                SIZE: sum(file.size for file in staged.files),
            },
            write=write,
            made=lambda version: resolve(
                datastore,
                slot.name,
                version=version,
                partitions=None if slot.partition is None else [slot.partition],
            ),
        )


def _check_files(datastore: Datastore, uri: str, staged: StagedDataset) -> None:
    """Raise StagedFilesError unless storage holds every file of the manifest, at its size."""
    found = datastore.storage().list_files(f"{uri}/{staged.folder}")
    sizes = {f"{staged.folder}/{file.path}": file.size for file in found}
    for file in staged.files:
        size = sizes.get(file.path)
        if size != file.size:
            problem = "is missing"
            if size is not None:
                problem = f"has {size:,} bytes instead of {file.size:,}"
            raise StagedFilesError(
                f"Attempt {staged.attempt} is not committed: {uri}/{file.path} {problem}. Run the "
                "step again; the version before is untouched."
            )


@dataclass(frozen=True)
class _Content:
    """Staged files as a commit takes them, and as a reference to its version lists them."""

    schema: "Schema"
    adds: "list[AddAction]"
    files: tuple[DataFile, ...]


def _new_content(datastore: Datastore, uri: str, staged: StagedDataset, slot: Slot) -> _Content:
    """Return the schema, the add actions and the reference's files of the staged files."""
    from deltalake.transaction import AddAction

    files: Sequence[DataFile] = staged.files
    if staged.kind == "FileDataset":
        files = [file_entries.write(staged, uri=uri, folder=slot.folder, datastore=datastore)]
    if not files:
        raise StagedFilesError(
            f"Attempt {staged.attempt} wrote no Parquet file for '{slot.name}'. An empty table "
            "is one file without rows; return an empty frame instead of nothing."
        )
    footers = _read_footers(datastore, uri, files)
    for file, footer in zip(files, footers, strict=True):
        if not footer.schema.names:
            raise UnsupportedTableError(
                f"{uri}/{file.path} has no columns beside the partition's, and so no rows. "
                f"Give '{slot.name}' a column."
            )
        if file.rows is not None and file.rows != footer.rows:
            raise StagedFilesError(
                f"Attempt {staged.attempt} is not committed: {uri}/{file.path} holds "
                f"{footer.rows:,} rows, its manifest says {file.rows:,}. Run the step again."
            )
        if not footer.schema.equals(footers[0].schema):
            raise StagedFilesError(
                f"Attempt {staged.attempt} is not committed: {file.path} and {files[0].path} "
                "have different columns. Write one schema per step."
            )
    total = sum(footer.rows for footer in footers)
    if staged.rows is not None and staged.rows != total:
        raise StagedFilesError(
            f"Attempt {staged.attempt} is not committed: its files hold {total:,} rows of "
            f"'{slot.name}', its manifest says {staged.rows:,}. Run the step again."
        )
    values = {slot.partition_by: slot.partition} if slot.partition_by else {}
    now = int(time.time() * 1000)
    adds = [
        # deltalake percent-encodes the path itself, as the protocol asks.
        AddAction(file.path, file.size, values, now, True, footer.stats)
        for file, footer in zip(files, footers, strict=True)
    ]
    if staged.kind == "FileDataset":
        own = (replace(file, partition=slot.partition) for file in staged.files)
    else:
        own = (
            DataFile(file.path, file.size, rows=footer.rows, partition=slot.partition)
            for file, footer in zip(files, footers, strict=True)
        )
    schema = delta_schema(footers[0].schema, slot)
    return _Content(schema, adds, tuple(sorted(own, key=lambda file: file.name or file.path)))


def _read_footers(datastore: Datastore, uri: str, files: Sequence[DataFile]) -> list[Footer]:
    paths = [file.path for file in files]
    if isinstance(datastore.storage(), LocalStorage):
        return read_footers(paths, root=uri)
    from deltalake.fs import DeltaStorageHandler

    # Delta's own file system takes sizes that are known, so that a footer is one request; and it
    # works outside of Python, where ten thousand requests would take minutes.
    handler = DeltaStorageHandler(
        datastore.delta_uri(uri),
        datastore.delta_storage_options(),
        {file.path: file.size for file in files},
    )
    try:
        return read_footers(paths, root=uri, open_file=handler.open_input_file)
    except StagedFilesError as e:
        cause = e.__cause__
        # What the library calls "Generic" is trouble with the store, and not with the files.
        if isinstance(cause, OSError) and "Generic " in str(cause):
            with explained("read the staged files of", uri):
                raise cause from None
        raise
