"""What a check is, and running them: each within its time, and none stopped by another."""

import contextlib
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import dagster as dg

from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datastore import Datastore
from synapse_assets.defs.resources import resources_of
from synapse_assets.errors import ConfigurationError, SynapseAssetsError
from synapse_assets.settings import CLOUD, STORAGE_KEY, STORAGE_SAS

Status = Literal["ok", "warning", "failed", "skipped"]
Kind = Literal["local", "azure", "hdfs"]

# A check that was given up may still have something to remove from the store.
_GRACE_SECONDS = 5.0
_HIDDEN = "**********"
# The signature of a SAS and a token in an error of a library, which quotes what it sent.
_SECRETS = re.compile(r"(?<=sig=)[^&\s\"']+|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*")
# hdfs-native quotes Java's stack on one line, with its line breaks spelled out.
_JAVA_STACK = re.compile(r"(\\n\\tat [^\"]*?)+(?:\\n)?(?=\"|$)")
_MAX_LENGTH = 600


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: Name of the check.
        status: 'failed' is what a run would stumble over; 'skipped' was not looked at.
        found: What is there, in words.
        remedy: What to do about it; empty if there is nothing to do.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


class Subject:
    """What is looked at: a deployment on this machine."""

    def __init__(self, *, deployment: str, home: Path) -> None:
        """Create the subject; nothing is contacted.

        Args:
            deployment: Name of the deployment.
            home: Where Dagster keeps its records.
        """
        self.deployment = deployment
        self.home = home

    @property
    def is_emulated(self) -> bool:
        """Whether stand-ins of this machine take Azure's place."""
        return self.deployment == "emulated" or os.environ.get(CLOUD) == "emulator"

    @functools.cached_property
    def datastore(self) -> Datastore:
        """The datastore, as a run would get it.

        Raises:
            ConfigurationError: The deployment is unknown, or not there yet.
        """
        datastore: Datastore = resources_of(self.deployment)["datastore"]
        return datastore.process_config_and_initialize()

    @functools.cached_property
    def spark(self) -> ComputeTarget:
        """What runs the Spark steps, as a run would get it."""
        return self._target("spark")

    @functools.cached_property
    def cpu(self) -> ComputeTarget:
        """What runs the other steps, as a run would get it."""
        return self._target("cpu")

    def _target(self, name: str) -> ComputeTarget:
        with dg.build_resources({name: resources_of(self.deployment)[name]}) as resources:
            # Nothing of ours is torn down here.
            target: ComputeTarget = getattr(resources, name)
        return target

    @property
    def kind(self) -> Kind | None:
        """The kind of store; None if the deployment or its root are not what they must be."""
        try:
            return self.datastore.location.kind
        except ConfigurationError:
            return None

    def hide_secrets(self, text: str) -> str:
        """Return a text without any secret of the datastore."""
        secrets = {os.environ.get(STORAGE_KEY), os.environ.get(STORAGE_SAS)}
        if self.kind is not None:
            credential = self.datastore.credential
            fields = type(credential).model_fields
            secrets |= {value for name, value in credential if not fields[name].repr}
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            text = text.replace(secret, _HIDDEN)
        return _SECRETS.sub(_HIDDEN, text)


@dataclass(frozen=True)
class Check:
    """One thing that is looked at.

    Attributes:
        name: What the check is called.
        look: Looks, and returns what it found; the name is filled in. What it raises is a failure.
        needs: Checks without which this one has nothing to look at.
        kinds: Kinds of store that it is for; empty for all of them.
        seconds: How long it may take.
    """

    name: str
    look: Callable[[Subject], Finding]
    needs: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = ()
    seconds: float = 10.0


# What a check returns: all is well; something works, and is not as it should be; something does not
# work; there was nothing to look at. They take what was found, and the remedy if there is one.
ok = functools.partial(Finding, "", "ok")
warning = functools.partial(Finding, "", "warning")
failed = functools.partial(Finding, "", "failed")
skipped = functools.partial(Finding, "", "skipped")


def run_checks(subject: Subject, checks: Sequence[Check]) -> Iterator[Finding]:
    """Yield what each check finds that is for the subject's kind of store."""
    # Opened here for all checks: Dagster's part of it must not be left to a thread that ends.
    with contextlib.suppress(ConfigurationError):
        _ = subject.datastore
    causes: dict[str, str] = {}
    late: list[threading.Thread] = []
    for check in checks:
        if check.kinds and subject.kind not in check.kinds:
            continue
        cause = next((causes[name] for name in check.needs if name in causes), None)
        if cause is not None:
            finding = skipped(f"not looked at, because of '{cause}'")
            causes[check.name] = cause
        else:
            finding = _look(check, subject, late)
            if finding.status == "failed":
                causes[check.name] = check.name
        yield replace(
            finding,
            name=check.name,
            found=_shorten(subject.hide_secrets(finding.found)),
            remedy=_shorten(subject.hide_secrets(finding.remedy)),
        )
    for thread in late:
        thread.join(_GRACE_SECONDS)


def explain(error: Exception) -> Finding:
    """Return an error as a failure: the last sentence of its message is the remedy."""
    message = " ".join(str(error).split())
    for separator in (". ", ": "):
        found, _, remedy = message.rpartition(separator)
        if found:
            return failed(
                found + ("." if separator == ". " else ""), remedy[0].upper() + remedy[1:]
            )
    return failed(message, "Change what the message names.")


def _look(check: Check, subject: Subject, late: list[threading.Thread]) -> Finding:
    """Return what a check finds; one that takes too long is left behind in `late`."""
    answers: list[Finding] = []

    def work() -> None:
        try:
            answers.append(check.look(subject))
        except SynapseAssetsError as e:
            answers.append(explain(e))
        except Exception as e:  # noqa: BLE001 -- what breaks one check must not stop the others
            problem = " ".join(str(e).split()) or "no message"
            answers.append(
                failed(
                    f"{type(e).__name__}: {problem}",
                    "Nobody foresaw this: look at the message, and report it.",
                )
            )

    # A thread and not a process: what is looked at is what this process would use. A daemon, so
    # that a library that never comes back keeps nobody waiting.
    thread = threading.Thread(target=work, name=f"doctor-{check.name}", daemon=True)
    thread.start()
    thread.join(check.seconds)
    if not answers:
        late.append(thread)
        return failed(
            f"no answer within {check.seconds:g} s",
            "Look whether the service is overloaded or the network drops what is sent to it, and "
            "run it again.",
        )
    return answers[0]


def _shorten(text: str) -> str:
    text = _JAVA_STACK.sub("", text)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]} …"
