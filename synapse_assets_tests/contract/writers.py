"""What the other processes do in the tests with several writers. Imported by each of them."""

import itertools
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import commit
from synapse_assets_tests.contract.stores import Store
from synapse_assets_tests.datasets.staging import numbers, put_files, stage_table

KILLED_TABLE = "killed"
KILLED_FILES = "killed_files"
PARTITIONS = ("a", "b")


def commit_at_once(
    store: Store, staged: StagedDataset, slot: Slot, barrier: Barrier, results: Connection
) -> None:
    """Commit as soon as all processes are ready, and send the version it made."""
    barrier.wait(timeout=60)
    results.send(commit(store.open(), staged, slot=slot).version)


def commit_until_killed(store: Store, life: int, results: Connection) -> None:
    """Commit to a table and to files by turns, and send each version that was made.

    An attempt's rows are two files with its number and the next one; its files are two as well.
    """
    datastore = store.open()
    for number in itertools.count(life * 1_000_000, 2):
        partition = PARTITIONS[number // 2 % 2]
        table = Slot(KILLED_TABLE, "part", partition)
        staged = stage_table(
            datastore,
            table,
            numbers(number),
            numbers(number + 1),
            attempt=f"attempt-{number}",
        )
        results.send((KILLED_TABLE, commit(datastore, staged, slot=table).version))
        contents = {"first": b"%d" % number, "second": b"%d" % number}
        files = Slot(KILLED_FILES, "part", partition)
        results.send((KILLED_FILES, put_files(datastore, files, contents).version))


def stage_until_killed(store: Store, slot: Slot, results: Connection) -> None:
    """Stage rows as a step does, say so, and never come to the commit."""
    results.send(stage_table(store.open(), slot, numbers(7), attempt="cut-short"))
    results.recv()
