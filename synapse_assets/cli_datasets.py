"""The commands on datasets: `synapse-assets versions`, `restore` and `vacuum`."""

import argparse
import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING

from synapse_assets import settings
from synapse_assets.errors import DatasetNotFoundError

if TYPE_CHECKING:
    from synapse_assets.datasets.maintenance import VersionInfo
    from synapse_assets.datasets.vacuum import Amount, VacuumReport
    from synapse_assets.datastore import Datastore

# As `datasets.vacuum.DEFAULT_RETENTION`, which is not loaded to read the command line.
_RETENTION_HOURS = 168.0
_MAX_NAMES = 20


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands on datasets to the command line."""
    versions = commands.add_parser("versions", help="list the versions of a dataset")
    versions.add_argument("dataset", metavar="DATASET", help="an asset key, as in 'a/b'")
    versions.set_defaults(run=_versions)

    restore = commands.add_parser("restore", help="make an old version the newest again")
    restore.add_argument("dataset", metavar="DATASET", help="an asset key, as in 'a/b'")
    restore.add_argument("version", metavar="VERSION", type=int, help="number of the version")
    restore.set_defaults(run=_restore)

    vacuum = commands.add_parser(
        "vacuum",
        help="remove files that no version within the retention needs, and old attempts' records",
    )
    vacuum.add_argument("datasets", metavar="DATASET", nargs="*", help="all if none is given")
    vacuum.add_argument(
        "--retention",
        metavar="HOURS",
        type=float,
        default=_RETENTION_HOURS,
        help="how long a superseded version stays readable (%(default)g hours)",
    )
    vacuum.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    vacuum.add_argument(
        "--force", action="store_true", help=f"allow less than {_RETENTION_HOURS:g} hours"
    )
    vacuum.set_defaults(run=_vacuum)


def _versions(options: argparse.Namespace) -> int:
    from synapse_assets.datasets.maintenance import list_versions

    datastore = open_datastore()
    check_names(datastore, [options.dataset])
    found = list_versions(datastore, options.dataset)
    header = ["version", "committed (UTC)", "operation", "partition", "content", "size"]
    _print([*header, "readable", "attempt"], [_row(version) for version in found])
    return 0


def _row(version: "VersionInfo") -> list[str]:
    from synapse_assets.console import format_size

    # A table's files say nothing to its user; a FileDataset has no rows.
    content = _count(version.files, "file")
    if version.rows is not None:
        content = _count(version.rows, "row")
    return [
        str(version.version),
        f"{version.committed:%Y-%m-%d %H:%M:%S}",
        version.operation,
        version.partition or "-",
        content,
        "-" if version.size is None else format_size(version.size),
        "yes" if version.is_readable else "vacuumed",
        version.attempt or "-",
    ]


def _restore(options: argparse.Namespace) -> int:
    from synapse_assets import pipeline
    from synapse_assets.datasets.maintenance import restore
    from synapse_assets.datasets.table import resolve

    name, number = options.dataset, options.version
    datastore = open_datastore()
    check_names(datastore, [name])
    before = resolve(datastore, name)
    after = restore(datastore, name, number)
    if after.version == before.version:
        print(
            f"{name}: nothing to do, the newest version, {after.version}, has the content of "
            f"version {number}."
        )
        return 0
    with pipeline.open_instance(settings.dagster_home()) as instance:
        pipeline.record_restore(instance, datastore, before=before, after=after, restored=number)
    is_table = after.kind == "TabularDataset"
    content = _count(after.rows, "row") if is_table else _count(len(after.files), "file")
    print(f"{name}: version {after.version} has the content of version {number}: {content}.")
    gone = sorted(set(before.partitions) - set(after.partitions))
    if gone:
        more = ", …" if len(gone) > _MAX_NAMES else ""
        print(f"Without data in it: {', '.join(gone[:_MAX_NAMES])}{more}.")
    print("Dagster knows of it: `make ui` shows what is stale now.")
    return 0


def _vacuum(options: argparse.Namespace) -> int:
    from synapse_assets.datasets.maintenance import list_datasets
    from synapse_assets.datasets.vacuum import Retention, vacuum, vacuum_attempts

    datastore = open_datastore()
    if options.datasets:
        check_names(datastore, options.datasets)
    retention = Retention(dt.timedelta(hours=options.retention), options.force)
    # Attempts first: a record must not promise staged files that are gone.
    reports = vacuum_attempts(datastore, retention=retention, dry_run=options.dry_run)
    for name in dict.fromkeys(options.datasets or list_datasets(datastore)):
        reports.append(vacuum(datastore, name, retention=retention, dry_run=options.dry_run))
    _print(["dataset", "superseded", "abandoned", "kept"], [_report(r) for r in reports])
    amounts = [amount for report in reports for amount in report.removed.values()]
    total = _amount(amounts)
    if options.dry_run:
        print(f"\nNothing was removed. Without --dry-run it would be {total}.")
    else:
        print(f"\nRemoved: {total}.")
    return 0


def _report(report: "VacuumReport") -> list[str]:
    reasons = ("superseded", "abandoned")
    removed = [_amount([report.removed[r]] if r in report.removed else []) for r in reasons]
    return [report.name, *removed, _amount([report.kept])]


def _amount(amounts: "Sequence[Amount]") -> str:
    from synapse_assets.console import format_size

    files = sum(amount.files for amount in amounts)
    if not files:
        return "nothing"
    return f"{_count(files, 'file')}, {format_size(sum(amount.size for amount in amounts))}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _print(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from synapse_assets.console import format_columns

    print("\n".join(format_columns(header, rows)))


def open_datastore() -> "Datastore":
    """Return the deployment's datastore."""
    from synapse_assets.defs.resources import resources_of

    datastore: Datastore = resources_of(settings.deployment())["datastore"]
    return datastore.process_config_and_initialize()


def check_names(datastore: "Datastore", names: Sequence[str]) -> None:
    """Raise DatasetNotFoundError, which says what there is, unless all datasets are there."""
    from synapse_assets.datasets.maintenance import has_versions, list_datasets

    unknown = [name for name in names if not has_versions(datastore, name)]
    if unknown:
        known = list_datasets(datastore)
        there = ", ".join(known[:_MAX_NAMES]) + (", …" if len(known) > _MAX_NAMES else "")
        raise DatasetNotFoundError(
            f"There is no dataset '{unknown[0]}' in {datastore.uri()}. "
            f"There is: {there or 'none yet; `make run` makes some'}."
        )
