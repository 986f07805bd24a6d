"""The sensor factory: new content of an arrival becomes a partition, an observation and a run."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg

from synapse_assets.arrivals import runs
from synapse_assets.arrivals.cursor import Counts, Cursor
from synapse_assets.arrivals.events import QueueEvents, passed, scan_events
from synapse_assets.arrivals.ledger import Entry, Ledger
from synapse_assets.arrivals.listing import Arrival, Position, TooLargeError, Walk, look_at
from synapse_assets.arrivals.orders import Orders
from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.arrivals.runs import RetryPolicy
from synapse_assets.arrivals.scan import Outcome, ScanSettings, scan
from synapse_assets.datastore import Datastore

# The tag by which Dagster knows the version of what an external asset holds.
DATA_VERSION_TAG = "dagster/data_version"
# The folder of the datastore that holds the ledgers.
FOLDER = "_arrivals"
_NAMES_TOLD = 5


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

    def read_orders(self, datastore: Datastore) -> Orders:
        """Return what somebody told the sensor by hand.

        Raises:
            StorageError: The store refused to read it, or could not be reached.
        """
        return Orders.read(datastore.storage(), self._orders_uri(datastore))

    def write_orders(self, datastore: Datastore, orders: Orders) -> None:
        """Tell the sensor something by hand.

        Raises:
            StorageError: The store refused to write it, or could not be reached.
        """
        orders.write(datastore.storage(), self._orders_uri(datastore))

    def _orders_uri(self, datastore: Datastore) -> str:
        return datastore.uri(FOLDER, self.sensor, "orders")

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
            last = Entry(arrival.content, 0 if last is None else last.change + 1)
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


@dataclass(frozen=True)
class Limits:
    """How much a sensor does.

    Attributes:
        settle_seconds: An arrival is settled once nothing of it has changed for so long.
        max_runs_per_tick: At most so many runs are asked for in one tick.
        max_queued_runs: None is asked for while so many wait to begin.
        max_blobs_per_tick: No further page is listed after so many blobs.
        max_seconds_per_tick: Nor after this time; Dagster ends a tick after 60 seconds.
        retries: When a failed arrival is asked for again.
    """

    settle_seconds: float = 30.0
    max_runs_per_tick: int = 100
    max_queued_runs: int = 500
    max_blobs_per_tick: int = 200_000
    max_seconds_per_tick: float = 20.0
    retries: RetryPolicy = field(default_factory=RetryPolicy)


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
    if events is not None:
        events.check_interval(minimum_interval_seconds)

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
    orders = arrivals.read_orders(datastore)
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
    settings = ScanSettings(
        settle_seconds=limits.settle_seconds,
        max_runs=room - len(retries),
        max_seconds=limits.max_seconds_per_tick,
        max_blobs=limits.max_blobs_per_tick,
    )
    tick = _Tick(datastore, arrivals, ledger, limits, orders=orders, now=now)
    cursor = replace(cursor, retries_from=retries_from)
    if events is None:
        outcomes = [tick.pass_on(cursor, settings)]
    else:
        outcomes = tick.receive(cursor, settings, events)
    asked = [ask for outcome in outcomes for ask in outcome.asked]
    said = tick.said + ([f"{len(retries)} failed ones asked for again"] if retries else [])
    for name in tick.refused:
        context.log.warning(f"{name!r} cannot be the name of a partition: rename its blobs.")
    if not asked and not retries:
        return dg.SensorResult(
            skip_reason=f"{'; '.join(said)}.", cursor=outcomes[-1].cursor.to_json()
        )
    context.log.info(f"{'; '.join(said)}.")
    # One result, so that a crash between its parts can neither lose nor double an arrival.
    return dg.SensorResult(
        run_requests=[
            *(_request(arrivals, ask.arrival.name, ask.entry, ask.run_key) for ask in asked),
            *(_request(arrivals, r.arrival, r.entry, r.run_key) for r in retries),
        ],
        # Dagster leaves out those that it has.
        dynamic_partitions_requests=[
            arrivals.partitions.build_add_request(sorted({ask.arrival.name for ask in asked}))
        ],
        asset_events=[arrivals.observation(ask.arrival) for ask in asked],
        cursor=outcomes[-1].cursor.to_json(),
    )


class _Tick:
    """What one tick looks at, and what there is to say of it."""

    def __init__(
        self,
        datastore: Datastore,
        arrivals: Arrivals,
        ledger: Ledger,
        limits: Limits,
        *,
        orders: Orders,
        now: float,
    ) -> None:
        self._datastore = datastore
        self._arrivals = arrivals
        self._ledger = ledger
        self._limits = limits
        self._orders = orders
        self._now = now
        self.said: list[str] = []
        self.refused: list[str] = []

    def pass_on(
        self, cursor: Cursor, settings: ScanSettings, *, asked: Collection[str] = ()
    ) -> Outcome:
        """Go on with the pass over the whole listing, or begin one, but for what was asked for."""
        started = cursor.pass_started if cursor.position is not None else None
        counts = Counts() if started is None else cursor.pass_counts
        walk = Walk(
            self._datastore,
            self._arrivals.patterns,
            position=cursor.position,
            max_blobs=self._limits.max_blobs_per_tick,
            max_seconds=settings.max_seconds,
        )
        outcome = scan(
            self._find(walk, settings, asked),
            cursor=cursor,
            ledger=self._ledger,
            now=self._now,
            settings=settings,
            orders=self._orders,
        )
        # What lies behind the position is looked at again.
        counts += replace(outcome.counts, blobs=walk.blobs, arrivals=walk.arrivals)
        started = self._now if started is None else started
        is_complete = outcome.is_exhausted and walk.position is None
        after = replace(
            outcome.cursor,
            position=walk.position or Position(),
            pass_started=started,
            pass_counts=counts,
        )
        if is_complete:
            after = replace(
                after,
                position=None,
                full_pass=started,
                waiting=_still_there(after, started, self._limits.settle_seconds),
            )
        self._say(outcome, counts, is_complete=is_complete)
        return replace(outcome, cursor=after)

    def _find(
        self, walk: Walk, settings: ScanSettings, asked: Collection[str]
    ) -> Iterator[Arrival]:
        """Yield what is to be asked for once more, then what a walk finds, each once."""
        seen = set(asked)
        for name in self._orders.open_replays(self._ledger.get):
            if name in seen:
                continue
            try:
                arrival = look_at(
                    self._datastore,
                    self._arrivals.patterns,
                    name,
                    max_blobs=settings.max_blobs,
                    max_seconds=settings.max_seconds,
                )
            except TooLargeError:
                # The walk takes it in parts.
                continue
            if arrival is not None:
                seen.add(name)
                yield arrival
        yield from (arrival for arrival in walk if arrival.name not in seen)

    def receive(self, cursor: Cursor, settings: ScanSettings, events: QueueEvents) -> list[Outcome]:
        """Look at what messages tell of and, where it is due, go on with a pass."""
        begun = time.monotonic()
        tick = scan_events(
            events,
            datastore=self._datastore,
            patterns=self._arrivals.patterns,
            cursor=cursor,
            ledger=self._ledger,
            now=self._now,
            # A pass is to come on even while messages never end.
            settings=replace(settings, max_seconds=settings.max_seconds / 2),
            orders=self._orders,
        )
        outcomes = [tick.outcome]
        self.said.append(f"{tick.counts}, {_count(tick.counts.arrivals, 'arrival')} looked at")
        self.said += tick.parked
        self.refused += tick.outcome.refused
        cursor = tick.outcome.cursor
        last = cursor.full_pass
        is_due = (
            cursor.position is not None
            or tick.wants_full_pass
            or last is None
            or self._now - last >= events.full_pass_seconds
        )
        left = replace(
            settings,
            max_runs=settings.max_runs - len(tick.outcome.asked),
            max_seconds=settings.max_seconds - (time.monotonic() - begun),
        )
        if is_due and left.max_runs > 0 and left.max_seconds > 0:
            asked = {ask.arrival.name for ask in tick.outcome.asked}
            cursor = cursor if cursor.position else passed(cursor)
            outcomes.append(self.pass_on(cursor, left, asked=asked))
        return outcomes

    def _say(self, outcome: Outcome, counts: Counts, *, is_complete: bool) -> None:
        where = self._arrivals.patterns.folder or "the datastore"
        new = f"{len(outcome.asked) or 'none'} of them new or changed"
        self.said.append(
            f"{_count(counts.blobs, 'blob')} in {_count(counts.arrivals, 'arrival')} in {where}, "
            f"{new}"
        )
        if outcome.settling:
            names = _names(outcome.settling, outcome.counts.settling)
            self.said.append(
                f"{outcome.counts.settling:,} changed within {self._limits.settle_seconds:g} "
                f"seconds and {'waits' if outcome.counts.settling == 1 else 'wait'}: {names}"
            )
        if outcome.refused:
            names = _names([repr(name) for name in outcome.refused], outcome.counts.refused)
            what = "a partition" if outcome.counts.refused == 1 else "partitions"
            self.said.append(f"{outcome.counts.refused:,} cannot be {what}: {names}")
            self.refused += outcome.refused
        if not is_complete:
            self.said.append(
                f"the next tick goes on, since {outcome.reason or 'there are many blobs'}"
            )


def _request(arrivals: Arrivals, name: str, entry: Entry, run_key: str) -> dg.RunRequest:
    tags = runs.tags_of(arrivals.sensor, name, entry)
    return dg.RunRequest(run_key=run_key, partition_key=name, tags=tags)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _names(names: Sequence[str], count: int) -> str:
    told = ", ".join(names[:_NAMES_TOLD])
    more = count - min(count, _NAMES_TOLD)
    return f"{told} and {more:,} more" if more else told


def _still_there(
    cursor: Cursor, pass_started: float, settle_seconds: float
) -> dict[str, tuple[str, float]]:
    """Return what waits, without what a complete pass would have settled if it were there."""
    return {
        name: (content, since)
        for name, (content, since) in cursor.waiting.items()
        if since + settle_seconds > pass_started
    }
