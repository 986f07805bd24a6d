"""Many batches in one process: what submitting one costs, and that nothing of it is left."""

import contextlib
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from synapse_assets.compute.client import BatchClient
from synapse_assets.compute.spark import LivySparkPool, SynapseSparkPool
from synapse_assets.compute.spark.livy import HttpLivyClient
from synapse_assets.compute.spark.synapse import SynapseClient
from synapse_assets.compute.step import Step
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datastore import Datastore
from synapse_assets_tests.real.stub_pool import StubPool

# Most of it needs none of the real services, but minutes.
pytestmark = pytest.mark.services

# A thousand takes minutes; a leak shows with fewer.
_BATCHES = int(os.environ.get("SYNAPSE_ASSETS_TEST_BATCHES", "100"))
# The first ones open connections and import what they need.
_WARM_UP = 20
_RUNS = 3
_MAX_SUBMIT_SECONDS = 0.3
# What a thousand may leave of caches and of a fragmented heap.
_MAX_BYTES = 20 << 20

_STEP = Step("synapse_assets_tests.example_steps.plain:make_rows")


@dataclass(frozen=True)
class Use:
    """What a process holds."""

    threads: int
    descriptors: int
    sockets: int
    memory: int

    @classmethod
    def of_this_process(cls) -> "Use":
        gc.collect()
        process = psutil.Process()
        return cls(
            threads=threading.active_count(),
            descriptors=process.num_fds(),
            sockets=len(process.net_connections()),
            memory=process.memory_info().rss,
        )


@dataclass
class Clock:
    """When each batch was so far, in seconds.

    Attributes:
        begun: When `run` was called.
        answered: When it was answered.
        dagster: How long Dagster took to open a session of Pipes meanwhile.
    """

    begun: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    dagster: list[float] = field(default_factory=list)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return a clock that all batches of this process go by."""
    clock = Clock()
    open_session = dg.open_pipes_session

    @contextlib.contextmanager
    def timed_session(*args: Any, **kwargs: Any) -> Iterator[dg.PipesSession]:
        started = time.perf_counter()
        with open_session(*args, **kwargs) as session:
            clock.dagster.append(time.perf_counter() - started)
            yield session

    def timed(post: Callable[..., Any]) -> Callable[..., Any]:
        def post_batch(client: BatchClient, request: Any) -> Any:
            batch = post(client, request)
            clock.answered.append(time.perf_counter())
            return batch

        return post_batch

    monkeypatch.setattr(dg, "open_pipes_session", timed_session)
    for client in (HttpLivyClient, SynapseClient):
        monkeypatch.setattr(client, "post_batch", timed(client.post_batch))
    return clock


@pytest.fixture
def pool() -> Iterator[StubPool]:
    with StubPool() as pool:
        yield pool


@pytest.fixture(params=["LivySparkPool", "SynapseSparkPool"])
def target(request: pytest.FixtureRequest, pool: StubPool, tmp_path: Path) -> ComputeTarget:
    datastore = Datastore(root=str(tmp_path / "datastore"))
    if request.param == "LivySparkPool":
        return LivySparkPool(datastore=datastore, url=pool.url)
    return SynapseSparkPool(
        datastore=datastore, workspace=pool.url, pool="spark01", cloud="emulator"
    )


@pytest.mark.timeout(1200)
def test_nothing_is_left_of_many_batches(
    target: ComputeTarget, pool: StubPool, clock: Clock, tmp_path: Path
) -> None:
    uses = []
    seconds = []

    @dg.asset
    def numbers(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[None]:
        for number in range(_WARM_UP + _BATCHES):
            if number == _WARM_UP:
                uses.append(Use.of_this_process())
            started = time.perf_counter()
            clock.begun.append(started)
            target.run(_STEP, context=context, inputs={}, parameters={"rows": number})
            seconds.append(time.perf_counter() - started)
        uses.append(Use.of_this_process())
        return dg.MaterializeResult()

    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:
        dg.materialize([numbers], resources={"target": target}, instance=instance)

    assert len(set(pool.names)) == len(pool.names) == _WARM_UP + _BATCHES
    before, after = uses
    ours = [
        answered - begun - stub
        for begun, answered, stub in zip(clock.begun, clock.answered, pool.seconds, strict=True)
    ]
    print(f"\n{type(target).__name__}, {_BATCHES} batches")
    print(f"from run() to the answer, without the pool: {_describe(ours[_WARM_UP:])}")
    print(f"  of that, Dagster's session of Pipes:      {_describe(clock.dagster[_WARM_UP:])}")
    print(f"the whole of run():                         {_describe(seconds[_WARM_UP:])}")
    print(f"before: {before}\nafter:  {after}")
    assert after.threads <= before.threads
    assert after.descriptors <= before.descriptors
    assert after.sockets <= before.sockets
    assert after.memory - before.memory < _MAX_BYTES
    assert statistics.median(ours[_WARM_UP:]) <= _MAX_SUBMIT_SECONDS


def test_submitting_costs_little_beside_a_run_of_dagster(
    target: ComputeTarget, pool: StubPool, clock: Clock, tmp_path: Path
) -> None:
    dagsters = []

    @dg.asset
    def numbers(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[None]:
        clock.begun.append(time.perf_counter())
        target.run(_STEP, context=context, inputs={})
        return dg.MaterializeResult()

    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:
        for _ in range(_RUNS):
            started = time.perf_counter()
            dg.materialize([numbers], resources={"target": target}, instance=instance)
            dagsters.append(clock.begun[-1] - started)
    ours = [
        answered - begun - stub
        for begun, answered, stub in zip(clock.begun, clock.answered, pool.seconds, strict=True)
    ]
    print(f"\n{type(target).__name__}, {_RUNS} runs of one batch each")
    print(f"from dg.materialize() to the asset's code:  {_describe(dagsters)}")
    print(f"from run() to the answer, without the pool: {_describe(ours)}")
    assert statistics.median(ours) <= _MAX_SUBMIT_SECONDS


def _describe(seconds: list[float]) -> str:
    median, worst = statistics.median(seconds), max(seconds)
    return f"median {median * 1000:.1f} ms, at most {worst * 1000:.1f} ms"
