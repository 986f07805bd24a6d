"""What breaks in the middle: after each fault no commit is lost, doubled or half visible."""

import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote

import pytest
from azure.core.credentials import AccessToken
from azure.core.pipeline.transport import HttpRequest, RequestsTransport
from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas

from synapse_assets.compute.bundle import upload_once
from synapse_assets.datasets import downloads, table
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import commit, resolve
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.blob import BlobStorage
from synapse_assets.datastore.credentials import DefaultChain, Emulator, _created_once
from synapse_assets.datastore.storage import LocalStorage, Storage, sha256_of
from synapse_assets.errors import DatasetNotFoundError, StorageError
from synapse_assets.services import Azurite, Hdfs
from synapse_assets.services.azurite import ACCOUNT, ACCOUNT_KEY
from synapse_assets_tests.contract.stores import AZURITE, HDFS, STORES
from synapse_assets_tests.datasets.staging import (
    contents_of,
    numbers,
    put,
    put_files,
    stage_files,
    stage_table,
    values_of,
)
from synapse_assets_tests.real.fault_proxy import FAULTS, FaultKind, FaultProxy, Request, Rule

CONTAINER = "faults"
SLOT = Slot("table")
# The library of Delta and the SDK of Azure wait for half a minute each, and a commit uses both.
_LONGEST_SECONDS = 75.0
_WORKERS = 6
# A commit of files differs in the entries that it writes and reads.
_FAULTS_OF_FILES: tuple[FaultKind, ...] = ("refused", "reset before", "reset after", "truncated")
_MIB = 1 << 20


# --- What holds after every fault ---------------------------------------------------------------


def assert_explains(error: BaseException, *, location: str) -> None:
    """Check that an error says what, where and what to do, and that no secret is in it."""
    message = str(error)
    assert message.startswith(("Could not ", "Cannot ")), message
    assert location in message
    assert "\n" not in message
    assert "\x1b" not in message
    assert message.count(". ") >= 1, f"no remedy: {message}"
    shown = unquote("".join(traceback.format_exception(error)))
    assert ACCOUNT_KEY not in shown
    assert "sig=" not in shown
    assert "Bearer " not in shown


def try_commit(
    datastore: Datastore, staged: StagedDataset, slot: Slot = SLOT
) -> StorageError | None:
    """Commit and return the error if there is one, which has to be a good one."""
    try:
        commit(datastore, staged, slot=slot)
    except StorageError as e:
        assert_explains(e, location=f"/{slot.name}")
        return e
    return None


def assert_made_once(
    datastore: Datastore, staged: StagedDataset, *, was_told: bool, slot: Slot = SLOT
) -> int:
    """Check a table of version 0 after a commit with a fault, and finish it.

    Returns how many versions the commit with the fault had made.
    """
    newest = resolve(datastore, slot.name)
    made = newest.version
    assert made == 1 if was_told else made in (0, 1)
    assert values_of(datastore, newest) == [made + 1]
    for _ in range(2):
        assert commit(datastore, staged, slot=slot).version == 1
    after = resolve(datastore, slot.name)
    assert (after.version, values_of(datastore, after)) == (1, [2])
    assert values_of(datastore, resolve(datastore, slot.name, version=0)) == [1]
    return made


# --- Azurite behind the proxy -------------------------------------------------------------------


def azurite_at(endpoint: str, folder: str) -> Datastore:
    return Datastore(
        root=f"az://{CONTAINER}/{folder}",
        cloud="emulator",
        credential=Emulator(endpoint=endpoint),
    )


@dataclass(frozen=True)
class Setup:
    """One place, reached through a proxy and past it."""

    proxy: FaultProxy
    broken: Datastore
    direct: Datastore


@contextlib.contextmanager
def setup_of(azurite: Azurite) -> Iterator[Setup]:
    azurite.create_container(CONTAINER)
    folder = uuid.uuid4().hex[:12]
    with FaultProxy(port=azurite.port) as proxy:
        broken = azurite_at(proxy.endpoint(ACCOUNT), folder)
        yield Setup(proxy, broken, azurite_at(azurite.endpoint, folder))


@pytest.fixture
def setup(azurite: Azurite) -> Iterator[Setup]:
    with setup_of(azurite) as made:
        yield made


@pytest.mark.services
def test_what_is_there_by_its_content_is_not_sent_again(setup: Setup) -> None:
    content = os.urandom(1 << 16)
    first = upload_once(setup.broken, content, suffix=".zip")
    setup.proxy.break_next()
    assert upload_once(setup.broken, content, suffix=".zip") == first
    assert [request.method for request in setup.proxy.seen] == ["HEAD"]


def _label(request: Request) -> str:
    """Return what a request is for, without the names of this run."""
    name = request.path.rpartition("/")[2]
    if "comp=list" in request.target:
        return "list log" if "_delta_log" in request.target else "list files"
    if name.endswith(".parquet"):
        return f"{request.method} {'entries' if name.startswith('entries') else 'data file'}"
    entry = name.lstrip("0") if name.endswith(".json") else name
    return f"{request.method} {'0' if entry == '.json' else ''}{entry}"


@pytest.mark.services
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind_of_dataset", ["TabularDataset", "FileDataset"])
def test_each_fault_at_each_request_of_a_commit(
    azurite: Azurite, kind_of_dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Break one request of a second commit, and count what came of it."""
    is_table = kind_of_dataset == "TabularDataset"

    def put_first(datastore: Datastore, slot: Slot) -> None:
        if is_table:
            put(datastore, slot, numbers(1))
        else:
            put_files(datastore, slot, {"f": b"1"})

    def stage(datastore: Datastore, slot: Slot) -> StagedDataset:
        if is_table:
            return stage_table(datastore, slot, numbers(2))
        return stage_files(datastore, slot, {"f": b"2"})

    def content(datastore: Datastore, name: str, version: int | None = None) -> tuple[int, int]:
        found = resolve(datastore, name, version=version)
        value = (
            values_of(datastore, found)[0]
            if is_table
            else int(contents_of(datastore, found)["f"].decode())
        )
        return found.version, value

    with contextlib.ExitStack() as stack:
        setups = [stack.enter_context(setup_of(azurite)) for _ in range(_WORKERS)]
        for setup in setups:
            put_first(setup.direct, SLOT)
            staged = stage(setup.direct, SLOT)
            setup.proxy.break_next()
            commit(setup.broken, staged, slot=SLOT)
            requests = [_label(request) for request in setup.proxy.seen]
        faults = FAULTS if is_table else _FAULTS_OF_FILES
        cases = list(itertools.product(faults, range(len(requests))))

        def work(worker: int) -> list[tuple[FaultKind, int, str]]:
            setup = setups[worker]
            done = []
            for number, (kind, index) in enumerate(cases[worker::_WORKERS]):
                slot = Slot(f"case-{number}")
                put_first(setup.direct, slot)
                staged = stage(setup.direct, slot)
                wait = 1 if kind in ("429 before", "503 before") else None
                setup.proxy.break_next(Rule(kind, skip=index, retry_after=wait))
                error = try_commit(setup.broken, staged, slot)
                assert [r.fault for r in setup.proxy.seen if r.fault] == [kind]
                setup.proxy.break_next()
                made, value = content(setup.direct, slot.name)
                assert made == 1 if error is None else made in (0, 1)
                assert value == made + 1
                assert content(setup.direct, slot.name, 0) == (0, 1)
                # Once more, as a re-execution would.
                for _ in range(2):
                    assert commit(setup.broken, staged, slot=slot).version == 1
                assert content(setup.direct, slot.name) == (1, 2)
                assert content(setup.direct, slot.name, 0) == (0, 1)
                outcome = "done" if error is None else f"error, {made} made"
                done.append((kind, index, outcome))
            return done

        with ThreadPoolExecutor(_WORKERS) as pool:
            results = [case for part in pool.map(work, range(_WORKERS)) for case in part]
    assert len(results) == len(cases)
    _print_matrix(kind_of_dataset, requests, results, capsys)
    # Where the service has done it, or only took its time, nobody is to notice.
    for kind in faults:
        outcomes = Counter(outcome for fault, _, outcome in results if fault == kind)
        if kind != "truncated":
            assert outcomes == {"done": len(requests)}, kind
        # The library of Delta does not repeat a request whose answer ended in the middle.
        assert set(outcomes) <= {"done", "error, 0 made"}


def _print_matrix(
    name: str,
    requests: list[str],
    results: list[tuple[FaultKind, int, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Print fault x request -> outcome as a table in Markdown."""
    signs = {"done": "1", "error, 0 made": "e0", "error, 1 made": "e1"}
    faults = [kind for kind in FAULTS if any(kind == fault for fault, _, _ in results)]
    cells = {(kind, index): signs[outcome] for kind, index, outcome in results}
    legend = (
        f"{len(results)} commits to a {name}, each with one fault and each tried again after it. "
        "1: one version and no error; e0: an error and no version, one after the next try; "
        "e1: an error although the version is there, and still one after the next try."
    )
    lines = [
        legend,
        "",
        "| request | " + " | ".join(faults) + " |",
        "|---" * (len(faults) + 1) + "|",
        *(
            f"| {index + 1} {request} | " + " | ".join(cells[kind, index] for kind in faults) + " |"
            for index, request in enumerate(requests)
        ),
    ]
    counts = Counter(cells.values())
    lines += ["", ", ".join(f"{sign}: {count}" for sign, count in sorted(counts.items()))]
    with capsys.disabled():
        print("", *lines, sep="\n")


@pytest.mark.services
def test_each_fault_at_each_request_of_a_large_file(azurite: Azurite, tmp_path: Path) -> None:
    content = os.urandom(12 * _MIB)
    sha256 = hashlib.sha256(content).hexdigest()
    path = tmp_path / "file"
    path.write_bytes(content)
    cases = list(itertools.product(FAULTS, ("upload", "download"), range(3)))

    def work(worker: int) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        with setup_of(azurite) as setup:
            for number, (kind, operation, index) in enumerate(cases[worker::_WORKERS]):
                uri = setup.direct.uri(f"file-{number}")
                copy = tmp_path / f"copy-{worker}-{number}"
                setup.direct.storage().upload(path, uri)
                setup.proxy.break_next(Rule(kind, skip=index, retry_after=1))
                storage = setup.broken.storage()
                try:
                    if operation == "upload":
                        assert storage.upload(path, uri).size == len(content)
                    else:
                        assert storage.download(uri, copy) == sha256
                        assert copy.read_bytes() == content
                except StorageError as e:
                    assert_explains(e, location=uri)
                    # Nothing that is half there.
                    assert not copy.exists()
                    outcomes["error"] += 1
                hit = any(request.fault for request in setup.proxy.seen)
                outcomes[f"{operation} with{'' if hit else 'out'} fault"] += 1
                setup.direct.storage().download(uri, copy)
                assert copy.read_bytes() == content
                copy.unlink()
        return outcomes

    with ThreadPoolExecutor(_WORKERS) as pool:
        outcomes = sum(pool.map(work, range(_WORKERS)), Counter[str]())
    # Two blocks: two requests to read them, and one more to write them.
    assert outcomes == {
        "upload with fault": 27,
        "download with fault": 18,
        "download without fault": 9,
    }


@pytest.mark.services
@pytest.mark.parametrize("kind", ["reset after", "500 after", "truncated"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_commit_whose_answer_was_lost_is_one_version(
    setup: Setup, kind: FaultKind, is_first: bool
) -> None:
    if not is_first:
        put(setup.direct, SLOT, numbers(1))
    staged = stage_table(setup.direct, SLOT, numbers(2))
    setup.proxy.break_next(Rule(kind, matches=lambda request: request.is_log_entry))
    version = commit(setup.broken, staged, slot=SLOT)
    statuses = [request.status for request in setup.proxy.seen if request.is_log_entry]
    assert statuses[0] == 201
    # It may have asked once more, and was told that the entry is there.
    assert set(statuses[1:]) <= {409, 412}
    assert version.version == (0 if is_first else 1)
    assert resolve(setup.direct, SLOT.name) == version
    assert commit(setup.broken, staged, slot=SLOT) == version


@pytest.mark.services
@pytest.mark.parametrize("kind", ["429 before", "503 before"])
def test_retry_after_is_waited_for(setup: Setup, kind: FaultKind, tmp_path: Path) -> None:
    uri = setup.broken.uri("file")
    path = tmp_path / "file"
    path.write_bytes(b"content")
    storage = setup.broken.storage()
    operations: list[Callable[[], object]] = [
        lambda: storage.upload(path, uri),
        lambda: storage.read_bytes(uri),
        lambda: storage.list_files(setup.broken.uri()),
        lambda: storage.remove(uri),
    ]
    # Shorter than what is asked for, so that it is told apart.
    with mock.patch("synapse_assets.datastore.blob._MAX_BACKOFF_SECONDS", 0.1):
        for operation in operations:
            setup.proxy.break_next(Rule(kind, retry_after=1))
            operation()
            first, second = setup.proxy.seen[:2]
            assert (first.fault, second.fault) == (kind, None)
            assert 1.0 <= second.at - first.at < 2.5


@pytest.mark.services
def test_an_overload_of_seconds_is_ridden_out_by_a_commit(setup: Setup) -> None:
    """The library of Delta does not look at Retry-After; it waits ever longer by itself."""
    put(setup.direct, SLOT, numbers(1))
    staged = stage_table(setup.direct, SLOT, numbers(2))
    end = time.monotonic() + 5

    def is_overloaded(request: Request) -> bool:
        return request.is_log_entry and time.monotonic() < end

    setup.proxy.break_next(Rule("503 before", is_overloaded, times=1_000, retry_after=2))
    assert try_commit(setup.broken, staged) is None
    assert 3 <= len([request for request in setup.proxy.seen if request.fault]) < 40
    assert_made_once(setup.direct, staged, was_told=True)


@pytest.mark.services
def test_staged_files_that_cannot_be_reached_are_not_called_damaged(setup: Setup) -> None:
    put(setup.direct, SLOT, numbers(1))
    staged = stage_table(setup.direct, SLOT, numbers(2))
    is_data = Rule("503 before", lambda r: r.path.endswith(".parquet"), times=1_000)
    setup.proxy.break_next(is_data)
    patience = {"max_retries": "2", "retry_timeout": "2s"}
    with mock.patch.dict("synapse_assets.datastore.datastore._DELTA_PATIENCE", patience):
        error = try_commit(setup.broken, staged)
    assert error is not None
    assert "Could not read the staged files" in str(error)
    setup.proxy.break_next()
    assert_made_once(setup.direct, staged, was_told=False)


@pytest.mark.services
@pytest.mark.parametrize("kind", ["503 before", "429 before"])
def test_a_service_that_stays_overloaded_is_given_up_within_the_bounds(
    setup: Setup, kind: FaultKind
) -> None:
    setup.proxy.break_next(Rule(kind, times=1_000, retry_after=3_600))
    with (
        mock.patch("synapse_assets.datastore.blob._MAX_RETRY_AFTER_SECONDS", 0.1),
        mock.patch("synapse_assets.datastore.blob._MAX_BACKOFF_SECONDS", 0.1),
        pytest.raises(StorageError, match="overloaded or down: run it again later") as raised,
    ):
        setup.broken.storage().list_files(setup.broken.uri())
    assert_explains(raised.value, location=setup.broken.uri())
    assert len(setup.proxy.seen) == 6


# --- Services that are killed -------------------------------------------------------------------


def _later(seconds: float, action: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        time.sleep(seconds)
        action()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.services
def test_azurite_killed_in_an_upload_of_64_mib(
    azurite: Azurite, setup: Setup, tmp_path: Path
) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(64 * _MIB))
    storage = setup.broken.storage()
    uri = setup.broken.uri("large")
    restarts: list[threading.Thread] = []

    def crash() -> None:
        azurite.kill()
        restarts.append(_later(1.0, azurite.start))

    storage.write_atomically(uri, b"before")
    setup.proxy.break_next(Rule(matches=lambda r: "comp=block&" in r.target, skip=3, before=crash))
    with contextlib.suppress(StorageError):
        storage.upload(path, uri)
    for restart in restarts:
        restart.join()
    assert len(restarts) == 1
    stored = storage.stat(uri)
    assert stored is not None
    assert stored.size in (len(b"before"), 64 * _MIB)
    storage.upload(path, uri)
    storage.download(uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()


@pytest.mark.services
@pytest.mark.parametrize("moment", ["before", "after"])
def test_azurite_killed_as_it_writes_the_log_entry(
    azurite: Azurite, setup: Setup, moment: str
) -> None:
    put(setup.direct, SLOT, numbers(1))
    staged = stage_table(setup.direct, SLOT, numbers(2))
    restarts: list[threading.Thread] = []

    def crash() -> None:
        azurite.kill()
        restarts.append(_later(1.0, azurite.start))

    rule = Rule("reset after", matches=lambda r: r.is_log_entry)
    setattr(rule, moment, crash)
    setup.proxy.break_next(rule)
    error = try_commit(setup.broken, staged)
    for restart in restarts:
        restart.join()
    assert len(restarts) == 1
    setup.proxy.break_next()
    assert_made_once(setup.direct, staged, was_told=error is None)
    assert error is None


@pytest.mark.services
def test_azurite_that_stays_down_is_given_up_within_a_minute_or_so(
    azurite: Azurite, setup: Setup
) -> None:
    put(setup.direct, SLOT, numbers(1))
    staged = stage_table(setup.direct, SLOT, numbers(2))
    setup.proxy.break_next(Rule(matches=lambda r: r.is_log_entry, before=azurite.kill))
    start = time.monotonic()
    try:
        error = try_commit(setup.broken, staged)
    finally:
        azurite.start()
    assert error is not None
    assert time.monotonic() - start < _LONGEST_SECONDS
    setup.proxy.break_next()
    assert_made_once(setup.direct, staged, was_told=False)


@pytest.fixture
def on_hdfs(hdfs: Hdfs) -> Iterator[Datastore]:
    yield Datastore(root=f"{hdfs.url}/faults-{uuid.uuid4().hex[:8]}")
    hdfs.start()


def _crash(hdfs: Hdfs, server: str) -> Callable[[], None]:
    def crash_and_restart() -> None:
        (hdfs.namenode if server == "namenode" else hdfs.datanode).kill()
        hdfs.start()

    return crash_and_restart


@pytest.mark.services
@pytest.mark.parametrize("server", ["namenode", "datanode"])
def test_hdfs_killed_in_an_upload_of_64_mib(
    hdfs: Hdfs, on_hdfs: Datastore, server: str, tmp_path: Path
) -> None:
    storage = on_hdfs.storage()
    uri = on_hdfs.uri("large")
    storage.write_atomically(uri, b"before")
    content = os.urandom(64 * _MIB)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    restarts: list[threading.Thread] = []

    def feed() -> None:
        # A reader that gave up ends it.
        with contextlib.suppress(BrokenPipeError), pipe.open("wb") as stream:
            stream.write(content[: 32 * _MIB])
            restarts.append(_later(0, _crash(hdfs, server)))
            time.sleep(0.3)
            stream.write(content[32 * _MIB :])

    feeder = threading.Thread(target=feed)
    feeder.start()
    start = time.monotonic()
    error = None
    try:
        storage.upload(pipe, uri)
    except StorageError as e:
        error = e
        assert_explains(e, location=uri)
    assert time.monotonic() - start < _LONGEST_SECONDS
    feeder.join()
    for restart in restarts:
        restart.join()
    stored = storage.stat(uri)
    assert stored is not None
    assert stored.size == (len(b"before") if error else len(content))
    whole = tmp_path / "whole"
    whole.write_bytes(content)
    assert storage.upload(whole, uri).size == len(content)
    storage.download(uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content


@pytest.mark.services
@pytest.mark.parametrize(
    ("server", "seconds"),
    [("namenode", 0.0), ("namenode", 0.25), ("namenode", 0.45), ("datanode", 0.0)],
)
def test_hdfs_killed_in_a_commit(
    hdfs: Hdfs, on_hdfs: Datastore, server: str, seconds: float
) -> None:
    put(on_hdfs, SLOT, numbers(1))
    staged = stage_table(on_hdfs, SLOT, numbers(2))
    restarts: list[threading.Thread] = []
    prepare = table._new_content

    def prepare_and_crash(*arguments: Any) -> Any:
        """Crash while the log entry is written, which takes half a second on HDFS."""
        prepared = prepare(*arguments)
        restarts.append(_later(seconds, _crash(hdfs, server)))
        time.sleep(0.1 if not seconds else 0)
        return prepared

    start = time.monotonic()
    with mock.patch.object(table, "_new_content", prepare_and_crash):
        error = try_commit(on_hdfs, staged)
    assert time.monotonic() - start < _LONGEST_SECONDS
    for restart in restarts:
        restart.join()
    assert len(restarts) == 1
    assert_made_once(on_hdfs, staged, was_told=error is None)


@pytest.mark.services
def test_a_name_node_that_stays_down_is_given_up_within_a_minute(
    hdfs: Hdfs, on_hdfs: Datastore
) -> None:
    put(on_hdfs, SLOT, numbers(1))
    staged = stage_table(on_hdfs, SLOT, numbers(2))
    hdfs.namenode.kill()
    start = time.monotonic()
    try:
        error = try_commit(on_hdfs, staged)
    finally:
        hdfs.start()
    assert error is not None
    assert "name node" in str(error)
    assert time.monotonic() - start < _LONGEST_SECONDS
    assert_made_once(on_hdfs, staged, was_told=False)


# --- Tokens that expire -------------------------------------------------------------------------


class ShortTokens:
    """Stands for azure-identity: each token lives for one second."""

    def __init__(self) -> None:
        self.expiries: dict[str, float] = {}

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        token = f"token-{len(self.expiries)}"
        self.expiries[token] = time.time() + 1
        # In whole seconds, as a service tells it.
        return AccessToken(token, int(self.expiries[token]))

    def is_valid(self, token: str) -> bool:
        return time.time() < self.expiries[token]


class TokenDatastore(Datastore):
    """A datastore with a login by token, whose service is the proxy."""

    endpoint: str

    def delta_storage_options(self) -> dict[str, str]:
        options = super().delta_storage_options()
        return {**options, "endpoint": self.endpoint, "allow_http": "true"}


def _sas(**rights: bool) -> str:
    return generate_container_sas(
        ACCOUNT,
        CONTAINER,
        account_key=ACCOUNT_KEY,
        permission=ContainerSasPermissions(**rights),
        expiry=datetime.now(timezone.utc) + timedelta(hours=1),
    )


@pytest.mark.services
def test_a_token_that_expires_in_the_middle_is_followed_by_a_fresh_one(
    azurite: Azurite, tmp_path: Path
) -> None:
    """Azurite takes tokens over https only, so the proxy checks them and goes on with a SAS."""
    azurite.create_container(CONTAINER)
    tokens = ShortTokens()
    signature = _sas(read=True, write=True, create=True, list=True, delete=True)

    def authorize(token: str) -> str | None:
        return signature if tokens.is_valid(token) else None

    with FaultProxy(port=azurite.port, authorize=authorize) as proxy:
        endpoint = proxy.endpoint(ACCOUNT)

        class ToProxy(RequestsTransport):  # type: ignore[misc]
            """Sends to the proxy what goes to https, which the SDK insists on with a token."""

            def send(self, request: HttpRequest, **options: Any) -> Any:
                host = "https://standin0.blob.core.windows.net"
                request.url = request.url.replace(host, endpoint)
                return super().send(request, **options)

        class ThroughProxy(BlobServiceClient):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, transport=ToProxy(), **options)

        datastore = TokenDatastore(
            root=f"abfss://{CONTAINER}@standin0.dfs.core.windows.net/{uuid.uuid4().hex[:8]}",
            credential=DefaultChain(),
            endpoint=endpoint,
        )
        _created_once.cache_clear()
        with (
            mock.patch("azure.identity.DefaultAzureCredential", return_value=tokens),
            mock.patch("azure.storage.blob.BlobServiceClient", ThroughProxy),
        ):
            storage = datastore.storage()
            uri = datastore.uri("file")
            for number in range(3):
                storage.write_atomically(uri, b"%d" % number)
                time.sleep(1.1)
                assert storage.read_bytes(uri) == b"%d" % number
            of_sdk = {request.headers["authorization"] for request in proxy.seen}
            assert len(of_sdk) >= 5
            assert {request.status for request in proxy.seen} <= {200, 201, 206}

            emulator = azurite_at(azurite.endpoint, datastore.root.rpartition("/")[2])
            proxy.break_next()
            for number in range(3):
                staged = stage_table(emulator, SLOT, numbers(number + 1))
                assert commit(datastore, staged, slot=SLOT).version == number
                time.sleep(1.1)
            of_delta = {
                request.headers["authorization"]
                for request in proxy.seen
                if request.headers["user-agent"].startswith("object_store")
            }
            assert len(of_delta) >= 3
            assert 401 not in {request.status for request in proxy.seen}

            # It expires between the opening of the table and the commit.
            proxy.break_next(Rule(matches=lambda r: r.is_log_entry, before=lambda: time.sleep(1.1)))
            staged = stage_table(emulator, SLOT, numbers(4))
            assert try_commit(datastore, staged) is None
            writes = [request for request in proxy.seen if request.is_log_entry]
            assert [request.status for request in writes] == [401, 201]
            assert writes[0].headers["authorization"] != writes[1].headers["authorization"]
            proxy.break_next()
            assert commit(datastore, staged, slot=SLOT).version == 3
            assert values_of(emulator, resolve(emulator, SLOT.name)) == [4]
        _created_once.cache_clear()


# --- Rights and places --------------------------------------------------------------------------


class SasDatastore(Datastore):
    """Azurite with a SAS in the place of the account's key."""

    endpoint: str
    signature: str

    def storage(self) -> Storage:
        connection = f"BlobEndpoint={self.endpoint};SharedAccessSignature={self.signature}"
        options = {"account_name": ACCOUNT, "connection_string": connection}
        return BlobStorage(container=CONTAINER, options=options)

    def delta_storage_options(self) -> dict[str, str]:
        options = super().delta_storage_options()
        del options["account_key"]
        return {**options, "sas_token": self.signature}


@pytest.mark.services
def test_a_sas_that_may_only_read_says_what_right_is_missing(
    azurite: Azurite, setup: Setup, tmp_path: Path
) -> None:
    put(setup.direct, SLOT, numbers(1))
    staged = stage_table(setup.direct, SLOT, numbers(2))
    reader = SasDatastore(
        root=setup.direct.root,
        cloud="emulator",
        credential=Emulator(endpoint=azurite.endpoint),
        endpoint=azurite.endpoint,
        signature=_sas(read=True, list=True),
    )
    assert resolve(reader, SLOT.name).version == 0
    path = tmp_path / "file"
    path.write_bytes(b"content")
    uri = reader.uri("file")
    writes: list[Callable[[], object]] = [
        lambda: reader.storage().upload(path, uri),
        lambda: reader.storage().write_atomically(uri, b"content"),
        lambda: reader.storage().write_once(uri, b"content"),
        lambda: reader.storage().remove(f"{reader.uri(SLOT.name)}/{staged.files[0].path}"),
        lambda: commit(reader, staged, slot=SLOT),
    ]
    for write in writes:
        with pytest.raises(StorageError, match=r"[Gg]ive the identity in use the r") as raised:
            write()
        assert_explains(raised.value, location=reader.uri())
    assert_made_once(setup.direct, staged, was_told=False)


_AS_SOMEBODY = """
import sys
from pathlib import Path
from synapse_assets.datasets.table import commit, resolve
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.version import DataFile
from synapse_assets.datastore import Datastore
from synapse_assets.errors import StorageError
import json, os
import deltalake.fs, fsspec.implementations.local, pyarrow.fs, pyarrow.parquet
root, path, staged = sys.argv[1:]
staged = json.loads(staged)
staged["files"] = tuple(DataFile(**file) for file in staged["files"])
if root.startswith("/") and os.getuid() == 0:
    os.setgroups([])
    os.setuid(65534)
datastore = Datastore(root=root)
print(resolve(datastore, "table").version)
for write in (
    lambda: datastore.storage().upload(Path(path), datastore.uri("file")),
    lambda: datastore.storage().write_atomically(datastore.uri("file"), b"x"),
    lambda: commit(datastore, StagedDataset(**staged), slot=Slot("table")),
):
    try:
        write()
    except StorageError as e:
        print(str(e).replace(chr(10), "NEWLINE"))
"""


def _as_json(staged: StagedDataset) -> str:
    files = [{"path": f.path, "size": f.size, "rows": f.rows} for f in staged.files]
    return json.dumps(
        {"attempt": staged.attempt, "kind": staged.kind, "folder": staged.folder, "files": files}
    )


def _assert_refused(datastore: Datastore, path: Path, **environment: str) -> None:
    """Check what a user is told who may read and not write."""
    put(datastore, SLOT, numbers(1))
    staged = stage_table(datastore, SLOT, numbers(2))
    call = [sys.executable, "-c", _AS_SOMEBODY, datastore.root, str(path), _as_json(staged)]
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=100, env={**os.environ, **environment}
    )
    version, *messages = done.stdout.splitlines()
    assert (version, len(messages)) == ("0", 3), done.stdout + done.stderr
    for message in messages:
        assert message.startswith("Could not ")
        assert datastore.uri() in message
        assert "ermission denied" in message
        assert "the right to" in message
        assert "NEWLINE" not in message
    assert_made_once(datastore, staged, was_told=False)


@pytest.mark.services
def test_an_hdfs_folder_of_another_user_says_what_right_is_missing(on_hdfs: Datastore) -> None:
    _assert_refused(on_hdfs, Path(__file__), HADOOP_USER_NAME="somebody")


def test_a_local_folder_without_the_right_to_write_says_so() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to run a process as another user")
    # Not pytest's folder, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        _assert_refused(Datastore(root=folder), Path(__file__))


@pytest.mark.services
def test_a_container_that_is_not_there_is_no_missing_dataset(azurite: Azurite) -> None:
    name = f"none-{uuid.uuid4().hex[:8]}"
    datastore = Datastore(
        root=f"az://{name}/folder",
        cloud="emulator",
        credential=Emulator(endpoint=azurite.endpoint),
    )
    staged = StagedDataset(attempt="a", kind="TabularDataset", folder="a", files=())
    storage = datastore.storage()
    uri = datastore.uri("x")
    operations: list[Callable[[], object]] = [
        lambda: resolve(datastore, "x"),
        lambda: resolve(datastore, "x", version=3),
        lambda: commit(datastore, staged, slot=Slot("x")),
        lambda: storage.list_files(uri),
        lambda: storage.read_bytes(uri),
        lambda: storage.stat(uri),
        lambda: storage.remove(uri),
        lambda: storage.write_atomically(uri, b""),
        lambda: storage.write_once(uri, b""),
        lambda: storage.upload(Path(__file__), uri),
        lambda: storage.download(uri, Path(os.devnull).parent / "shm" / "none"),
    ]
    for operation in operations:
        with pytest.raises(StorageError, match="Create the container") as raised:
            operation()
        assert_explains(raised.value, location=name)


# --- Log entries that are half written ----------------------------------------------------------


@pytest.fixture(
    params=[
        pytest.param(name, marks=[] if name == "local" else [pytest.mark.services])
        for name in STORES
    ]
)
def datastore(request: pytest.FixtureRequest, tmp_path: Path) -> Datastore:
    if request.param == "azurite":
        azurite = request.getfixturevalue("azurite")
        azurite.create_container(CONTAINER)
        os.environ[AZURITE] = azurite.endpoint
        return azurite_at(azurite.endpoint, uuid.uuid4().hex[:12])
    if request.param == "hdfs":
        os.environ[HDFS] = request.getfixturevalue("hdfs").url
    return STORES[request.param](tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.98], ids=["empty", "cut early", "cut late"])
def test_a_half_written_log_entry_is_named_and_can_be_mended(
    datastore: Datastore, share: float
) -> None:
    put(datastore, SLOT, numbers(1))
    staged = stage_table(datastore, SLOT, numbers(2))
    commit(datastore, staged, slot=SLOT)
    storage = datastore.storage()
    entry = datastore.uri(SLOT.name, "_delta_log", f"{1:020}.json")
    content = storage.read_bytes(entry)
    assert content is not None
    storage.write_atomically(entry, content[: int(share * len(content))])
    operations: list[Callable[[], object]] = [
        lambda: resolve(datastore, SLOT.name),
        lambda: resolve(datastore, SLOT.name, version=1),
        lambda: commit(datastore, staged, slot=SLOT),
    ]
    for operation in operations:
        with pytest.raises(StorageError, match=rf"{1:020}\.json of its log is damaged") as raised:
            operation()
        assert_explains(raised.value, location=datastore.uri(SLOT.name))
    assert values_of(datastore, resolve(datastore, SLOT.name, version=0)) == [1]
    # The remedy that it names.
    storage.remove(entry)
    assert_made_once(datastore, staged, was_told=False)


# --- A full disk --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs root with the right to mount, for a disk that is full")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _fill(folder: Path) -> Path:
    path = folder / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    return path


def test_a_full_disk_while_staging_and_while_committing(small_disk: Path, tmp_path: Path) -> None:
    datastore = Datastore(root=str(small_disk / "datastore"))
    put(datastore, SLOT, numbers(1))
    staged = stage_table(datastore, SLOT, numbers(2))
    path = tmp_path / "file"
    path.write_bytes(bytes(_MIB))
    uri = datastore.uri("file")
    storage = datastore.storage()
    for write in (
        lambda: storage.upload(path, uri),
        lambda: storage.write_atomically(uri, bytes(_MIB)),
    ):
        with pytest.raises(StorageError, match=r"No space left on device\. Make room") as raised:
            write()
        assert_explains(raised.value, location=uri)
        assert storage.list_files(datastore.uri()) == [
            file for file in storage.list_files(datastore.uri()) if "table" in file.path
        ]
    filler = _fill(small_disk)
    with pytest.raises(StorageError, match=r"No space left.* Make room on the disk") as raised:
        commit(datastore, staged, slot=SLOT)
    assert_explains(raised.value, location=datastore.uri(SLOT.name))
    assert values_of(datastore, resolve(datastore, SLOT.name)) == [1]
    filler.unlink()
    assert_made_once(datastore, staged, was_told=False)


def test_a_full_disk_while_downloading(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * _MIB))
    copy = small_disk / "copy"
    with pytest.raises(StorageError, match=r"No space left on device\. Make room") as raised:
        LocalStorage().download(str(path), copy)
    assert_explains(raised.value, location=str(copy))
    assert list(small_disk.iterdir()) == []
    # A cache that is full keeps nothing, and nobody from his file.
    monkeypatch.setenv(downloads.CACHE, str(small_disk / "cache"))
    file = {"name": "file", "sha256": sha256_of(path)}
    got = downloads.download(str(path), file, LocalStorage())
    assert got.read_bytes() == path.read_bytes()
    assert list((small_disk / "cache").iterdir()) == []
    got.unlink()


def test_a_dataset_that_is_not_there_is_still_not_found(datastore: Datastore) -> None:
    with pytest.raises(DatasetNotFoundError, match="does not exist"):
        resolve(datastore, "none")
    put(datastore, SLOT, numbers(1))
    with pytest.raises(DatasetNotFoundError, match="never existed, or was vacuumed"):
        resolve(datastore, SLOT.name, version=7)
