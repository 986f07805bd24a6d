"""Each arrival with what has become of it, as `synapse-assets arrivals` lists and orders it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import dagster as dg

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
) -> Iterator[Overview]:
    """Yield each arrival that lies there, with what has become of it.

    Raises:
        StorageError: The store refused to list them, or could not be reached.
    """
    ledger = arrivals.open_ledger(datastore, instance)
    orders = arrivals.read_orders(datastore)
    latest = find_latest(instance, arrivals.sensor)
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
    orders = _open_orders(arrivals, datastore, instance)
    last = arrivals.open_ledger(datastore, instance).confirm([name])[name]
    change = -1 if last is None else last.change
    ignored = {n: content for n, content in orders.ignored.items() if n != name}
    arrivals.write_orders(datastore, Orders({**orders.replay, name: change}, ignored))


def ignore(
    arrivals: Arrivals, datastore: Datastore, instance: dg.DagsterInstance, name: str
) -> None:
    """Have the sensor leave an arrival alone, as long as its content is the one that it has now.

    Raises:
        PartitionNotFoundError: There is no such arrival.
    """
    content = _look(arrivals, datastore, name).content
    orders = _open_orders(arrivals, datastore, instance)
    open_ = {n: change for n, change in orders.replay.items() if n != name}
    arrivals.write_orders(datastore, Orders(open_, {**orders.ignored, name: content}))


def heed(arrivals: Arrivals, datastore: Datastore, instance: dg.DagsterInstance, name: str) -> bool:
    """Have the sensor look at an arrival that it was told to ignore; return whether it was."""
    orders = _open_orders(arrivals, datastore, instance)
    ignored = {n: content for n, content in orders.ignored.items() if n != name}
    # It is looked at in the next tick, and asked for if it never was.
    told = replace(orders, ignored=ignored, replay={**orders.replay, name: -1})
    if len(ignored) < len(orders.ignored):
        arrivals.write_orders(datastore, told)
    return len(ignored) < len(orders.ignored)


def _look(arrivals: Arrivals, datastore: Datastore, name: str) -> Arrival:
    arrival = look_at(datastore, arrivals.patterns, name)
    if arrival is None:
        raise not_there(datastore, arrivals.patterns, name)
    return arrival


def _open_orders(arrivals: Arrivals, datastore: Datastore, instance: dg.DagsterInstance) -> Orders:
    """Return the orders without those that are done."""
    orders = arrivals.read_orders(datastore)
    last = arrivals.open_ledger(datastore, instance).confirm(orders.replay)
    return replace(orders, replay=orders.open_replays(last.get))
