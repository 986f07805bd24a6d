"""Checks of the datastore: where it is, whether it is there, and what we may do in it."""

import functools
import socket
import time
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from synapse_assets.datasets.table import open_table
from synapse_assets.doctor.azure import check_container, check_namespace
from synapse_assets.doctor.check import Check, Finding, Subject, explain, failed, ok, skipped
from synapse_assets.doctor.clients import (
    CONNECT_SECONDS,
    PROBES,
    RUN_AGAIN,
    endpoint,
    first_line,
    hdfs_client,
    hdfs_path,
    probe_folder,
    reach_remedy,
)
from synapse_assets.doctor.clock import check_azure_clock, check_hdfs_clock
from synapse_assets.doctor.identity import check_identity, check_login
from synapse_assets.doctor.machine import existing
from synapse_assets.errors import StorageError
from synapse_assets.settings import DATASTORE

_PROBE = b"written by `synapse-assets doctor`, which removes it"


def check_deployment(subject: Subject) -> Finding:
    """Look whether the deployment is one, and what its resources need is set."""
    subject.datastore  # noqa: B018 -- made here, once
    return ok(f"'{subject.deployment}'")


def check_location(subject: Subject) -> Finding:
    """Look whether the root names a place that is served."""
    location = subject.datastore.location
    if location.kind == "local":
        return ok(f"{location.uri()}, a folder of this machine")
    if location.kind == "hdfs":
        return ok(f"{location.uri()}, on the HDFS '{location.host}'")
    return ok(
        f"{location.uri()}, in the container '{location.container}' of the account "
        f"'{location.account}' in the cloud '{location.cloud.name}'"
    )


def check_reach(subject: Subject) -> Finding:
    """Look up the service's name, and connect to it."""
    datastore = subject.datastore
    location = datastore.location
    if location.kind == "hdfs":
        host, _, port = location.host.rpartition(":")
        if not port.isdigit() or not host:
            return skipped(
                f"'{location.host}' is a name service: which hosts it has is in the files of "
                "HADOOP_CONF_DIR"
            )
        host, way, remedy = host.strip("[]"), "", reach_remedy(subject)
    else:
        url, proxy = _first_hop(endpoint(datastore))
        host, port = url.hostname or "", str(url.port or (443 if url.scheme == "https" else 80))
        way = f" (the proxy in {proxy})" if proxy else ""
        remedy = f"Unset {proxy}, or set it to a proxy that is up." if proxy else ""
        remedy = remedy or reach_remedy(subject)
    try:
        addresses = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as e:
        return failed(f"the name {host}{way} does not resolve: {e.strerror}", remedy)
    address = addresses[0][4][0]
    started = time.monotonic()
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
            took = time.monotonic() - started
    except OSError as e:
        reason = e.strerror or str(e)
        where = f"{host}:{port}" + ("" if address == host else f" ({address})")
        return failed(f"{where}{way} does not answer: {reason}", remedy)
    return ok(f"{host}:{port}{way} answers in {took * 1000:.0f} ms")


def check_root(subject: Subject) -> Finding:
    """Look whether the root is a folder, or may become one."""
    datastore = subject.datastore
    uri = datastore.uri()
    remedy = f"Choose another root, with {DATASTORE}, or move what is there."
    if datastore.location.kind == "local":
        path = Path(uri)
        nearest = existing(path)
        if not nearest.is_dir():
            return failed(f"{nearest} is not a folder", remedy)
        if nearest != path:
            return ok(f"{uri} is not there yet: the first run makes it")
        return ok(f"{uri} is there")
    try:
        status = hdfs_client(datastore).get_file_info(hdfs_path(uri))
    except FileNotFoundError:
        return ok(f"{uri} is not there yet: the first run makes it")
    # hdfs-native raises bare errors of Rust for whatever it has no class for.
    except Exception as e:  # noqa: BLE001
        return failed(f"could not look at {uri}: {first_line(e)}", reach_remedy(subject))
    if not status.isdir:
        return failed(f"{uri} is not a folder", remedy)
    mode = f"{status.permission:03o}"
    return ok(f"{uri} is there, of '{status.owner}', group '{status.group}', permissions {mode}")


def check_rights(subject: Subject) -> Finding:
    """Write, read, list and delete a file, as a run does."""
    datastore = subject.datastore
    storage = datastore.storage()
    with probe_folder(datastore) as folder:
        uri = f"{folder}/probe"
        try:
            storage.write_atomically(uri, _PROBE)
            read = storage.read_bytes(uri)
            listed = [file.path for file in storage.list_files(folder)]
            storage.remove(uri)
            left = storage.stat(uri)
        except StorageError as e:
            return explain(e)
        # Not a StorageError: this machine's own.
        except OSError as e:
            return failed(
                f"could not write {e.filename or uri}: {e.strerror}",
                f"Make it writable, or set {DATASTORE} to a folder that is.",
            )
        if read != _PROBE or listed != ["probe"] or left is not None:
            return failed(
                f"{uri} was written, and then read as {len(read or b'')} bytes, listed as "
                f"{listed}, and {'still there' if left else 'gone'} when it was removed",
                "Choose another store: this one does not show at once what was written to it.",
            )
    return ok("write, read, list and delete")


def check_delta(subject: Subject) -> Finding:
    """Let the Delta library look for a table that is not there, with its own login."""
    from deltalake.exceptions import DeltaError

    datastore = subject.datastore
    uri = datastore.uri(PROBES, uuid.uuid4().hex)
    try:
        table = open_table(datastore, uri)
    except (DeltaError, OSError) as e:
        return failed(
            f"the Delta library does not reach {uri}: {first_line(e)}",
            "It logs in by itself, with the same credential: look whether a proxy or a variable "
            "AZURE_… in the environment is meant for something else.",
        )
    if table is not None:
        return failed(f"the Delta library sees a table at {uri}, where there is none", RUN_AGAIN)
    return ok("the Delta library reaches the store: what is not there is 'not found'")


def check_commit(subject: Subject) -> Finding:
    """Let two writers write one entry of a transaction log: one of them has to lose."""
    import pyarrow as pa
    from deltalake import CommitProperties, DeltaTable, Schema
    from deltalake.exceptions import CommitFailedError, DeltaError
    from deltalake.transaction import create_table_with_add_actions

    datastore = subject.datastore
    with probe_folder(datastore) as folder:
        options = datastore.delta_storage_options()
        uri = datastore.delta_uri(folder)
        schema = Schema.from_arrow(pa.schema([("probe", pa.int64())]))
        once = CommitProperties(max_commit_retries=0)
        datastore.storage().make_folder(folder)
        try:
            create_table_with_add_actions(
                uri, schema, [], mode="error", partition_by=[], storage_options=options
            )
            writers = [DeltaTable(uri, storage_options=options) for _ in range(2)]
            winner, loser = (
                functools.partial(
                    writer.create_write_transaction,
                    actions=[],
                    mode="append",
                    schema=schema,
                    commit_properties=once,
                )
                for writer in writers
            )
            winner()
        except (DeltaError, OSError) as e:
            return failed(
                f"the Delta library could not commit to {folder}: {first_line(e)}", RUN_AGAIN
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


def _first_hop(url: str) -> tuple[SplitResult, str]:
    """Return the URL that a request goes to first, and the variable that names it if a proxy's."""
    service = urlsplit(url)
    proxy = urllib.request.getproxies().get(service.scheme)
    if not proxy or urllib.request.proxy_bypass(service.hostname or ""):
        return service, ""
    address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return address, f"{service.scheme.upper()}_PROXY"


CHECKS = (
    Check("deployment", check_deployment),
    Check("location", check_location, needs=("deployment",)),
    Check("login", check_login, needs=("location",), kinds=("azure",)),
    Check("reach", check_reach, needs=("location", "login"), kinds=("azure", "hdfs"), seconds=8),
    Check("clock", check_azure_clock, needs=("reach",), kinds=("azure",), seconds=15),
    # Some of azure-identity's logins ask a program, or a service of the machine, that takes long.
    Check("identity", check_identity, needs=("reach",), kinds=("azure", "hdfs"), seconds=40),
    Check("container", check_container, needs=("identity",), kinds=("azure",), seconds=20),
    Check("root", check_root, needs=("location", "reach"), kinds=("local", "hdfs")),
    Check("rights", check_rights, needs=("container", "root", "location"), seconds=30),
    Check("clock", check_hdfs_clock, needs=("rights",), kinds=("hdfs",)),
    Check("delta", check_delta, needs=("container", "root", "location"), seconds=50),
    Check("commit", check_commit, needs=("rights", "delta"), seconds=50),
    Check("namespace", check_namespace, needs=("container",), kinds=("azure",)),
)
