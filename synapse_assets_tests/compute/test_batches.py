"""The life of a batch on a Livy service that says what the test wants, by a clock of the test."""

import itertools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest
from azure.synapse.spark.models import LivyStates, SparkBatchJobResultType

from synapse_assets.compute import attempt
from synapse_assets.compute.batch import BatchState, Submission
from synapse_assets.compute.batches import ServiceBatch
from synapse_assets.compute.calls import CallError
from synapse_assets.compute.channel import beat_uri, stop_uri
from synapse_assets.compute.client import STATES as STATES_IN_OUR_WORDS
from synapse_assets.compute.client import RemoteBatch
from synapse_assets.compute.spark import LivySparkPool
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ServiceUnavailableError, StepFailedError, StepTimeoutError
from synapse_assets_tests.compute.scripted import Clock, ScriptedClient

NAME = "numbers-0123456789abcdef-89abcdef"
UNREACHABLE = CallError("nobody there")
NOT_FOUND = CallError("HTTP 404 Not Found: Session '7' not found.", status=404)
ENDED = RemoteBatch("7", "success")
RUNNING = RemoteBatch("7", "running")

# The SDK's enums are typed as plain classes.
STATES = [state.value for state in cast("Iterable[Any]", LivyStates)]
VERDICTS = [verdict.value for verdict in cast("Iterable[Any]", SparkBatchJobResultType)]

Script = Callable[..., tuple[ScriptedClient, ServiceBatch]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock().install(monkeypatch)


@pytest.fixture
def script(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Return a function that makes a service with a script."""

    def make(
        *,
        patience: float = 600.0,
        submit_limit: float = 3600.0,
        cancel_limit: float = 300.0,
        **answers: Any,
    ) -> tuple[ScriptedClient, ServiceBatch]:
        client = ScriptedClient(clock, **answers)
        monkeypatch.setattr(LivySparkPool, "client", lambda _: client)
        pool = LivySparkPool(
            datastore=Datastore(root=str(tmp_path)),
            url="http://livy",
            unreachable_timeout_seconds=patience,
            queued_timeout_seconds=submit_limit,
            ending_timeout_seconds=cancel_limit,
        )
        submission = Submission(
            pool.datastore,
            attempt=NAME[:-9],
            name=NAME,
            fingerprint="f",
            bundle="/store/bundle.zip",
            extras=["/store/launcher.py"],
            run_id="run",
            batch_id="7",
        )
        return client, ServiceBatch(pool, submission, pool.asked())

    return make


def wait(service: ServiceBatch, *, has_manifest: bool = True, **limits: float) -> list[str]:
    """Wait for a batch, whose step has left its manifest."""
    submission = service.submission
    if has_manifest:
        manifest = submission.uri("manifest.json")
        submission.datastore.storage().write_atomically(manifest, b"{}")
    said: list[str] = []
    asked = {BatchState[name.upper()]: limit for name, limit in limits.items()}
    attempt.wait(service, limits=asked, say=said.append)
    return said


# The SDK says while it is imported what it thinks of its own libraries.
@pytest.mark.filterwarnings("ignore")
def test_every_status_of_azure_ml_is_known() -> None:
    from azure.ai.ml._restclient.arm_ml_service.models import JobStatus

    known = {str(status.value) for status in cast("Any", JobStatus)}
    assert known - set(STATES_IN_OUR_WORDS) == set()


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_the_sdk_is_known(
    script: Script, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, service = script(get=[RemoteBatch("7", state)])
    is_final = service.get_state().is_final
    assert is_final is (state in ("success", "error", "dead", "killed"))
    assert caplog.records == []


def test_unknown_state_is_not_final_and_is_told_once(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    _, service = script(get=[RemoteBatch("7", "in two minds")])
    assert [service.get_state() for _ in range(3)] == [BatchState.RUNNING] * 3
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "'in two minds' of a batch, which is unknown here" in record.message


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("state", ["not_started", "running", "meditating"])
def test_verdict_is_final_whatever_the_state(script: Script, state: str, verdict: str) -> None:
    _, service = script(get=[RemoteBatch("7", state, result=verdict)])
    assert service.get_state().is_final is (verdict != "Uncertain")


def test_state_that_goes_backwards_is_followed(script: Script) -> None:
    states = ["running", "starting", "not_started", "running", "shutting_down", "success"]
    client, service = script(get=[RemoteBatch("7", state) for state in states])
    said = wait(service)
    assert [line.partition(" after")[0] for line in said] == [
        f"Batch 7 is {word}" for word in ("starting", "queued", "running", "ending")
    ]
    assert client.count("delete") == 0


def test_state_that_comes_back_outwits_no_limit(script: Script, clock: Clock) -> None:
    states = [RemoteBatch("7", state) for state in ["starting", "running"] * 1000]
    client, service = script(get=states, cancel_limit=1.0)
    with pytest.raises(StepTimeoutError, match="longer than its limit of 60 s"):
        wait(service, has_manifest=False, running=60.0)
    assert client.count("delete") == 1
    assert clock.now < 1200.0


def test_batch_has_vanished_when_it_is_not_found_again_and_again(script: Script) -> None:
    client, service = script(get=[RUNNING, NOT_FOUND, NOT_FOUND, RUNNING, NOT_FOUND])
    states = [service.get_state() for _ in range(3)]
    assert states == [BatchState.RUNNING, BatchState.RUNNING, BatchState.VANISHED]
    assert client.count("get") == 4 + 3


def test_manifest_of_a_vanished_batch_counts(script: Script) -> None:
    client, service = script(get=[RUNNING, NOT_FOUND])
    wait(service)
    assert client.count("delete") == 0


def test_id_that_a_service_gives_again_is_not_ours(script: Script) -> None:
    another = RemoteBatch("7", "running", name="another-0123456789abcdef-00000000")
    client, service = script(get=[RUNNING, another])
    states = [service.get_state() for _ in range(2)]
    assert states == [BatchState.RUNNING, BatchState.VANISHED]
    service.cancel()
    assert client.count("delete") == 0


class TestForgottenBatch:
    """A service that was started anew knows nothing of a driver that goes on."""

    @pytest.fixture
    def output(self, tmp_path: Path) -> str:
        folder = tmp_path / "_attempts" / NAME[:-9] / NAME
        folder.mkdir(parents=True)
        return str(folder / "output")

    @pytest.fixture
    def beat(self, clock: Clock, output: str) -> Callable[[], None]:
        """Return a function that does what a driver does with each beat, unless it is stopped."""

        def write() -> None:
            if not Path(stop_uri(output)).exists():
                Path(beat_uri(output)).write_text(str(clock.now))

        return write

    def test_runs_for_as_long_as_it_gives_signs_of_life(
        self, script: Script, clock: Clock, beat: Callable[[], None]
    ) -> None:
        _, service = script(get=[RUNNING, NOT_FOUND])
        for _ in range(50):
            beat()
            assert service.get_state() is BatchState.RUNNING
            clock.sleep(5.0)
        died = clock.now
        while service.get_state() is BatchState.RUNNING:
            clock.sleep(1.0)
        assert service.get_state() is BatchState.VANISHED
        assert 10.0 < clock.now - died < 25.0

    def test_is_adopted_by_who_has_never_heard_of_it(
        self, script: Script, beat: Callable[[], None]
    ) -> None:
        beat()
        _, service = script(get=[NOT_FOUND])
        assert service.get_state() is BatchState.RUNNING

    def test_has_ended_when_it_has_said_its_last_word(
        self, script: Script, beat: Callable[[], None]
    ) -> None:
        beat()
        _, service = script(get=[NOT_FOUND])
        service._reader.said_last.set()
        assert service.get_state() is BatchState.VANISHED

    def test_is_cancelled_by_a_word_to_the_driver(
        self, script: Script, clock: Clock, output: str, beat: Callable[[], None]
    ) -> None:
        _, service = script(get=[NOT_FOUND], delete=[NOT_FOUND])
        beat()
        clock.on_sleep = beat
        service.cancel()
        assert Path(stop_uri(output)).exists()

    def test_that_does_not_listen_is_told_of(
        self, script: Script, clock: Clock, output: str
    ) -> None:
        _, service = script(get=[NOT_FOUND], delete=[NOT_FOUND], cancel_limit=60.0)
        clock.on_sleep = lambda: Path(beat_uri(output)).write_text(str(clock.now))
        clock.on_sleep()
        with pytest.raises(ServiceUnavailableError, match="may still run"):
            service.cancel()


def test_state_of_a_service_out_of_reach_is_the_last_one_until_patience_ends(
    script: Script, clock: Clock
) -> None:
    client, service = script(get=[RUNNING, UNREACHABLE], patience=60.0, cancel_limit=1.0)
    with pytest.raises(ServiceUnavailableError, match="out of reach for 60 s: nobody there"):
        wait(service, has_manifest=False)
    # What cannot be heard of may still run.
    assert client.count("delete") >= 1
    assert 1060.0 < clock.now < 1090.0


def test_refusal_to_tell_is_put_up_with_for_less_long(script: Script, clock: Clock) -> None:
    forbidden = CallError("HTTP 403 Forbidden: no", status=403)
    client, service = script(get=[RUNNING, forbidden], cancel_limit=1.0)
    with pytest.raises(StepFailedError, match=r"does not tell how the batch is.*403"):
        wait(service, has_manifest=False)
    assert client.count("get") >= 4
    assert clock.now < 1120.0


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured_while_a_batch_runs(
    script: Script, clock: Clock, status: int
) -> None:
    busy = CallError(f"HTTP {status}", status=status, retry_after=30.0)
    client, service = script(get=[RUNNING, busy, busy, ENDED])
    wait(service)
    times = [time for verb, time in client.calls if verb == "get"]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(pauses) == 3
    assert pauses[0] <= 1.0
    assert min(pauses[1:]) >= 30.0
    assert max(pauses) < 40.0


def test_retry_after_is_honoured_when_there_is_no_room(script: Script, clock: Clock) -> None:
    full = CallError("HTTP 429 Too Many Requests", status=429, retry_after=45.0)
    client, service = script(post=[full, full, RemoteBatch("7", "starting")])
    assert service.submit() == "7"
    # It is known that there is none: no need to look for it.
    assert [verb for verb, _ in client.calls] == ["post"] * 3
    assert clock.now == 1090.0


def test_full_service_is_given_up_at_the_limit(script: Script, clock: Clock) -> None:
    _, service = script(post=[CallError("HTTP 429", status=429)], submit_limit=60.0)
    with pytest.raises(ServiceUnavailableError, match=r"within 60 s\. .*HTTP 429"):
        service.submit()
    assert clock.now <= 1060.0


@pytest.mark.parametrize("status", [None, 408, 409, 500, 502, 503, 504])
def test_lost_answer_is_looked_for_before_anything_is_sent_again(
    script: Script, status: int | None
) -> None:
    there = RemoteBatch("8", "running", name=f"mine-{NAME}")
    others = [RemoteBatch(str(number), "dead", name=f"other-{number}") for number in range(250)]
    # The list lags behind, and the batch is on its last page.
    client, service = script(
        post=[CallError("lost", status=status)], listed=[others, *[[*others, there]] * 9]
    )
    assert service.submit() == "8"
    assert client.count("post") == 1


def test_request_that_never_arrived_is_sent_again(script: Script) -> None:
    client, service = script(post=[UNREACHABLE, RemoteBatch("7", "starting")])
    assert service.submit() == "7"
    assert [verb for verb, _ in client.calls] == ["post", *["list"] * 4, "post"]
    assert client.requests[0] == client.requests[1]


def test_nothing_is_sent_again_while_it_is_not_known_what_came_of_it(script: Script) -> None:
    client, service = script(post=[UNREACHABLE], listed=[UNREACHABLE], patience=60.0)
    with pytest.raises(ServiceUnavailableError, match=r"not known whether .* If it has, end it"):
        service.submit()
    assert client.count("post") == 1


def test_name_that_is_taken_is_that_of_a_lost_answer(script: Script) -> None:
    taken = CallError("HTTP 400 Bad Request: Duplicate session name", status=400)
    there = RemoteBatch("8", "running", name=NAME)
    client, service = script(post=[UNREACHABLE, taken], listed=[*[()] * 4, [there]])
    assert service.submit() == "8"
    assert client.count("post") == 2


@pytest.mark.parametrize("status", [400, 403, 404])
def test_request_that_is_refused_is_not_sent_again(script: Script, status: int) -> None:
    client, service = script(post=[CallError(f"HTTP {status}: no such thing", status=status)])
    with pytest.raises(StepFailedError, match=f"did not take the batch .*HTTP {status}"):
        service.submit()
    assert client.count("post") == 1


def test_expired_token_is_asked_for_again(script: Script) -> None:
    expired = CallError("HTTP 401 Unauthorized", status=401)
    client, service = script(post=[expired, RemoteBatch("7", "starting")])
    assert service.submit() == "7"
    assert client.count("post") == 2
    client, service = script(post=[expired])
    with pytest.raises(StepFailedError, match="401"):
        service.submit()
    assert client.count("post") == 3


def test_id_zero_is_an_id(script: Script) -> None:
    client, service = script(post=[RemoteBatch("0", "starting")])
    assert service.submit() == "0"
    assert client.count("post") == 1
    there = RemoteBatch("0", "running", name=NAME)
    _, service = script(listed=[[there]])
    assert service.find() == "0"


@pytest.mark.parametrize("status", [400, 409, 500])
def test_batch_that_has_ended_need_not_be_cancelled(script: Script, status: int) -> None:
    refused = CallError(f"HTTP {status}: the batch has ended", status=status)
    client, service = script(delete=[refused], get=[ENDED])
    service.cancel()
    assert [verb for verb, _ in client.calls] == ["delete", "get"]


def test_cancelling_waits_for_the_end(script: Script, clock: Clock) -> None:
    client, service = script(get=[RUNNING, RUNNING, RemoteBatch("7", "killed")])
    service.cancel()
    assert client.count("delete") == 1
    assert client.count("get") == 3
    client, service = script(get=[NOT_FOUND])
    service.cancel()
    assert client.count("get") == 1


def test_cancelling_goes_on_over_faults_of_the_service(script: Script) -> None:
    down = CallError("HTTP 503", status=503)
    client, service = script(
        delete=[UNREACHABLE, down, None], get=[down, RUNNING, RUNNING, UNREACHABLE, NOT_FOUND]
    )
    service.cancel()
    assert client.count("delete") == 3


def test_batch_that_does_not_end_is_told_of(script: Script, clock: Clock) -> None:
    _, service = script(get=[RUNNING], cancel_limit=60.0)
    with pytest.raises(ServiceUnavailableError, match="may still run: look at it there and end it"):
        service.cancel()
    assert 1030.0 < clock.now <= 1060.0


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 250, 300])
@pytest.mark.parametrize("gives_log_whole", [False, True])
def test_end_of_the_log_says_what_is_left_out(
    script: Script, length: int, gives_log_whole: bool
) -> None:
    lines = [f"line {number}" for number in range(length)]
    client, service = script(log=lines, gives_log_whole=gives_log_whole)
    told = service.describe_end().splitlines()
    cut = [f"[{length - 100} earlier lines]"] if length > 100 else []
    assert told == [*cut, *lines[-100:]]
    assert client.count("log") == 1


def test_end_is_told_without_a_log_and_without_the_service(script: Script) -> None:
    failed = RemoteBatch(
        "7",
        "dead",
        errors=[{"source": "User", "errorCode": "LIVY_JOB_STATE_DEAD", "message": "it died"}],
    )
    _, service = script(get=[failed], log=CallError("the connection broke"))
    assert service.get_state().is_final
    told = service.describe_end()
    assert "the batch 7 ended as 'dead'" in told
    assert "User error LIVY_JOB_STATE_DEAD: it died" in told
    assert "[the service's log could not be read: the connection broke]" in told


class FakeRun(ScriptedClient):
    """A batch that runs for so many seconds of the clock."""

    seconds: float = 0.0

    def get_batch(self, batch_id: str) -> RemoteBatch:
        self.calls.append(("get", self.clock.now))
        return ENDED if self.clock.now - 1000.0 >= self.seconds else RUNNING


@pytest.mark.parametrize("seconds", [0.0, 2.0, 20.0, 120.0, 20 * 60.0, 6 * 60 * 60.0])
def test_end_is_noticed_soon_and_with_few_requests(
    script: Script,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
) -> None:
    client, service = script()
    run = FakeRun(clock)
    run.seconds = seconds
    monkeypatch.setattr(client, "get_batch", run.get_batch)
    wait(service)
    assert clock.now - 1000.0 - seconds <= max(1.0, 0.1 * seconds)
    times = [time for _, time in run.calls]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    # Two a second at first; later one every five seconds, and some thirty on the way there.
    assert all(pause >= 0.5 for pause in pauses)
    assert len(times) <= 2 + min(seconds / 0.5, 45 + seconds / 5)
    assert client.count("delete") == 0


def test_step_that_says_it_ends_is_looked_at_often(script: Script, clock: Clock) -> None:
    """What a driver writes last comes sooner than the service's word: no need to wait longer."""
    client, service = script()
    service._reader.said_last.set()
    run = FakeRun(clock)
    run.seconds = 1.7
    client.get_batch = run.get_batch  # type: ignore[method-assign]
    wait(service)
    assert clock.now - 1000.0 <= 2.0
