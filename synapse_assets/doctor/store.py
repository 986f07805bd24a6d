"""Checks of the datastore: where it is, whether it is there, and what we may do in it."""

import contextlib
import functools
import socket
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from synapse_assets.datasets.delta import open_table
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import first_line
from synapse_assets.doctor.check import Finding, Subject, failed, ok, skipped, warning
from synapse_assets.doctor.machine import existing
from synapse_assets.settings import AZURITE, DATASTORE

_PROBE = b"written by `synapse-assets doctor`, which removes it"
# Below the root, for what is written to see whether it can be. No dataset has such a name.
_PROBES = "_doctor"
_RUN_AGAIN = "Run it again; if it stays, look at the service's own log."
_CONNECT_SECONDS = 5.0
_LARGE_SKEW_SECONDS = 60
# A signature from further off is refused by Azure.
_MAX_SKEW_SECONDS = 15 * 60


def check_deployment(subject: Subject) -> Finding:
    """Look whether the deployment is one, and what its resources need is set."""
    subject.datastore  # noqa: B018 -- made here, once
    return ok(f"'{subject.deployment}'")


def check_location(subject: Subject) -> Finding:
    """Look whether the root names a place that is served."""
    location = subject.datastore.location
    where = {
        "local": "a folder of this machine",
        "hdfs": f"on the HDFS '{location.host}'",
        "azure": f"in the container '{location.container}' of the account '{location.account}' in "
        f"the cloud '{location.cloud.name}'",
    }
    return ok(f"{location.uri()}, {where[location.kind]}")


def check_reach(subject: Subject) -> Finding:
    """Look up the service's name, and connect to it."""
    datastore = subject.datastore
    location = datastore.location
    is_hdfs = location.kind == "hdfs"
    url, proxy = _first_hop(datastore.uri() if is_hdfs else datastore.container_client().url)
    host, port = url.hostname or "", url.port or {"https": 443, "http": 80}.get(url.scheme)
    if port is None:
        return skipped(
            f"'{location.host}' is a name service: which hosts it has is in the files of "
            "HADOOP_CONF_DIR"
        )
    way = f" (the proxy in {proxy})" if proxy else ""
    remedy = f"Unset {proxy}, or set it to a proxy that is up." if proxy else reach_remedy(subject)
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as e:
        return failed(f"the name {host}{way} does not resolve: {e.strerror}", remedy)
    started = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_SECONDS):
            took = time.monotonic() - started
    except OSError as e:
        where = f"{host}:{port}" + ("" if address == host else f" ({address})")
        return failed(f"{where}{way} does not answer: {e.strerror or e}", remedy)
    return ok(f"{host}:{port}{way} answers in {took * 1000:.0f} ms")


def check_root(subject: Subject) -> Finding:
    """Look whether the root is a folder, or may become one."""
    datastore = subject.datastore
    uri = datastore.uri()
    remedy = f"Choose another root, with {DATASTORE}, or move what is there."
    if datastore.location.kind == "local":
        nearest = existing(Path(uri))
        if not nearest.is_dir():
            return failed(f"{nearest} is not a folder", remedy)
    try:
        info = datastore.filesystem().info(uri)
    except FileNotFoundError:
        return ok(f"{uri} is not there yet: the first run makes it")
    # hdfs-native raises bare errors of Rust for whatever it has no class for.
    except Exception as e:  # noqa: BLE001
        return failed(f"could not look at {uri}: {first_line(e)}", reach_remedy(subject))
    if info["type"] != "directory":
        return failed(f"{uri} is not a folder", remedy)
    if datastore.location.kind == "local":
        return ok(f"{uri} is there")
    owner, group, mode = info["owner"], info["group"], f"{info['permission']:03o}"
    return ok(f"{uri} is there, of '{owner}', group '{group}', permissions {mode}")


def check_rights(subject: Subject) -> Finding:
    """Write, read, list and delete a file, as a run does."""
    datastore = subject.datastore
    storage = datastore.storage()
    with _probe_folder(datastore) as folder:
        uri = f"{folder}/probe"
        storage.write_atomically(uri, _PROBE)
        read = storage.read_bytes(uri)
        listed = [file.path for file in storage.list_files(folder)]
        storage.remove(uri)
        left = storage.stat(uri)
        if read != _PROBE or listed != ["probe"] or left is not None:
            return failed(
                f"{uri} was written, and then read as {len(read or b'')} bytes, listed as "
                f"{listed}, and {'still there' if left else 'gone'} when it was removed",
                "Choose another store: this one does not show at once what was written to it.",
            )
    return ok("write, read, list and delete")


def check_hdfs_clock(subject: Subject) -> Finding:
    """Compare this machine's clock with the name node's, as it dates a new folder."""
    files = subject.datastore.filesystem()
    with _probe_folder(subject.datastore) as uri:
        before = time.time()
        files.makedirs(uri)
        return compare_clocks(files.modified(uri).timestamp(), before=before)


def compare_clocks(theirs: float, *, before: float) -> Finding:
    """Return how far apart two clocks are, the other of which was read since `before`."""
    now = time.time()
    # The other clock was read at some time in between, and in whole seconds.
    skew = 0.0 if before - 1 <= theirs <= now else theirs - (before if theirs < before else now)
    if abs(skew) <= _LARGE_SKEW_SECONDS:
        return ok(f"this clock and the service's are {abs(skew):.0f} s apart")
    behind = "behind" if skew > 0 else "ahead of"
    found = f"this machine's clock is {abs(skew):,.0f} s {behind} the service's"
    remedy = "Set the clock of this machine by NTP (Linux: `timedatectl set-ntp true`)."
    if abs(skew) <= _MAX_SKEW_SECONDS:
        return warning(found, remedy)
    return failed(f"{found}: it refuses what is signed or kept by that", remedy)


def check_delta(subject: Subject) -> Finding:
    """Let the Delta library look for a table that is not there, with the same login."""
    from deltalake.exceptions import DeltaError

    uri = subject.datastore.uri(_PROBES, uuid.uuid4().hex)
    try:
        table = open_table(subject.datastore, uri)
    except (DeltaError, OSError) as e:
        return failed(
            f"the Delta library does not reach {uri}: {first_line(e)}",
            "It asks by itself, with the same login: look whether a proxy or a variable AZURE_… in "
            "the environment is meant for something else.",
        )
    if table is not None:
        return failed(f"the Delta library sees a table at {uri}, where there is none", _RUN_AGAIN)
    return ok("the Delta library reaches the store: what is not there is 'not found'")


def check_commit(subject: Subject) -> Finding:
    """Let two writers write one entry of a transaction log: one of them has to lose."""
    import pyarrow as pa
    from deltalake import CommitProperties, DeltaTable, Schema
    from deltalake.exceptions import CommitFailedError, DeltaError
    from deltalake.transaction import create_table_with_add_actions

    datastore = subject.datastore
    with _probe_folder(datastore) as folder:
        options = datastore.delta_storage_options()
        uri = datastore.delta_uri(folder)
        schema = Schema.from_arrow(pa.schema([("probe", pa.int64())]))
        datastore.storage().make_folder(folder)
        try:
            create_table_with_add_actions(
                uri, schema, [], mode="error", partition_by=[], storage_options=options
            )
            winner, loser = (
                functools.partial(
                    DeltaTable(uri, storage_options=options).create_write_transaction,
                    actions=[],
                    mode="append",
                    schema=schema,
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
                for _ in range(2)
            )
            winner()
        except (DeltaError, OSError) as e:
            return failed(
                f"the Delta library could not commit to {folder}: {first_line(e)}", _RUN_AGAIN
            )
        try:
            loser()
        except CommitFailedError:
            return ok("of two writers of one log entry, one wins")
    return failed(
        "two writers of one log entry both won: a commit may be lost",
        "Choose another store: this one does not keep the condition of a write (If-None-Match, or "
        "a rename that replaces nothing). A proxy in between may drop it, too.",
    )


def reach_remedy(subject: Subject) -> str:
    """Return what to do where a service does not answer."""
    if subject.is_emulated:
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


@contextlib.contextmanager
def _probe_folder(datastore: Datastore) -> Iterator[str]:
    """Yield a folder below the root that nobody else has, and remove it in every case."""
    folder = datastore.uri(_PROBES, uuid.uuid4().hex)
    files = datastore.filesystem()
    try:
        yield folder
    finally:
        # Whatever a library raises: what went wrong before it says more. The last one may be in
        # use by another doctor.
        with contextlib.suppress(Exception):
            files.rm(folder, recursive=True)
        with contextlib.suppress(Exception):
            files.rmdir(datastore.uri(_PROBES))


def _first_hop(url: str) -> tuple[SplitResult, str]:
    """Return the URL that a request goes to first, and the variable that names it if a proxy's."""
    service = urlsplit(url)
    proxy = urllib.request.getproxies().get(service.scheme)
    if not proxy or urllib.request.proxy_bypass(service.hostname or ""):
        return service, ""
    address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return address, f"{service.scheme.upper()}_PROXY"
