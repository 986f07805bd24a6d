"""Running the whole pipeline from the command line: land a file, see what is stale, execute.

What a run of the command line does here, the Dagster UI does with the same definitions and the
same instance; both see each other's work.
"""

import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psutil
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    INPUT_DATA_VERSION_TAG_PREFIX,
    INPUT_EVENT_POINTER_TAG_PREFIX,
    CachingStaleStatusResolver,
    StaleCause,
    StaleStatus,
)
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from synapse_assets.arrivals.listing import Walk, look_at
from synapse_assets.arrivals.runs import recall
from synapse_assets.arrivals.scan import is_partition_key
from synapse_assets.console import Summary
from synapse_assets.datasets.description import describe
from synapse_assets.datasets.table import resolve
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import Storage, sha256_of
from synapse_assets.defs.alerts import failure_of
from synapse_assets.defs.resources import resources_of
from synapse_assets.defs.titanic.assets import (
    ARRIVALS_NAME,
    LANDING_FOLDER,
    PATTERNS,
    titanic_pipeline,
)
from synapse_assets.defs.titanic.sensors import TITANIC_ARRIVALS
from synapse_assets.errors import (
    ConfigurationError,
    DatasetNotFoundError,
    PartitionNotFoundError,
    StorageError,
)

_INSTANCE_YAML = """\
telemetry:
  enabled: false
concurrency:
  pools:
    # One writer per dataset at a time: a pool is named after the dataset it writes.
    default_limit: 1
    granularity: op
"""


_PAGE = 100
_PROVENANCE_TAGS = (
    CODE_VERSION_TAG,
    DATA_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    INPUT_DATA_VERSION_TAG_PREFIX,
    INPUT_EVENT_POINTER_TAG_PREFIX,
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        success: Whether every asset was materialized and every blocking check passed.
        failures: One sentence per step that failed.
    """

    success: bool
    failures: tuple[str, ...] = ()


@contextmanager
def open_instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """Open the Dagster instance that lives in `home`, made on first use."""
    prepare_home(home)
    os.environ["DAGSTER_HOME"] = str(home)
    with dg.DagsterInstance.get() as instance:
        yield instance


@contextmanager
def open_datastore(instance: dg.DagsterInstance, deployment: str) -> Iterator[Datastore]:
    """Open the datastore of a deployment, as a run of it would.

    Raises:
        ConfigurationError: The deployment is unknown, or not there yet.
    """
    resources = {"datastore": resources_of(deployment)["datastore"]}
    with dg.build_resources(resources, instance=instance) as opened:
        yield opened.datastore


def prepare_home(home: Path) -> None:
    """Create a DAGSTER_HOME with this project's settings, unless it has some.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        settings = home / "dagster.yaml"
        if not settings.exists():
            settings.write_text(_INSTANCE_YAML)
    except OSError as e:
        raise ConfigurationError(
            f"Cannot write to {home}: {e.strerror}. Make it writable, or set DAGSTER_HOME to a "
            "folder that is."
        ) from e


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose process is gone, and return their ids.

    A killed process cannot say that it ended, and its run would hold the pools of the datasets
    it was writing for ever.
    """
    in_progress = [
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    dead = []
    for run in instance.get_runs(dg.RunsFilter(statuses=in_progress)):
        processes = _processes(instance, run.run_id)
        if processes and not any(_is_alive(pid, heard=at) for pid, at in processes.items()):
            instance.report_run_failed(run, "The process of this run is gone: it was killed.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            dead.append(run.run_id)
    return dead


def land_file(datastore: Datastore, source: Path) -> str:
    """Copy a file into the landing folder and return the name of its arrival.

    A file that is there already with the same content is left alone, so it does not arrive anew.

    Raises:
        ConfigurationError: The landing folder cannot be written.
    """
    target = datastore.uri(LANDING_FOLDER, source.name)
    storage = datastore.storage()
    try:
        if not _holds(storage, target, source):
            storage.upload(source, target)
    except StorageError:
        raise
    except OSError as e:
        raise ConfigurationError(
            f"Cannot copy {source} to {target}: {e.strerror}. Make the datastore writable, or "
            "set SYNAPSE_ASSETS_DATASTORE to a folder that is."
        ) from e
    return source.stem


def register_arrivals(instance: dg.DagsterInstance, datastore: Datastore) -> list[str]:
    """Make every arrival that is new to Dagster a partition; return the names of all arrivals."""
    found = {arrival.name for arrival in Walk(datastore, PATTERNS)}
    names = sorted(name for name in found if is_partition_key(name))
    known = set(instance.get_dynamic_partitions(ARRIVALS_NAME))
    # One that has runs, and is no partition, was retired.
    unknown = set(names) - known
    new = unknown - set(recall(instance, TITANIC_ARRIVALS.sensor, unknown))
    instance.add_dynamic_partitions(ARRIVALS_NAME, sorted(new))
    return names


def observe_arrival(
    instance: dg.DagsterInstance, datastore: Datastore, arrival: str
) -> dict[str, str]:
    """Tell Dagster the data version of an arrival, if it is a new one.

    The sensor then leaves it to the caller. Returned are the tags by which it knows a run for it.

    Raises:
        PartitionNotFoundError: No blob of the arrival is there.
    """
    found = look_at(datastore, PATTERNS, arrival)
    if found is None:
        raise PartitionNotFoundError(
            f"The arrival '{arrival}' is gone from {datastore.uri(LANDING_FOLDER)}: land it again."
        )
    instance.add_dynamic_partitions(ARRIVALS_NAME, [arrival])
    tags = TITANIC_ARRIVALS.claim(datastore, instance, found)
    observation = TITANIC_ARRIVALS.observation(found)
    latest = instance.fetch_observations(
        dg.AssetRecordsFilter(asset_key=observation.asset_key, asset_partitions=[arrival]), limit=1
    ).records
    known = latest[0].asset_observation if latest else None
    if known is None or (known.tags or {}).get(DATA_VERSION_TAG) != found.content:
        instance.report_runless_asset_event(observation)
    return tags


def find_stale(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    datastore: Datastore,
    arrival: str,
) -> dict[dg.AssetKey, str]:
    """Return the assets that a run for an arrival has to materialize, each with the reason.

    Staleness is Dagster's own, as its UI shows it. An asset is stale, too, if its data is gone
    from the datastore, or if a blocking check of it failed: nothing may go on from there.
    """
    graph = definitions.resolve_asset_graph()
    # Dagster's public API does not tell what is stale; its UI asks this class, through GraphQL.
    # The context is where it keeps what it looked up; outside of a web server there is this one.
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    stale: dict[dg.AssetKey, str] = {}
    for key in graph.toposorted_asset_keys:
        node = graph.get(key)
        if not node.is_materializable:
            continue
        partition = arrival if node.is_partitioned else None
        parents = [parent.to_user_string() for parent in node.parent_keys if parent in stale]
        reason: str | None = None
        if resolver.get_status(key, partition) is StaleStatus.MISSING:
            reason = "has never been materialized"
        elif resolver.get_status(key, partition) is StaleStatus.STALE:
            causes = resolver.get_stale_causes(key, partition)
            reason = "; ".join(dict.fromkeys(_cause(cause) for cause in causes))
        elif parents:
            reason = f"depends on {', '.join(sorted(parents))}"
        elif _resolve(datastore, key, partition) is None:
            reason = "its data is gone from the datastore"
        else:
            reason = _failed_blocking_check(instance, graph, key, partition)
        if reason is not None:
            stale[key] = reason
    # The outputs of one step are written together.
    for key in list(stale):
        for sibling in graph.get(key).execution_set_asset_keys:
            stale.setdefault(sibling, f"is written together with {key.to_user_string()}")
    return stale


def execute(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    *,
    arrival: str,
    selection: Sequence[dg.AssetKey],
    tags: Mapping[str, str],
    on_event: Callable[[dg.EventLogEntry], None],
) -> Outcome:
    """Materialize the selected assets for one arrival, in one run.

    Args:
        instance: Where the run is recorded.
        definitions: The code location.
        arrival: The partition.
        selection: The assets.
        tags: Further tags of the run.
        on_event: Called with each entry of the event log as it is written.
    """
    job = definitions.resolve_job_def(titanic_pipeline.name)
    run_id = str(uuid.uuid4())
    failures: list[str] = []

    def listen(entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        if event is not None and event.is_step_failure:
            # Dagster puts the class before the message.
            sentence = re.sub(r"^[\w.]+(Error|Failure): ", "", failure_of(event))
            failures.append(f"{event.step_key}: {sentence}")
        on_event(entry)

    instance.add_event_listener(run_id, listen)
    result = job.execute_in_process(
        instance=instance,
        partition_key=arrival,
        asset_selection=list(selection),
        run_id=run_id,
        tags=dict(tags),
        raise_on_error=False,
    )
    return Outcome(success=result.success, failures=tuple(failures))


def summarize(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    datastore: Datastore,
    arrival: str,
) -> list[Summary]:
    """Return what each asset holds now, in the order in which they depend on each other."""
    graph = definitions.resolve_asset_graph()
    summaries = []
    for key in graph.toposorted_asset_keys:
        node = graph.get(key)
        if node.is_materializable:
            latest = instance.get_latest_materialization_event(key)
            made = latest.asset_materialization if latest else None
            metadata = made.metadata if made else {}
            values = {name: getattr(value, "value", None) for name, value in metadata.items()}
            summaries.append(
                Summary(
                    key=key,
                    version=_resolve(datastore, key, arrival if node.is_partitioned else None),
                    seconds=values.get("seconds"),
                    accuracy=values.get("accuracy"),
                )
            )
    return summaries


def record_restore(
    instance: dg.DagsterInstance,
    datastore: Datastore,
    *,
    before: DatasetVersion,
    after: DatasetVersion,
    restored: int,
) -> None:
    """Tell Dagster that an asset holds the content of an older version again.

    Each partition whose content changed has a materialization, with the data version and the
    lineage that were recorded when that content was made: what was made from it then is fresh
    again, and what was made from the content in between is stale.

    Args:
        instance: Where the event is recorded.
        datastore: Where the dataset lies.
        before: The whole dataset before it was restored.
        after: The whole dataset now.
        restored: The version whose content it has.
    """
    key = dg.AssetKey(after.name.split("/"))
    partitions: Sequence[str | None] = [None]
    if after.partition_by is not None:
        partitions = [p for p in after.partitions if _paths(after, p) != _paths(before, p)]
    for partition in partitions:
        part = after if partition is None else after.select({partition})
        content = hashlib.sha256("\0".join(sorted(_paths(after, partition))).encode())
        tags = _provenance(instance, key, partition=partition, version=restored)
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset_key=key,
                partition=partition,
                description=f"Version {restored} was restored as version {after.version}.",
                metadata={
                    **describe(part, whole=after, datastore=datastore),
                    "restored_version": dg.MetadataValue.int(restored),
                },
                tags=tags or {DATA_VERSION_TAG: content.hexdigest()[:16]},
            )
        )


def _paths(version: DatasetVersion, partition: str | None) -> set[str]:
    return {file.path for file in version.files if file.partition == partition}


def _provenance(
    instance: dg.DagsterInstance, key: dg.AssetKey, *, partition: str | None, version: int
) -> dict[str, str]:
    """Return the tags by which Dagster knows what the content of a version was made from.

    That content is of the latest materialization that made this version or an older one; there
    are none if Dagster does not know it.
    """
    records_filter = dg.AssetRecordsFilter(
        asset_key=key, asset_partitions=None if partition is None else [partition]
    )
    cursor = None
    while True:
        result = instance.fetch_materializations(records_filter, limit=_PAGE, cursor=cursor)
        for record in result.records:
            materialization = record.asset_materialization
            if materialization is None:
                continue
            made = materialization.metadata.get("version")
            if isinstance(made, dg.IntMetadataValue) and (made.value or 0) <= version:
                tags = materialization.tags or {}
                return {k: v for k, v in tags.items() if k.startswith(_PROVENANCE_TAGS)}
        if not result.has_more:
            return {}
        cursor = result.cursor


def _processes(instance: dg.DagsterInstance, run_id: str) -> dict[int, float]:
    """Return the processes that executed a run, and when they were last heard of, in seconds."""
    heard: dict[int, float] = {}
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        if entry.dagster_event is not None:
            pid = entry.dagster_event.engine_event_data.metadata.get("pid")
            if pid is not None:
                heard[int(str(pid.value))] = entry.timestamp
    return heard


def _is_alive(pid: int, *, heard: float) -> bool:
    """Tell whether a process that was heard of at a time is there, and not another by its id."""
    try:
        return bool(psutil.Process(pid).create_time() <= heard)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _holds(storage: Storage, uri: str, source: Path) -> bool:
    """Tell whether a store has the content of a local file at `uri`."""
    stored = storage.stat(uri)
    if stored is None or stored.size != source.stat().st_size:
        return False
    with tempfile.TemporaryDirectory() as folder:
        return storage.download(uri, Path(folder, "copy")) == sha256_of(source)


def _cause(cause: StaleCause) -> str:
    """Return a cause in words: 'landing has a new data version', 'has a new code version'."""
    if not cause.children:
        return cause.reason
    return "; ".join(f"{c.asset_key.to_user_string()} {c.reason}" for c in cause.children)


def _resolve(
    datastore: Datastore, key: dg.AssetKey, partition: str | None
) -> DatasetVersion | None:
    """Return what the datastore holds of an asset, None if that is nothing."""
    partitions = None if partition is None else [partition]
    try:
        return resolve(datastore, "/".join(key.path), partitions=partitions)
    except (DatasetNotFoundError, PartitionNotFoundError):
        return None


def _failed_blocking_check(
    instance: dg.DagsterInstance, graph: AssetGraph, key: dg.AssetKey, partition: str | None
) -> str | None:
    """Return that a blocking check of an asset failed when it was last run, None if none did."""
    keys = [k for k in graph.get_check_keys_for_assets({key}) if graph.get_check_spec(k).blocking]
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        keys, PartitionKeyFilter(key=partition)
    )
    for check_key, record in records.items():
        evaluation = record.evaluation
        is_warning = evaluation is not None and evaluation.severity is dg.AssetCheckSeverity.WARN
        if record.status is AssetCheckExecutionRecordStatus.FAILED and not is_warning:
            return f"its check {check_key.name} failed"
    return None
