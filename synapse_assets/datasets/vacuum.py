"""Vacuum: removing the files that nobody needs any more.

A version is needed as long as it was the newest one at any moment of the retention. Vacuum removes
the files that no such version refers to. The transaction log itself it never touches.

Two things may happen while files are being removed, and neither may lose data:
- A commit. Its files are younger than the retention, so they stay, whether or not they were seen.
- A restore of a version whose files are about to go. Before it removes them, vacuum says in the
  log how far it goes, as a version of its own with the same content. A restore that read the log
  before that loses the race for the next version and looks again; one that comes later sees that
  the files are given up, and is refused although they may still be there.
"""

import datetime as dt
import math
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from synapse_assets.datasets import file_entries
from synapse_assets.datasets.delta import Properties, open_existing, parquet_files, transact
from synapse_assets.datasets.file_entries import FILES_FOLDER
from synapse_assets.datasets.handlers import is_inside
from synapse_assets.datasets.maintenance import VACUUMED
from synapse_assets.datasets.schema import check_protocol, kind_of
from synapse_assets.datasets.slot import dataset_uri
from synapse_assets.datasets.transaction_log import LOG_FOLDER, read_entries
from synapse_assets.datasets.version import DataFile
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.datastore import ATTEMPTS, BUNDLES
from synapse_assets.datastore.storage import StoredFile, for_each_file
from synapse_assets.errors import ConfigurationError, DatasetError

if TYPE_CHECKING:
    from deltalake import DeltaTable

DEFAULT_RETENTION = dt.timedelta(hours=168)

# How `Slot.fresh_target` ends the name of an attempt's folder.
_ATTEMPT_FOLDER = re.compile(r".*-[0-9a-f]{8}")


@dataclass(frozen=True)
class Retention:
    """How long a version that was superseded can still be read, and an attempt be adopted.

    Attributes:
        period: That time. No step may run longer.
        force: Whether it may be shorter than 168 hours.
        now: Its end; the present time if not given.

    Raises:
        ConfigurationError: The period is too short, and that is not forced.
    """

    period: dt.timedelta = DEFAULT_RETENTION
    force: bool = False
    now: dt.datetime | None = None

    def __post_init__(self) -> None:
        hour = dt.timedelta(hours=1)
        least = dt.timedelta() if self.force else DEFAULT_RETENTION
        if self.period < least:
            raise ConfigurationError(
                f"A retention of {self.period / hour:g} hours is too short: a step that is still "
                "writing, or a reader of an older version, would lose its files. Keep "
                f"{DEFAULT_RETENTION / hour:g} hours, or force it (--force) when nothing runs that "
                "began before."
            )

    @property
    def cutoff(self) -> float:
        """Where the retention begins, in seconds since 1970."""
        return ((self.now or dt.datetime.now(dt.timezone.utc)) - self.period).timestamp()


_WEEK = Retention()


@dataclass(frozen=True)
class Amount:
    """Some files, and their size in bytes."""

    files: int = 0
    size: int = 0

    @classmethod
    def of(cls, files: Iterable[StoredFile]) -> "Amount":
        """Return how many files there are, and how large they are together."""
        sizes = [file.size for file in files]
        return cls(len(sizes), sum(sizes))


@dataclass(frozen=True)
class VacuumReport:
    """What a vacuum removed, or would remove.

    Attributes:
        name: The dataset, or the folder of the datastore.
        removed: What was removed, or would be, by the reason why nobody needs it.
        kept: What stays, without the transaction log.
        dry_run: Whether nothing was removed.
    """

    name: str
    removed: Mapping[str, Amount]
    kept: Amount
    dry_run: bool


def vacuum(
    datastore: Datastore, name: str, *, retention: Retention = _WEEK, dry_run: bool
) -> VacuumReport:
    """Remove the files of a dataset that no version within the retention refers to.

    Those are the files of versions that were superseded before, and what abandoned attempts left.
    A file that is younger than the retention stays in any case: it may be an attempt's that has
    not come to its commit. Interrupted, it leaves every version that is needed as it was.

    An attempt may be adopted, and its files committed, long after it wrote them. If it is older
    than the retention, its files may be gone: `table.commit` looks for them first and refuses.
    Call `vacuum_attempts` before this, so that no attempt is adopted whose files go.

    Args:
        datastore: Where the dataset lies.
        name: Name of the dataset.
        retention: How long a superseded version stays.
        dry_run: Whether to report only.

    Raises:
        DatasetNotFoundError: There is no such dataset.
        UnsupportedTableError: Another program made the table into one that needs files which are
            not known here.
        DatasetError: Files of the newest version are missing; nothing was removed.
    """
    cutoff = retention.cutoff
    table = open_existing(datastore, name)
    plan = _plan(datastore, name, table=table, cutoff=cutoff)
    if not dry_run:
        if plan.superseded:
            announced = _announce(datastore, name, cutoff=cutoff)
            table = open_existing(datastore, name)
            plan = _plan(datastore, name, table=table, cutoff=cutoff, needed_since=announced)
        # The entries of a FileDataset before the files that they tell of: a version of which
        # anything is gone is seen to be gone.
        files = [*plan.superseded, *plan.abandoned]
        uri = dataset_uri(datastore, name)
        for of_user in (False, True):
            chosen = [f for f in files if f.path.startswith(f"{FILES_FOLDER}/") is of_user]
            _remove(datastore, [f"{uri}/{file.path}" for file in chosen])
    removed = {
        "superseded": Amount.of(plan.superseded),
        "abandoned": Amount.of(plan.abandoned),
    }
    return VacuumReport(name, removed, kept=Amount.of(plan.kept), dry_run=dry_run)


def vacuum_attempts(
    datastore: Datastore, *, retention: Retention = _WEEK, dry_run: bool
) -> list[VacuumReport]:
    """Remove the records of attempts that began before the retention, and bundles nobody needs.

    An attempt's staged files are younger than its record, so whoever vacuums attempts first never
    leaves a record that promises files which are gone. An old bundle stays as long as a younger
    attempt refers to it, or does not say which one it runs.
    """
    cutoff = retention.cutoff
    storage = datastore.storage()
    attempts: dict[str, list[StoredFile]] = {}
    for file in storage.list_files(datastore.uri(ATTEMPTS)):
        attempts.setdefault(file.path.partition("/")[0], []).append(file)
    young = {
        key: files for key, files in attempts.items() if min(f.modified for f in files) >= cutoff
    }
    old = [file for key, files in attempts.items() if key not in young for file in files]
    bundles = storage.list_files(datastore.uri(BUNDLES))
    unused = [bundle for bundle in bundles if bundle.modified < cutoff]
    if unused:
        records = [storage.read_bytes(datastore.uri(ATTEMPTS, k, "record.json")) for k in young]
        told = [(record or b"").decode() for record in records]
        unused = [b for b in unused if all(BUNDLES in r and b.path not in r for r in told)]
    if not dry_run:
        _remove(datastore, [datastore.uri(ATTEMPTS, file.path) for file in old])
        _remove(datastore, [datastore.uri(BUNDLES, file.path) for file in unused])
    kept = [bundle for bundle in bundles if bundle not in unused]
    current = [file for files in young.values() for file in files]
    return [
        VacuumReport(ATTEMPTS, {"abandoned": Amount.of(old)}, Amount.of(current), dry_run),
        VacuumReport(BUNDLES, {"superseded": Amount.of(unused)}, Amount.of(kept), dry_run),
    ]


@dataclass(frozen=True)
class _Plan:
    superseded: list[StoredFile]
    abandoned: list[StoredFile]
    kept: list[StoredFile]


def _plan(
    datastore: Datastore,
    name: str,
    *,
    table: "DeltaTable",
    cutoff: float,
    needed_since: float = math.inf,
) -> _Plan:
    """Return which files of a dataset go, and which stay.

    Args:
        datastore: Where the dataset lies.
        name: Name of the dataset.
        table: Its newest version.
        cutoff: Where the retention begins, in seconds since 1970.
        needed_since: Files of this version and of later ones are needed whatever the clock says.
    """
    uri = dataset_uri(datastore, name)
    check_protocol(table, uri)
    # In this order: each later look sees at least what the earlier one did.
    current = {file.path for file in parquet_files(table, None) if is_inside(file.path)}
    listed = datastore.storage().list_files(uri)
    entries = read_entries(datastore.storage(), uri, listed)
    there = {file.path for file in listed}
    if current - there:
        raise DatasetError(
            f"Nothing was removed from '{name}': {len(current - there):,} files of its newest "
            f"version are missing at {uri}, {min(current - there)} for example. Restore an older "
            "version, or materialize the asset again."
        )
    # Whatever was in a version that was superseded within the retention was taken out since, or
    # is still in the newest one.
    needed = current.union(
        *(
            entry.removed
            for entry in entries
            if entry.committed >= cutoff or entry.version > needed_since
        )
    )
    known = needed.union(*((*entry.added, *entry.removed) for entry in entries))
    if kind_of(table) == "FileDataset":
        # A version within this retention may have been vacuumed with a shorter one.
        parquet = [DataFile(path=path, size=0) for path in sorted(needed & there)]
        needed |= {file.path for file in file_entries.read(parquet, uri=uri, datastore=datastore)}
    column = next(iter(table.metadata().partition_columns), None)
    known_names = {path.rpartition("/")[2] for path in known}
    plan = _Plan([], [], [])
    for file in listed:
        if file.path.startswith(f"{LOG_FOLDER}/"):
            continue
        if file.path in needed or file.modified >= cutoff or not _is_ours(file.path, column):
            plan.kept.append(file)
        elif file.path in known or _entries_name(file.path) in known_names:
            plan.superseded.append(file)
        else:
            plan.abandoned.append(file)
    return plan


def _announce(datastore: Datastore, name: str, *, cutoff: float) -> int:
    """Say in the log how far a vacuum goes, and return the version that says so."""

    def write(table: "DeltaTable | None", properties: Properties) -> int:
        if table is None:
            table = open_existing(datastore, name)
        following = table.version() + 1
        table.create_write_transaction(
            [],
            mode="append",
            schema=table.schema(),
            partition_by=table.metadata().partition_columns,
            commit_properties=properties(following),
        )
        return following

    return transact(
        datastore,
        name,
        key=f"vacuum-{uuid.uuid4().hex}",
        metadata={VACUUMED: cutoff},
        write=write,
        made=lambda version: version,
    )


def _is_ours(path: str, column: str | None) -> bool:
    """Tell whether a file lies where commits and attempts put theirs.

    As Delta's own VACUUM does, other folders with a leading '_' or '.' are left alone.
    """
    top = path.partition("/")[0]
    is_partition = column is not None and top.startswith(f"{quote(column, safe='')}=")
    is_hidden = top.startswith(("_", "."))
    return (
        not is_hidden or is_partition or top == FILES_FOLDER or bool(_ATTEMPT_FOLDER.fullmatch(top))
    )


def _entries_name(path: str) -> str | None:
    """Return the name of the file that tells of one of the user's own files."""
    parts = path.split("/")
    return f"entries-{parts[1]}.parquet" if parts[0] == FILES_FOLDER else None


def _remove(datastore: Datastore, uris: Iterable[str]) -> None:
    for_each_file(datastore.storage().remove, uris)
