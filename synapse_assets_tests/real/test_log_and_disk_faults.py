"""Entries of the log that are half written, and a disk that is full."""

import contextlib
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from synapse_assets.datasets import downloads
from synapse_assets.datasets.table import commit, resolve
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import LocalStorage, sha256_of
from synapse_assets.errors import DatasetNotFoundError, StorageError
from synapse_assets_tests.contract.stores import AZURITE, HDFS, STORES
from synapse_assets_tests.datasets.staging import numbers, put, stage_table, values_of
from synapse_assets_tests.real.faults import (
    CONTAINER,
    MIB,
    SLOT,
    assert_explains,
    assert_made_once,
    azurite_at,
)


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
    path.write_bytes(bytes(MIB))
    uri = datastore.uri("file")
    storage = datastore.storage()
    for write in (
        lambda: storage.upload(path, uri),
        lambda: storage.write_atomically(uri, bytes(MIB)),
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
    path.write_bytes(bytes(2 * MIB))
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
