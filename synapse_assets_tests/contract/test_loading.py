"""How datasets are stored and loaded through Dagster, the same in every store."""

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from synapse_assets.datasets import downloads
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import resolve
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.blob import BlobStorage
from synapse_assets.errors import ConfigurationError, StorageError
from synapse_assets_tests.datasets.staging import put_files

DAYS = dg.StaticPartitionsDefinition(["a b", "ü=1", "c%2Fd"])
HOSTILE_NAMES = ["plain.csv", "a b/ü=1.csv", "per%2Fcent", "#?&+", "a/b/c", "é\u0301", "'\"()[]{}"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(downloads.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def run(
    datastore: Datastore, *assets: Any, instance: dg.DagsterInstance, **options: Any
) -> dg.ExecuteInProcessResult:
    resources = {"io_manager": DatasetIOManager(datastore=datastore)}
    return dg.materialize(assets, instance=instance, resources=resources, **options)


def sink(annotation: Any, loaded: dict[str, Any], **options: Any) -> dg.AssetsDefinition:
    """Return an asset that keeps what it was given of the asset `up`."""

    def body(up: Any) -> None:
        loaded["up"] = up

    body.__annotations__["up"] = annotation
    made: dg.AssetsDefinition = dg.asset(name="sink", **options)(body)
    return made


def values(loaded: Any) -> list[tuple[int, str]]:
    if isinstance(loaded, pl.LazyFrame):
        loaded = loaded.collect()
    if isinstance(loaded, pl.DataFrame):
        rows: list[Any] = loaded.to_dicts()
    elif isinstance(loaded, pd.DataFrame):
        rows = loaded.to_dict("records")
    else:
        rows = (loaded.to_table() if isinstance(loaded, ds.Dataset) else loaded).to_pylist()
    return sorted((row["x"], row["day"]) for row in rows)


def test_one_partition_a_range_and_the_whole_table_load_as_annotated(
    datastore: Datastore, instance: dg.DagsterInstance
) -> None:
    metadata = {"partition_by": "day"}

    @dg.asset(partitions_def=DAYS, metadata=metadata)
    def up(context: dg.AssetExecutionContext) -> pa.Table:
        return pa.table({"x": [len(context.partition_key)]})

    for day in DAYS.get_partition_keys():
        run(datastore, up, instance=instance, partition_key=day)
    whole = sorted((len(day), day) for day in DAYS.get_partition_keys())
    wanted: list[tuple[Any, dict[str, Any], list[tuple[int, str]]]] = [
        (pa.Table, {}, whole),
        (ds.Dataset, {}, whole),
        (pl.LazyFrame, {}, whole),
        (pl.DataFrame, {"partitions_def": DAYS}, [(3, "ü=1")]),
        (
            pd.DataFrame,
            {
                "ins": {
                    "up": dg.AssetIn(
                        partition_mapping=dg.SpecificPartitionsPartitionMapping(["a b", "c%2Fd"])
                    )
                }
            },
            [(3, "a b"), (5, "c%2Fd")],
        ),
    ]
    for annotation, options, expected in wanted:
        loaded: dict[str, Any] = {}
        below = sink(annotation, loaded, **options)
        key = "ü=1" if "partitions_def" in options else None
        run(datastore, up, below, instance=instance, selection=[below], partition_key=key)
        assert values(loaded["up"]) == expected, annotation


def test_scan_reads_no_more_than_it_is_asked_for(
    datastore: Datastore, instance: dg.DagsterInstance
) -> None:
    @dg.asset
    def up() -> pl.LazyFrame:
        return pl.LazyFrame({"x": range(1_000), "day": ["d"] * 1_000})

    loaded: dict[str, Any] = {}
    run(datastore, up, sink(pl.LazyFrame, loaded), instance=instance)
    assert values(loaded["up"].filter(pl.col("x") > 997)) == [(998, "d"), (999, "d")]


def test_tables_of_a_login_by_token_go_through_adlfs(
    datastore: Datastore, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    if datastore.location.kind != "azure":
        pytest.skip("only Azure has logins")
    # pyarrow's own file system does not know every way to get a token.
    monkeypatch.setattr(BlobStorage, "_native_filesystem", None)

    @dg.asset(metadata={"partition_by": "day"}, partitions_def=DAYS)
    def up() -> pa.Table:
        return pa.table({"x": range(3)})

    loaded: dict[str, Any] = {}
    run(datastore, up, instance=instance, partition_key="c%2Fd")
    for annotation in (pa.Table, pl.LazyFrame, ds.Dataset):
        below = sink(annotation, loaded)
        run(datastore, up, below, instance=instance, selection=[below])
        assert values(loaded["up"]) == [(x, "c%2Fd") for x in range(3)]


def test_files_of_any_name_and_size_come_back_as_they_were(
    datastore: Datastore, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    contents = {name: name.encode() * 100 for name in HOSTILE_NAMES}
    contents |= {"empty": b"", "three blocks": os.urandom(20 << 20)}

    @dg.asset
    def up() -> Path:
        for name, content in contents.items():
            path = tmp_path / "made" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "made"

    loaded: dict[str, Any] = {}
    run(datastore, up, sink(Path, loaded), instance=instance)
    folder = loaded["up"]
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert found == contents
    version = resolve(datastore, "up")
    assert {f.name: f.sha256 for f in version.files} == {
        name: hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }


def make_up(datastore: Datastore) -> dg.AssetSpec:
    put_files(datastore, Slot("up"), {"a.txt": b"a", "sub/b.txt": b"b"})
    return dg.AssetSpec("up")


def test_mode_direct_gives_locations_and_download_gives_copies(
    datastore: Datastore, instance: dg.DagsterInstance
) -> None:
    up = make_up(datastore)
    loaded: dict[str, Any] = {}
    for mode, annotation in (("direct", Any), ("direct", list[str])):
        below = sink(annotation, loaded, ins={"up": dg.AssetIn(metadata={"mode": mode})})
        run(datastore, up, below, instance=instance, selection=[below])
        version = resolve(datastore, "up")
        assert loaded["up"] == [version.file("a.txt"), version.file("sub/b.txt")]
        assert datastore.filesystem().cat_file(loaded["up"][1]) == b"b"
    below = sink(Any, loaded, ins={"up": dg.AssetIn(metadata={"mode": "download"})})
    run(datastore, up, below, instance=instance, selection=[below])
    assert (loaded["up"] / "sub" / "b.txt").read_bytes() == b"b"


@pytest.mark.parametrize(
    ("mode", "annotation", "match"),
    [
        ("mount", Any, "'mount', which needs.*Use 'download'"),
        ("stream", Any, "mode 'stream'. Use one of: direct, download"),
        ("direct", Path, "gives list.*and is annotated"),
    ],
)
def test_mode_that_cannot_be_is_refused_with_the_reason(
    datastore: Datastore, instance: dg.DagsterInstance, mode: str, annotation: Any, match: str
) -> None:
    up = make_up(datastore)
    below = sink(annotation, {}, ins={"up": dg.AssetIn(metadata={"mode": mode})})
    with pytest.raises(ConfigurationError, match=match):
        run(datastore, up, below, instance=instance, selection=[below])


class TestCopies:
    """Local copies, which only a store elsewhere needs."""

    @pytest.fixture
    def version(self, datastore: Datastore) -> DatasetVersion:
        if datastore.location.kind == "local":
            pytest.skip("files of a local store are read where they lie")
        return put_files(datastore, Slot("up"), {"a.txt": b"first"})

    def copy(self, datastore: Datastore, version: DatasetVersion) -> Path:
        file = version.to_json()["files"][0]
        return downloads.download(version.file("a.txt"), file, datastore.storage())

    def test_content_is_fetched_once(
        self, datastore: Datastore, version: DatasetVersion, cache: Path
    ) -> None:
        assert self.copy(datastore, version).read_bytes() == b"first"
        datastore.storage().remove(version.file("a.txt"))
        assert self.copy(datastore, version).read_bytes() == b"first"
        assert [path.name for path in cache.iterdir()] == [version.files[0].sha256]

    def test_content_that_was_changed_is_refused(
        self, datastore: Datastore, version: DatasetVersion, cache: Path
    ) -> None:
        datastore.storage().write_atomically(version.file("a.txt"), b"other")
        with pytest.raises(StorageError, match="does not hold what was committed"):
            self.copy(datastore, version)
        assert not cache.exists()

    def test_content_that_is_gone_is_named(
        self, datastore: Datastore, version: DatasetVersion
    ) -> None:
        datastore.storage().remove(version.file("a.txt"))
        with pytest.raises(StorageError, match=r"a\.txt"):
            self.copy(datastore, version)

    def test_cache_keeps_to_its_limit_and_takes_nothing_from_readers(
        self,
        datastore: Datastore,
        version: DatasetVersion,
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        first = self.copy(datastore, version)
        monkeypatch.setenv(downloads.CACHE_BYTES, "6")
        second = put_files(datastore, Slot("up"), {"a.txt": b"second"})
        self.copy(datastore, second)
        assert [path.name for path in cache.iterdir()] == [second.files[0].sha256]
        assert first.read_bytes() == b"first"


def test_folder_that_a_hierarchical_account_lists_as_a_blob_is_no_file(
    datastore: Datastore,
) -> None:
    if datastore.location.kind != "azure":
        pytest.skip("only Azure lists folders as blobs")
    storage = datastore.storage()
    storage.write_atomically(datastore.uri("landing", "a", "x.csv"), b"x")
    name = datastore.uri("landing", "a").partition(".net/")[2]
    client = datastore.container_client().get_blob_client(name)
    client.upload_blob(b"", metadata={"hdi_isfolder": "true"})
    assert [file.path for file in storage.list_files(datastore.uri("landing"))] == ["a/x.csv"]
    assert storage.stat(datastore.uri("landing", "a")) is None


_COPY_LARGE_FILE = """
import resource, sys
from pathlib import Path
from synapse_assets_tests.contract.stores import Store

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

store = Store(sys.argv[1], Path(sys.argv[2])).open()
storage, uri = store.storage(), store.uri("large")
small = Path(sys.argv[2], "small")
small.write_bytes(b"x" * 1_000)
storage.upload(small, store.uri("small"))
storage.download(store.uri("small"), small)
before = peak()
large = Path(sys.argv[2], "large")
with large.open("wb") as file:
    file.truncate(int(sys.argv[3]))
assert storage.upload(large, uri).size == int(sys.argv[3])
storage.download(uri, large)
assert large.stat().st_size == int(sys.argv[3])
storage.remove(uri)
print((peak() - before) // 1024)
"""


@pytest.mark.timeout(600)
def test_file_of_2_gib_takes_constant_memory(store: Any, tmp_path: Path) -> None:
    import subprocess

    size = 2 << 30
    command = [sys.executable, "-c", _COPY_LARGE_FILE, store.name, str(store.folder), str(size)]
    grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (tmp_path / "large").unlink()
    assert int(grown) < 200, f"{grown} MiB"
