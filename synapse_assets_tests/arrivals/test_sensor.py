"""The sensor on a real instance: what its ticks return, and what comes of the runs they ask for."""

import re
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import DagsterEventType

from synapse_assets.arrivals import (
    Limits,
    RetryPolicy,
)
from synapse_assets.arrivals.cursor import Cursor
from synapse_assets.arrivals.runs import ARRIVAL_TAG, CONTENT_TAG, SENSOR_TAG
from synapse_assets.datastore import Datastore
from synapse_assets_tests.arrivals.daemon import ARRIVALS, LIMITS, Daemon, land


def test_one_result_has_everything_together(daemon: Daemon, datastore: Datastore) -> None:
    for name in ("one.csv", "two/a.csv", "two/b.csv"):
        land(datastore, name)
    result = daemon.evaluate()
    requests = {request.partition_key: request for request in result.run_requests or []}
    assert set(requests) == {"one", "two"}
    (added,) = result.dynamic_partitions_requests or []
    assert (added.partitions_def_name, added.partition_keys) == ("files", ["one", "two"])
    observed = {event.partition: event for event in result.asset_events}
    for name, files in (("one", 1), ("two", 2)):
        event, tags = observed[name], requests[name].tags
        assert isinstance(event, dg.AssetObservation)
        content = (event.tags or {})["dagster/data_version"]
        assert event.metadata["files"].value == files
        assert (tags[ARRIVAL_TAG], tags[SENSOR_TAG]) == (name, "new_files")
        assert tags[CONTENT_TAG] == f"{content}:0"
        assert requests[name].run_key == f"{name}:{content}:0"
    assert Cursor.from_json(result.cursor).full_pass is not None


def test_ticks_that_are_repeated_ask_for_the_same_and_then_for_nothing(
    daemon: Daemon, datastore: Datastore
) -> None:
    land(datastore, "one.csv")
    first, second = daemon.evaluate(), daemon.evaluate()
    keys = [[r.run_key for r in result.run_requests or []] for result in (first, second)]
    assert keys[0] == keys[1]
    assert len(daemon.keep(second)) == 1
    again = daemon.evaluate()
    assert not again.run_requests
    assert again.skip_reason is not None
    assert (
        again.skip_reason.skip_message == "1 blob in 1 arrival in in, none of them new or changed."
    )
    # Whoever empties the cursor in the UI does no harm.
    daemon.cursor = None
    assert daemon.tick() == []


def test_changed_arrival_is_asked_for_again(daemon: Daemon, datastore: Datastore) -> None:
    land(datastore, "one/a.csv")
    (first,) = daemon.tick()
    land(datastore, "one/b.csv")
    (second,) = daemon.tick()
    Path(datastore.uri("in/one/b.csv")).unlink()
    (third,) = daemon.tick()
    assert [key.rpartition(":")[2] for key in (first, second, third)] == ["0", "1", "2"]
    assert first.rpartition(":")[0] == third.rpartition(":")[0]


def test_young_blob_is_no_arrival_yet(daemon: Daemon, datastore: Datastore) -> None:
    land(datastore, "old.csv")
    land(datastore, "young.csv", age=0)
    assert len(daemon.tick()) == 1
    reason = daemon.evaluate().skip_reason
    assert reason is not None
    assert reason.skip_message == (
        "2 blobs in 2 arrivals in in, none of them new or changed; "
        "1 changed within 30 seconds and waits: young."
    )


def test_name_that_no_partition_can_have_is_told(daemon: Daemon, datastore: Datastore) -> None:
    land(datastore, "a...b.csv")
    land(datastore, "good.csv")
    (key,) = daemon.tick()
    assert key.startswith("good:")
    reason = daemon.evaluate().skip_reason
    assert reason is not None
    assert "1 cannot be a partition: 'a...b'" in str(reason.skip_message)


def test_no_run_is_asked_for_while_too_many_wait(daemon: Daemon, datastore: Datastore) -> None:
    limits = Limits(settle_seconds=30.0, max_runs_per_tick=2, max_queued_runs=3)
    for i in range(6):
        land(datastore, f"{i}.csv")
    first, second = daemon.tick(limits), daemon.tick(limits)
    assert [len(first), len(second)] == [2, 1]
    result = daemon.evaluate(limits)
    assert result.skip_reason is not None
    assert str(result.skip_reason.skip_message).startswith("3 runs of this sensor wait to begin")
    daemon.keep(result)
    for key in first:
        daemon.end(key, DagsterEventType.RUN_START)
    third = daemon.tick(limits)
    for key in (*second, *third):
        daemon.end(key, DagsterEventType.RUN_START)
    fourth = daemon.tick(limits)
    assert sorted(key[0] for key in (*first, *second, *third, *fourth)) == list("012345")
    assert daemon.tick(limits) == []


def test_tick_that_reaches_a_bound_says_so(daemon: Daemon, datastore: Datastore) -> None:
    for i in range(3):
        land(datastore, f"{i}.csv")
    result = daemon.evaluate(Limits(settle_seconds=30.0, max_runs_per_tick=1))
    assert len(result.run_requests or []) == 1
    assert Cursor.from_json(result.cursor).position is not None


def test_failed_arrival_is_asked_for_again_up_to_its_attempts(
    daemon: Daemon, datastore: Datastore
) -> None:
    land(datastore, "one.csv")
    land(datastore, "fine.csv")
    keys = daemon.tick()
    (key,) = (key for key in keys if key.startswith("one:"))
    daemon.end(next(k for k in keys if k != key), DagsterEventType.RUN_SUCCESS)
    assert daemon.tick() == []
    asked: list[str] = []
    for _ in range(4):
        daemon.fail(asked[-1] if asked else key)
        asked += daemon.tick()
        assert daemon.tick() == []
        if len(asked) == 2:
            break
    assert asked == [f"{key}:retry1", f"{key}:retry2"]
    daemon.fail(asked[-1])
    assert daemon.tick() == []
    # New content begins anew.
    land(datastore, "one.csv", "other content")
    (changed,) = daemon.tick()
    daemon.fail(changed)
    assert daemon.tick() == [f"{changed}:retry1"]


def test_retry_waits_for_its_time_and_survives_a_tick_that_was_lost(
    daemon: Daemon, datastore: Datastore
) -> None:
    land(datastore, "one.csv")
    (key,) = daemon.tick()
    daemon.fail(key)
    patient = Limits(settle_seconds=30.0, retries=RetryPolicy(delay_seconds=3_600.0))
    assert daemon.tick(patient) == []
    lost = daemon.evaluate()
    assert [request.run_key for request in lost.run_requests or []] == [f"{key}:retry1"]
    # The cursor was kept, but Dagster was told to stop before the run was there.
    daemon.cursor = lost.cursor
    assert daemon.tick() == [f"{key}:retry1"]


@pytest.mark.parametrize("what", ["cancelled", "succeeded by hand", "changed", "no more attempts"])
def test_failure_that_is_dealt_with_is_left_alone(
    daemon: Daemon, datastore: Datastore, what: str
) -> None:
    limits = LIMITS
    land(datastore, "one.csv")
    (run,) = daemon.keep(daemon.evaluate())
    key = run.tags["dagster/run_key"]
    if what == "cancelled":
        daemon.end(key, DagsterEventType.RUN_CANCELED)
    else:
        daemon.fail(key)
    if what == "succeeded by hand":
        # "Re-execute" in the UI takes the tags along.
        daemon.instance.create_run_for_job(
            daemon.definitions.resolve_job_def("take"),
            tags=run.tags,
            status=dg.DagsterRunStatus.SUCCESS,
            parent_run_id=run.run_id,
            root_run_id=run.run_id,
        )
    elif what == "changed":
        land(datastore, "one.csv", "other content")
    elif what == "no more attempts":
        limits = Limits(settle_seconds=30.0, retries=RetryPolicy(1, 0.0))
    asked = daemon.tick(limits)
    assert not any("retry" in key for key in asked) or what == "changed"
    assert daemon.tick(limits) == []


def test_arrival_that_vanished_is_a_named_failure_and_is_not_asked_for_again(
    daemon: Daemon, datastore: Datastore
) -> None:
    land(datastore, "one.csv")
    result = daemon.evaluate()
    (request,) = result.run_requests or []
    (added,) = result.dynamic_partitions_requests or []
    daemon.instance.add_dynamic_partitions("files", list(added.partition_keys))
    daemon.cursor = result.cursor
    Path(datastore.uri("in/one.csv")).unlink()
    job = daemon.definitions.resolve_job_def("take")
    ended = job.execute_in_process(
        instance=daemon.instance,
        partition_key="one",
        tags={**request.tags, "dagster/run_key": str(request.run_key)},
        raise_on_error=False,
    )
    assert not ended.success
    (failure,) = (e.step_failure_data for e in ended.all_events if e.is_step_failure)
    assert failure.error is not None
    assert failure.error.cause is not None
    assert failure.error.cause.cls_name == "ArrivalVanishedError"
    assert "'one' in" in failure.error.message
    assert daemon.tick() == []
    # The same content is back: it was handed over, and nothing came of it; materialize it by hand.
    land(datastore, "one.csv", "other content")
    assert len(daemon.tick()) == 1


def test_run_that_nobody_asked_for_takes_what_is_there(
    daemon: Daemon, datastore: Datastore
) -> None:
    land(datastore, "one.csv")
    daemon.keep(daemon.evaluate())
    land(datastore, "one.csv", "other content")
    job = daemon.definitions.resolve_job_def("take")
    assert job.execute_in_process(instance=daemon.instance, partition_key="one").success


def test_claimed_arrival_is_left_to_who_claimed_it(daemon: Daemon, datastore: Datastore) -> None:
    from synapse_assets.arrivals.listing import look_at

    land(datastore, "one.csv")
    found = look_at(datastore, ARRIVALS.patterns, "one")
    assert found is not None
    tags = ARRIVALS.claim(datastore, daemon.instance, found)
    assert daemon.tick() == []
    assert ARRIVALS.claim(datastore, daemon.instance, found) == tags
    land(datastore, "one.csv", "other content")
    (key,) = daemon.tick()
    assert key.endswith(":1")


def test_store_that_fails_fails_the_tick_and_nothing_is_asked_for(
    daemon: Daemon, datastore: Datastore
) -> None:
    land(datastore, "one.csv")
    ledger = Path(datastore.uri("_arrivals", "new_files"))
    ledger.parent.mkdir(parents=True)
    ledger.write_text("a file where a folder should be")
    with pytest.raises(OSError, match=re.escape(str(ledger))):
        daemon.evaluate()
    ledger.unlink()
    assert len(daemon.tick()) == 1


def test_damaged_ledger_is_told(
    daemon: Daemon, datastore: Datastore, capfd: pytest.CaptureFixture[str]
) -> None:
    land(datastore, "one.csv")
    assert len(daemon.tick()) == 1
    assert daemon.tick() == []
    Path(datastore.uri("_arrivals/new_files/ledger")).write_text("nothing of use")
    assert daemon.tick() == []
    assert "was damaged; it is made again" in capfd.readouterr().err
