"""HDFS whose servers are killed in the middle of a commit or a transfer."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from synapse_assets.datasets import table
from synapse_assets.datastore import Datastore
from synapse_assets.errors import StorageError
from synapse_assets.services import Hdfs
from synapse_assets_tests.datasets.staging import numbers, put, stage_table
from synapse_assets_tests.real.faults import (
    LONGEST_SECONDS,
    MIB,
    SLOT,
    assert_explains,
    assert_made_once,
    later,
    try_commit,
)


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
    content = os.urandom(64 * MIB)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    restarts: list[threading.Thread] = []

    def feed() -> None:
        # A reader that gave up ends it.
        with contextlib.suppress(BrokenPipeError), pipe.open("wb") as stream:
            stream.write(content[: 32 * MIB])
            restarts.append(later(0, _crash(hdfs, server)))
            time.sleep(0.3)
            stream.write(content[32 * MIB :])

    feeder = threading.Thread(target=feed)
    feeder.start()
    start = time.monotonic()
    error = None
    try:
        storage.upload(pipe, uri)
    except StorageError as e:
        error = e
        assert_explains(e, location=uri)
    assert time.monotonic() - start < LONGEST_SECONDS
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
        restarts.append(later(seconds, _crash(hdfs, server)))
        time.sleep(0.1 if not seconds else 0)
        return prepared

    start = time.monotonic()
    with mock.patch.object(table, "_new_content", prepare_and_crash):
        error = try_commit(on_hdfs, staged)
    assert time.monotonic() - start < LONGEST_SECONDS
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
    assert time.monotonic() - start < LONGEST_SECONDS
    assert_made_once(on_hdfs, staged, was_told=False)
