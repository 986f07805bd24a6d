"""Retiring: old arrivals become one partition, so that the number of partitions stays bounded.

Each step may be the last: what was done is found done when it is called again. The keys of the old
partitions go last, since they tell what is still to do. The ledger stays as it is, so no retired
arrival comes again as long as its blobs are what they were. If they change, its partition is there
again, with its own files taken back out of the one that they were folded into.
"""

import datetime as dt
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.storage.partition_status_cache import AssetPartitionStatus

from synapse_assets.arrivals.overview import look_over
from synapse_assets.arrivals.runs import find_latest
from synapse_assets.arrivals.sensor import DATA_VERSION_TAG, Arrivals, Limits
from synapse_assets.datasets import delta, retirement, table
from synapse_assets.datasets.description import describe
from synapse_assets.datastore import Datastore
from synapse_assets.errors import PartitionNotFoundError

_RETIRED = re.compile(r"before-(\d{4}-\d\d-\d\d)")
_QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}


@dataclass(frozen=True)
class Retired:
    """What was retired.

    Attributes:
        into: The partition that it is in now.
        partitions: The partitions that are no more.
        files: How many files of each dataset were moved.
    """

    into: str
    partitions: tuple[str, ...]
    files: Mapping[str, int] = field(default_factory=dict)


def retire(
    arrivals: Arrivals,
    datastore: Datastore,
    instance: dg.DagsterInstance,
    *,
    assets: Sequence[dg.AssetKey],
    before: dt.date,
    limits: Limits,
    tags: Mapping[str, str],
) -> Retired:
    """Fold the partitions of old arrivals into one, 'before-<date>'.

    Old are those whose newest blob was written before the date, or whose blobs are gone and whose
    latest run is from before it. Left alone are those that are not done with: with content that
    was not taken in, or with an asset that is missing, failed or being made.

    Args:
        arrivals: The arrivals.
        datastore: Where the datasets lie.
        instance: Where the partitions are.
        assets: All assets that have these partitions.
        before: The date (UTC).
        limits: Those of the sensor.
        tags: Tags of the run by which Dagster learns of it.

    Raises:
        DatasetNotFoundError: An asset has no dataset here.
        StorageError: A store refused something, or could not be reached.
    """
    into = f"before-{before.isoformat()}"
    partitions = instance.get_dynamic_partitions(arrivals.partitions_name)
    old = _find_old(arrivals, datastore, instance, partitions, before=before, limits=limits)
    old = _finished(arrivals, instance, assets, old)
    # What was folded before is never made, so it does not matter what Dagster knows of it.
    former = [(name, _RETIRED.fullmatch(name)) for name in partitions]
    old += [name for name, found in former if found and found[1] < before.isoformat()]
    names = ["/".join(key.path) for key in assets]
    if not old:
        return Retired(into, ())
    for name in names:
        delta.open_existing(datastore, name)
    instance.add_dynamic_partitions(arrivals.partitions_name, [into])
    files = {n: retirement.retire(datastore, n, set(old), into=into) for n in names}
    _report(instance, _materializations(datastore, assets, into), tags=tags)
    for name in old:
        instance.delete_dynamic_partition(arrivals.partitions_name, name)
    return Retired(into, tuple(old), files)


def _find_old(
    arrivals: Arrivals,
    datastore: Datastore,
    instance: dg.DagsterInstance,
    partitions: Sequence[str],
    *,
    before: dt.date,
    limits: Limits,
) -> list[str]:
    since = dt.datetime.combine(before, dt.time(), dt.timezone.utc).timestamp()
    dates = {name: run.created for name, run in find_latest(instance, arrivals.sensor).items()}
    seconds = limits.settle_seconds
    for found in look_over(arrivals, datastore, instance, settle_seconds=seconds):
        is_done = found.state in ("succeeded", "ignored")
        dates[found.arrival.name] = found.arrival.newest_modified if is_done else since
    return [n for n in partitions if dates.get(n, since) < since]


def _finished(
    arrivals: Arrivals,
    instance: dg.DagsterInstance,
    assets: Iterable[dg.AssetKey],
    partitions: Sequence[str],
) -> list[str]:
    """Return the partitions that all assets have, and none is making or has failed to make."""
    left = list(partitions)
    for key in assets:
        if left:
            status = instance.get_status_by_partition(key, left, arrivals.partitions) or {}
            left = [p for p in left if status.get(p) is AssetPartitionStatus.MATERIALIZED]
    return left


def _materializations(
    datastore: Datastore, assets: Iterable[dg.AssetKey], partition: str
) -> list[dg.AssetMaterialization]:
    events = []
    for key in assets:
        name = "/".join(key.path)
        try:
            part = whole = table.resolve(datastore, name, partitions=[partition])
        except PartitionNotFoundError:
            continue
        if part.kind == "TabularDataset":
            whole = table.resolve(datastore, name, version=part.version)
        paths = "\0".join(file.path for file in part.files)
        events.append(
            dg.AssetMaterialization(
                asset_key=key,
                partition=partition,
                description="Older partitions were folded into this one.",
                metadata=describe(part, whole=whole, datastore=datastore),
                tags={DATA_VERSION_TAG: hashlib.sha256(paths.encode()).hexdigest()[:16]},
            )
        )
    return events


def _report(
    instance: dg.DagsterInstance,
    events: Sequence[dg.AssetMaterialization],
    *,
    tags: Mapping[str, str],
) -> None:
    """Tell Dagster, in a run of its own: by its tags, nothing follows from it."""

    @dg.op
    def fold_partitions(context: dg.OpExecutionContext) -> None:
        for event in events:
            context.log_event(event)

    job = dg.GraphDefinition("retire_arrivals", node_defs=[fold_partitions]).to_job(tags=tags)
    job.execute_in_process(instance=instance, run_config=_QUIET)
