"""Each arrival with what has become of it, as `synapse-assets arrivals` lists and orders it."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import dagster as dg

from synapse_assets.arrivals.ledger import Entry
from synapse_assets.arrivals.listing import Arrival, Walk, look_at, not_there
from synapse_assets.arrivals.orders import Orders
from synapse_assets.arrivals.runs import LatestRun, find_latest
from synapse_assets.arrivals.sensor import Arrivals
from synapse_assets.datastore import Datastore

State = Literal["new", "settling", "asked", "running", "succeeded", "failed", "ignored", "retired"]
_STATES: dict[dg.DagsterRunStatus, State] = {
    dg.DagsterRunStatus.QUEUED: "asked",
    dg.DagsterRunStatus.NOT_STARTED: "asked",
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "failed",
}


@dataclass(frozen=True)
class Overview:
    """One arrival that lies in the landing folder.

    Attributes:
        arrival: The arrival.
        state: What has become of its content.
        run: The latest run for it, whatever its content; None if there is none.
    """

    arrival: Arrival
    state: State
    run: LatestRun | None


def look_over(
    arrivals: Arrivals,
    datastore: Datastore,
    instance: dg.DagsterInstance,
    *,
    settle_seconds: float,
    latest: Mapping[str, LatestRun] | None = None,
) -> Iterator[Overview]:
    """Yield each arrival that lies there, with what has become of it.

    What `find_latest` tells is asked for unless the caller has it.

    Raises:
        StorageError: The store refused to list them, or could not be reached.
    """
    latest = find_latest(instance, arrivals.sensor) if latest is None else latest
    ledger = arrivals.open_ledger(datastore, instance)
    orders = Orders.read(datastore, arrivals.sensor)
    partitions = set(instance.get_dynamic_partitions(arrivals.partitions_name))
    now = time.time()
    for arrival in Walk(datastore, arrivals.patterns):
        run = latest.get(arrival.name)
        ran = None if run is None else run.entry
        handed_over = ledger.get(arrival.name) or ran
        state: State = "asked"
        if orders.ignored.get(arrival.name) == arrival.content:
            state = "ignored"
        elif orders.is_open(arrival.name, handed_over):
            pass
        elif handed_over is None or handed_over.content != arrival.content:
            state = "new" if arrival.newest_modified <= now - settle_seconds else "settling"
        elif run is not None and ran == handed_over:
            state = _STATES.get(run.status, "running")
            if state == "succeeded" and arrival.name not in partitions:
                state = "retired"
        yield Overview(arrival, state, run)


def replay(
    arrivals: Arrivals, datastore: Datastore, instance: dg.DagsterInstance, name: str
) -> None:
    """Have the sensor ask for an arrival once more, also if it was ignored.

    To say it again before the sensor has done it changes nothing.

    Raises:
        PartitionNotFoundError: There is no such arrival.
    """
    _look(arrivals, datastore, name)
    orders, last = _orders_but(arrivals, datastore, instance, name)
    change = -1 if last is None else last.change
    replace(orders, replay={**orders.replay, name: change}).write(datastore, arrivals.sensor)


def ignore(
    arrivals: Arrivals, datastore: Datastore, instance: dg.DagsterInstance, name: str
) -> None:
    """Have the sensor leave an arrival alone, as long as its content is the one that it has now.

    Raises:
        PartitionNotFoundError: There is no such arrival.
    """
    content = _look(arrivals, datastore, name).content
    orders, _ = _orders_but(arrivals, datastore, instance, name)
    replace(orders, ignored={**orders.ignored, name: content}).write(datastore, arrivals.sensor)


def heed(arrivals: Arrivals, datastore: Datastore, instance: dg.DagsterInstance, name: str) -> bool:
    """Have the sensor look at an arrival that it was told to ignore; return whether it was."""
    if name not in Orders.read(datastore, arrivals.sensor).ignored:
        return False
    orders, _ = _orders_but(arrivals, datastore, instance, name)
    # It is looked at in the next tick, and asked for if it never was.
    replace(orders, replay={**orders.replay, name: -1}).write(datastore, arrivals.sensor)
    return True


def _look(arrivals: Arrivals, datastore: Datastore, name: str) -> Arrival:
    arrival = look_at(datastore, arrivals.patterns, name)
    if arrival is None:
        raise not_there(datastore, arrivals.patterns, name)
    return arrival


def _orders_but(
    arrivals: Arrivals, datastore: Datastore, instance: dg.DagsterInstance, name: str
) -> tuple[Orders, Entry | None]:
    """Return the orders for others that are still to be done, and what was handed over last."""
    orders = Orders.read(datastore, arrivals.sensor)
    last = arrivals.open_ledger(datastore, instance).confirm({*orders.replay, name})
    replays, ignored = orders.open_replays(last.get), dict(orders.ignored)
    for told in (replays, ignored):
        told.pop(name, None)
    return Orders(replays, ignored), last[name]
