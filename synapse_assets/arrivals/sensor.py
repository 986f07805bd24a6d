"""The sensor factory: new content of an arrival becomes a partition, an observation and a run."""

import time
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg

from synapse_assets.arrivals import runs
from synapse_assets.arrivals.cursor import Cursor
from synapse_assets.arrivals.events import QueueEvents
from synapse_assets.arrivals.ledger import FOLDER, Entry, Ledger
from synapse_assets.arrivals.listing import Arrival
from synapse_assets.arrivals.orders import Orders
from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.arrivals.scan import Limits
from synapse_assets.arrivals.tick import run_tick
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ConfigurationError

# The tag by which Dagster knows the version of what an external asset holds.
DATA_VERSION_TAG = "dagster/data_version"


@dataclass(frozen=True)
class Arrivals:
    """What a sensor watches, and what all that speaks of its arrivals needs to know.

    Attributes:
        sensor: Name of the sensor.
        patterns: Which blobs form an arrival.
        landing: The asset that stands for the blobs.
        partitions: Its partitions: one for each arrival.
    """

    sensor: str
    patterns: ArrivalPatterns
    landing: dg.AssetKey
    partitions: dg.DynamicPartitionsDefinition

    @property
    def partitions_name(self) -> str:
        """The name under which Dagster keeps the partitions."""
        assert self.partitions.name is not None, "dynamic partitions of this kind have a name"
        return self.partitions.name

    def open_ledger(self, datastore: Datastore, instance: dg.DagsterInstance) -> Ledger:
        """Open the ledger of the sensor.

        Raises:
            StorageError: The store refused to read it, or could not be reached.
        """
        return Ledger(
            datastore.storage(),
            datastore.uri(FOLDER, self.sensor),
            recall=lambda names: runs.recall(instance, self.sensor, names),
        )

    def claim(
        self, datastore: Datastore, instance: dg.DagsterInstance, arrival: Arrival
    ) -> dict[str, str]:
        """Take an arrival from the sensor, and return the tags for the run that processes it.

        The sensor takes its content for handed over, and a run with these tags for its own.

        Args:
            datastore: Where the blobs lie.
            instance: Where the run will be.
            arrival: The arrival as it lies there now.

        Raises:
            StorageError: The ledger could not be read or written.
        """
        ledger = self.open_ledger(datastore, instance)
        last = ledger.confirm([arrival.name])[arrival.name]
        if last is None or last.content != arrival.content:
            last = Entry.after(last, arrival.content)
        ledger.put(arrival.name, last)
        ledger.save()
        return runs.tags_of(self.sensor, arrival.name, last)

    def observation(self, arrival: Arrival) -> dg.AssetObservation:
        """Return what Dagster is told of an arrival: its data version is its content."""
        return dg.AssetObservation(
            asset_key=self.landing,
            partition=arrival.name,
            metadata={"files": arrival.blobs, "size_bytes": arrival.size},
            tags={DATA_VERSION_TAG: arrival.content},
        )


DEFAULT_LIMITS = Limits()


def arrival_sensor(
    arrivals: Arrivals,
    *,
    job: Any = None,
    target: Any = None,
    datastore: str = "datastore",
    events: QueueEvents | None = None,
    limits: Limits = DEFAULT_LIMITS,
    minimum_interval_seconds: int = 30,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
    description: str | None = None,
) -> dg.SensorDefinition:
    """Return a sensor that asks for one run for each settled content of each arrival.

    Args:
        arrivals: What it watches. The sensor has the name that is given there.
        job: The job to run; it must have the partitions of the arrivals.
        target: Instead of a job: the assets to materialize.
        datastore: Key of the resource that is the datastore where the blobs lie.
        events: Where messages tell what is new; otherwise it lists what is there.
        limits: How much it does.
        minimum_interval_seconds: Time between two ticks, at least.
        default_status: Whether it runs before somebody switches it on.
        description: What the UI tells of it.

    Raises:
        ConfigurationError: Messages would come again before they are deleted.
    """
    if events is not None and events.hidden_seconds <= 2 * minimum_interval_seconds:
        raise ConfigurationError(
            f"hidden_seconds is {events.hidden_seconds}, and ticks are {minimum_interval_seconds} "
            f"seconds apart: take more than {2 * minimum_interval_seconds}, so that a message is "
            "not received again before it is deleted."
        )

    @dg.sensor(
        name=arrivals.sensor,
        job=job,
        target=target,
        required_resource_keys={datastore},
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description=description or f"Runs for each new or changed arrival of {arrivals.patterns}.",
    )
    def sensor(context: dg.SensorEvaluationContext, **_: Any) -> dg.SensorResult:
        # Dagster gives the resource as an argument, too, when a test calls the sensor.
        store = getattr(context.resources, datastore)
        return evaluate(context, store, arrivals, events=events, limits=limits)

    return sensor


def evaluate(
    context: dg.SensorEvaluationContext,
    datastore: Datastore,
    arrivals: Arrivals,
    *,
    events: QueueEvents | None,
    limits: Limits,
) -> dg.SensorResult:
    """Return what one tick comes to.

    Raises:
        StorageError: The store refused something, or could not be reached. The next tick does
            what this one could not.
    """
    now = time.time()
    cursor = Cursor.from_json(context.cursor)
    queued = runs.count_queued(context.instance, arrivals.sensor)
    room = min(limits.max_runs_per_tick, limits.max_queued_runs - queued)
    if room <= 0:
        return dg.SensorResult(
            skip_reason=f"{queued} runs of this sensor wait to begin, and {limits.max_queued_runs} "
            "are the most: none is asked for until fewer do.",
            cursor=cursor.to_json(),
        )
    orders = Orders.read(datastore, arrivals.sensor)
    retries, retries_from = runs.find_retries(
        context.instance,
        arrivals.sensor,
        since=cursor.retries_from,
        now=now,
        policy=limits.retries,
        # What is new shall not wait for what keeps failing.
        limit=max(1, room // 2),
        orders=orders,
    )
    ledger = arrivals.open_ledger(datastore, context.instance)
    if ledger.was_damaged:
        context.log.warning(
            f"The ledger in {datastore.uri(FOLDER, arrivals.sensor)} was damaged; it is made again "
            "from Dagster's runs."
        )
    tick = run_tick(
        datastore,
        arrivals.patterns,
        cursor=replace(cursor, retries_from=retries_from),
        ledger=ledger,
        now=now,
        limits=replace(limits, max_runs_per_tick=room - len(retries)),
        orders=orders,
        events=events,
    )
    for name in tick.refused:
        context.log.warning(f"{name} cannot be the name of a partition: rename its blobs.")
    asked_again = [f"{len(retries)} failed ones asked for again"] if retries else []
    said = f"{'; '.join([*tick.said, *asked_again])}."
    cursor_text = tick.cursor.to_json()
    if not tick.asked and not retries:
        return dg.SensorResult(skip_reason=said, cursor=cursor_text)
    context.log.info(said)
    # One result, so that a crash between its parts can neither lose nor double an arrival.
    new = [runs.request(arrivals.sensor, ask.arrival.name, ask.entry) for ask in tick.asked]
    return dg.SensorResult(
        run_requests=[*new, *retries],
        # Dagster leaves out those that it has.
        dynamic_partitions_requests=[
            arrivals.partitions.build_add_request(sorted(ask.arrival.name for ask in tick.asked))
        ],
        asset_events=[arrivals.observation(ask.arrival) for ask in tick.asked],
        cursor=cursor_text,
    )
