"""What the checks of a store ask: its clients, and a folder to write to."""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import Emulator
from synapse_assets.doctor.check import Subject
from synapse_assets.settings import AZURITE, DATASTORE

if TYPE_CHECKING:
    from azure.storage.blob import BlobServiceClient, ContainerClient
    from hdfs_native import Client

# Below the root, for what is written to see whether it can be. No dataset has such a name.
PROBES = "_doctor"
RUN_AGAIN = "Run it again; if it stays, look at the service's own log."
CONNECT_SECONDS = 5.0

_READ_SECONDS = 7.0


def endpoint(datastore: Datastore) -> str:
    """Return the URL of the account's blob service."""
    if isinstance(datastore.credential, Emulator):
        return datastore.credential.delta_options(datastore.location)["endpoint"]
    return datastore.location.account_url()


def open_service(datastore: Datastore, *, anonymous: bool = False) -> "BlobServiceClient":
    """Return a client with the datastore's login that answers soon, and never tries again."""
    from azure.storage.blob import BlobServiceClient

    patience: dict[str, Any] = {
        "retry_total": 0,
        "connection_timeout": CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
    }
    if anonymous:
        return BlobServiceClient(endpoint(datastore), **patience)
    login = datastore.credential.adlfs_options(datastore.location).merged()
    if "connection_string" in login:
        return BlobServiceClient.from_connection_string(login["connection_string"], **patience)
    secret = login.get("account_key") or login.get("sas_token")
    token = datastore.credential.token_credential(datastore.location.cloud)
    return BlobServiceClient(endpoint(datastore), secret or token, **patience)


@contextlib.contextmanager
def open_container(datastore: Datastore) -> "Iterator[ContainerClient]":
    """Yield the client of the datastore's container."""
    with open_service(datastore) as service:
        yield service.get_container_client(datastore.location.container)


def hdfs_client(datastore: Datastore) -> "Client":
    """Return a client of the datastore's HDFS."""
    from hdfs_native import Client

    return Client(f"hdfs://{datastore.location.host}")


def hdfs_path(uri: str) -> str:
    """Return the path in a URI of HDFS."""
    return "/" + uri.partition("://")[2].partition("/")[2]


@contextlib.contextmanager
def probe_folder(datastore: Datastore) -> Iterator[str]:
    """Yield a folder below the root that nobody else has, and remove it in every case.

    What cannot be removed is not raised: what went wrong before it says more.
    """
    folder = datastore.uri(PROBES, uuid.uuid4().hex)
    remove: Mapping[str, Callable[[Datastore, str], None]] = {
        "local": _remove_local,
        "azure": _remove_azure,
        "hdfs": _remove_hdfs,
    }
    try:
        yield folder
    finally:
        # hdfs-native raises bare errors of Rust.
        with contextlib.suppress(Exception):
            remove[datastore.location.kind](datastore, folder)


def _remove_local(_: Datastore, folder: str) -> None:
    for path in sorted(Path(folder).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    # The last one may be in use by another doctor.
    for path in (Path(folder), Path(folder).parent):
        path.rmdir()


def _remove_azure(datastore: Datastore, folder: str) -> None:
    from azure.core.exceptions import AzureError

    name = folder.partition("://")[2].partition("/")[2]
    with open_container(datastore) as container:
        # On an account with a hierarchical namespace folders are listed, too: they go after what
        # is in them.
        for blob in sorted((b.name for b in container.list_blobs(name)), reverse=True):
            container.delete_blob(blob)
        with contextlib.suppress(AzureError):
            container.delete_blob(name.rpartition("/")[0])


def _remove_hdfs(datastore: Datastore, folder: str) -> None:
    client, path = hdfs_client(datastore), hdfs_path(folder)
    client.delete(path, True)
    client.delete(path.rpartition("/")[0], False)


def reach_remedy(subject: Subject) -> str:
    """Return what to do where a service does not answer."""
    if subject.deployment == "emulated":
        variable = DATASTORE if subject.kind == "hdfs" else AZURITE
        return f"Start it with `make services`, or set {variable} to where it answers."
    if subject.kind == "hdfs":
        return (
            "Look whether the name node is up, and whether a firewall or a VPN is between; "
            f"{DATASTORE} names it."
        )
    return (
        f"Look whether {DATASTORE} names the right account and cloud, and whether a firewall, a "
        "VPN or a private endpoint is between."
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, which says the most."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
