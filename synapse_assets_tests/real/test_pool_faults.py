"""What a Spark pool's service says and is not so: one batch, and a right outcome.

It runs against `fake_livy`, for Synapse behind the project's own façade.
"""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError

from synapse_assets.compute.attempt import wait
from synapse_assets.errors import StepFailedError
from synapse_assets.services import SynapseEmulator
from synapse_assets_tests.real.fake_livy import Plan
from synapse_assets_tests.real.fault_proxy import Request, Rule
from synapse_assets_tests.real.pool_bench import CLIENTS, Bench, Try, is_get, is_list

# It needs none of the real services, but minutes.
pytestmark = pytest.mark.services

_FOR_EVER = 1_000_000
Rewrite = Callable[[dict[str, Any]], tuple[int, Any]]


def in_state(step: Try, *states: str) -> Callable[[Request], bool]:
    """Return what matches a look at a batch that is in one of these states in truth."""
    return lambda request: is_get(request) and step.batches[-1].state in states


def saying(**fields: Any) -> Callable[[int, bytes], tuple[int, bytes]]:
    """Return what puts other values into an answer about a batch."""

    def rewrite(status: int, content: bytes) -> tuple[int, bytes]:
        return status, json.dumps({**json.loads(content), **fields}).encode()

    return rewrite


def answering(status: int, content: bytes) -> Callable[[int, bytes], tuple[int, bytes]]:
    return lambda *_: (status, content)


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("state", "times"), [("hibernating", 3), ("starting", 2), ("not_started", 1)]
)
def test_a_state_that_is_unknown_or_goes_backwards_changes_nothing(
    bench: Bench, client: str, state: str, times: int
) -> None:
    plan = Plan(seconds=0.1, held="running")
    with bench.step(client, plan) as step:
        step.proxy.break_next(
            Rule(
                matches=in_state(step, "running"), skip=1, times=times, rewrite=saying(state=state)
            ),
            Rule(matches=in_state(step, "running"), skip=2, before=plan.release.set),
        )
        outcome = step.outcome()
    assert (str(outcome), outcome.ran, outcome.posted) == ("green", 1, 1), outcome.message


def test_a_state_that_stays_unknown_ends_by_the_limit_and_the_manifest_counts(
    bench: Bench, client: str
) -> None:
    with bench.step(client, Plan(seconds=0.1), timeout=1.5, patience=1.0) as step:
        rewrite = saying(state="hibernating", result="Uncertain")
        step.proxy.break_next(Rule(matches=is_get, times=_FOR_EVER, rewrite=rewrite))
        outcome = step.outcome()
    assert (str(outcome), outcome.ran) == ("green", 1), outcome.message


@pytest.mark.parametrize("state", ["success", "dead", "killed", "error"])
def test_an_end_that_is_told_too_early_is_no_success_and_leaves_nothing(
    bench: Bench, client: str, state: str
) -> None:
    with bench.step(client, Plan(seconds=0.1, is_endless=True)) as step:
        rule = Rule(matches=in_state(step, "running"), skip=1, rewrite=saying(state=state))
        step.proxy.break_next(rule)
        outcome = step.outcome()
    assert (str(outcome), outcome.ran) == ("failed", 1)
    assert "ended without a manifest" in outcome.message


@pytest.mark.parametrize(
    ("state", "leaves", "right"),
    [
        ("success", "nothing", "failed"),
        ("success", "failure", "failed"),
        ("dead", "manifest", "green"),
        ("error", "manifest", "green"),
        ("dead", "failure", "failed"),
        ("dead", "nothing", "failed"),
    ],
)
def test_the_manifest_and_not_the_state_is_the_proof(
    bench: Bench, client: str, state: str, leaves: str, right: str
) -> None:
    with bench.step(client, Plan(seconds=0.1, state=state, leaves=leaves)) as step:
        outcome = step.outcome()
    assert (str(outcome), outcome.ran, outcome.posted) == (right, 1, 1), outcome.message
    assert ("input.csv, line 3" in outcome.message) == (leaves == "failure")


def test_a_batch_that_vanishes_after_its_manifest_is_a_success(bench: Bench, client: str) -> None:
    with bench.step(client, Plan(seconds=0.1)) as step:
        gone = Rule(
            "404 before",
            matches=lambda request: is_get(request) and step.batches[-1].state == "success",
            times=_FOR_EVER,
        )
        step.proxy.break_next(gone)
        outcome = step.outcome()
    assert (str(outcome), outcome.ran) == ("green", 1), outcome.message


def test_a_batch_that_vanishes_while_it_runs_is_told_and_adopted_by_its_manifest(
    bench: Bench, client: str
) -> None:
    plan = Plan(seconds=0.1, held="running")
    with bench.step(client, plan) as step:
        rule = Rule("404 before", matches=is_get, skip=3, times=_FOR_EVER, before=bench.fake.forget)
        step.proxy.break_next(rule)
        with pytest.raises(StepFailedError, match="may still run"):
            step.run()
        (batch,) = step.batches
        assert batch.runs
        # What the service has forgotten goes on, and a re-execution finds what it left.
        plan.release.set()
        batch.join()
        assert step.batch.submission.manifest() is not None


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b"[]", b"null", b"<html>Sign in</html>", b'{"id": null, "state": null}'],
    ids=repr,
)
def test_an_answer_to_the_post_that_says_nothing_starts_no_second_batch(
    bench: Bench, client: str, answer: bytes
) -> None:
    with bench.step(client, Plan(seconds=0.1)) as step:
        rewrite = answering(200, answer)
        step.proxy.break_next(Rule(matches=lambda r: r.method == "POST", rewrite=rewrite))
        outcome = step.outcome()
    assert (str(outcome), outcome.ran, outcome.posted) == ("green", 1, 1), outcome.message


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b"null", b'{"sessions": null}'], ids=repr)
@pytest.mark.parametrize("call", ["list", "GET"])
def test_an_answer_that_is_not_livys_is_asked_for_again(
    bench: Bench, client: str, call: str, answer: bytes
) -> None:
    with bench.step(client, Plan(seconds=0.1)) as step:
        matches = is_list if call == "list" else is_get
        step.proxy.break_next(
            Rule("reset after" if call == "list" else None, matches=lambda r: r.method == "POST"),
            Rule(matches=matches, rewrite=answering(200, answer)),
        )
        outcome = step.outcome()
    assert (str(outcome), outcome.ran, outcome.posted) == ("green", 1, 1), outcome.message


def test_a_list_that_lags_behind_hides_no_batch(bench: Bench, client: str) -> None:
    """Livy refuses the name the second time; of Synapse's two batches one does the work."""
    with bench.step(client, Plan(seconds=0.5, list_lag=1.0)) as step:
        step.proxy.break_next(Rule("reset after", matches=lambda r: r.method == "POST"))
        if client == "synapse":
            # The façade lists what it knows itself.
            step.proxy.break_next(
                Rule("reset after", matches=lambda r: r.method == "POST"),
                Rule(
                    matches=is_list,
                    times=4,
                    rewrite=answering(200, b'{"from": 0, "total": 0, "sessions": []}'),
                ),
            )
        outcome = step.outcome()
    assert (str(outcome), outcome.ran) == ("green", 1), outcome.message
    assert outcome.posted == (1 if client == "livy" else 2)


def test_cancelling_ends_both_batches_of_a_submission(bench: Bench) -> None:
    with bench.step("synapse", Plan(seconds=0.1, is_endless=True), timeout=0.8) as step:
        step.proxy.break_next(
            Rule("reset after", matches=lambda r: r.method == "POST"),
            Rule(
                matches=is_list,
                times=4,
                rewrite=answering(200, b'{"from": 0, "total": 0, "sessions": []}'),
            ),
        )
        outcome = step.outcome()
    assert (str(outcome), outcome.ran, outcome.posted) == ("timeout", 1, 2), outcome.message


def test_what_the_pool_has_no_room_for_waits(bench: Bench, client: str) -> None:
    """A refusal that passes is waited for as long as a batch may be queued."""
    with bench.step(client, Plan(seconds=0.1)) as step:
        busy = "Your pool only has 4 vcores available: AVAILABLE_COMPUTE_CAPACITY_EXCEEDED"
        content = json.dumps({"Message": busy, "msg": busy}).encode()
        tries = itertools.count()

        def refuse(status: int, answer: bytes) -> tuple[int, bytes]:
            next(tries)
            step.batches[-1].killed.set()
            bench.fake.forget_batch(step.batches[-1].id)
            return 400, content

        step.proxy.break_next(Rule(matches=lambda r: r.method == "POST", times=2, rewrite=refuse))
        outcome = step.outcome()
        lists = [request for request in step.proxy.seen if is_list(request)]
    assert (str(outcome), next(tries)) == ("green", 2), outcome.message
    assert lists == []


def test_a_login_that_fails_is_said_soon_and_starts_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Expired:
        def get_token(self, *scopes: str, **options: Any) -> AccessToken:
            raise ClientAuthenticationError("AADSTS7000222: the client secret has expired")

    with bench.step("synapse", Plan()) as step:
        monkeypatch.setattr(step.pool.client()._credential, "credential", Expired())  # type: ignore[attr-defined]
        outcome = step.outcome()
        assert step.proxy.seen == []
    assert (str(outcome), outcome.posted) == ("failed", 0)
    assert "the client secret has expired" in outcome.message
    assert outcome.seconds < 5


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_service_that_sends_a_post_elsewhere_is_not_followed(
    bench: Bench, client: str, status: int
) -> None:
    with bench.step(client, Plan(), patience=2.0) as step:
        step.proxy.break_next(
            Rule(matches=lambda r: r.method == "POST", rewrite=answering(status, b"{}"))
        )
        outcome = step.outcome()
        assert len([seen for seen in step.proxy.seen if seen.method == "POST"]) == 1
    assert str(outcome).startswith("failed")
    assert f"HTTP {status}" in outcome.message


class Interruption(BaseException):
    """What Dagster raises in the middle of anything when a run is cancelled."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interruption_in_the_middle_of_the_post_leaves_no_batch(
    bench: Bench, client: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench.step(client, Plan(seconds=0.1, is_endless=True)) as step:
        real = step.pool.client()
        post = real.post_batch

        def interrupted(request: Any) -> Any:
            if moment == "after":
                post(request)
            raise Interruption

        monkeypatch.setattr(real, "post_batch", interrupted)
        with pytest.raises(Interruption):
            step.run()
        assert [batch.runs for batch in step.batches] == ([False] if moment == "after" else [])


def test_an_interruption_while_it_waits_leaves_no_batch(
    bench: Bench, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench.step(client, Plan(seconds=0.1, is_endless=True)) as step:

        def interrupted(seconds: float) -> None:
            if step.batches[-1].state == "running":
                raise Interruption
            time.sleep(0.05)

        monkeypatch.setattr(step.batch, "wait", interrupted)
        with pytest.raises(Interruption):
            step.run()
        (batch,) = step.batches
        assert not batch.runs


def test_an_interruption_is_not_hidden_by_a_service_that_is_down(
    bench: Bench, client: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with bench.step(client, Plan(seconds=0.1, is_endless=True), patience=1.0) as step:

        def interrupted(seconds: float) -> None:
            step.proxy.break_next(Rule("503 before", times=_FOR_EVER))
            raise Interruption

        monkeypatch.setattr(step.batch, "wait", interrupted)
        with pytest.raises(Interruption):
            step.run()
        assert "may still run" in caplog.text
        for batch in step.batches:
            batch.killed.set()


def test_a_batch_whose_id_was_never_told_is_found_again(bench: Bench, client: str) -> None:
    with bench.step(client, Plan(seconds=0.3)) as step:
        submission = step.batch.submission
        submission.write_job(step.job_of(submission))
        request = step.pool.request(submission, step.pool.asked())
        posted = step.pool.client().post_batch(request)
        step.proxy.break_next(
            Rule("503 before", matches=is_list), Rule("truncated", matches=is_list)
        )
        step.batch.id = step.batch.find() or ""
        assert step.batch.id == posted.id
        manifest = wait(step.batch, limits={}, say=lambda _: None)
    assert manifest["attempt"] == step.key
    assert len(step.batches) == 1


def test_a_batch_is_found_beyond_the_first_page(bench: Bench, client: str) -> None:
    with bench.step(client, Plan(seconds=0.05)) as step:
        real = step.pool.client()
        for _ in range(real.page_size + 1):
            submission = step.new_submission()
            submission.write_job(step.job_of(submission))
            posted = real.post_batch(step.pool.request(submission, step.pool.asked()))
        assert step.pool.batch(submission, step.pool.asked()).find() == posted.id
        assert step.batch.find() is None


@pytest.mark.services
def test_a_facade_that_is_killed_and_started_again_leaves_the_manifest_to_decide(
    bench: Bench, tmp_path: Path
) -> None:
    """It forgets its batches, and they go on behind it."""
    with SynapseEmulator(livy_url=bench.fake.url, folder=tmp_path / "emulator") as emulator:
        own = Bench(bench.fake, emulator, tmp_path, pools=itertools.repeat("spark01"))
        plan = Plan(seconds=0.1, held="running")
        with own.step("synapse", plan, patience=10.0) as step:

            def restart() -> None:
                emulator.kill()
                emulator.start()

            rule = Rule("reset before", matches=in_state(step, "running"), before=restart)
            step.proxy.break_next(rule)
            with pytest.raises(StepFailedError, match="may still run"):
                step.run()
            (batch,) = step.batches
            assert batch.runs
            plan.release.set()
            batch.join()
            assert step.batch.submission.manifest() is not None


@pytest.mark.services
def test_a_facade_that_stays_down_ends_the_step_in_time(bench: Bench, tmp_path: Path) -> None:
    with SynapseEmulator(livy_url=bench.fake.url, folder=tmp_path / "emulator") as emulator:
        own = Bench(bench.fake, emulator, tmp_path, pools=itertools.repeat("spark01"))
        with own.step("synapse", Plan(seconds=0.1, is_endless=True), patience=2.0) as step:
            rule = Rule("reset before", matches=in_state(step, "running"), before=emulator.kill)
            step.proxy.break_next(rule)
            outcome = step.outcome()
    assert str(outcome) == "unavailable+1 (told)"
    assert outcome.seconds < 10
