"""Checks of Azure storage alone."""

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from synapse_assets.doctor.check import Finding, Subject, failed, first_line, ok, skipped, warning
from synapse_assets.doctor.clock import compare_clocks
from synapse_assets.doctor.store import reach_remedy
from synapse_assets.services import CONTAINER
from synapse_assets.settings import DATASTORE

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError


# Of each request: a service that does not answer is told of soon.
_PATIENCE: dict[str, Any] = {"retry_total": 0, "connection_timeout": 5, "read_timeout": 7}


def check_clock(subject: Subject) -> Finding:
    """Compare this machine's clock with the service's, as its answers have it."""
    url = urlsplit(subject.datastore.container_client().url)
    before = time.time()
    try:
        # Whatever it answers to a stranger has the time.
        answer = requests.head(f"{url.scheme}://{url.netloc}/", timeout=(5, 7))
    except requests.RequestException as e:
        return failed(f"no answer to ask the time of: {first_line(e)}", reach_remedy(subject))
    date = answer.headers.get("Date")
    if date is None:
        return skipped("the service's answers have no date")
    return compare_clocks(parsedate_to_datetime(date).timestamp(), before=before)


def check_container(subject: Subject) -> Finding:
    """Look whether the container is there, and lists its blobs to us."""
    from azure.core.exceptions import AzureError

    name = subject.datastore.location.container
    container = subject.datastore.container_client()
    try:
        next(iter(container.list_blobs(results_per_page=1, **_PATIENCE)), None)
    except AzureError as e:
        return _refused(subject, e)
    return ok(f"the container '{name}' is there, and may be listed")


def check_namespace(subject: Subject) -> Finding:
    """Ask whether the account has a hierarchical namespace."""
    from azure.core.exceptions import AzureError

    location = subject.datastore.location
    try:
        information = subject.datastore.container_client().get_account_information(**_PATIENCE)
    except AzureError:
        return skipped(f"this login may not ask the account '{location.account}' for it")
    if information.get("is_hns_enabled"):
        return ok(f"the account '{location.account}' has a hierarchical namespace")
    if location.cloud.name == "emulator":
        return ok("none, as always with the emulator")
    return warning(
        f"the account '{location.account}' has no hierarchical namespace: all but Spark takes it "
        "as it is, and Spark was tried on such a store with the emulator only",
        "Use an account with 'Enable hierarchical namespace' for Spark on a Synapse pool; an "
        "account can be upgraded.",
    )


def _refused(subject: Subject, error: "AzureError") -> Finding:
    """Return why a container did not list its blobs, and what to do."""
    location = subject.datastore.location
    # Of a known code the SDK makes an enum, and of another one a text.
    code = getattr(error, "error_code", None)
    code = str(getattr(code, "value", code) or "")
    status = getattr(error, "status_code", None)
    found = f"{subject.datastore.uri()}: {first_line(error)}" + (f" ({code})" if code else "")
    if code == "ContainerNotFound":
        own = subject.is_emulated and location.container == CONTAINER
        return failed(
            f"the account '{location.account}' has no container '{location.container}'",
            "`make services` makes it."
            if own
            else f"Create it, or name another one with {DATASTORE}.",
        )
    if code in ("AuthenticationFailed", "AuthorizationFailure", "NoAuthenticationInformation"):
        return failed(
            found,
            "Look whether the key or the SAS is of this account, still valid and copied whole; a "
            "firewall of the account refuses with AuthorizationFailure, too.",
        )
    if status in (401, 403):
        return failed(
            found,
            "Give the identity the role 'Storage Blob Data Contributor' on the container (a SAS: "
            "the rights to read, write, delete, list and create), or open the account's firewall.",
        )
    return failed(found, reach_remedy(subject))
