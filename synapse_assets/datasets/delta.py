"""The Delta library: tables opened, and transactions made once, with errors for people.

Only `deltalake` writes a transaction log. What it cannot do is here: to find out whether a commit
arrived whose answer was lost, to look whether the log is whole, and to say what went wrong.
See https://github.com/delta-io/delta/blob/master/PROTOCOL.md.
"""

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from synapse_assets.datasets.schema import check_protocol
from synapse_assets.datasets.slot import dataset_uri
from synapse_assets.datasets.transaction_log import ENTRY, LOG_FOLDER
from synapse_assets.datasets.version import DataFile
from synapse_assets.datastore import Datastore
from synapse_assets.errors import (
    CommitConflictError,
    DatasetNotFoundError,
    StorageError,
    SynapseAssetsError,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import CommitProperties, DeltaTable

# What the Delta library says goes over many lines, in colours, with queries of URLs, and ends with
# the service's answer or with a backtrace.
_ORNAMENTS = re.compile(r"\x1b\[[0-9;]*m|↳|\?[a-z]+=\S+|<\?xml.*|\n\s*0: <unknown>.*", re.DOTALL)
_CODE = re.compile("<Code>([A-Za-z]+)</Code>")
_MAX_PROBLEM = 400
# So many entries of the log are looked through for the one that is damaged.
_MAX_ENTRIES = 200

_Made = TypeVar("_Made")
Properties = Callable[[int], "CommitProperties"]

_MAX_TRIES = 12
_MAX_TROUBLED_TRIES = 2
_FIRST_WAIT_SECONDS = 0.05
_MAX_WAIT_SECONDS = 2.0


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
    stored = datastore.storage().stat(f"{uri}/{LOG_FOLDER}/{newest}")
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
    log = f"{uri}/{LOG_FOLDER}"
    entries = [f.path for f in storage.list_files(log) if ENTRY.fullmatch(f.path)]
    for name in entries[-_MAX_ENTRIES:]:
        content = storage.read_bytes(f"{log}/{name}")
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
        f"Could not open {asked} of the Delta table at {uri}: the entry {LOG_FOLDER}/{entry} of "
        "its log is damaged (empty, cut off, or not JSON). Older versions can still be read. Bring "
        "the entry back from a backup; or, if it is the newest, remove it and run again what it "
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


def add_actions(table: "DeltaTable", *, flatten: bool = True) -> "pa.Table":
    """Return one row per Parquet file, with its statistics, each a column of its own if flat."""
    import pyarrow as pa

    # `pa.table` would do the same, and import pandas for it.
    with explained("read", table.table_uri):
        return pa.RecordBatchReader.from_stream(table.get_add_actions(flatten=flatten)).read_all()


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
        for row in add_actions(table).select(columns).to_pylist()
    ]
    return sorted(files, key=lambda file: file.path)
