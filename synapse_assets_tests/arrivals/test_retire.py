"""Old arrivals become one partition: what moves, what stays, and what a crash leaves behind."""

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synapse_assets.arrivals.listing import look_at
from synapse_assets.arrivals.overview import look_over
from synapse_assets.arrivals.retire import Retired, retire
from synapse_assets.datasets import retirement
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.table import resolve
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.defs.titanic.automation import WHOLE, once_per_burst, with_new_content
from synapse_assets_tests.arrivals.daemon import ARRIVALS, PARTITIONS, Daemon, land

DAY = 24 * 3_600.0
TODAY = dt.datetime.now(tz=dt.timezone.utc).date()
INTO = f"before-{TODAY - dt.timedelta(days=10)}"


@dg.asset(partitions_def=PARTITIONS)
def taken_in(context: dg.AssetExecutionContext, datastore: Datastore) -> Path:
    return Path(datastore.uri("in", f"{context.partition_key}.csv"))


@dg.asset(partitions_def=PARTITIONS, automation_condition=with_new_content())
def prepared(context: dg.AssetExecutionContext, taken_in: DatasetVersion) -> pa.Table:
    return pa.table({"files": [len(taken_in.files)]})


@dg.asset(automation_condition=once_per_burst(quiet_seconds=0.0))
def model(prepared: pa.Table) -> pa.Table:
    return pa.table({"rows": [prepared.num_rows]})


KEYS = [taken_in.key, prepared.key]


class World:
    """A landing folder whose arrivals are taken in as the sensor's runs do it."""

    def __init__(self, datastore: Datastore, instance: dg.DagsterInstance) -> None:
        self.datastore = datastore
        self.instance = instance
        self.definitions = dg.Definitions(
            assets=[taken_in, prepared, model],
            resources={
                "datastore": datastore,
                "io_manager": DatasetIOManager(datastore=datastore),
            },
        )
        self.cursor: Any = None

    def arrive(self, name: str, *, days: float, text: str = "x") -> None:
        land(self.datastore, f"{name}.csv", text, age=days * DAY)
        self.instance.add_dynamic_partitions("files", [name])
        found = look_at(self.datastore, ARRIVALS.patterns, name)
        assert found is not None
        tags = ARRIVALS.claim(self.datastore, self.instance, found)
        self.run(*KEYS, partition=name, tags=tags)

    def run(self, *keys: dg.AssetKey, partition: str | None = None, tags: Any = None) -> None:
        self.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance, asset_selection=keys, partition_key=partition, tags=tags
        )

    def asked(self) -> list[tuple[str, str | None]]:
        """Return what the automation asks for now."""
        result = dg.evaluate_automation_conditions(
            self.definitions,
            self.instance,
            asset_selection=dg.AssetSelection.assets(prepared, model),
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        return [
            (key.to_user_string(), partition)
            for key in (prepared.key, model.key)
            for partition in result.get_requested_partitions(key)
        ]

    def retire(self, *, days: int = 10) -> Retired:
        return retire(
            ARRIVALS,
            self.datastore,
            self.instance,
            assets=KEYS,
            before=TODAY - dt.timedelta(days=days),
            tags=WHOLE,
        )

    def partitions(self) -> list[str]:
        return sorted(self.instance.get_dynamic_partitions("files"))

    def stored(self) -> list[dict[str, int]]:
        """Return how many files each partition of the two datasets has."""
        counts = []
        for name in ("taken_in", "prepared"):
            found = [file.partition or "" for file in resolve(self.datastore, name).files]
            counts.append({partition: found.count(partition) for partition in set(found)})
        return counts


@pytest.fixture
def world(datastore: Datastore) -> Iterator[World]:
    with dg.DagsterInstance.ephemeral() as instance:
        made = World(datastore, instance)
        for name, days in (("a", 30), ("b", 20), ("c", 1)):
            made.arrive(name, days=days)
        made.run(model.key)
        yield made


def test_old_arrivals_are_one_partition_and_nothing_follows(world: World) -> None:
    world.asked()
    retired = world.retire()
    assert retired == Retired(INTO, ("a", "b"), {"taken_in": 2, "prepared": 2})
    assert world.partitions() == [INTO, "c"]
    assert world.stored() == [{INTO: 2, "c": 1}] * 2
    # Nothing is made again, and the model is still made of all rows.
    assert [world.asked() for _ in range(3)] == [[], [], []]
    world.run(model.key)
    (file,) = resolve(world.datastore, "model").files
    content = world.datastore.filesystem().cat_file(world.datastore.uri("model", file.path))
    assert pq.read_table(pa.BufferReader(content)).to_pylist() == [{"rows": 3}]
    assert world.retire() == Retired(INTO, ())
    # What was folded is folded into what is folded later.
    assert world.retire(days=0).partitions == ("c", INTO)
    assert world.partitions() == [f"before-{TODAY}"]


def test_retired_arrival_comes_again_only_if_it_changes(world: World) -> None:
    world.retire()
    daemon = Daemon(world.instance, world.datastore)
    assert daemon.tick() == []
    world.datastore.storage().remove(world.datastore.uri("_arrivals/new_files/ledger"))
    assert daemon.tick() == []
    land(world.datastore, "a.csv", "mended")
    (key,) = daemon.tick()
    assert key.startswith("a:")
    assert world.partitions() == ["a", INTO, "c"]
    world.run(*KEYS, partition="a")
    assert world.stored() == [{"a": 1, INTO: 1, "c": 1}] * 2


def test_what_is_not_done_with_stays(world: World) -> None:
    land(world.datastore, "a.csv", "another", age=25 * DAY)
    world.instance.add_dynamic_partitions("files", ["missing"])
    land(world.datastore, "b.csv", "now", age=0.0)
    assert world.retire() == Retired(INTO, ())
    # Of one whose blobs are gone, the time of its run counts.
    Path(world.datastore.uri("in", "c.csv")).unlink()
    assert world.retire(days=0).partitions == ()
    assert world.retire(days=-1).partitions == ("c",)


CRASHES: dict[str, Callable[[Any], tuple[Any, str, int]]] = {
    "before the partition": lambda world: (world.instance, "add_dynamic_partitions", 0),
    "before the first dataset": lambda _: (retirement, "retire", 0),
    "between the datasets": lambda _: (retirement, "retire", 1),
    "before the report": lambda _: (dg.GraphDefinition, "to_job", 0),
    "before the keys": lambda world: (world.instance, "delete_dynamic_partition", 0),
    "between the keys": lambda world: (world.instance, "delete_dynamic_partition", 1),
}


@pytest.mark.parametrize(
    ("crash", "days"), [*((crash, 5) for crash in CRASHES), ("between the datasets", 10)]
)
def test_retiring_goes_on_after_a_crash(
    world: World, monkeypatch: pytest.MonkeyPatch, crash: str, days: int
) -> None:
    target, name, after = CRASHES[crash](world)
    original = getattr(target, name)
    calls = iter(range(after))

    def crashing(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    world.asked()
    with monkeypatch.context() as patch:
        patch.setattr(target, name, crashing)
        with pytest.raises(KeyboardInterrupt):
            world.retire()
    # Whatever was done, no row is lost or there twice.
    assert [sum(counts.values()) for counts in world.stored()] == [3, 3]
    retired = world.retire(days=days)
    into = f"before-{TODAY - dt.timedelta(days=days)}"
    assert world.stored() == [{into: 2, "c": 1}] * 2
    assert set(retired.partitions) >= {"b"}
    assert world.partitions() == [into, "c"]
    assert [world.asked() for _ in range(2)] == [[], []]
    states = look_over(ARRIVALS, world.datastore, world.instance, settle_seconds=30.0)
    assert {each.arrival.name: each.state for each in states} == {
        "a": "retired",
        "b": "retired",
        "c": "succeeded",
    }
