"""Azurite that breaks, or is killed, in the middle of a commit or a transfer."""

import contextlib
import hashlib
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from synapse_assets.compute.bundle import upload_once
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import commit, resolve
from synapse_assets.datastore import Datastore
from synapse_assets.errors import StorageError
from synapse_assets.services import Azurite
from synapse_assets_tests.datasets.staging import (
    contents_of,
    numbers,
    put,
    put_files,
    stage_files,
    stage_table,
    values_of,
)
from synapse_assets_tests.real.fault_proxy import FAULTS, FaultKind, Request, Rule
from synapse_assets_tests.real.faults import (
    LONGEST_SECONDS,
    MIB,
    SLOT,
    Setup,
    assert_explains,
    assert_made_once,
    later,
    setup_of,
    try_commit,
)

_WORKERS = 6
# A commit of files differs in the entries that it writes and reads.
_FAULTS_OF_FILES: tuple[FaultKind, ...] = ("refused", "reset before", "reset after", "truncated")


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
    content = os.urandom(12 * MIB)
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


@pytest.mark.services
def test_azurite_killed_in_an_upload_of_64_mib(
    azurite: Azurite, setup: Setup, tmp_path: Path
) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(64 * MIB))
    storage = setup.broken.storage()
    uri = setup.broken.uri("large")
    restarts: list[threading.Thread] = []

    def crash() -> None:
        azurite.kill()
        restarts.append(later(1.0, azurite.start))

    storage.write_atomically(uri, b"before")
    setup.proxy.break_next(Rule(matches=lambda r: "comp=block&" in r.target, skip=3, before=crash))
    with contextlib.suppress(StorageError):
        storage.upload(path, uri)
    for restart in restarts:
        restart.join()
    assert len(restarts) == 1
    stored = storage.stat(uri)
    assert stored is not None
    assert stored.size in (len(b"before"), 64 * MIB)
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
        restarts.append(later(1.0, azurite.start))

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
    assert time.monotonic() - start < LONGEST_SECONDS
    setup.proxy.break_next()
    assert_made_once(setup.direct, staged, was_told=False)
