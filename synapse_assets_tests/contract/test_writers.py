"""Many writers at once, and writers that are killed in the middle of it."""

import multiprocessing
import random
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

import pytest

from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import commit, resolve
from synapse_assets.datastore import Datastore
from synapse_assets.errors import DatasetNotFoundError
from synapse_assets_tests.contract import writers
from synapse_assets_tests.contract.stores import Store
from synapse_assets_tests.datasets.staging import (
    contents_of,
    numbers,
    put,
    rows_of,
    stage_table,
    values_of,
)

# A commit to a service takes longer, and so a life has to.
_KILLS = {"local": 25, "azurite": 10, "hdfs": 10}
_LONGEST_LIFE_SECONDS = {"local": 0.15, "azurite": 1.0, "hdfs": 4.0}
_SEED = 1912
# What a writer would otherwise import for itself, in each of the processes.
_LOADED_WHERE_USED = (
    "pytest",
    "deltalake.transaction",
    "fsspec.implementations.local",
    "pyarrow.dataset",
    "pyarrow.parquet",
)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    # Each writer is a process of its own, and still starts without importing all again.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([writers.__name__, *_LOADED_WHERE_USED])
    return context


@pytest.fixture
def pipe(processes: ForkServerContext) -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = processes.Pipe()
    with ours, theirs:
        yield ours, theirs


def _receive(connection: Connection) -> Any:
    assert connection.poll(60), "the writer has not said anything"
    return connection.recv()


def _end(writer: ForkServerProcess) -> None:
    writer.join(timeout=60)
    assert writer.exitcode == 0


def test_16_writers_of_a_new_table_each_land_exactly_once(
    store: Store,
    datastore: Datastore,
    processes: ForkServerContext,
    pipe: tuple[Connection, Connection],
) -> None:
    ours, theirs = pipe
    barrier = processes.Barrier(16)
    slots = [Slot("new", "part", f"p{number}") for number in range(16)]
    started = []
    for number, slot in enumerate(slots):
        staged = stage_table(datastore, slot, numbers(number), numbers(number))
        arguments = (store, staged, slot, barrier, theirs)
        started.append(processes.Process(target=writers.commit_at_once, args=arguments))
        started[-1].start()
    for writer in started:
        _end(writer)
    assert sorted(_receive(ours) for _ in started) == list(range(16))
    whole = resolve(datastore, "new")
    assert whole.version == 15
    rows = sorted((row["part"], row["x"]) for row in rows_of(datastore, whole))
    assert rows == sorted((f"p{number}", number) for number in range(16) for _ in "12")


def test_8_writers_of_the_same_attempt_make_one_version(
    store: Store,
    datastore: Datastore,
    processes: ForkServerContext,
    pipe: tuple[Connection, Connection],
) -> None:
    ours, theirs = pipe
    slot = Slot("new")
    barrier = processes.Barrier(8)
    staged = [stage_table(datastore, slot, numbers(n), attempt="same") for n in (1, 2)]
    started = []
    for number in range(8):
        # Half of them with the files of a first try, half with those of a second.
        arguments = (store, staged[number % 2], slot, barrier, theirs)
        started.append(processes.Process(target=writers.commit_at_once, args=arguments))
        started[-1].start()
    for writer in started:
        _end(writer)
    assert [_receive(ours) for _ in started] == [0] * 8
    version = resolve(datastore, "new")
    assert version.version == 0
    assert values_of(datastore, version) in ([1], [2])


@pytest.mark.kill
def test_killed_writer_leaves_complete_versions_only(
    store: Store, datastore: Datastore, processes: ForkServerContext
) -> None:
    chance = random.Random(_SEED)
    acknowledged: dict[str, int] = {}
    for life in range(_KILLS[store.name]):
        ours, theirs = processes.Pipe()
        arguments = (store, life, theirs)
        writer = processes.Process(target=writers.commit_until_killed, args=arguments)
        writer.start()
        theirs.close()
        with ours:
            assert ours.poll(60)
            writer.join(timeout=chance.uniform(0, _LONGEST_LIFE_SECONDS[store.name]))
            writer.kill()
            writer.join()
            acknowledged.update(_received(ours))
        _assert_complete(datastore, acknowledged)
    version = resolve(datastore, writers.KILLED_TABLE)
    assert version.version > _KILLS[store.name]
    after = put(datastore, Slot(writers.KILLED_TABLE, "part", "a"), numbers(-1))
    assert after.version == version.version + 1
    assert -1 in values_of(datastore, resolve(datastore, writers.KILLED_TABLE))


def _received(connection: Connection) -> Iterator[tuple[str, int]]:
    try:
        while True:
            name, version = connection.recv()
            yield name, version
    except (EOFError, OSError):
        # The last message may have been cut by the kill.
        return


def _assert_complete(datastore: Datastore, acknowledged: dict[str, int]) -> None:
    """Check the newest version and the one before of both datasets: what is there is whole."""
    for name, made in acknowledged.items():
        newest = resolve(datastore, name)
        # The kill may have come between the commit and the word of it, never before both.
        assert newest.version >= made
        for number in {newest.version, max(0, newest.version - 1)}:
            version = resolve(datastore, name, version=number)
            for partition in version.partitions:
                part = resolve(datastore, name, version=number, partitions=[partition])
                if name == writers.KILLED_TABLE:
                    first, second = values_of(datastore, part)
                    assert second == first + 1
                else:
                    contents = contents_of(datastore, part)
                    assert contents["first"] == contents["second"]


@pytest.mark.kill
def test_writer_killed_before_its_commit_is_not_seen_and_can_be_finished(
    store: Store,
    datastore: Datastore,
    processes: ForkServerContext,
    pipe: tuple[Connection, Connection],
) -> None:
    ours, theirs = pipe
    slot = Slot("cut")
    for before in (None, put):
        if before is not None:
            before(datastore, slot, numbers(1))
        arguments = (store, slot, theirs)
        writer = processes.Process(target=writers.stage_until_killed, args=arguments)
        writer.start()
        staged = _receive(ours)
        writer.kill()
        writer.join()
        for file in staged.files:
            assert datastore.filesystem().exists(f"{datastore.uri('cut')}/{file.path}")
        if before is None:
            with pytest.raises(DatasetNotFoundError):
                resolve(datastore, "cut")
        else:
            assert values_of(datastore, resolve(datastore, "cut")) == [1]
    assert values_of(datastore, commit(datastore, staged, slot=slot)) == [7]
