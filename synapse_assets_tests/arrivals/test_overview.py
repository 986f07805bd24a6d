"""What is told of arrivals, and what a sensor is told of them by hand."""

import pytest
from dagster._core.events import DagsterEventType

from synapse_assets.arrivals import Limits, RetryPolicy
from synapse_assets.arrivals.overview import heed, ignore, look_over, replay
from synapse_assets.datastore import Datastore
from synapse_assets.errors import PartitionNotFoundError
from synapse_assets_tests.arrivals.daemon import ARRIVALS, Daemon, land

SUCCESS = DagsterEventType.RUN_SUCCESS
NO_RETRIES = Limits(retries=RetryPolicy(max_attempts=1))


def states(daemon: Daemon) -> dict[str, str]:
    found = look_over(ARRIVALS, daemon.datastore, daemon.instance, settle_seconds=30.0)
    return {each.arrival.name: each.state for each in found}


def tell(daemon: Daemon, order: str, name: str = "one") -> None:
    {"replay": replay, "ignore": ignore, "heed": heed}[order](
        ARRIVALS, daemon.datastore, daemon.instance, name
    )


def test_each_state_is_told(daemon: Daemon, datastore: Datastore) -> None:
    land(datastore, "one.csv")
    land(datastore, "two/a.csv")
    land(datastore, "three.csv", age=0.0)
    assert states(daemon) == {"one": "new", "three": "settling", "two": "new"}
    one, two = sorted(daemon.tick())
    assert states(daemon) == {"one": "asked", "three": "settling", "two": "asked"}
    daemon.end(one, SUCCESS)
    daemon.end(two, DagsterEventType.RUN_START)
    assert states(daemon) == {"one": "succeeded", "three": "settling", "two": "running"}
    daemon.fail(two)
    assert states(daemon)["two"] == "failed"
    tell(daemon, "ignore", "two")
    daemon.instance.delete_dynamic_partition("files", "one")
    assert states(daemon) == {"one": "retired", "three": "settling", "two": "ignored"}
    land(datastore, "one.csv", "another")
    assert states(daemon)["one"] == "new"


def test_in_doubt_is_what_the_runs_tell(daemon: Daemon, datastore: Datastore) -> None:
    land(datastore, "one.csv")
    result = daemon.evaluate()
    # Nobody can tell yet whether Dagster has kept it.
    assert states(daemon) == {"one": "new"}
    daemon.keep(result)
    assert states(daemon) == {"one": "asked"}


@pytest.mark.parametrize("ledger_is_lost", [False, True])
def test_replayed_arrival_is_asked_for_exactly_once(
    daemon: Daemon, datastore: Datastore, ledger_is_lost: bool
) -> None:
    land(datastore, "one.csv")
    (key,) = daemon.tick()
    daemon.end(key, SUCCESS)
    assert daemon.tick() == []
    tell(daemon, "replay")
    tell(daemon, "replay")
    # A tick that crashes asks for nothing; it is asked for by the next one, by the same key.
    lost = daemon.evaluate()
    if ledger_is_lost:
        datastore.storage().remove(datastore.uri("_arrivals/new_files/ledger"))
    (again,) = daemon.tick()
    assert [request.run_key for request in lost.run_requests or []] == [again]
    content = key.split(":")[1]
    assert (key, again) == (f"one:{content}:0", f"one:{content}:1")
    daemon.end(again, SUCCESS)
    assert [daemon.tick() for _ in range(3)] == [[], [], []]
    tell(daemon, "replay")
    assert daemon.tick() == [f"one:{content}:2"]


def test_replayed_arrival_that_still_changes_waits(daemon: Daemon, datastore: Datastore) -> None:
    land(datastore, "one.csv")
    daemon.tick()
    land(datastore, "one.csv", "more", age=0.0)
    tell(daemon, "replay")
    assert daemon.tick() == []
    land(datastore, "one.csv", "more")
    (key,) = daemon.tick()
    assert key.endswith(":1")
    assert daemon.tick() == []


def test_ignored_arrival_is_left_alone_until_it_changes(
    daemon: Daemon, datastore: Datastore
) -> None:
    land(datastore, "one.csv")
    land(datastore, "two.csv")
    tell(daemon, "ignore")
    (two,) = daemon.tick()
    assert two.startswith("two:")
    land(datastore, "one.csv", "mended")
    (mended,) = daemon.tick()
    assert mended.startswith("one:")
    # Nor is a failed one asked for again while it is ignored.
    daemon.fail(mended)
    tell(daemon, "ignore")
    assert daemon.tick() == []
    daemon.cursor = None
    tell(daemon, "heed")
    assert daemon.tick() == [f"{mended}:retry1"]


def test_arrival_that_is_ignored_no_more_is_asked_for(daemon: Daemon, datastore: Datastore) -> None:
    land(datastore, "one.csv")
    tell(daemon, "ignore")
    assert daemon.tick() == []
    tell(daemon, "heed")
    assert len(daemon.tick()) == 1
    assert daemon.tick() == []
    # To replay is to heed, too.
    tell(daemon, "ignore")
    tell(daemon, "replay")
    assert len(daemon.tick(NO_RETRIES)) == 1
    assert not heed(ARRIVALS, datastore, daemon.instance, "one")


def test_unknown_name_is_told_with_those_there_are(daemon: Daemon, datastore: Datastore) -> None:
    land(datastore, "one.csv")
    for order in (replay, ignore):
        with pytest.raises(PartitionNotFoundError, match=r"'x' is in .*; there is one"):
            order(ARRIVALS, datastore, daemon.instance, "x")


def test_what_is_too_large_for_a_tick_is_replayed_by_the_pass(
    daemon: Daemon, datastore: Datastore
) -> None:
    for number in range(5):
        land(datastore, f"one/{number}.csv")
    small = Limits(max_blobs_per_tick=2, retries=RetryPolicy(max_attempts=1))
    (key,) = daemon.tick(small)
    daemon.end(key, SUCCESS)
    tell(daemon, "replay")
    assert daemon.tick(small) == [f"{key[:-1]}1"]
    assert daemon.tick(small) == []
