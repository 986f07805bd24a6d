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
from synapse_assets.arrivals.sensor import DATA_VERSION_TAG, Arrivals
from synapse_assets.datasets import delta, retirement, table
from synapse_assets.datasets.description import describe
from synapse_assets.datastore import Datastore
from synapse_assets.errors import PartitionNotFoundError

_RETIRED = re.compile(r"before-\d{4}-\d\d-\d\d")
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
        tags: Tags of the run by which Dagster learns of it.

    Raises:
        DatasetNotFoundError: An asset has no dataset here.
        StorageError: A store refused something, or could not be reached.
    """
    into = f"before-{before.isoformat()}"
    partitions = instance.get_dynamic_partitions(arrivals.partitions_name)
    since = dt.datetime.combine(before, dt.time(), dt.timezone.utc).timestamp()
    latest = find_latest(instance, arrivals.sensor)
    dates = {name: run.created for name, run in latest.items()}
    for found in look_over(arrivals, datastore, instance, settle_seconds=0.0, latest=latest):
        is_done = found.state in ("succeeded", "ignored")
        dates[found.arrival.name] = found.arrival.newest_modified if is_done else since
    old = [name for name in partitions if dates.get(name, since) < since]
    for key in assets:
        status = instance.get_status_by_partition(key, old, arrivals.partitions) or {}
        old = [name for name in old if status.get(name) is AssetPartitionStatus.MATERIALIZED]
    # What was folded before is never made, so it does not matter what Dagster knows of it.
    old += [name for name in partitions if _RETIRED.fullmatch(name) and name < into]
    names = ["/".join(key.path) for key in assets]
    if not old:
        return Retired(into, ())
    for name in names:
        delta.open_existing(datastore, name)
    instance.add_dynamic_partitions(arrivals.partitions_name, [into])
    files = {n: retirement.retire(datastore, n, set(old), into=into) for n in names}
    _report(instance, datastore, assets, partition=into, tags=tags)
    for name in old:
        instance.delete_dynamic_partition(arrivals.partitions_name, name)
    return Retired(into, tuple(old), files)


def _report(
    instance: dg.DagsterInstance,
    datastore: Datastore,
    assets: Iterable[dg.AssetKey],
    *,
    partition: str,
    tags: Mapping[str, str],
) -> None:
    """Tell Dagster, in a run of its own: by its tags, nothing follows from it."""
    events: list[dg.AssetMaterialization] = []
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

    @dg.op
    def fold_partitions(context: dg.OpExecutionContext) -> None:
        for event in events:
            context.log_event(event)

    job = dg.GraphDefinition("retire_arrivals", node_defs=[fold_partitions]).to_job(tags=tags)
    job.execute_in_process(instance=instance, run_config=_QUIET)
