"""Alerts, posted to a real HTTP server of this machine."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest

from synapse_assets.definitions import defs
from synapse_assets.defs.alerts import (
    Alert,
    alert_on_checks,
    alert_on_failure,
    mail_on_failure,
    post,
)
from synapse_assets.errors import ConfigurationError, ServiceUnavailableError
from synapse_assets.settings import (
    ALERT_MAIL_FROM,
    ALERT_MAIL_PASSWORD,
    ALERT_MAIL_TO,
    ALERT_WEBHOOK,
    UI_URL,
)

SECRET = "T0PSECRET"


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synapse_assets.defs.alerts._WAIT_SECONDS", 0.01)


class Webhook:
    """A server that keeps what is posted, and answers as it is told."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.asked = 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = hook.statuses.pop(0) if hook.statuses else 200
                hook.asked += 1
                if status == 200 and self.path == f"/services/{SECRET}":
                    hook.taken.append(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/services/{SECRET}"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    hook = Webhook()
    thread = threading.Thread(target=hook.server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv(ALERT_WEBHOOK, hook.url)
    monkeypatch.setenv(UI_URL, "http://dagster.example/")
    yield hook
    hook.server.shutdown()
    thread.join()
    hook.server.server_close()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@dg.asset
def good() -> None:
    pass


@dg.asset(deps=[good])
def bad() -> None:
    raise ValueError("a.csv, line 3: mend it.\nmore")


@dg.asset_check(asset=good)
def looks_odd() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=False, severity=dg.AssetCheckSeverity.WARN, description="1 of 2 files unreadable"
    )


@dg.asset_check(asset=good)
def is_there() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


def run_and_alert(instance: dg.DagsterInstance, *assets: Any) -> None:
    """Run assets and call the sensors, as the daemon does after a run."""
    result = dg.materialize(assets, instance=instance, raise_on_error=False)
    kinds = (dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.RUN_FAILURE)
    (event,) = (e for e in result.all_events if e.event_type in kinds)
    context = dg.build_run_status_sensor_context(
        sensor_name="alert",
        dagster_event=event,
        dagster_instance=instance,
        dagster_run=result.dagster_run,
    )
    if result.success:
        alert_on_checks(context)
    else:
        alert_on_failure(context.for_run_failure())


def test_failed_run_is_told_with_its_reason_and_bad_checks(
    webhook: Webhook, instance: dg.DagsterInstance
) -> None:
    run_and_alert(instance, good, bad, looks_odd, is_there)
    (taken,) = webhook.taken
    title, *lines, link = taken["text"].splitlines()
    run_id = instance.get_runs()[0].run_id
    assert title == f"*Run {run_id[:8]} (assets) failed*"
    assert lines == [
        "• bad: ValueError: a.csv, line 3: mend it.",
        "• WARN of looks_odd on good: 1 of 2 files unreadable",
    ]
    assert link == f"http://dagster.example/runs/{run_id}"


def test_warning_of_a_good_run_is_told(webhook: Webhook, instance: dg.DagsterInstance) -> None:
    run_and_alert(instance, good, looks_odd)
    (taken,) = webhook.taken
    assert "succeeded with bad checks" in taken["text"]
    assert "WARN of looks_odd" in taken["text"]


def test_good_run_is_not_told(webhook: Webhook, instance: dg.DagsterInstance) -> None:
    run_and_alert(instance, good, is_there)
    assert webhook.asked == 0


def test_webhook_that_is_down_for_a_moment_is_asked_again(webhook: Webhook) -> None:
    webhook.statuses = [503, 429]
    post(Alert("title", ("line",)))
    assert (webhook.asked, len(webhook.taken)) == (3, 1)


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (500, 3)])
def test_webhook_that_refuses_is_an_error_without_its_address(
    webhook: Webhook, status: int, asked: int
) -> None:
    webhook.statuses = [status] * 3
    with pytest.raises(ServiceUnavailableError, match=f"HTTP {status}") as refused:
        post(Alert("title", ()))
    assert webhook.asked == asked
    assert ALERT_WEBHOOK in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        f"http://127.0.0.1:9/{SECRET}",
        f"http://127.0.0.1:9/{SECRET}\n",
        f"http://127.0.0.1:99999/{SECRET}",
        f"file:///{SECRET}",
        SECRET,
    ],
)
def test_address_is_in_no_error(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ALERT_WEBHOOK, url)
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises((ConfigurationError, ServiceUnavailableError)) as refused,
    ):
        post(Alert("title", ()))
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    assert SECRET not in caplog.text


def test_teams_gets_a_card() -> None:
    alert = Alert("title", ("one", "two"), link="http://dagster.example/runs/1")
    payload = alert.payload("prod-1.westeurope.logic.azure.com")
    (attachment,) = payload["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert [block["text"] for block in attachment["content"]["body"]] == ["title", "one", "two"]
    assert attachment["content"]["actions"][0]["url"] == alert.link


def test_nobody_is_told_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"alert_on_failure", "alert_on_checks", "mail_on_failure"}
    for variable in (ALERT_WEBHOOK, ALERT_MAIL_TO):
        monkeypatch.delenv(variable, raising=False)
    assert not names & {sensor.name for sensor in defs().sensors or ()}
    monkeypatch.setenv(ALERT_WEBHOOK, f"https://hooks.example/{SECRET}")
    for variable in (ALERT_MAIL_TO, ALERT_MAIL_FROM, ALERT_MAIL_PASSWORD):
        monkeypatch.setenv(variable, f"{SECRET}@example.org")
    sensors = {sensor.name: sensor for sensor in defs().sensors or ()}
    assert names <= set(sensors)
    for name in names:
        assert SECRET not in f"{sensors[name]!r} {sensors[name].description}"


def test_half_configured_mail_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALERT_MAIL_TO, "a@example.org")
    monkeypatch.setenv(ALERT_MAIL_FROM, "b@example.org")
    with pytest.raises(ConfigurationError, match=f"needs {ALERT_MAIL_PASSWORD}, too"):
        mail_on_failure()
