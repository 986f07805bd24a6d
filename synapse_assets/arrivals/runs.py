"""What Dagster's runs tell of arrivals: each carries the arrival and the content it is for."""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from synapse_assets.arrivals.ledger import Entry
from synapse_assets.arrivals.listing import find_arrival
from synapse_assets.arrivals.orders import NO_ORDERS, Orders
from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ArrivalVanishedError

SENSOR_TAG = "synapse_assets/sensor"
ARRIVAL_TAG = "synapse_assets/arrival"
# '<content>:<change>'.
CONTENT_TAG = "synapse_assets/content"
# The id of the run that found the blobs gone; a run that is executed again inherits its tags.
VANISHED_TAG = "synapse_assets/vanished"
# Dagster's own: it will execute the run again by itself.
_WILL_RETRY_TAG = "dagster/will_retry"

_WAITING = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED)
_FAILED = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
# Of each arrival, and arrivals at a time.
_PAGE = 100
_RUNS_AT_A_TIME = 1_000
# Failures that one tick looks at; each asks the database for the arrival's other runs.
_MAX_FAILURES = 300


@dataclass(frozen=True)
class RetryPolicy:
    """When a failed arrival is asked for again.

    Attributes:
        max_attempts: Number of runs for one content, with the first.
        delay_seconds: How long after a failure.
    """

    max_attempts: int = 3
    delay_seconds: float = 300.0


@dataclass(frozen=True)
class LatestRun:
    """What `find_latest` tells of a run.

    Attributes:
        run_id: Its id.
        status: Its status.
        entry: The content that it is for; None if it is for no certain one.
        created: When it was made, in seconds since 1970.
    """

    run_id: str
    status: dg.DagsterRunStatus
    entry: Entry | None
    created: float


def tags_of(sensor: str, arrival: str, entry: Entry) -> dict[str, str]:
    """Return the tags of a run for one content of an arrival."""
    return {SENSOR_TAG: sensor, ARRIVAL_TAG: arrival, CONTENT_TAG: str(entry)}


def request(sensor: str, arrival: str, entry: Entry, *, retry: int = 0) -> dg.RunRequest:
    """Return the request of a run for one content of an arrival.

    Dagster knows the run by the key '<arrival>:<content>:<change>'.

    Args:
        sensor: Name of the sensor that asks for it.
        arrival: Name of the arrival.
        entry: The content, and which it is.
        retry: 1 for the first time that it is asked for again.
    """
    return dg.RunRequest(
        run_key=f"{arrival}:{entry}" + (f":retry{retry}" if retry else ""),
        partition_key=arrival,
        tags=tags_of(sensor, arrival, entry),
    )


def entry_of(tags: Mapping[str, str]) -> Entry | None:
    """Return what a run is for, None if it is for no certain content."""
    content, _, change = tags.get(CONTENT_TAG, "").partition(":")
    return Entry(content, int(change)) if change.isdecimal() else None


def recall(
    instance: dg.DagsterInstance, sensor: str, arrivals: Collection[str]
) -> dict[str, Entry]:
    """Return which content of each arrival a run was made for last, if one ever was."""
    latest: dict[str, Entry] = {}
    names = list(arrivals)
    for first in range(0, len(names), _PAGE):
        for run in _runs_of(instance, sensor, names[first : first + _PAGE]):
            entry, name = entry_of(run.tags), run.tags[ARRIVAL_TAG]
            # Several may be of the same change: the latest, which comes first, is the right one.
            if entry is not None and (name not in latest or entry.change > latest[name].change):
                latest[name] = entry
    return latest


def count_queued(instance: dg.DagsterInstance, sensor: str) -> int:
    """Return how many runs that a sensor asked for have not begun."""
    return instance.get_runs_count(dg.RunsFilter(statuses=_WAITING, tags={SENSOR_TAG: sensor}))


def find_latest(instance: dg.DagsterInstance, sensor: str) -> dict[str, LatestRun]:
    """Return the latest run for each arrival that has one."""
    latest: dict[str, LatestRun] = {}
    cursor = None
    while records := instance.get_run_records(
        dg.RunsFilter(tags={SENSOR_TAG: sensor}), limit=_RUNS_AT_A_TIME, cursor=cursor
    ):
        for record in records:
            run, created = record.dagster_run, record.create_timestamp.timestamp()
            found = LatestRun(run.run_id, run.status, entry_of(run.tags), created)
            latest.setdefault(run.tags.get(ARRIVAL_TAG, ""), found)
        cursor = records[-1].dagster_run.run_id
    return latest


def find_retries(
    instance: dg.DagsterInstance,
    sensor: str,
    *,
    since: float,
    now: float,
    policy: RetryPolicy,
    limit: int,
    orders: Orders = NO_ORDERS,
) -> tuple[list[dg.RunRequest], float]:
    """Return failed arrivals that are due, and the time before which all failures are dealt with.

    Not asked for again are those whose blobs were gone, that have other content since, that
    succeeded or run in the meantime, that somebody cancelled, and that Dagster executes again by
    itself.

    Args:
        instance: Where the runs are.
        sensor: Name of the sensor that asked for them.
        since: The time that was returned last, in seconds since 1970.
        now: Seconds since 1970.
        policy: When to ask again.
        limit: At most so many are returned.
        orders: What somebody told the sensor by hand.
    """
    if policy.max_attempts <= 1:
        return [], now
    failures = instance.get_run_records(
        dg.RunsFilter(
            statuses=[dg.DagsterRunStatus.FAILURE],
            tags={SENSOR_TAG: sensor},
            updated_after=_time(since),
            updated_before=_time(now - policy.delay_seconds),
        ),
        limit=_MAX_FAILURES,
        order_by="update_timestamp",
        ascending=True,
    )
    retries: list[dg.RunRequest] = []
    for failure in failures:
        retry = _retry_of(instance, sensor, failure.dagster_run, policy=policy, orders=orders)
        if retry is not None:
            if len(retries) == limit:
                break
            retries.append(retry)
        elif not retries:
            # Those that are asked for are looked at again, until their run is there.
            since = max(since, failure.update_timestamp.timestamp())
    return retries, since


def take_arrival(
    context: dg.AssetExecutionContext, datastore: Datastore, patterns: ArrivalPatterns
) -> DatasetVersion:
    """Return a reference to the blobs of the arrival that a run is for.

    Args:
        context: That of an asset whose partitions are the arrivals.
        datastore: Where the blobs lie.
        patterns: Which of them form an arrival.

    Raises:
        PartitionNotFoundError: No blob of it is there, and no certain ones were asked for.
        dagster.Failure: They are not those that the sensor asked a run for, because of an
            ArrivalVanishedError. No retry would help.
    """
    arrival, tags = context.partition_key, context.run.tags
    entry = entry_of(tags) if tags.get(ARRIVAL_TAG) == arrival else None
    content = None if entry is None else entry.content
    try:
        return find_arrival(datastore, patterns, arrival, content=content)
    except ArrivalVanishedError as e:
        context.instance.add_run_tags(context.run_id, {VANISHED_TAG: context.run_id})
        # Dagster itself does not record that a failure is final.
        metadata = {"allow_retries": dg.MetadataValue.bool(False)}
        raise dg.Failure(str(e), metadata=metadata, allow_retries=False) from e


def _retry_of(
    instance: dg.DagsterInstance,
    sensor: str,
    run: dg.DagsterRun,
    *,
    policy: RetryPolicy,
    orders: Orders,
) -> dg.RunRequest | None:
    """Return the request that takes the place of a failed run, None if there is to be none."""
    arrival, entry = run.tags.get(ARRIVAL_TAG), entry_of(run.tags)
    if arrival is None or entry is None or orders.ignored.get(arrival) == entry.content:
        return None
    runs = [(each, entry_of(each.tags)) for each in _runs_of(instance, sensor, [arrival])]
    attempts = [each for each, other in runs if other == entry]
    if (
        any(other is not None and other.change > entry.change for _, other in runs)
        # The latest decides.
        or not attempts
        or attempts[0].run_id != run.run_id
        or len(attempts) >= policy.max_attempts
        or any(attempt.status not in _FAILED for attempt in attempts)
        or run.tags.get(VANISHED_TAG) == run.run_id
        or run.tags.get(_WILL_RETRY_TAG) == "true"
        or _is_final(instance, run)
    ):
        return None
    return request(sensor, arrival, entry, retry=len(attempts))


def _is_final(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Tell whether a step of a run said that no retry can mend its failure."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.dagster_event
        failure = None if event is None else event.step_failure_data.user_failure_data
        allowed = None if failure is None else failure.metadata.get("allow_retries")
        if allowed is not None and allowed.value is False:
            return True
    return False


def _runs_of(
    instance: dg.DagsterInstance, sensor: str, arrivals: list[str]
) -> Sequence[dg.DagsterRun]:
    """Return the runs for some arrivals, the latest first."""
    # By one tag: Dagster's database is slow to look for two.
    limit = _PAGE * len(arrivals)
    runs = instance.get_runs(dg.RunsFilter(tags={ARRIVAL_TAG: arrivals}), limit=limit)
    if len(runs) == limit and len(arrivals) > 1:
        # Those of one must not hide those of another.
        return [run for arrival in arrivals for run in _runs_of(instance, sensor, [arrival])]
    return [run for run in runs if run.tags.get(SENSOR_TAG) == sensor]


def _time(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, tz=dt.timezone.utc)
