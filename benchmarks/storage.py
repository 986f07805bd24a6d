"""Measure the stores against the same work with the raw libraries, in one run on this machine.

It starts an Azurite of its own. Every comparison is interleaved: ours, raw, ours, raw ... Nothing
here fails because something was slow.
"""

import argparse
import dataclasses
import datetime as dt
import functools
import io
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from azure.storage.blob import BlobServiceClient, ContainerClient
from deltalake import DeltaTable, write_deltalake
from deltalake.transaction import AddAction, create_table_with_add_actions

from benchmarks.storage_report import Comparison, Memory, Results, format_page, format_tables
from synapse_assets.datasets import downloads, handlers, table
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.schema import delta_schema
from synapse_assets.datasets.slot import Slot, dataset_uri
from synapse_assets.datasets.version import DataFile
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import Emulator
from synapse_assets.datastore.storage import Storage, for_each_file
from synapse_assets.services import CONTAINER, Azurite
from synapse_assets.services.azurite import ACCOUNT_KEY

_PAGE = Path("docs/performance-storage.md")
_REPEATS = 3
_PACKAGES = ("azure-storage-blob", "adlfs", "deltalake", "polars", "pyarrow")

# Number and size of the files of a set.
_FILES = ((1, 1 << 30), (1_000, 1 << 20), (10_000, 10 << 10))
_ROWS = 3_000_000
_COUNTS = (10, 1_000, 10_000)
# Half way between two checkpoints.
_VERSIONS = 1_005
_FILES_PER_VERSION = 10
_REFERENCE_BYTES = (1_000, 10_000_000_000)

_THREADS = 8
_CONNECTIONS = 4
_BLOCK_BYTES = 8 << 20

# Throughput of 0.95.
_THROUGHPUT = 1 / 0.95
_COMMIT = 1.2
_AFTER_MANY = 1.5
_INDEPENDENT = 1.1

# Options by which deltalake waits for a store; polars takes other types of them.
_PATIENCE = ("max_retries", "retry_timeout", "connect_timeout", "timeout")


@dataclasses.dataclass(frozen=True)
class _Bench:
    """What every part needs.

    Attributes:
        scratch: A folder for its files.
        repeats: How often each variant runs.
        scale: Factor for all counts and sizes.
        results: Where it puts what it measured.
    """

    scratch: Path
    repeats: int
    scale: float
    results: Results

    def scaled(self, count: int) -> int:
        """Return a count at the scale of this run."""
        return max(1, round(count * self.scale))

    def compare(
        self,
        part: str,
        what: str,
        variants: Mapping[str, Callable[[], object]],
        *,
        at_most: float | None = None,
        warm_up: bool = True,
    ) -> None:
        """Run the variants in turning order and keep what they took."""
        if warm_up:
            for variant in variants.values():
                variant()
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        names = list(variants)
        for repeat in range(self.repeats):
            first = repeat % len(names)
            for name in [*names[first:], *names[:first]]:
                os.sync()
                started = time.perf_counter()
                variants[name]()
                seconds[name].append(time.perf_counter() - started)
        comparison = Comparison(what, seconds, at_most)
        self.results.comparisons.setdefault(part, []).append(comparison)
        shown = ", ".join(f"{name} {median:.3f} s" for name, median in comparison.medians.items())
        print(f"{part}: {what}: {shown}; ratio {comparison.ratio:.2f}", flush=True)


def main() -> None:
    options = _parse()
    results = Results(machine=_describe_machine(options.scale), repeats=options.repeats)
    with tempfile.TemporaryDirectory(prefix="synapse-assets-bench-") as folder:
        os.environ[downloads.CACHE] = f"{folder}/cache"
        bench = _Bench(Path(folder), options.repeats, options.scale, results)
        for name in options.only:
            _PARTS[name](bench)
    print(f"\n{format_tables(results)}")
    if options.write is not None:
        options.write.write_text(format_page(results), encoding="utf-8")
        print(f"Written to {options.write}.")
    else:
        print(f"Not written to {_PAGE}: only a part was measured, or fewer than {_REPEATS} times.")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--repeats", type=int, default=_REPEATS, help="runs of each variant")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for all counts and sizes")
    parser.add_argument(
        "--write", type=Path, help=f"page to write; {_PAGE} where everything is measured"
    )
    options = parser.parse_args()
    whole = {*options.only} == {*_PARTS} and options.scale >= 1
    if options.write is None and whole and options.repeats >= _REPEATS:
        options.write = _PAGE
    return options


# --- Files --------------------------------------------------------------------------------------


def _bench_files(bench: _Bench) -> None:
    for number, whole in _FILES:
        # One file keeps its number, many keep their size.
        count = 1 if number == 1 else bench.scaled(number)
        size = bench.scaled(whole) if number == 1 else whole
        # Each set has a fresh server: it becomes slower with the blobs it has had.
        with Azurite() as azurite:
            azurite.create_container(CONTAINER)
            source = bench.scratch / "source"
            _make_files(source, count=count, size=size)
            _compare_files(bench, azurite, source, what=f"{count:,} x {_size(size)}")
            if number == 1:
                _measure_memory(bench, azurite, source)
            shutil.rmtree(source)


def _compare_files(bench: _Bench, azurite: Azurite, source: Path, *, what: str) -> None:
    datastore = _on(azurite)
    ours = handlers.Access(storage=datastore.storage(), spark=_no_spark)
    paths = sorted(source.iterdir())
    container = BlobServiceClient(
        azurite.endpoint,
        credential=ACCOUNT_KEY,
        max_block_size=_BLOCK_BYTES,
        max_single_put_size=_BLOCK_BYTES,
        max_single_get_size=_BLOCK_BYTES,
        max_chunk_get_size=_BLOCK_BYTES,
    ).get_container_client(CONTAINER)
    filesystem = datastore.filesystem()
    remote = [f"{CONTAINER}/adlfs/{path.name}" for path in paths]
    copies = bench.scratch / "copies"
    concurrency = {"max_concurrency": _CONNECTIONS} if len(paths) == 1 else {}
    written: list[handlers.FileRecord] = []

    def download_ours() -> None:
        files = [{**file, "partition": None} for file in written]
        reference = {
            "name": "files",
            "kind": "FileDataset",
            "uri": datastore.uri("files"),
            "files": files,
        }
        found = _handler(list[Path]).load(reference, ours)
        assert len(found) == len(paths)
        for path in found:
            path.unlink()
        shutil.rmtree(os.environ[downloads.CACHE])

    def download_with_adlfs() -> None:
        copies.mkdir()
        filesystem.get(remote, [str(copies / path.name) for path in paths], **concurrency)
        shutil.rmtree(copies)

    def download_raw() -> None:
        copies.mkdir()
        _in_threads(lambda path: _download(container, path.name, copies / path.name), paths)
        shutil.rmtree(copies)

    def upload_ours() -> None:
        written[:] = _handler(Path).write(source, _target(datastore, "files"), ours)

    bench.compare(
        "Files",
        f"upload {what}",
        {
            "ours": upload_ours,
            "azure-storage-blob": lambda: _in_threads(lambda path: _upload(container, path), paths),
            "adlfs": lambda: filesystem.put([*map(str, paths)], remote, **concurrency),
        },
        at_most=_THROUGHPUT,
        warm_up=False,
    )
    bench.compare(
        "Files",
        f"download {what}",
        {"ours": download_ours, "azure-storage-blob": download_raw, "adlfs": download_with_adlfs},
        at_most=_THROUGHPUT,
        warm_up=False,
    )


def _upload(container: ContainerClient, path: Path) -> None:
    with path.open("rb") as stream:
        container.upload_blob(
            f"raw/{path.name}",
            stream,
            length=path.stat().st_size,
            overwrite=True,
            max_concurrency=_CONNECTIONS,
        )


def _download(container: ContainerClient, name: str, path: Path) -> None:
    with path.open("wb") as stream:
        container.download_blob(f"raw/{name}", max_concurrency=_CONNECTIONS).readinto(stream)


def _in_threads(function: Callable[[Path], None], paths: Sequence[Path]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(function, paths))


def _make_files(folder: Path, *, count: int, size: int) -> None:
    folder.mkdir()
    for number in range(count):
        with (folder / f"{number:06}").open("wb") as file:
            for start in range(0, size, _BLOCK_BYTES):
                file.write(os.urandom(min(_BLOCK_BYTES, size - start)))


def _measure_memory(bench: _Bench, azurite: Azurite, source: Path) -> None:
    # In a process of its own that has done it with a small file before: what is measured is the
    # copying, without what the libraries take when they are loaded.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        grown = pool.submit(_growth, azurite.endpoint, source, bench.scratch).result()
    size = _size(next(source.iterdir()).stat().st_size)
    for what, value in grown.items():
        bench.results.memory.append(Memory(f"{what} 1 x {size}, ours", value))
        print(f"Memory: {what}: grown by {value / 2**20:.0f} MiB", flush=True)


def _growth(endpoint: str, source: Path, scratch: Path) -> dict[str, int]:
    """Return by how many bytes this process grows at an upload and at a download."""
    datastore = _at(endpoint)
    access = handlers.Access(storage=datastore.storage(), spark=_no_spark)
    small = scratch / "small"
    small.write_bytes(b"x")
    grown = {}
    for path in (small, source):
        before = _restart_peak()
        written = _handler(Path).write(path, _target(datastore, "memory"), access)
        grown["upload"] = _peak() - before
        reference = {
            "name": "memory",
            "kind": "FileDataset",
            "uri": datastore.uri("memory"),
            "files": [{**file, "partition": None} for file in written],
        }
        before = _restart_peak()
        _handler(list[Path]).load(reference, access)
        grown["download"] = _peak() - before
    shutil.rmtree(os.environ[downloads.CACHE])
    return grown


def _restart_peak() -> int:
    """Let the kernel's record of the peak begin anew, where it can, and return what is resident."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    return int(psutil.Process().memory_info().rss)


def _peak() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return int(psutil.Process().memory_info().rss)
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


# --- Tables -------------------------------------------------------------------------------------


def _bench_tables(bench: _Bench) -> None:
    rows = bench.scaled(_ROWS)
    values = _table(rows)
    with Azurite() as azurite:
        azurite.create_container(CONTAINER)
        datastore = _on(azurite)
        by_token = _without_native(datastore.storage())
        native = datastore.storage()
        url = datastore.delta_uri(datastore.uri("raw"))
        options = datastore.delta_storage_options()
        polars_options = {k: v for k, v in options.items() if k not in _PATIENCE}

        def write(storage: Storage) -> None:
            slot = Slot("ours")
            target = slot.fresh_target(datastore, attempt="bench")
            access = handlers.Access(storage=storage, spark=_no_spark)
            written = _handler(pa.Table).write(values, target, access)
            staged = StagedDataset(
                attempt=uuid.uuid4().hex,
                kind="TabularDataset",
                folder=target.folder,
                files=tuple(DataFile(**file) for file in written),
            )
            table.commit(datastore, staged, slot=slot)

        def scan(storage: Storage) -> pl.LazyFrame:
            reference = table.resolve(datastore, "ours").to_json()
            access = handlers.Access(storage=storage, spark=_no_spark)
            frame: pl.LazyFrame = _handler(pl.LazyFrame).load(reference, access)
            return frame

        def scan_delta() -> pl.LazyFrame:
            opened = DeltaTable(url, storage_options=polars_options)
            return pl.scan_delta(opened, storage_options=polars_options)

        bench.compare(
            "Tables",
            f"write and commit {rows:,} rows of Arrow",
            {
                "ours": lambda: write(native),
                "write_deltalake": lambda: write_deltalake(
                    url, values, mode="overwrite", storage_options=options
                ),
            },
            at_most=_THROUGHPUT,
        )
        bench.compare(
            "Tables",
            "the same with a token login",
            {
                "ours": lambda: write(by_token),
                "write_deltalake": lambda: write_deltalake(
                    url, values, mode="overwrite", storage_options=options
                ),
            },
        )
        path = DeltaTable(url, storage_options=options).file_uris()[0]
        summed = pl.col("v").sum()
        queries: dict[str, Callable[[pl.LazyFrame], pl.LazyFrame]] = {
            "read all columns": lambda frame: frame,
            "sum by key": lambda frame: frame.group_by("k").agg(summed),
        }

        def collect(query: str, frame: Callable[[], pl.LazyFrame]) -> Callable[[], object]:
            return lambda: queries[query](frame()).collect()

        for query in queries:
            raw = {
                "scan_delta": collect(query, scan_delta),
                "scan_parquet": collect(
                    query, lambda: pl.scan_parquet(path, storage_options=polars_options)
                ),
            }
            bench.compare(
                "Tables",
                f"LazyFrame of {rows:,} rows, {query}",
                {"ours": collect(query, lambda: scan(native)), **raw},
                at_most=_THROUGHPUT,
            )
            bench.compare(
                "Tables",
                "the same with a token login",
                {"ours": collect(query, lambda: scan(by_token)), **raw},
            )


def _table(rows: int) -> pa.Table:
    frame = pl.DataFrame({"id": pl.int_range(rows, eager=True)})
    columns = frame.with_columns(
        v=(pl.col("id").hash(1) / 2**64).cast(pl.Float64),
        w=(pl.col("id").hash(2) / 2**64).cast(pl.Float64),
        k=(pl.col("id").hash(3) % 1_000).cast(pl.Int64),
        s=pl.format("name-{}", pl.col("id").hash(4) % 5_000),
    )
    return columns.to_arrow(compat_level=pl.CompatLevel.oldest())


def _without_native(storage: Storage) -> Storage:
    """Return a storage that reads and writes Parquet as one with a token login does."""
    spare = type(storage)(container=CONTAINER, options=storage._options)  # type: ignore[attr-defined, call-arg]
    spare.__dict__["_native_filesystem"] = None
    return spare


# --- Commits ------------------------------------------------------------------------------------


def _bench_commits(bench: _Bench) -> None:
    for where, datastore, close in _stores(bench):
        try:
            for count in _COUNTS:
                _compare_commits(bench, datastore, where=where, count=bench.scaled(count))
        finally:
            close()


def _compare_commits(bench: _Bench, datastore: Datastore, *, where: str, count: int) -> None:
    slot = Slot(f"ours-{count}")
    staged = _stage(datastore, slot, count=count)
    uri = dataset_uri(datastore, slot.name)
    options = datastore.delta_storage_options()
    floor, parts = (datastore.delta_uri(datastore.uri(f"{k}-{count}")) for k in ("floor", "parts"))
    new = table._new_content(datastore, uri, staged, slot)
    rows = pa.table(
        {"x": range(3 * count), "part": [str(number // 3) for number in range(3 * count)]}
    )
    create_table_with_add_actions(floor, new.schema, new.adds, storage_options=options)

    def commit_ready() -> None:
        opened = DeltaTable(floor, storage_options=options)
        opened.create_write_transaction([*new.adds], mode="overwrite", schema=new.schema)

    def write_parts() -> None:
        write_deltalake(parts, rows, partition_by="part", mode="overwrite", storage_options=options)

    part, what = "Commits", f"{where}, {count:,} files"
    ours = functools.partial(_commit, datastore, staged, slot)
    bench.compare(part, what, {"ours": ours, "write_deltalake": write_parts}, at_most=_COMMIT)
    bench.compare(part, what, {"ours": ours, "floor": commit_ready})


def _bench_versions(bench: _Bench) -> None:
    versions = bench.scaled(_VERSIONS)
    made = Datastore(root=str(bench.scratch / "made"))
    for name, number in (("one", 1), ("many", versions)):
        slot = Slot(name)
        staged = _stage(made, slot, count=_FILES_PER_VERSION)
        for _ in range(number):
            _commit(made, staged, slot)
    for where, datastore, close in _stores(bench):
        try:
            staged_in = {name: _copied(made, datastore, Slot(name)) for name in ("one", "many")}
            commits = {
                name: functools.partial(_commit, datastore, staged, Slot(name))
                for name, staged in staged_in.items()
            }
            first, many = "after the first", f"after {versions:,}"
            bench.compare(
                "Many versions",
                f"{where}, commit {many} versions",
                {many: commits["many"], first: commits["one"]},
                at_most=_AFTER_MANY,
            )
            bench.compare(
                "Many versions",
                f"{where}, resolve {many} versions",
                {
                    many: functools.partial(table.resolve, datastore, "many"),
                    first: functools.partial(table.resolve, datastore, "one"),
                },
                at_most=_AFTER_MANY,
            )
            options = datastore.delta_storage_options()
            opened = {
                name: functools.partial(
                    DeltaTable, datastore.delta_uri(datastore.uri(name)), storage_options=options
                )
                for name in ("one", "many")
            }
            bench.compare(
                "Many versions",
                f"{where}, deltalake alone opens the table {many} versions",
                {many: opened["many"], first: opened["one"]},
            )
            if datastore.location.kind == "azure":
                bench.compare(
                    "Many versions",
                    f"{where} alone lists the end of the log {many} versions",
                    {
                        many: functools.partial(
                            _list_newest, datastore, "many", after=versions - 1
                        ),
                        first: functools.partial(_list_newest, datastore, "one", after=0),
                    },
                )
        finally:
            close()


def _bench_references(bench: _Bench) -> None:
    for where, datastore, close in _stores(bench):
        try:
            for count in _COUNTS:
                files = bench.scaled(count)
                for size in _REFERENCE_BYTES:
                    _fake(datastore, f"of-{size}-{files}", files=files, size=size)
                small, large = (
                    functools.partial(_load_reference, datastore, f"of-{size}-{files}")
                    for size in _REFERENCE_BYTES
                )
                bench.compare(
                    "References",
                    f"{where}, {files:,} files",
                    {"10 GB": large, "1 KB": small},
                    at_most=_INDEPENDENT,
                )
        finally:
            close()


def _stores(bench: _Bench) -> list[tuple[str, Datastore, Callable[[], None]]]:
    """Return the stores by name, each with what ends it."""
    azurite = Azurite()
    azurite.start()
    azurite.create_container(CONTAINER)
    folder = bench.scratch / uuid.uuid4().hex
    return [
        ("Azurite", _on(azurite), azurite.stop),
        ("local", Datastore(root=str(folder)), lambda: shutil.rmtree(folder)),
    ]


def _stage(datastore: Datastore, slot: Slot, *, count: int) -> StagedDataset:
    """Write small Parquet files as an attempt would have left them."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": [1, 2, 3]}), buffer)
    content = buffer.getvalue()
    storage = datastore.storage()
    target = slot.fresh_target(datastore, attempt="bench")
    files = [
        DataFile(path=f"{target.folder}/part-{number:05}.parquet", size=len(content), rows=3)
        for number in range(count)
    ]
    for_each_file(
        lambda file: storage.write_atomically(f"{target.uri}/{file.path}", content), files
    )
    return StagedDataset(
        attempt="bench",
        kind="TabularDataset",
        folder=target.folder,
        files=tuple(files),
        rows=3 * count,
    )


def _commit(datastore: Datastore, staged: StagedDataset, slot: Slot) -> None:
    table.commit(datastore, dataclasses.replace(staged, attempt=uuid.uuid4().hex), slot=slot)


def _copied(source: Datastore, target: Datastore, slot: Slot) -> StagedDataset:
    """Copy a dataset from a folder, and return files of it that can be committed again."""
    storage = target.storage()
    old, new = dataset_uri(source, slot.name), dataset_uri(target, slot.name)
    listed = source.storage().list_files(old)
    for_each_file(lambda file: storage.upload(Path(old, file.path), f"{new}/{file.path}"), listed)
    version = table.resolve(target, slot.name)
    folder = version.files[0].path.rpartition("/")[0]
    return StagedDataset(attempt="bench", kind="TabularDataset", folder=folder, files=version.files)


def _list_newest(datastore: Datastore, name: str, *, after: int) -> None:
    """Ask for the names from an entry on, which is what Delta asks of the server."""
    folder = f"bench/{name}/_delta_log/"
    assert isinstance(datastore.credential, Emulator)
    with BlobServiceClient(datastore.credential.endpoint, credential=ACCOUNT_KEY) as service:
        container = service.get_container_client(CONTAINER)
        list(container.list_blobs(folder, start_from=f"{folder}{after:020}"))


def _load_reference(datastore: Datastore, name: str) -> None:
    json.dumps(table.resolve(datastore, name).to_json())


def _fake(datastore: Datastore, name: str, *, files: int, size: int) -> None:
    """Make a table whose log names files that are not there."""
    schema = pa.schema([("x", pa.int64())])
    adds = [
        AddAction(f"part-{number:05}.parquet", size // files, {}, 0, True, '{"numRecords":1}')
        for number in range(files)
    ]
    create_table_with_add_actions(
        datastore.delta_uri(datastore.uri(name)),
        delta_schema(schema, Slot(name)),
        adds,
        description="TabularDataset",
        storage_options=datastore.delta_storage_options(),
    )


# --- Shared -------------------------------------------------------------------------------------


def _on(azurite: Azurite) -> Datastore:
    return _at(azurite.endpoint)


def _at(endpoint: str) -> Datastore:
    return Datastore(
        root=f"az://{CONTAINER}/bench", cloud="emulator", credential=Emulator(endpoint=endpoint)
    )


def _handler(annotation: Any) -> handlers.TypeHandler:
    handler = handlers.handler_for(annotation)
    assert handler is not None
    return handler


def _target(datastore: Datastore, name: str) -> handlers.Target:
    return Slot(name).fresh_target(datastore, attempt="bench")


def _no_spark() -> Any:
    raise AssertionError("nothing here uses Spark")


def _size(size: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.4g} {unit}"
    return f"{size} B"


def _describe_machine(scale: float) -> dict[str, str]:
    return {
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        "cores": str(psutil.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} on {platform.machine()}",
        "Python": platform.python_version(),
        **{package: metadata.version(package) for package in _PACKAGES},
        **({} if scale == 1 else {"scale of all counts": f"{scale:g}"}),
    }


_PARTS: dict[str, Callable[[_Bench], None]] = {
    "files": _bench_files,
    "tables": _bench_tables,
    "commits": _bench_commits,
    "versions": _bench_versions,
    "references": _bench_references,
}


if __name__ == "__main__":
    main()
