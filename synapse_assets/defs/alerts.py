"""Sensors that tell somebody of a failed run or check, if the environment names whom.

A webhook of Slack or Teams (or anything else that takes their JSON), or mail through Dagster's own
sensor. Nothing is sent without configuration, and no address is ever logged: to know it is enough
to post there.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from synapse_assets.errors import ConfigurationError, ServiceUnavailableError
from synapse_assets.settings import (
    ALERT_MAIL_FROM,
    ALERT_MAIL_PASSWORD,
    ALERT_MAIL_SERVER,
    ALERT_MAIL_TO,
    ALERT_WEBHOOK,
    UI_URL,
)

_INTERVAL_SECONDS = 30
_TRIES = 3
_WAIT_SECONDS = 2.0
_TIMEOUT_SECONDS = 10.0
_MAX_LINES = 10
_MAX_LINE = 500
# Hosts of Teams' workflows, which take cards and no plain text.
_TEAMS = (".logic.azure.com", ".powerplatform.com", ".webhook.office.com")


@dataclass(frozen=True)
class Alert:
    """What is told.

    Attributes:
        title: What happened, in one line.
        lines: Each failure in a sentence.
        link: The run in Dagster's UI, None if it is not known where that is.
    """

    title: str
    lines: tuple[str, ...]
    link: str | None = None

    def payload(self, host: str) -> dict[str, Any]:
        """Return the JSON that the webhook's host takes."""
        if not host.endswith(_TEAMS):
            parts = [f"*{self.title}*", *(f"• {line}" for line in self.lines)]
            return {"text": "\n".join([*parts, *([self.link] if self.link else [])])}
        blocks = [{"type": "TextBlock", "text": self.title, "weight": "Bolder", "wrap": True}]
        blocks += [{"type": "TextBlock", "text": line, "wrap": True} for line in self.lines]
        card: dict[str, Any] = {"type": "AdaptiveCard", "version": "1.4", "body": blocks}
        if self.link:
            action = {"type": "Action.OpenUrl", "title": "Open the run", "url": self.link}
            card["actions"] = [action]
        content_type = "application/vnd.microsoft.card.adaptive"
        return {
            "type": "message",
            "attachments": [{"contentType": content_type, "content": card}],
        }


def post(alert: Alert) -> None:
    """Post an alert to the webhook that the environment names.

    Raises:
        ConfigurationError: The variable holds no address.
        ServiceUnavailableError: The webhook did not take the alert.
    """
    url = os.environ.get(ALERT_WEBHOOK, "")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"{ALERT_WEBHOOK} is no http(s) address: set it to that of a webhook."
        )
    body = json.dumps(alert.payload(parts.hostname)).encode()
    problem = ""
    for number in range(_TRIES):
        time.sleep(_WAIT_SECONDS if number else 0)
        try:
            request = urllib.request.Request(  # noqa: S310 -- the scheme was looked at above
                url, body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310
                return
        except urllib.error.HTTPError as e:
            e.close()
            problem = f"HTTP {e.code}"
            if e.code < 500 and e.code != 429:
                break
        except (OSError, http.client.HTTPException, ValueError) as e:
            # What else it says may hold the address, and so the secret in it.
            problem = str(e.reason) if isinstance(e, urllib.error.URLError) else type(e).__name__
    # Nor is the cause kept, for the same reason.
    raise ServiceUnavailableError(
        f"The webhook of {ALERT_WEBHOOK} did not take the alert '{alert.title}': {problem}. "
        "Look whether its address is still right."
    ) from None


@dg.run_failure_sensor(
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Posts failed runs to the webhook of {ALERT_WEBHOOK}.",
)
def alert_on_failure(context: dg.RunFailureSensorContext) -> None:
    """Tell why a run failed."""
    events = context.get_step_failure_events()
    lines = [f"{event.step_key}: {failure_of(event)}" for event in events]
    lines = lines or [context.failure_event.message or "The run failed."]
    post(_alert("failed", context, [*lines, *_bad_checks(context)]))


@dg.run_status_sensor(
    dg.DagsterRunStatus.SUCCESS,
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Posts checks that failed or warned to the webhook of {ALERT_WEBHOOK}.",
)
def alert_on_checks(context: dg.RunStatusSensorContext) -> None:
    """Tell which checks of a run that succeeded did not pass."""
    checks = _bad_checks(context)
    if checks:
        post(_alert("succeeded with bad checks", context, checks))


def mail_on_failure() -> dg.SensorDefinition:
    """Return Dagster's own sensor that mails failed runs, as the environment configures it.

    Raises:
        ConfigurationError: A setting is missing.
    """
    needed = (ALERT_MAIL_TO, ALERT_MAIL_FROM, ALERT_MAIL_PASSWORD)
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        raise ConfigurationError(
            f"Mail on failed runs needs {', '.join(missing)}, too: set it, or unset the others."
        )
    return dg.make_email_on_run_failure_sensor(
        email_from=os.environ[ALERT_MAIL_FROM],
        email_password=os.environ[ALERT_MAIL_PASSWORD],
        email_to=[name.strip() for name in os.environ[ALERT_MAIL_TO].split(",")],
        smtp_host=os.environ.get(ALERT_MAIL_SERVER) or "smtp.gmail.com",
        webserver_base_url=os.environ.get(UI_URL),
        name="mail_on_failure",
        default_status=dg.DefaultSensorStatus.RUNNING,
    )


@dg.definitions
def alerts() -> dg.Definitions:
    """Return the sensors that the environment asks for; none by default.

    Raises:
        ConfigurationError: A setting for mail is missing.
    """
    sensors: list[dg.SensorDefinition] = []
    if os.environ.get(ALERT_WEBHOOK):
        sensors += [alert_on_failure, alert_on_checks]
    if os.environ.get(ALERT_MAIL_TO):
        sensors.append(mail_on_failure())
    return dg.Definitions(sensors=sensors)


def failure_of(event: dg.DagsterEvent) -> str:
    """Return the first line of what made a step fail."""
    error = event.step_failure_data.error
    while error is not None and error.cause is not None:
        error = error.cause
    message = error.message if error is not None else event.message or "failed"
    return message.strip().splitlines()[0]


def _alert(ending: str, context: dg.RunStatusSensorContext, lines: Sequence[str]) -> Alert:
    run = context.dagster_run
    partition = run.tags.get("dagster/partition")
    # Runs of assets that are in no job of ours are in one of Dagster's own.
    job = run.job_name if not run.job_name.startswith("__") else "assets"
    of = f" of '{partition}'" if partition else ""
    told = [line if len(line) <= _MAX_LINE else line[: _MAX_LINE - 1] + "…" for line in lines]
    more = len(told) - _MAX_LINES
    base = os.environ.get(UI_URL)
    return Alert(
        title=f"Run {run.run_id[:8]} ({job}){of} {ending}",
        lines=(*told[:_MAX_LINES], *([f"And {more} more."] if more > 0 else [])),
        link=f"{base.rstrip('/')}/runs/{run.run_id}" if base else None,
    )


def _bad_checks(context: dg.RunStatusSensorContext) -> list[str]:
    """Return a line for each check of the run that did not pass."""
    entries = context.instance.all_logs(
        context.dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    )
    checks = [e.dagster_event.asset_check_evaluation_data for e in entries if e.dagster_event]
    return [
        f"{check.severity.value} of {check.check_name} on {check.asset_key.to_user_string()}"
        + (f": {check.description}" if check.description else "")
        for check in checks
        if not check.passed
    ]
