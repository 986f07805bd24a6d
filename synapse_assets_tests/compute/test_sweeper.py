"""The sweeper cancels what is provably ours and nobody's any more, and nothing else."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from synapse_assets.compute import sweeper
from synapse_assets.compute.batch import Submission
from synapse_assets.compute.calls import CallError
from synapse_assets.compute.client import BatchClient, LogTail, RemoteBatch
from synapse_assets.compute.spark.pool import LivySparkPool
from synapse_assets.compute.sweeper import Sweep, sweep
from synapse_assets.datastore import Datastore

KEY = "titanic_prepared-" + "0123456789abcdef"
BATCH = f"{KEY}-00000001"
HOUR = 3600.0


class Service(BatchClient):
    """A Livy of a list, which keeps what was cancelled as 'killed'."""

    page_size = 2

    def __init__(self) -> None:
        self.batches: list[RemoteBatch] = []
        self.deleted: list[str] = []
        self.listed = 0
        self.error: CallError | None = None
        self.delete_error: CallError | None = None
        self.seconds = 0.0

    def add(self, name: str | None, state: str = "running") -> None:
        self.batches.append(RemoteBatch(id=str(len(self.batches)), state=state, name=name))

    def list_batches(self, start: int) -> tuple[list[RemoteBatch], int]:
        self.listed += 1
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.batches[start : start + self.page_size], len(self.batches)

    def delete_batch(self, batch_id: str) -> None:
        if self.delete_error is not None:
            raise self.delete_error
        self.deleted.append(batch_id)

    def post_batch(self, request: Mapping[str, Any]) -> RemoteBatch:
        raise AssertionError

    def get_batch(self, batch_id: str) -> RemoteBatch:
        raise AssertionError

    def get_batch_logs(self, batch_id: str, *, size: int) -> LogTail:
        raise AssertionError


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()
    monkeypatch.setattr(LivySparkPool, "client", lambda _: service)
    return service


@pytest.fixture
def pool(tmp_path: Path) -> LivySparkPool:
    return LivySparkPool(datastore=Datastore(root=str(tmp_path)), url="http://livy")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def start_run(instance: dg.DagsterInstance, *, root: str | None = None) -> dg.DagsterRun:
    tags = {} if root is None else {"dagster/root_run_id": root, "dagster/parent_run_id": root}
    return instance.add_run(
        dg.DagsterRun(
            job_name="job",
            status=dg.DagsterRunStatus.STARTED,
            root_run_id=root,
            parent_run_id=root,
            tags=tags,
        )
    )


def record(pool: LivySparkPool, run_id: str, *, submission: str = BATCH, key: str = KEY) -> None:
    Submission(
        pool.datastore,
        attempt=key,
        name=submission,
        fingerprint="f",
        bundle="bundle",
        extras=[],
        run_id=run_id,
    ).save()


def look(pool: LivySparkPool, instance: dg.DagsterInstance, *, after: float = HOUR) -> Sweep:
    return sweep(pool, instance, now=lambda: time.time() + after)


def test_batch_of_a_run_that_ended_is_cancelled_after_a_grace_period(
    service: Service, pool: LivySparkPool, instance: dg.DagsterInstance
) -> None:
    run = start_run(instance)
    record(pool, run.run_id)
    service.add(BATCH)
    assert f"the run {run.run_id} is in progress" in str(look(pool, instance))
    instance.report_run_failed(run)
    kept = look(pool, instance, after=14 * 60.0)
    assert "left alone: for 1 min more a re-execution of the run" in str(kept)
    assert service.deleted == []
    swept = look(pool, instance, after=16 * 60.0)
    assert service.deleted == ["0"]
    assert str(swept) == (
        f"Batch 0 ({BATCH}) was cancelled: its run {run.run_id} has ended, and nobody has "
        "re-executed it."
    )


def test_batch_is_left_alone_while_any_reexecution_is_in_progress(
    service: Service, pool: LivySparkPool, instance: dg.DagsterInstance
) -> None:
    run = start_run(instance)
    record(pool, run.run_id)
    service.add(BATCH)
    instance.report_run_failed(run)
    again = start_run(instance, root=run.run_id)
    once_more = start_run(instance, root=run.run_id)
    instance.report_run_failed(once_more)
    assert f"the run {again.run_id} is in progress" in str(look(pool, instance))
    instance.report_run_canceled(again)
    assert look(pool, instance).cancelled


def test_batch_of_a_reexecution_is_left_alone_while_the_first_run_is_in_progress(
    service: Service, pool: LivySparkPool, instance: dg.DagsterInstance
) -> None:
    run = start_run(instance)
    again = start_run(instance, root=run.run_id)
    record(pool, again.run_id)
    service.add(BATCH)
    instance.report_run_failed(again)
    assert f"the run {run.run_id} is in progress" in str(look(pool, instance))


def test_superseded_submission_is_cancelled_at_once(
    service: Service, pool: LivySparkPool, instance: dg.DagsterInstance
) -> None:
    run = start_run(instance)
    record(pool, run.run_id, submission=f"{KEY}-00000002")
    service.add(BATCH)
    service.add(f"{KEY}-00000002")
    swept = look(pool, instance)
    assert service.deleted == ["0"]
    assert f"its attempt has submitted {KEY}-00000002 since" in str(swept)


@pytest.mark.parametrize(
    "name",
    [
        None,
        "",
        "nightly",
        BATCH[:-1],
        f"{BATCH}0",
        BATCH.upper(),
        f"other-{KEY[-16:]}-00000001",
        f"{KEY[:-1]}0-00000001",
    ],
)
def test_batch_of_somebody_else_is_left_alone(
    service: Service, pool: LivySparkPool, instance: dg.DagsterInstance, name: str | None
) -> None:
    run = start_run(instance)
    instance.report_run_failed(run)
    record(pool, run.run_id)
    service.add(name)
    assert str(look(pool, instance)) == "No batch was left behind."
    assert service.deleted == []


def test_batch_of_a_run_that_this_instance_does_not_know_is_left_alone(
    service: Service, pool: LivySparkPool, instance: dg.DagsterInstance
) -> None:
    record(pool, "no-such-run")
    service.add(BATCH)
    assert "its run no-such-run is of another Dagster instance" in str(look(pool, instance))
    assert service.deleted == []


@pytest.mark.parametrize("key", [KEY, "a-b-" + KEY[-16:], "-x-" + KEY[-16:], "x" * 60 + KEY[-17:]])
@pytest.mark.parametrize("own", ["", "nightly-", "my nightly - job-", "x" * 70 + "-"])
def test_name_of_the_users_own_may_come_before_that_of_the_submission(
    service: Service, pool: LivySparkPool, instance: dg.DagsterInstance, own: str, key: str
) -> None:
    run = start_run(instance)
    instance.report_run_failed(run)
    record(pool, run.run_id, submission=f"{key}-00000001", key=key)
    service.add(f"{own}{key}-00000001")
    service.add(f"{own}{key}-00000002")
    look(pool, instance)
    assert service.deleted == ["0", "1"]


@pytest.mark.parametrize("state", ["success", "dead", "killed", "error"])
def test_batch_at_its_end_is_not_looked_at(
    service: Service, pool: LivySparkPool, instance: dg.DagsterInstance, state: str
) -> None:
    service.add(BATCH, state)
    record(pool, "no-such-run")
    assert str(look(pool, instance)) == "No batch was left behind."


def test_look_is_bounded_and_the_next_one_goes_on(
    service: Service,
    pool: LivySparkPool,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweeper, "_MAX_PAGES", 3)
    run = start_run(instance)
    instance.report_run_failed(run)
    record(pool, run.run_id)
    for _ in range(9):
        service.add("another")
    service.add(BATCH)
    first = look(pool, instance)
    assert (service.listed, first.start, service.deleted) == (3, 6, [])
    second = sweep(pool, instance, start=first.start, now=lambda: time.time() + HOUR)
    assert (second.start, service.deleted) == (0, ["9"])


def test_list_that_became_shorter_is_begun_anew(
    service: Service, pool: LivySparkPool, instance: dg.DagsterInstance
) -> None:
    service.add("another")
    assert sweep(pool, instance, start=40).start == 0


def test_service_that_is_down_is_a_reason_and_no_error(
    service: Service, pool: LivySparkPool, instance: dg.DagsterInstance
) -> None:
    service.error = CallError("Connection refused")
    swept = sweep(pool, instance, start=2)
    assert str(swept) == "Livy at http://livy could not be swept: Connection refused"
    assert swept.start == 2


def test_service_that_hangs_is_given_up(
    service: Service,
    pool: LivySparkPool,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweeper, "_PATIENCE_SECONDS", 0.2)
    service.seconds = 1.0
    started = time.monotonic()
    swept = sweep(pool, instance)
    assert time.monotonic() - started < 0.9
    assert str(swept) == "Livy at http://livy did not answer within 0.2 s."


def test_batch_that_cannot_be_cancelled_keeps_no_other_one(
    service: Service, pool: LivySparkPool, instance: dg.DagsterInstance
) -> None:
    run = start_run(instance)
    instance.report_run_failed(run)
    record(pool, run.run_id)
    service.add(BATCH)
    service.add(BATCH)
    service.delete_error = CallError("HTTP 500: no", status=500)
    swept = look(pool, instance)
    assert str(swept).count("could not be cancelled: HTTP 500: no.") == 2
    service.delete_error = CallError("HTTP 404: gone", status=404)
    assert str(look(pool, instance)) == "No batch was left behind."


def test_record_that_cannot_be_read_is_a_reason_and_no_error(
    service: Service, pool: LivySparkPool, instance: dg.DagsterInstance
) -> None:
    folder = Path(pool.datastore.uri("_attempts", KEY, "record.json"))
    folder.mkdir(parents=True)
    service.add(BATCH)
    assert "could not be swept" in str(sweep(pool, instance))
