"""One dataset as a Delta table: resolving a version of it, and committing a new one.

Only this module touches the transaction log. A TabularDataset is a Delta table. A FileDataset is
a small Delta table of file entries (`file_entries`), so that both kinds have one way to commit,
to pin and to travel in time. See https://github.com/delta-io/delta/blob/master/PROTOCOL.md.
"""

import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from synapse_assets.datasets import file_entries
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.parquet import LARGEST_FLOATS, Footer, read_footers
from synapse_assets.datasets.schema import check_protocol, delta_schema, evolve_schema, kind_of
from synapse_assets.datasets.slot import Slot, dataset_uri
from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import LocalStorage
from synapse_assets.errors import (
    CommitConflictError,
    DatasetNotFoundError,
    PartitionNotFoundError,
    StagedFilesError,
    StorageError,
    SynapseAssetsError,
    UnsupportedTableError,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import CommitProperties, DeltaTable, Schema
    from deltalake.transaction import AddAction

# What the log says of a commit, beside its attempt: the size of the files that it brought.
SIZE = "size_bytes"

# Every so many versions a checkpoint sums up the log. Whoever opens the table reads each entry
# since then, so it is as often as Spark does it, and not as seldom as deltalake does by default.
_CHECKPOINT_INTERVAL = 10
# To look through all of the log for what has expired is half of what a commit to a table of a
# thousand versions costs.
_CLEANUP_INTERVAL = 100

# What the Delta library says goes over many lines, in colours, with queries of URLs, and ends with
# the service's answer or with a backtrace.
_ORNAMENTS = re.compile(r"\x1b\[[0-9;]*m|↳|\?[a-z]+=\S+|<\?xml.*|\n\s*0: <unknown>.*", re.DOTALL)
_CODE = re.compile("<Code>([A-Za-z]+)</Code>")
_MAX_PROBLEM = 400
# So many entries of the log are looked through for the one that is damaged.
_MAX_ENTRIES = 200

_ENTRY = re.compile(r"\d{20}\.json")

_Made = TypeVar("_Made")
Properties = Callable[[int], "CommitProperties"]

_MAX_TRIES = 12
_MAX_TROUBLED_TRIES = 2
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
        StorageError: The store could not be reached, or refused; the same attempt may be committed
            again, whether or not this commit arrived.
    """
    from deltalake import PostCommitHookProperties
    from deltalake.transaction import create_table_with_add_actions

    from synapse_assets.datasets.retirement import take_back

    uri = dataset_uri(datastore, slot.name)
    _check_files(datastore, uri, staged)
    new: _Content | None = None

    def write(table: "DeltaTable | None", properties: Properties) -> DatasetVersion:
        nonlocal new
        if table is not None:
            table = take_back(datastore, table, slot)
        new = new or _new_content(datastore, uri, staged, slot)
        schema = new.schema
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


def transact(
    datastore: Datastore,
    name: str,
    *,
    key: str,
    metadata: Mapping[str, Any],
    write: "Callable[[DeltaTable | None, Properties], _Made]",
    made: Callable[[int], _Made],
    mark: str | None = None,
) -> _Made:
    """Make one transaction on a dataset, once, whatever answers are lost on the way.

    Args:
        datastore: Where the dataset lies.
        name: Name of the dataset.
        key: Tells the transaction from all others of the dataset.
        metadata: What the log says of it.
        write: Commits on the newest version of the table (None if there is no table yet) with
            the properties for the version that it makes, and returns the result.
        made: Returns the result where the transaction is found in the log, by its version.
        mark: The table has a transaction of this name from then on.

    Raises:
        CommitConflictError: Other writers kept winning.
        StorageError: The store could not be reached, or refused.
        UnsupportedTableError: The oldest supported reader could not read the table.
    """
    from deltalake import CommitProperties, Transaction
    from deltalake.exceptions import CommitFailedError

    uri = dataset_uri(datastore, name)
    app_id = f"{name}/{key}"

    def properties(version: int) -> "CommitProperties":
        return CommitProperties(
            custom_metadata=dict(metadata),
            # A conflict must not be retried below us: the application transaction has to be
            # looked at again before each try, since the log itself accepts it twice.
            max_commit_retries=0,
            # Its number is the version it makes, so that the same key finds it for good.
            app_transactions=[
                Transaction(name, version, int(time.time() * 1000))
                for name in ((app_id,) if mark is None else (app_id, mark))
            ],
        )

    conflict: Exception | None = None
    for number in range(_MAX_TRIES):
        if number:
            wait = min(_MAX_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**number)
            time.sleep(random.uniform(wait / 2, wait))  # noqa: S311 -- jitter, not a secret
        table = open_table(datastore, uri)
        version = None if table is None else table.transaction_version(app_id)
        if version is not None:
            return made(version)
        if table is not None:
            check_protocol(table, uri)
        try:
            return write(table, properties)
        except CommitFailedError as e:
            conflict = e
        except SynapseAssetsError:
            raise
        except Exception as e:
            # The commit may have arrived, and its answer not.
            now = open_table(datastore, uri)
            version = None if now is None else now.transaction_version(app_id)
            if version is not None:
                return made(version)
            # Creating a table that another writer has just created fails with a bare error. Other
            # trouble may pass: the library itself does not repeat a write that may have arrived.
            is_new = table is None and now is not None
            is_passing = isinstance(e, OSError) and number < _MAX_TROUBLED_TRIES
            if not is_new and not is_passing:
                with explained("commit to", uri):
                    raise
            conflict = e
    raise CommitConflictError(
        f"Could not commit to dataset '{name}' at {uri}: other writers won {_MAX_TRIES} times in "
        "a row. Nothing was lost; run it again, and give the asset a Dagster pool so that it has "
        "one writer at a time."
    ) from conflict


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
        StorageError: The store could not be reached, or refused, or the log is damaged.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    options = datastore.delta_storage_options()
    try:
        with explained("open", uri):
            table = DeltaTable(datastore.delta_uri(uri), version=version, storage_options=options)
    except StorageError as e:
        # The rest is trouble with the store.
        if not isinstance(e.__cause__, DeltaError):
            raise
        damaged = _damaged_entry(datastore, uri)
        if damaged is not None:
            raise _damage(damaged, uri, version) from e
        if version is None:
            raise
        raise _no_such_version(version, uri, e.__cause__) from e
    except TableNotFoundError as e:
        # The log of a version that is older than all that is kept of it is "not found", too.
        if version is not None and open_table(datastore, uri) is not None:
            raise _no_such_version(version, uri, e) from e
        # Also what the library says where there is not even a container.
        datastore.storage().stat(uri)
        return None
    # The library takes an empty entry for a commit that changed nothing.
    newest = f"{table.version():020}.json"
    stored = datastore.storage().stat(f"{uri}/_delta_log/{newest}")
    if stored is not None and stored.size == 0:
        raise _damage(newest, uri, version)
    return table


def _no_such_version(version: int, uri: str, error: Exception) -> DatasetNotFoundError:
    return DatasetNotFoundError(
        f"Version {version} of the dataset at {uri} cannot be read: {_problem(error)}. "
        "It never existed, or was vacuumed."
    )


def _damaged_entry(datastore: Datastore, uri: str) -> str | None:
    """Return the oldest of the newest entries of a log that is not whole, None if all are."""
    storage = datastore.storage()
    entries = [f.path for f in storage.list_files(f"{uri}/_delta_log") if _ENTRY.fullmatch(f.path)]
    for name in entries[-_MAX_ENTRIES:]:
        content = storage.read_bytes(f"{uri}/_delta_log/{name}")
        try:
            lines = [json.loads(line) for line in (content or b"").splitlines()]
        except ValueError:
            lines = []
        if not lines:
            return name
    return None


def _damage(entry: str, uri: str, version: int | None) -> StorageError:
    asked = "the newest version" if version is None else f"version {version}"
    return StorageError(
        f"Could not open {asked} of the Delta table at {uri}: the entry _delta_log/{entry} of its "
        "log is damaged (empty, cut off, or not JSON). Older versions can still be read. Bring the "
        "entry back from a backup; or, if it is the newest, remove it and run again what it "
        "committed."
    )


@contextmanager
def explained(operation: str, uri: str) -> Iterator[None]:
    """Raise what the Delta library raises as a StorageError that says what, where, and the remedy.

    What the caller tells apart goes through: that there is no table, and that another commit won.
    """
    from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

    try:
        yield
    except (StorageError, CommitFailedError, TableNotFoundError):
        raise
    except (DeltaError, OSError) as e:
        problem = _problem(e)
        raise StorageError(
            f"Could not {operation} the Delta table at {uri}: {problem}. {_remedy(str(e))}"
        ) from e


def _problem(error: Exception) -> str:
    """Return what an error of the Delta library says, on one line."""
    said = str(error)
    lines = [*_ORNAMENTS.sub("", said).splitlines(), *_CODE.findall(said)[:1]]
    text = ": ".join(line for line in (line.strip(" .:") for line in lines) if line)
    return text if len(text) <= _MAX_PROBLEM else f"{text[:_MAX_PROBLEM]}…"


def _remedy(text: str) -> str:
    """Return what to do about an error, by what the Delta library says; it has no codes."""
    if "ContainerNotFound" in text:
        return "Create the container, or choose another root."
    if "403 Forbidden" in text or "ermission denied" in text:
        return "Give the identity in use the right to read and write there."
    if "401 Unauthorized" in text or "AuthenticationFailed" in text:
        return "Look whether the datastore's credential is the right one and still valid."
    if "No space left" in text or "File too large" in text:
        return "Make room on the disk, or choose another place, and run it again."
    return (
        "Look whether the store is up and this machine reaches it, and run it again: nothing that "
        "was committed is lost or doubled by it."
    )


def _add_actions(table: "DeltaTable") -> "pa.Table":
    """Return one row per Parquet file, with its statistics."""
    import pyarrow as pa

    # `pa.table` would do the same, and import pandas for it.
    with explained("read", table.table_uri):
        return pa.RecordBatchReader.from_stream(table.get_add_actions(flatten=True)).read_all()


def parquet_files(table: "DeltaTable", partition_by: str | None) -> list[DataFile]:
    """Return the table's Parquet files, sorted by path, from its log alone."""
    partition = f"partition.{partition_by}"
    columns = ["path", "size_bytes", "num_records"]
    if partition_by is not None:
        columns.append(partition)
    files = [
        DataFile(
            path=unquote(row["path"]),
            size=row["size_bytes"],
            rows=row["num_records"],
            partition=row.get(partition),
        )
        for row in _add_actions(table).select(columns).to_pylist()
    ]
    return sorted(files, key=lambda file: file.path)


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
