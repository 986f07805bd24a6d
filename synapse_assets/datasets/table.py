"""One dataset as a Delta table: resolving a version of it, and committing a new one.

Only this module touches the transaction log. A TabularDataset is a Delta table. A FileDataset is
a small Delta table of file entries (`file_entries`), so that both kinds have one way to commit,
to pin and to travel in time. See https://github.com/delta-io/delta/blob/master/PROTOCOL.md.
"""

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from synapse_assets.datasets import file_entries
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.parquet import LARGEST_FLOATS, read_footers
from synapse_assets.datasets.schema import check_protocol, delta_schema, evolve_schema, kind_of
from synapse_assets.datasets.slot import Slot, dataset_uri
from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.errors import (
    CommitConflictError,
    DatasetNotFoundError,
    PartitionNotFoundError,
    StagedFilesError,
    UnsupportedTableError,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable, Schema
    from deltalake.transaction import AddAction

# What the log says of a commit, beside its attempt: the size of the files that it brought.
SIZE = "size_bytes"

_MAX_TRIES = 12
_FIRST_WAIT_SECONDS = 0.05
_MAX_WAIT_SECONDS = 2.0


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
    wanted = None if partitions is None else set(partitions)
    files = tuple(
        file
        for file in parquet_files(table, partition_by)
        if wanted is None or file.partition in wanted
    )
    if wanted and not files:
        asked = ", ".join(sorted(wanted)[:5]) + (", …" if len(wanted) > 5 else "")
        raise PartitionNotFoundError(
            f"Dataset '{name}' (version {table.version()}) has no data for the partition(s) "
            f"{asked}. Materialize them first."
        )
    kind = kind_of(table)
    if kind == "FileDataset":
        files = tuple(file_entries.read(files, uri=uri, datastore=datastore))
    return DatasetVersion(
        name=name,
        uri=uri,
        kind=kind,
        version=table.version(),
        files=files,
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
        for action in _add_actions(table).to_pylist()
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
    """
    from deltalake import CommitProperties, Transaction
    from deltalake.exceptions import CommitFailedError
    from deltalake.transaction import create_table_with_add_actions

    uri = dataset_uri(datastore, slot.name)
    _check_files(datastore, uri, staged)
    app_id = f"{slot.name}/{staged.attempt}"
    new: tuple[Schema, list[AddAction]] | None = None
    conflict: CommitFailedError | None = None
    for _ in tries():
        table = open_table(datastore, uri)
        if table is not None:
            made = table.transaction_version(app_id)
            if made is not None:
                return resolve(datastore, slot.name, version=made, partitions=_only(slot))
            check_protocol(table, uri)
        if new is None:
            new = _new_content(datastore, uri, staged, slot)
        schema, adds = new
        version = 0 if table is None else table.version() + 1
        properties = CommitProperties(
            custom_metadata={
                "attempt": staged.attempt,
                # Of a FileDataset the log itself knows the size of the entries only.
                SIZE: sum(file.size for file in staged.files),
            },
            # A conflict must not be retried below us: the application transaction has to be
            # looked at again before each try, since the log itself accepts it twice.
            max_commit_retries=0,
            # Its number is the version it makes, so that the same attempt finds it for good.
            app_transactions=[Transaction(app_id, version, int(time.time() * 1000))],
        )
        try:
            if table is None:
                create_table_with_add_actions(
                    datastore.delta_uri(uri),
                    schema,
                    adds,
                    mode="error",
                    partition_by=slot.partition_columns,
                    name=slot.name,
                    description=staged.kind,
                    storage_options=datastore.delta_storage_options(),
                    commit_properties=properties,
                )
            else:
                table.create_write_transaction(
                    [*adds],
                    mode="overwrite",
                    schema=evolve_schema(table, schema, kind=staged.kind, slot=slot),
                    partition_by=slot.partition_columns,
                    partition_filters=_partition_filter(slot),
                    commit_properties=properties,
                )
        except CommitFailedError as e:
            conflict = e
        except Exception:
            # Creating a table that another writer has just created fails with a bare error.
            if table is not None or open_table(datastore, uri) is None:
                raise
        else:
            return resolve(datastore, slot.name, version=version, partitions=_only(slot))
    raise conflict_error(slot.name, uri) from conflict


def tries() -> Iterator[int]:
    """Yield the numbers of the tries that a commit has, and wait between them, with jitter."""
    for number in range(_MAX_TRIES):
        yield number
        wait = min(_MAX_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**number)
        time.sleep(random.uniform(wait / 2, wait))  # noqa: S311 -- jitter, not a secret


def conflict_error(name: str, uri: str) -> CommitConflictError:
    """Return the error that says that all tries of a commit were used up."""
    return CommitConflictError(
        f"Could not commit to dataset '{name}' at {uri}: other writers won {_MAX_TRIES} "
        "times in a row. Nothing was lost; run it again, and give the asset a Dagster pool "
        "so that it has one writer at a time."
    )


def open_existing(datastore: Datastore, name: str, *, version: int | None = None) -> "DeltaTable":
    """Return the table of a dataset.

    Raises:
        DatasetNotFoundError: There is no such dataset or version.
    """
    uri = dataset_uri(datastore, name)
    table = open_table(datastore, uri, version=version)
    if table is None:
        raise DatasetNotFoundError(
            f"Dataset '{name}' does not exist at {uri}. Materialize the asset first."
        )
    return table


def open_table(
    datastore: Datastore, uri: str, *, version: int | None = None
) -> "DeltaTable | None":
    """Return the table at `uri`, None if there is none. Any other trouble is an error.

    Raises:
        DatasetNotFoundError: There is a table, and it does not have the version.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    options = datastore.delta_storage_options()
    try:
        return DeltaTable(datastore.delta_uri(uri), version=version, storage_options=options)
    except DeltaError as e:
        if version is None:
            if isinstance(e, TableNotFoundError):
                return None
            raise
        # The log of a version that is older than all that is kept of it is "not found", too.
        if isinstance(e, TableNotFoundError) and open_table(datastore, uri) is None:
            return None
        raise DatasetNotFoundError(
            f"Version {version} of the dataset at {uri} cannot be read: {e}. "
            "It never existed, or was vacuumed."
        ) from e


def _add_actions(table: "DeltaTable") -> "pa.Table":
    """Return one row per Parquet file, with its statistics."""
    import pyarrow as pa

    # `pa.table` would do the same, and import pandas for it.
    return pa.RecordBatchReader.from_stream(table.get_add_actions(flatten=True)).read_all()


def parquet_files(table: "DeltaTable", partition_by: str | None) -> list[DataFile]:
    """Return the table's Parquet files, from its log alone."""
    partition = f"partition.{partition_by}"
    columns = ["path", "size_bytes", "num_records"]
    if partition_by is not None:
        columns.append(partition)
    return [
        DataFile(
            path=unquote(row["path"]),
            size=row["size_bytes"],
            rows=row["num_records"],
            partition=row.get(partition),
        )
        for row in _add_actions(table).select(columns).to_pylist()
    ]


def _check_files(datastore: Datastore, uri: str, staged: StagedDataset) -> None:
    """Raise StagedFilesError unless storage holds every file of the manifest, at its size."""
    found = datastore.storage().list_files(f"{uri}/{staged.folder}")
    sizes = {f"{staged.folder}/{file.path}": file.size for file in found}
    for file in staged.files:
        size = sizes.get(file.path)
        if size is None:
            problem = "is missing"
        elif size != file.size:
            problem = f"has {size:,} bytes instead of {file.size:,}"
        else:
            continue
        raise StagedFilesError(
            f"Attempt {staged.attempt} is not committed: {uri}/{file.path} {problem}. Run the "
            "step again; "
            "the version before is untouched."
        )


def _new_content(
    datastore: Datastore, uri: str, staged: StagedDataset, slot: Slot
) -> "tuple[Schema, list[AddAction]]":
    """Return the schema and the add actions of the staged files."""
    from deltalake.transaction import AddAction

    files: Sequence[DataFile] = staged.files
    if staged.kind == "FileDataset":
        files = [file_entries.write(staged, uri=uri, folder=slot.folder, datastore=datastore)]
    if not files:
        raise StagedFilesError(
            f"Attempt {staged.attempt} wrote no Parquet file for '{slot.name}'. An empty table "
            "is one file without rows; return an empty frame instead of nothing."
        )
    storage = datastore.storage()
    paths = [storage.arrow_path(f"{uri}/{file.path}") for file in files]
    footers = list(read_footers(paths, filesystem=storage.arrow_filesystem()))
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
    return delta_schema(footers[0].schema, slot), adds


def _partition_filter(slot: Slot) -> list[tuple[str, str, str]] | None:
    if slot.partition_by is None or slot.partition is None:
        return None
    return [(slot.partition_by, "=", slot.partition)]


def _only(slot: Slot) -> list[str] | None:
    return None if slot.partition is None else [slot.partition]
