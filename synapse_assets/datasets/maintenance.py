"""What a dataset's past is for: the list of its versions, and going back to one of them.

A version can be read and restored as long as its files are there; `vacuum` ends that.
"""

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from synapse_assets.datasets import file_entries
from synapse_assets.datasets.delta import (
    Properties,
    open_existing,
    open_table,
    parquet_files,
    transact,
)
from synapse_assets.datasets.handlers import is_inside
from synapse_assets.datasets.schema import check_protocol, kind_of
from synapse_assets.datasets.slot import dataset_uri
from synapse_assets.datasets.table import SIZE, resolve
from synapse_assets.datasets.transaction_log import (
    LOG_FOLDER,
    LogEntry,
    LoggedFile,
    oldest_checkpoint,
    read_entries,
)
from synapse_assets.datasets.version import DatasetKind, DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import StoredFile
from synapse_assets.errors import DatasetNotFoundError

if TYPE_CHECKING:
    from deltalake import DeltaTable

# What a restore and a vacuum say of themselves in the log, as a commit says its attempt.
_RESTORED = "restored_version"
VACUUMED = "vacuumed_until"


@dataclass(frozen=True)
class VersionInfo:
    """What the log says of one version.

    Attributes:
        version: Its number.
        committed: When it was committed, in UTC.
        operation: 'commit', 'restore of 3', 'vacuum' (the same content as before), or what
            another program called what it did.
        attempt: Key of the attempt that was committed; None for anything else.
        partition: The partition that was replaced; None if it was not exactly one.
        files: Number of files in the version; in a FileDataset, of the user's own.
        size: Their size in bytes; None if the log does not tell.
        rows: Number of rows; None in a FileDataset, and if the log does not tell.
        is_readable: Whether it can still be read and restored.
    """

    version: int
    committed: dt.datetime
    operation: str
    attempt: str | None
    partition: str | None
    files: int
    size: int | None
    rows: int | None
    is_readable: bool


def list_datasets(datastore: Datastore) -> list[str]:
    """Return the names of the datasets that have a version, sorted."""
    root = datastore.uri()
    folders = {
        path[0]
        for file in datastore.storage().list_files(root)
        if len(path := file.path.split("/")) == 3 and path[1] == LOG_FOLDER
    }
    names = {_name_of(folder) for folder in folders}
    return sorted(
        name for name in names if dataset_uri(datastore, name).rpartition("/")[2] in folders
    )


def has_versions(datastore: Datastore, name: str) -> bool:
    """Tell whether there is a dataset, which is to say a version of it."""
    return open_table(datastore, dataset_uri(datastore, name)) is not None


def list_versions(datastore: Datastore, name: str) -> list[VersionInfo]:
    """Return what the log says of each version that it knows of, newest first.

    The cost is one listing of the dataset and one small read per version; none is opened.

    Raises:
        DatasetNotFoundError: There is no such dataset.
    """
    uri = dataset_uri(datastore, name)
    kind = kind_of(open_existing(datastore, name))
    listed = datastore.storage().list_files(uri)
    entries = read_entries(datastore.storage(), uri, listed)
    first, state = _oldest_state(datastore, uri, entries, listed)
    entries = [entry for entry in entries if entry.version >= first]
    lost = _given_up(entries) | (
        {path for entry in entries for path in entry.added}.union(state)
        - {file.path for file in listed}
    )
    # A FileDataset's commit adds one file of entries, and says how large the user's files are.
    sizes = {path: e.info.get(SIZE) for e in entries for path in e.added if SIZE in e.info}

    def weigh(path: str, file: LoggedFile) -> dict[str, int]:
        size = sizes.get(path) if kind == "FileDataset" else file.size
        return {
            "files": file.rows or 0 if kind == "FileDataset" else 1,
            "size": size or 0,
            "rows": file.rows or 0,
            "without size": size is None,
            "without rows": file.rows is None,
            "lost": path in lost,
        }

    # Sums are carried on from version to version: there may be many versions of many files.
    sums: Counter[str] = Counter()
    for path, file in state.items():
        sums.update(weigh(path, file))
    versions = []
    for entry in entries:
        # What the oldest version holds is known already, if its entry is not the log's first.
        if entry.version > first or first == 0:
            for path in entry.removed:
                if path in state:
                    sums.subtract(weigh(path, state.pop(path)))
            for path, file in entry.added.items():
                if path not in state:
                    state[path] = file
                    sums.update(weigh(path, file))
        versions.append(_version_info(entry, sums=sums, kind=kind))
    return versions[::-1]


def restore(datastore: Datastore, name: str, version: int) -> DatasetVersion:
    """Make the content of an old version the newest version, and return that.

    It is one more commit: what came after the old version stays in the history, and an attempt
    that was committed since is still known as committed. Where the newest version has that content
    already nothing is committed, and the newest version is returned as it is.

    Raises:
        DatasetNotFoundError: There is no such dataset, it never had the version, or files of the
            version were vacuumed. Nothing was committed.
        UnsupportedTableError: The oldest supported reader could not read it.
        CommitConflictError: Other writers kept winning.
    """

    def write(table: "DeltaTable | None", properties: Properties) -> DatasetVersion:
        if table is None:
            table = open_existing(datastore, name)
        # deltalake looks for a version that is far too high without an end.
        is_one = 0 <= version <= table.version()
        old = open_table(datastore, uri, version=version) if is_one else None
        if old is None:
            raise DatasetNotFoundError(
                f"Dataset '{name}' never had a version {version}. Its newest is {table.version()}."
            )
        check_protocol(old, uri)
        made = table.version()
        if _content(old) != _content(table):
            _check_restorable(datastore, name, old=old, newest=table)
            made += 1
            # All files were just looked for, in one listing instead of one request for each.
            table.restore(version, ignore_missing_files=True, commit_properties=properties(made))
        return resolve(datastore, name, version=made)

    uri = dataset_uri(datastore, name)
    return transact(
        datastore,
        name,
        key=f"restore-{uuid.uuid4().hex}",
        metadata={_RESTORED: version},
        write=write,
        made=lambda made: resolve(datastore, name, version=made),
    )


# --- Versions -----------------------------------------------------------------------------------


def _name_of(folder: str) -> str:
    """Return the name of the dataset that lies in a folder: what `dataset_uri` encoded."""
    return "/".join(unquote(part.replace("~", "%")) for part in folder.split("."))


def _oldest_state(
    datastore: Datastore, uri: str, entries: Sequence[LogEntry], listed: Sequence[StoredFile]
) -> tuple[int, dict[str, LoggedFile]]:
    """Return the oldest version that can be opened, and its files; none if all is in the log."""
    if entries and entries[0].version == 0:
        return 0, {}
    first = oldest_checkpoint(listed) or 0
    table = open_table(datastore, uri, version=first)
    files = [] if table is None else parquet_files(table, None)
    return first, {file.path: LoggedFile(file.size, file.rows, {}) for file in files}


def _version_info(entry: LogEntry, *, sums: Mapping[str, int], kind: DatasetKind) -> VersionInfo:
    attempt = entry.info.get("attempt")
    operation = str(entry.info.get("operation", "unknown")).lower()
    if VACUUMED in entry.info:
        operation = "vacuum"
    elif _RESTORED in entry.info:
        operation = f"restore of {entry.info[_RESTORED]}"
    elif attempt is not None:
        operation = "commit"
    partitions = {value for f in entry.added.values() for value in f.partition_values.values()}
    return VersionInfo(
        version=entry.version,
        committed=dt.datetime.fromtimestamp(entry.committed, tz=dt.timezone.utc),
        operation=operation,
        attempt=attempt,
        partition=partitions.pop() if operation == "commit" and len(partitions) == 1 else None,
        files=sums["files"],
        size=None if sums["without size"] else sums["size"],
        rows=None if kind == "FileDataset" or sums["without rows"] else sums["rows"],
        is_readable=not sums["lost"],
    )


def _given_up(entries: Sequence[LogEntry]) -> set[str]:
    """Return the Parquet files that a vacuum gave up, whether or not they are still there.

    Each is out of the dataset since a version before that vacuum, and since a time before the
    retention that it left.
    """
    removed_by: dict[str, LogEntry] = {}
    for entry in entries:
        removed_by.update(dict.fromkeys(entry.removed, entry))
        for path in entry.added:
            removed_by.pop(path, None)
    vacuums = [(e.version, e.info[VACUUMED]) for e in entries if VACUUMED in e.info]
    return {
        path
        for path, entry in removed_by.items()
        if any(v > entry.version and entry.committed < until for v, until in vacuums)
    }


# --- Restore ------------------------------------------------------------------------------------


def _content(table: "DeltaTable") -> tuple[set[str], str]:
    return {file.path for file in parquet_files(table, None)}, table.schema().to_json()


def _check_restorable(
    datastore: Datastore, name: str, *, old: "DeltaTable", newest: "DeltaTable"
) -> None:
    """Raise DatasetNotFoundError unless every file of an old version is there, and will stay."""
    uri = dataset_uri(datastore, name)
    listed = datastore.storage().list_files(uri)
    sizes = {file.path: file.size for file in listed}
    current = {file.path for file in parquet_files(newest, None)}
    given_up = _given_up(read_entries(datastore.storage(), uri, listed)) - current
    files = parquet_files(old, None)
    gone = [f for f in files if f.path in given_up or sizes.get(f.path) != f.size]
    if not gone and kind_of(old) == "FileDataset":
        files = file_entries.read(files, uri=uri, datastore=datastore)
        gone = [f for f in files if is_inside(f.path) and sizes.get(f.path) != f.size]
    if gone:
        raise DatasetNotFoundError(
            f"Version {old.version()} of '{name}' was vacuumed: {len(gone):,} of its "
            f"{len(files):,} files are gone from {uri}, {gone[0].path} for example. Nothing was "
            f"changed; `synapse-assets versions {name}` shows what can be restored."
        )
