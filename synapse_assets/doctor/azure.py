"""Checks of Azure storage alone."""

import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests

from synapse_assets.datastore.blob import error_code
from synapse_assets.datastore.storage import first_line
from synapse_assets.doctor.check import Finding, Subject, failed, ok, skipped, warning
from synapse_assets.doctor.store import compare_clocks, reach_remedy
from synapse_assets.services import CONTAINER
from synapse_assets.settings import DATASTORE

# Of each request: a service that does not answer is told of soon.
_PATIENCE: dict[str, Any] = {"retry_total": 0, "connection_timeout": 5, "read_timeout": 7}
_KEY = (
    "Look whether the key or the SAS is of this account, still valid and copied whole; a "
    "firewall of the account refuses with AuthorizationFailure, too."
)
_ROLE = (
    "Give the identity the role 'Storage Blob Data Contributor' on the container (a SAS: "
    "the rights to read, write, delete, list and create), or open the account's firewall."
)
# What to do about a refusal, by the service's code or the status.
_REMEDIES = {
    "AuthenticationFailed": _KEY,
    "AuthorizationFailure": _KEY,
    "NoAuthenticationInformation": _KEY,
    "401": _ROLE,
    "403": _ROLE,
}


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

    location = subject.datastore.location
    container = subject.datastore.container_client()
    try:
        next(iter(container.list_blobs(results_per_page=1, **_PATIENCE)), None)
    except AzureError as e:
        code, status = error_code(e), str(getattr(e, "status_code", ""))
        if code == "ContainerNotFound":
            is_own = subject.is_emulated and location.container == CONTAINER
            return failed(
                f"the account '{location.account}' has no container '{location.container}'",
                "`make services` makes it."
                if is_own
                else f"Create it, or name another one with {DATASTORE}.",
            )
        told = f"{subject.datastore.uri()}: {first_line(e)}" + (f" ({code})" if code else "")
        return failed(told, _REMEDIES.get(code) or _REMEDIES.get(status) or reach_remedy(subject))
    return ok(f"the container '{location.container}' is there, and may be listed")


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
