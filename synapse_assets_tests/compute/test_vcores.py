"""vCores as slots of a Dagster pool."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from synapse_assets.compute.spark.vcores import holding_vcores
from synapse_assets.errors import ConfigurationError


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield instance


def hold(instance: dg.DagsterInstance, vcores: int, work: Callable[[], None]) -> None:
    with holding_vcores(
        instance,
        "spark01_vcores",
        vcores=vcores,
        limit=8,
        run_id=str(uuid.uuid4()),
        step="prepare",
        say=print,
    ):
        work()


def test_never_more_than_the_limit_is_held_and_all_of_it_is_freed(
    instance: dg.DagsterInstance,
) -> None:
    lock, held, most, order = threading.Lock(), [0], [0], []

    def run(vcores: int) -> None:
        def work() -> None:
            with lock:
                held[0] += vcores
                most[0] = max(most[0], held[0])
                order.append(vcores)
            time.sleep(0.3)
            with lock:
                held[0] -= vcores

        hold(instance, vcores, work)

    threads = [threading.Thread(target=run, args=(vcores,)) for vcores in (5, 5, 3, 8, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(order) == [1, 3, 5, 5, 8]
    assert most[0] <= 8
    info = instance.event_log_storage.get_concurrency_info("spark01_vcores")
    assert (info.slot_count, info.active_slot_count, info.pending_step_count) == (8, 0, 0)


def test_slots_are_freed_by_a_failure(instance: dg.DagsterInstance) -> None:
    def fail() -> None:
        raise RuntimeError("it failed")

    with pytest.raises(RuntimeError, match="it failed"):
        hold(instance, 8, fail)
    hold(instance, 8, lambda: None)


def test_more_than_there_is_is_refused_at_once(instance: dg.DagsterInstance) -> None:
    with pytest.raises(ConfigurationError, match=r"asks for 9 vCores, and .* have 8"):
        hold(instance, 9, lambda: None)
