"""The conditions over simulated time: what is asked for, when, and what is left alone."""

import datetime as dt
from collections.abc import Callable, Iterator

import dagster as dg
import pytest
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor

from synapse_assets.defs.titanic.automation import once_per_burst, with_new_content

BEGIN = dt.datetime(2026, 11, 24, 12, tzinfo=dt.timezone.utc)
TICK_SECONDS = 10
QUIET = 60
LATEST = 5 * 60

ARRIVALS = dg.DynamicPartitionsDefinition(name="arrivals")

content: dict[str, str] = {}
fails: set[str] = set()
meanwhile: list[Callable[[], None]] = []


@dg.asset(partitions_def=ARRIVALS)
def taken_in(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(data_version=dg.DataVersion(content[context.partition_key]))


@dg.asset(deps=[taken_in], partitions_def=ARRIVALS, automation_condition=with_new_content())
def prepared(context: dg.AssetExecutionContext) -> None:
    if context.partition_key in fails:
        raise ValueError(context.partition_key)


@dg.asset_check(asset=prepared, partitions_def=ARRIVALS, blocking=True)
def is_whole(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed="is broken" not in fails)


@dg.asset(
    deps=[prepared],
    automation_condition=once_per_burst(quiet_seconds=QUIET, latest_seconds=LATEST),
)
def model() -> None:
    while meanwhile:
        meanwhile.pop()()
    if "model" in fails:
        raise ValueError("model")


DEFINITIONS = dg.Definitions(assets=[taken_in, prepared, model], asset_checks=[is_whole])


class World:
    """An instance, a clock, and a daemon that looks every ten seconds and runs what is asked."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.now = 0
        self.asked: list[tuple[int, str, str | None]] = []
        self._cursor: AssetDaemonCursor | None = None

    def arrive(self, name: str, text: str = "a") -> None:
        """Take in an arrival, as the sensor's run does."""
        content[name] = text
        self.instance.add_dynamic_partitions("arrivals", [name])
        self.run(taken_in, partition=name)

    def run(self, *assets: dg.AssetsDefinition, partition: str | None = None) -> None:
        """Run assets together, as the UI does it."""
        DEFINITIONS.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[asset.key for asset in assets],
            partition_key=partition,
            raise_on_error=False,
        )

    def wait(self, seconds: int) -> list[tuple[int, str, str | None]]:
        """Let time go by, and return what was asked for meanwhile: when, what, which partition."""
        before = len(self.asked)
        end = self.now + seconds
        while self.now < end:
            self.now += TICK_SECONDS
            self.tick()
        return self.asked[before:]

    def tick(self) -> None:
        result = dg.evaluate_automation_conditions(
            DEFINITIONS,
            self.instance,
            asset_selection=dg.AssetSelection.assets(prepared, model),
            evaluation_time=BEGIN + dt.timedelta(seconds=self.now),
            cursor=self._cursor,
        )
        self._cursor = result.cursor
        for asset in (prepared, model):
            for partition in sorted(result.get_requested_partitions(asset.key), key=str):
                self.asked.append((self.now, asset.key.to_user_string(), partition))
                self.run(asset, partition=partition)

    def models(self) -> list[int]:
        return [at for at, name, _ in self.asked if name == "model"]


@pytest.fixture
def world() -> Iterator[World]:
    content.clear()
    fails.clear()
    meanwhile.clear()
    with dg.DagsterInstance.ephemeral() as instance:
        made = World(instance)
        made.wait(TICK_SECONDS)
        yield made


def test_one_arrival_is_prepared_at_once_and_trained_on_after_the_quiet_time(world: World) -> None:
    world.arrive("a")
    asked = world.wait(200)
    assert asked[0] == (20, "prepared", "a")
    ((at, name, _),) = asked[1:]
    assert name == "model"
    assert QUIET <= at - 20 <= QUIET + 2 * TICK_SECONDS
    assert world.wait(200) == []


def test_burst_of_twenty_arrivals_is_trained_on_once(world: World) -> None:
    for number in range(20):
        world.arrive(f"a{number}")
        world.wait(TICK_SECONDS if number % 2 else 2 * TICK_SECONDS)
    last = world.now
    assert world.models() == []
    world.wait(300)
    assert len([name for _, name, _ in world.asked if name == "prepared"]) == 20
    (at,) = world.models()
    assert at <= last + QUIET + 2 * TICK_SECONDS


def test_stream_without_a_pause_is_trained_on_at_the_latest_time(world: World) -> None:
    begin, pause = world.now, 50
    while world.now < begin + 2 * LATEST + 200:
        world.arrive(f"a{world.now}")
        world.wait(pause)
    first, second = world.models()
    assert first - begin <= LATEST + 2 * TICK_SECONDS
    assert second - first <= LATEST + 2 * TICK_SECONDS + pause


def test_same_content_runs_nothing_and_another_one_does(world: World) -> None:
    world.arrive("a", "one")
    world.wait(100)
    world.arrive("a", "one")
    assert world.wait(200) == []
    world.arrive("a", "two")
    asked = world.wait(200)
    assert [(name, partition) for _, name, partition in asked] == [
        ("prepared", "a"),
        ("model", None),
    ]


def test_what_cannot_be_taken_in_or_fails_holds_nothing_up_and_is_not_asked_for_again(
    world: World,
) -> None:
    world.instance.add_dynamic_partitions("arrivals", ["in quarantine"])
    fails.add("bad")
    world.arrive("bad")
    world.arrive("good")
    asked = [(name, partition) for _, name, partition in world.wait(300)]
    assert asked == [("prepared", "bad"), ("prepared", "good"), ("model", None)]
    fails.clear()
    world.arrive("bad", "mended")
    asked = [(name, partition) for _, name, partition in world.wait(300)]
    assert asked == [("prepared", "bad"), ("model", None)]


def test_failed_model_waits_for_the_next_content(world: World) -> None:
    fails.add("model")
    world.arrive("a")
    world.wait(300)
    assert len(world.models()) == 1
    fails.clear()
    world.arrive("b")
    world.wait(200)
    assert len(world.models()) == 2


def test_failed_blocking_check_keeps_the_table_from_being_trained_on(world: World) -> None:
    fails.add("is broken")
    world.arrive("a")
    assert [name for _, name, _ in world.wait(LATEST + 100)] == ["prepared"]
    fails.clear()
    world.run(prepared, partition="a")
    assert [name for _, name, _ in world.wait(20)] == ["model"]


def test_what_arrives_while_the_model_is_trained_is_trained_on_afterwards(world: World) -> None:
    def arrive() -> None:
        world.arrive("b")
        world.run(prepared, partition="b")

    world.arrive("a")
    meanwhile.append(arrive)
    world.wait(100)
    assert not meanwhile
    assert len(world.models()) == 1
    world.wait(100)
    assert len(world.models()) == 2
    assert world.wait(100) == []


def test_what_was_there_before_the_sensor_is_made(world: World) -> None:
    """A sensor that looks for the first time sees no change; what is missing is missing."""
    later = World(world.instance)
    world.arrive("a")
    asked = [(name, partition) for _, name, partition in later.wait(200)]
    assert asked == [("prepared", "a"), ("model", None)]


def test_run_of_everything_by_hand_leaves_nothing_to_do(world: World) -> None:
    content["a"] = "one"
    world.instance.add_dynamic_partitions("arrivals", ["a"])
    world.run(taken_in, prepared, partition="a")
    world.wait(200)
    content["a"] = "two"
    world.run(taken_in, prepared, partition="a")
    assert [name for _, name, _ in world.wait(200)] == ["model"]
