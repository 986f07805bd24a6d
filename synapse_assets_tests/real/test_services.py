"""The services themselves: they start, keep data over a crash, stay on loopback and end."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from xml.etree import ElementTree as ET

import psutil
import pytest
from azure.core.credentials import AzureNamedKeyCredential
from azure.storage.blob import (
    BlobServiceClient,
    ContainerClient,
    ContainerSasPermissions,
    generate_container_sas,
)
from hdfs_native import Client

from synapse_assets.errors import ConfigurationError, SynapseAssetsError
from synapse_assets.services import Azurite, Hdfs, downloads
from synapse_assets.services.azurite import ACCOUNT, ACCOUNT_KEY
from synapse_assets.services.process import Server, Service, choose_ports, is_free
from synapse_assets.services.supervisor import run_emulator

pytestmark = pytest.mark.services

_END_SECONDS = 30.0


def processes_of(server: Server) -> list[psutil.Process]:
    """Return the processes in the group of a server."""
    group = server.process_group
    assert group is not None
    return [
        process
        for process in psutil.process_iter()
        if process.pid > 0 and _process_group(process) == group
    ]


def _process_group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def listening_addresses(server: Server) -> set[str]:
    return {
        connection.laddr.ip
        for process in processes_of(server)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    }


def wait_for(condition: Callable[[], bool], *, what: str) -> None:
    end = time.monotonic() + _END_SECONDS
    while not condition():
        assert time.monotonic() < end, f"still not after {_END_SECONDS:.0f} s: {what}"
        time.sleep(0.1)


@pytest.fixture
def container(azurite: Azurite) -> Iterator[ContainerClient]:
    name = f"services-{uuid.uuid4().hex[:8]}"
    azurite.create_container(name)
    azurite.create_container(name)  # once more changes nothing
    credential = AzureNamedKeyCredential(ACCOUNT, ACCOUNT_KEY)
    with BlobServiceClient(azurite.endpoint, credential=credential) as service:
        yield service.get_container_client(name)


def test_a_killed_azurite_comes_back_with_all_that_it_acknowledged(
    azurite: Azurite, container: ContainerClient
) -> None:
    container.upload_blob("a/b.txt", b"before")
    for round_number in range(3):
        container.upload_blob("a/b.txt", b"%d" % round_number, overwrite=True)
        container.upload_blob(f"a/{round_number}.txt", b"")
        azurite.kill()
        assert is_free(azurite.port)
        azurite.start()
        assert container.download_blob("a/b.txt").readall() == b"%d" % round_number
    assert sorted(container.list_blob_names()) == ["a/0.txt", "a/1.txt", "a/2.txt", "a/b.txt"]


def test_a_stopped_azurite_keeps_what_it_holds_in_its_folder(tmp_path: Path) -> None:
    with Azurite(folder=tmp_path / "a folder") as azurite:
        azurite.create_container("kept")
    with (
        Azurite(folder=tmp_path / "a folder", port=azurite.port) as again,
        BlobServiceClient(again.endpoint, credential=ACCOUNT_KEY) as service,
    ):
        assert again.endpoint == azurite.endpoint
        assert [found.name for found in service.list_containers()] == ["kept"]


def test_azurite_lists_blobs_and_folders_in_one_order_by_name_as_azure_does(
    azurite: Azurite, container: ContainerClient
) -> None:
    for name in ("f/a", "f/a/1", "f/a-b", "f/a-b/<&>/1", "f/ü", "f/b=1/1", "f/a/2"):
        container.upload_blob(name, b"")
    name = str(container.container_name)
    signature = generate_container_sas(
        ACCOUNT,
        name,
        account_key=ACCOUNT_KEY,
        permission=ContainerSasPermissions(list=True),
        expiry=datetime.now(timezone.utc) + timedelta(hours=1),
    )
    query = f"restype=container&comp=list&delimiter=/&prefix=f/&{signature}"
    # Not with the SDK, which keeps blobs and folders apart.
    with urllib.request.urlopen(f"{azurite.endpoint}/{name}?{query}") as answer:
        listing = ET.fromstring(answer.read())
    listed = [element.text for element in listing.findall("./Blobs/*/Name")]
    assert listed == ["f/a", "f/a-b", "f/a-b/", "f/a/", "f/b=1/", "f/ü"]
    assert [found.name for found in container.walk_blobs("f/a-b/")] == ["f/a-b/<&>/"]


def test_azurite_lists_from_a_name_on_as_azure_does(container: ContainerClient) -> None:
    for name in ("f/1.json", "f/1.x", "f/2", "f/2.json", "f/3.json", "g/4"):
        container.upload_blob(name, b"")

    def listed(start_from: str) -> list[str]:
        found = container.list_blobs("f/", start_from=start_from, results_per_page=2)
        return [blob.name for blob in found]

    assert listed("f/2") == ["f/2", "f/2.json", "f/3.json"]
    assert listed("f/1.k") == ["f/1.x", "f/2", "f/2.json", "f/3.json"]
    assert listed("f/4") == []


@pytest.mark.spark
def test_spark_writes_and_reads_partitions_on_both(
    azurite: Azurite, container: ContainerClient, hdfs: Hdfs, spark_abfs_jars: list[Path]
) -> None:
    account = f"{ACCOUNT}.dfs.core.windows.net"
    configuration = {
        "spark.driver.extraClassPath": os.pathsep.join(map(str, spark_abfs_jars)),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.hadoop.fs.azure.abfs.endpoint": f"127.0.0.1:{azurite.port}",
        "spark.hadoop.fs.azure.account.hns.enabled": "false",
        "spark.hadoop.fs.azure.account.key." + account: ACCOUNT_KEY,
        "spark.hadoop.fs.azure.always.use.https": "false",
        "spark.hadoop.fs.azure.fns.account.service.type": "BLOB",
        "spark.hadoop.fs.azure.networking.library": "JDK_HTTP_URL_CONNECTION",
    }
    script = """if True:
        import json, sys
        from pyspark.sql import SparkSession
        builder = SparkSession.builder.master("local[2]")
        for name, value in json.loads(sys.argv[1]).items():
            builder = builder.config(name, value)
        spark = builder.getOrCreate()
        for folder in sys.argv[2:]:
            rows = spark.range(100).selectExpr("id", "id % 3 AS part")
            rows.write.partitionBy("part").parquet(folder)
            for read in (folder, folder + "/part=1"):
                print(spark.read.parquet(read).count())
        spark.stop()
    """
    folders = [
        f"abfs://{container.container_name}@{account}/a folder/ü",
        f"{hdfs.url}/spark-{uuid.uuid4().hex[:8]}/a folder/ü",
    ]
    call = [sys.executable, "-c", script, json.dumps(configuration), *folders]
    result = subprocess.run(call, capture_output=True, text=True)
    assert result.stdout.split("\n") == ["100", "33", "100", "33", ""], result.stderr


def test_hdfs_keeps_files_over_a_crash_of_either_server(hdfs: Hdfs) -> None:
    client = Client(hdfs.url)
    folder = f"/services-{uuid.uuid4().hex[:8]}"
    with client.create(f"{folder}/a=1/ü.bin") as file:
        file.write(b"content" * 100_000)
    hdfs.datanode.kill()
    hdfs.start()
    assert client.read(f"{folder}/a=1/ü.bin").read() == b"content" * 100_000
    hdfs.namenode.kill()
    assert is_free(hdfs.ports["namenode"])
    hdfs.start()
    assert Client(hdfs.url).read(f"{folder}/a=1/ü.bin").read() == b"content" * 100_000


def test_hdfs_checks_permissions_of_all_but_the_user_who_started_it(
    hdfs: Hdfs, tmp_path: Path
) -> None:
    script = "import sys; from hdfs_native import Client; Client(sys.argv[1]).mkdirs('/theirs')"
    environment = {**os.environ, "HADOOP_USER_NAME": "somebody"}
    call = [sys.executable, "-c", script, hdfs.url]
    refused = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert "Permission denied: user=somebody, access=WRITE" in refused.stderr
    assert subprocess.run(call).returncode == 0


def test_services_listen_on_loopback_only(azurite: Azurite, hdfs: Hdfs) -> None:
    for server in (*azurite.servers, *hdfs.servers):
        addresses = listening_addresses(server)
        assert addresses, server.name
        assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, server.name


def test_nothing_is_left_of_stopped_services() -> None:
    with ExitStack() as stack:
        azurite = stack.enter_context(Azurite())
        hdfs = stack.enter_context(Hdfs())
        servers = [*azurite.servers, *hdfs.servers]
        processes = [process for server in servers for process in processes_of(server)]
        assert len(processes) == 6  # each with its guard
    assert not any(process.is_running() for process in processes)
    assert not azurite.folder.exists()
    assert not hdfs.folder.exists()
    assert all(is_free(port) for port in [azurite.port, *hdfs.ports.values()])


def test_services_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time; from synapse_assets.services import Azurite\n"
        "server = Azurite(folder=pathlib.Path(sys.argv[1])); server.start()\n"
        "print(server.servers[0].process_group, server.endpoint, flush=True); time.sleep(600)"
    )
    call = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        group, endpoint = parent.stdout.readline().split()
        with BlobServiceClient(endpoint, credential=ACCOUNT_KEY) as service:
            service.create_container("kept")
        parent.kill()

    def is_gone() -> bool:
        try:
            os.killpg(int(group), 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(is_gone, what="Azurite ends after its parent")
    # It was asked to end, and has saved what it held.
    assert "kept" in (tmp_path / "azurite" / "__azurite_db_blob__.json").read_text()


def test_a_taken_port_is_refused_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for service in (Azurite, Hdfs):
            with pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1: it is taken"):
                service(port=port)


class NeverReady(Service):
    """A service that runs a command and is never ready."""

    start_seconds = 2.0

    def __init__(self, folder: Path, *command: str) -> None:
        super().__init__(folder)
        self.servers = [Server("Nothing", command, log_file=folder / "log")]

    def is_ready(self) -> bool:
        return False


def test_a_server_that_does_not_start_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    program = "import sys; print('no such\\nfolder', file=sys.stderr); sys.exit(3)"
    with pytest.raises(SynapseAssetsError, match=r"Nothing ended\. [^\0]*folder$"):
        NeverReady(tmp_path, sys.executable, "-c", program).start()
    silent = NeverReady(tmp_path, "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    with pytest.raises(SynapseAssetsError, match="Nothing was not ready within 2 s"):
        silent.start()
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_missing_program_is_named_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    java = shutil.which("java")
    assert java is not None
    monkeypatch.setenv("JAVA_HOME", str(Path(java).resolve().parent.parent))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SYNAPSE_ASSETS_SERVICES", str(tmp_path / "services"))
    for program, fetch in (
        ("npm", downloads.AZURITE_PACKAGES.fetch),
        ("mvn", downloads.HDFS_JARS.fetch),
        ("node", Azurite),
    ):
        with pytest.raises(ConfigurationError) as refused:
            fetch()
        assert f"PATH has no '{program}'. Install it (Debian, Ubuntu: apt-get" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_what_was_fetched_half_is_fetched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SYNAPSE_ASSETS_SERVICES", str(tmp_path / "services"))
    programs = tmp_path / "programs"
    programs.mkdir()
    mvn = programs / "mvn"
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    # Stands in for Maven, and writes where Maven is told to.
    write = 'for a; do case $a in -DoutputDirectory=*) touch "${a#*=}/one.jar";; esac; done\n'
    mvn.write_text(f"#!/bin/sh\n{write}echo '[ERROR] the line went dead'\nexit 1\n")
    mvn.chmod(0o755)
    example = downloads.jars("example", "An example", "a:b:1")
    with pytest.raises(ConfigurationError, match=r"could not fetch a:b:1: \[ERROR\] the line went"):
        example.fetch()
    mvn.write_text(f"#!/bin/sh\n{write}echo called >> '{tmp_path}/calls'\n")
    for _ in range(2):
        assert [jar.name for jar in example.jars()] == ["one.jar"]
    assert (tmp_path / "calls").read_text() == "called\n"


@pytest.mark.timeout(300)
def test_the_supervisor_runs_until_it_is_told_to_stop_and_keeps_the_data(tmp_path: Path) -> None:
    ports = choose_ports("A test", *[None] * 5)
    script = (
        "import functools, pathlib, signal, sys\n"
        "from synapse_assets.services.supervisor import Ports, run_services\n"
        # It may be ignored: a shell does that to what it runs in the background.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "run_services(ports=Ports(*map(int, sys.argv[2:])), data=pathlib.Path(sys.argv[1]),\n"
        "    say=functools.partial(print, flush=True))"
    )
    call = [sys.executable, "-c", script, str(tmp_path), *map(str, ports)]
    said = ""
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said += line
                if "Ctrl-C stops all of them" in line:
                    break
            else:
                pytest.fail(f"it did not start: {said}")
            second = subprocess.run(call, capture_output=True, text=True)
            assert "The services run already" in second.stderr
            process.send_signal(number)
            said += process.stdout.read()
        assert process.returncode == 0
        assert all(is_free(port) for port in ports)
    assert said.count("Stopped. The data is kept") == 2
    assert re.search(rf"export SYNAPSE_ASSETS_DATASTORE=hdfs://127.0.0.1:{ports[2]}/", said)
    assert f". {tmp_path}/azureml/azure.env" in said
    with (
        Azurite(folder=tmp_path / "azurite") as azurite,
        BlobServiceClient(azurite.endpoint, credential=ACCOUNT_KEY) as service,
    ):
        assert [found.name for found in service.list_containers()] == ["synapse-assets"]


@pytest.mark.timeout(180)
def test_the_emulators_alone_make_their_container_in_the_azurite_that_is_there(
    azurite: Azurite,
) -> None:
    script = (
        "from synapse_assets.services.supervisor import run_emulator\n"
        "run_emulator(port=None, pools=['one'], master='local[1]')"
    )
    environment = {**os.environ, "SYNAPSE_ASSETS_AZURITE": azurite.endpoint}
    call = [sys.executable, "-c", script]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        said = "".join(iter(process.stdout.readline, "Ctrl-C stops them, and all that they run.\n"))
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "Stopped.\n"
    assert "Looking for Azurite" not in said
    with BlobServiceClient(azurite.endpoint, credential=ACCOUNT_KEY) as service:
        assert "synapse-assets" in [found.name for found in service.list_containers()]


def test_an_azurite_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = choose_ports("A test", None)
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    monkeypatch.setenv("SYNAPSE_ASSETS_AZURITE", endpoint)
    with pytest.raises(ConfigurationError, match=rf"{endpoint}.*SYNAPSE_ASSETS_AZURITE"):
        run_emulator(port=None, pools=["one"], master="local[1]")
