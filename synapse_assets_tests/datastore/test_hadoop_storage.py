"""What a Spark driver does with a store through Hadoop, and that the orchestrator sees the same.

All on one Java process with Spark's classes, apart from the one that other tests' sessions use, and
in the C locale, as many clusters have it.
"""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark import SparkConf
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from synapse_assets.compute.bundle import Bundle
from synapse_assets.datasets.handlers import set_hadoop_secrets, spark_path
from synapse_assets.datastore.hadoop import (
    HadoopStorage,
    open_hadoop_storage,
    translate,
)
from synapse_assets.datastore.storage import LocalStorage, Storage, StoredFile
from synapse_assets.errors import StorageError
from synapse_assets.services import ABFS_JARS, Azurite
from synapse_assets_tests.contract.stores import AZURITE, CONTAINER, HDFS, STORES

HOSTILE = [
    "a b",
    "100%",
    "%41%2F",
    "#1",
    "why?x=1",
    "*[a-c]{d,e}",
    "a+b&c=d;e,f",
    "'\"$~!@^(`)|<>",
    "ü日本🙂",
    "_hidden",
    ".dot",
]

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What a SparkSession has of Java: a `sparkContext` with its private members."""
    folder = tmp_path_factory.mktemp("java")
    jars = os.pathsep.join(map(str, sorted(ABFS_JARS.folder.glob("*.jar"))))
    conf = SparkConf(loadDefaults=False).setAll(
        [
            ("spark.driver.extraClassPath", jars),
            ("spark.driver.memory", "512m"),
            ("spark.driver.extraJavaOptions", f"-Djava.io.tmpdir={folder}"),
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LC_ALL", "C")
        # pyspark has no types for it.
        launch: Any = launch_gateway
        gateway = launch(conf)
    jvm = gateway.jvm
    session = (
        jvm.org.apache.spark.sql.SparkSession.builder()
        .master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.sql.warehouse.dir", str(folder / "warehouse"))
        .config("spark.hadoop.fs.file.impl", "org.apache.hadoop.fs.RawLocalFileSystem")
        .config("spark.hadoop.ipc.client.connect.max.retries", "0")
        # What a cluster's default file system is must not matter.
        .config("spark.hadoop.fs.defaultFS", "hdfs://no-such-host.invalid")
        .getOrCreate()
    )
    context = jvm.org.apache.spark.api.java.JavaSparkContext(session.sparkContext())
    context.setLogLevel("OFF")
    yield SimpleNamespace(
        sparkContext=SimpleNamespace(_jvm=jvm, _gateway=gateway, _jsc=context),
        jsession=session,
    )
    context.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(30)


@dataclass(frozen=True)
class Place:
    """A store from both ends.

    Attributes:
        storage: What the driver uses.
        other: What the orchestrator uses.
        uri: Returns a URI for the driver.
        uri_of_other: Returns the same place's URI for the orchestrator.
    """

    storage: HadoopStorage | LocalStorage
    other: Storage
    uri: Callable[..., str]
    uri_of_other: Callable[..., str]


@pytest.fixture(
    params=[
        "driver",
        # No place that a datastore has; but all of Hadoop's storage runs on it, without a service.
        "file",
        pytest.param("azurite", marks=pytest.mark.services),
        pytest.param("hdfs", marks=pytest.mark.services),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    name = request.param
    if name == "azurite":
        azurite = request.getfixturevalue("azurite")
        request.getfixturevalue("spark_abfs_jars")
        azurite.create_container(CONTAINER)
        monkeypatch.setenv(AZURITE, azurite.endpoint)
    elif name == "hdfs":
        monkeypatch.setenv(HDFS, request.getfixturevalue("hdfs").url)
    datastore = STORES.get(name, STORES["local"])(tmp_path)
    java = request.getfixturevalue("java")
    set_hadoop_secrets(java, datastore.hadoop_configuration().merged())
    if name == "file":

        def uri(*parts: str) -> str:
            return f"file://{datastore.uri(*parts)}"

        storage: Any = HadoopStorage(cast(SparkSession, java))
    else:
        uri = datastore.uri
        storage = open_hadoop_storage(datastore.uri(), cast(SparkSession, java))
    assert isinstance(storage, LocalStorage if name == "driver" else HadoopStorage)
    return Place(storage, datastore.storage(), uri, datastore.uri)


def comparable(file: StoredFile | None) -> tuple[Any, ...]:
    """Return what both ends must agree on: the tag, too, where the store has one."""
    assert file is not None
    has_etag = file.etag.startswith("0x")
    return file.path, file.size, round(file.modified), file.etag if has_etag else None


def test_both_ends_see_the_same_files_under_any_name(place: Place, java: Any) -> None:
    is_remote = not place.uri().startswith(("/", "file:"))
    # The names that Java can open on this machine in the C locale.
    names_for_java = [name for name in HOSTILE if is_remote or name.isascii()]
    names = HOSTILE if isinstance(place.storage, LocalStorage) else names_for_java
    for number, name in enumerate(names):
        ours, theirs = (name, f"o{number}"), (name, f"t{number}")
        place.storage.write_atomically(place.uri("in", *ours), name.encode())
        assert place.other.read_bytes(place.uri_of_other("in", *ours)) == name.encode()
        place.other.write_atomically(place.uri_of_other("in", *theirs), name.encode())
        assert place.storage.read_bytes(place.uri("in", *theirs)) == name.encode()
        stored = place.storage.stat(place.uri("in", *theirs))
        assert comparable(stored) == comparable(place.other.stat(place.uri_of_other("in", *theirs)))
    found = [comparable(file) for file in place.storage.list_files(place.uri("in"))]
    assert found == list(map(comparable, place.other.list_files(place.uri_of_other("in"))))
    assert len(found) == 2 * len(names)
    # Spark's readers leave out what begins with a dot or an underscore.
    for name in [name for name in names_for_java if name[0] not in "._"]:
        path = spark_path(place.uri("in", name))
        if path.startswith("/"):
            path = f"file://{path}"
        assert {row.getString(0) for row in java.jsession.read().text(path).collectAsList()} == {
            name
        }


def test_content_is_replaced_as_a_whole_and_removed(place: Place) -> None:
    uri = place.uri("a", "record.json")
    assert place.storage.read_bytes(uri) is None
    assert place.storage.stat(uri) is None
    for content in (b"long" * 100_000, b"\x00\xff\n", b""):
        place.storage.write_atomically(uri, content)
        assert place.storage.read_bytes(uri) == content
    place.storage.write_once(uri, b"late")
    assert place.storage.read_bytes(uri) == b""
    place.storage.write_once(place.uri("a", "b", "new"), b"first")
    assert place.storage.read_text(place.uri("a", "b", "new")) == "first"
    names = [file.path for file in place.storage.list_files(place.uri("a"))]
    assert names == ["b/new", "record.json"]
    for _ in "12":
        place.storage.remove(uri)
    assert place.storage.stat(uri) is None


def test_folder_and_nothing_are_no_files(place: Place) -> None:
    place.storage.write_atomically(place.uri("a", "b"), b"x")
    assert place.storage.stat(place.uri("a")) is None
    assert place.storage.list_files(place.uri("nothing")) == []
    assert place.storage.list_files(place.uri("a", "b")) == []


def test_only_one_of_many_creates_a_file(place: Place) -> None:
    if place.uri().startswith("file:"):
        pytest.skip("Hadoop looks first and creates then, on a local file system")
    start = threading.Barrier(6)

    def claim(folder: str, number: int) -> bool:
        start.wait()
        return place.storage.create_once(place.uri(folder, "one"), str(number).encode())

    with ThreadPoolExecutor(6) as pool:
        for folder in ("claims-1", "claims-2", "claims-3"):
            won = list(pool.map(claim, [folder] * 6, range(6)))
            assert won.count(True) == 1
            uri = place.uri(folder, "one")
            assert place.storage.read_text(uri) == str(won.index(True))
            assert not place.storage.create_once(uri, b"late")
            assert [file.path for file in place.storage.list_files(place.uri(folder))] == ["one"]


def test_reader_never_sees_half_a_file(place: Place) -> None:
    contents = [b"a" * 300_000, b"b" * 500_000]
    seen = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(place.other.read_bytes(place.uri_of_other("f")))

    place.storage.write_atomically(place.uri("f"), contents[0])
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for number in range(8):
            place.storage.write_atomically(place.uri("f"), contents[number % 2])
        done.set()
        reading.result()
    # Hadoop cannot replace a file on Azure storage in one step.
    gone = {None} if place.uri().startswith("abfs") else set()
    assert seen <= {*contents, *gone}


@pytest.mark.parametrize("name", ["plain", "ü 日本#%41"])
def test_files_go_up_and_down(place: Place, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "local" / name
    folder.mkdir(parents=True)
    content = os.urandom(9 << 20)
    (folder / name).write_bytes(content)
    # It would be taken for a checksum.
    (folder / f".{name}.crc").write_bytes(b"crc\x00")
    for source, target in ((f".{name}.crc", ".f.crc"), (name, "f")):
        stored = place.storage.upload(folder / source, place.uri("up", target))
        assert comparable(stored) == comparable(place.other.stat(place.uri_of_other("up", target)))
    sha256 = place.storage.download(place.uri("up", "f"), folder / "back" / name)
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert (folder / "back" / name).read_bytes() == content
    assert [path.name for path in (folder / "back").iterdir()] == [name]
    names = [file.path for file in place.storage.list_files(place.uri("up"))]
    assert names == [".f.crc", "f"]


@pytest.mark.parametrize("name", ["plain", "ü 日本#%41"])
def test_file_that_is_gone_leaves_nothing_behind(place: Place, tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        place.storage.download(place.uri("nothing"), tmp_path / "back" / name)
    assert list((tmp_path / "back").iterdir()) == []


def test_arrow_writes_and_reads_parquet(place: Place) -> None:
    uri = place.uri("t", "a b%20", "part-0.parquet")
    table = pa.table({"n": range(100_000), "s": ["ü"] * 100_000})
    with (
        place.storage.arrow_output(uri) as (path, filesystem),
        pq.ParquetWriter(path, table.schema, filesystem=filesystem) as writer,
    ):
        writer.write_table(table.slice(0, 60_000))
        writer.write_table(table.slice(60_000))
    path, filesystem = place.storage.arrow_path(uri), place.storage.arrow_filesystem()
    form = ds.ParquetFileFormat()
    fragment = form.make_fragment(path, filesystem)
    assert fragment.to_table() == table
    dataset = ds.FileSystemDataset([fragment], table.schema, form, filesystem)
    assert dataset.to_table(filter=ds.field("n") < 10, columns=["n"]).num_rows == 10


def test_arrow_file_that_fails_is_not_stored(place: Place) -> None:
    if isinstance(place.storage, LocalStorage):
        pytest.skip("pyarrow writes where the file lies")
    uri = place.uri("t", "part-0.parquet")
    with contextlib.suppress(ZeroDivisionError), place.storage.arrow_output(uri) as (path, _):
        pq.write_table(pa.table({"n": [1]}), path)
        raise ZeroDivisionError
    assert place.storage.stat(uri) is None
    assert not Path(path).exists()


def test_a_cluster_has_no_file_system_of_fsspec(place: Place) -> None:
    if isinstance(place.storage, HadoopStorage):
        with pytest.raises(StorageError, match="no fsspec file system"):
            place.storage.filesystem()


ABFS = 'Operation failed: "{}", {}, GET, https://a.dfs.core.windows.net/c?x, rId: 1, {}, "…"'


@pytest.mark.parametrize(
    ("causes", "problem", "remedy"),
    [
        (
            ["java.nio.file.AccessDeniedException", "java.io.IOException"],
            ABFS.format("Not authorized to do this.", 403, "AuthorizationPermissionMismatch"),
            r"Not authorized to do this \(403\)\. Give .* Blob Data Contributor",
        ),
        (
            ["java.io.IOException"],
            ABFS.format("Server failed to authenticate.", 403, "AuthenticationFailed"),
            r"authenticate \(403\)\. Look whether the login",
        ),
        (
            ["java.io.FileNotFoundException"],
            ABFS.format("The specified filesystem does not exist.", 404, "FilesystemNotFound"),
            r"not exist \(404\)\. Create the container",
        ),
        (["java.io.IOException"], ABFS.format("Busy.", 503, "ServerBusy"), "run it again later"),
        (
            ["org.apache.hadoop.security.AccessControlException"],
            "Permission denied: user=u, access=WRITE\n\tat org.apache.Some.trace",
            "access=WRITE. Give the user",
        ),
        (
            ["java.lang.IllegalArgumentException", "java.net.UnknownHostException"],
            "nowhere.invalid",
            r"nowhere\.invalid\. Look whether the host",
        ),
        (
            ["java.net.ConnectException"],
            "Call From a to b failed: refused; For more details see:  http://wiki",
            "failed: refused. Look whether the store is up",
        ),
        (
            ["org.apache.hadoop.fs.UnsupportedFileSystemException"],
            'No FileSystem for scheme "abfss"',
            "class path of the Spark driver",
        ),
        (["java.io.IOException"], "No space left on device", "Make room"),
        (["java.lang.IllegalStateException"], "", "IllegalStateException. Look at the log"),
    ],
)
def test_error_is_one_line_with_place_and_remedy(
    java: Any, causes: list[str], problem: str, remedy: str
) -> None:
    jvm = java.sparkContext._jvm
    error = None
    for name in reversed(causes):
        made = jvm.java.lang.Class.forName(name).getName()
        kind: Any = jvm
        for part in made.split("."):
            kind = getattr(kind, part)
        throwable = kind(problem) if problem else kind()
        if error is not None:
            throwable.initCause(error)
        error = throwable
    uri = "abfss://c@a.dfs.core.windows.net/f"
    translated = translate(Py4JJavaError("", error), "read", uri)
    assert isinstance(translated, StorageError)
    assert str(translated).startswith(f"Could not read {uri}: ")
    assert "\n" not in str(translated)
    assert re.search(remedy, str(translated))


def test_store_that_is_not_there_is_an_error(java: Any) -> None:
    storage = open_hadoop_storage("hdfs://127.0.0.1:1/a", cast(SparkSession, java))
    with pytest.raises(StorageError, match=r"^Could not look at hdfs:.*is up") as raised:
        storage.stat("hdfs://127.0.0.1:1/a")
    assert isinstance(raised.value.__cause__, Py4JJavaError)


@pytest.mark.services
@pytest.mark.usefixtures("spark_abfs_jars")
def test_container_that_is_not_there_is_an_error(
    java: Any, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(AZURITE, azurite.endpoint)
    datastore = STORES["azurite"](Path("/x"))
    set_hadoop_secrets(java, datastore.hadoop_configuration().merged())
    storage = HadoopStorage(cast(SparkSession, java))
    missing = datastore.uri("f").replace(f"{CONTAINER}@", "no-such-container@")
    for operation in (storage.read_bytes, storage.stat, storage.list_files):
        with pytest.raises(StorageError, match="Create the container"):
            operation(missing)
    with pytest.raises(StorageError, match="Create the container"):
        storage.write_atomically(missing, b"x")


def test_bundled_module_needs_the_standard_library_alone(tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    path.write_bytes(Bundle.of_module("synapse_assets.steps.land").content)
    code = (
        f"import sys; sys.path.insert(0, {str(path)!r}); before = set(sys.modules); "
        "import synapse_assets.datastore.hadoop as module; assert '.zip' in module.__file__; "
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "loaded -= {'synapse_assets', *sys.stdlib_module_names}; assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
