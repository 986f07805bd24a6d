"""`synapse-assets doctor`: what it finds where all is well, and the remedy where it is not."""

import base64
import datetime as dt
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import pytest

from synapse_assets.cli import main
from synapse_assets.compute.cpu import AzureMLCpu
from synapse_assets.compute.java import require_java
from synapse_assets.compute.spark import LocalSpark
from synapse_assets.datastore import Datastore, credentials
from synapse_assets.datastore.credentials import DefaultChain, Emulator, Options
from synapse_assets.doctor import CHECKS, Check, Finding, Subject, examine, identity, run_checks
from synapse_assets.doctor.check import ok
from synapse_assets.doctor.compute import check_spark
from synapse_assets.services import (
    ML_RESOURCE_GROUP,
    ML_SUBSCRIPTION,
    ML_WORKSPACE,
    SYNAPSE_POOL,
    AzureMLStandIn,
    Azurite,
    Hdfs,
    SynapseEmulator,
)
from synapse_assets.settings import dagster_home, deployment

ACCOUNT = "devstoreaccount1"
KEY = base64.b64encode(b"the key of the account that nobody may see").decode()
SIGNATURE = "c2lnbmF0dXJlIG9mIHRoZSBTQVM%3D"
SAS = f"sv=2026-02-06&sr=c&sp=rl&se=2099-01-01T00:00:00Z&sig={SIGNATURE}"
LOCATION = "abfss://container@account.dfs.core.windows.net/folder"

Findings = dict[str, Finding]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AZURITE", "DEPLOYMENT", "LIVY", "STORAGE_KEY", "STORAGE_SAS", "SYNAPSE"):
        monkeypatch.delenv(f"SYNAPSE_ASSETS_{name}", raising=False)
    monkeypatch.delenv("HADOOP_USER_NAME", raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster_home"))
    monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", str(tmp_path / "datastore"))
    return tmp_path / "dagster_home"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Refusing(BaseHTTPRequestHandler):
    """Answers whatever is asked of it that this is not allowed."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_GET  # noqa: N815 -- http.server's name

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Yield the URL of an HTTP server."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def look() -> Findings:
    """Return what all checks find, by their names."""
    return {
        finding.name: finding for finding in examine(deployment=deployment(), home=dagster_home())
    }


def problems(findings: Findings) -> dict[str, str]:
    """Return what is not well, by the names of the checks; each has a remedy."""
    for finding in findings.values():
        assert bool(finding.remedy) == (finding.status in ("failed", "warning")), finding
    return {f.name: f.status for f in findings.values() if f.status != "ok"}


class TestMachine:
    def test_all_is_well_with_a_folder_and_nothing_is_left_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "datastore").mkdir()
        findings = look()
        assert problems(findings) == {}
        assert {"python", "java", "home", "disk", "pools", "rights", "commit"} <= set(findings)
        assert not {"reach", "identity", "container"} & set(findings)
        assert list((tmp_path / "datastore").iterdir()) == []
        assert not (tmp_path / "dagster_home").exists()

    def test_no_java(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        require_java.cache_clear()
        try:
            findings = look()
        finally:
            require_java.cache_clear()
        assert problems(findings) == {"java": "failed"}
        assert findings["java"].found == f"Spark needs Java, and JAVA_HOME={tmp_path} has none."
        assert findings["java"].remedy.startswith("Install Java 17 or newer (Debian, Ubuntu: apt")

    @pytest.mark.parametrize(("spark", "status"), [("3.4.1", "warning"), ("4.1.0", "ok")])
    def test_version_of_spark_that_nobody_tried(
        self, monkeypatch: pytest.MonkeyPatch, spark: str, status: str
    ) -> None:
        monkeypatch.setattr(metadata, "version", lambda name: spark)
        finding = look()["python"]
        assert (finding.status, f"with pyspark {spark}" in finding.found) == (status, True)

    def test_home_that_cannot_be_written(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "file" / "home"))
        findings = look()
        assert problems(findings) == {"home": "failed"}
        assert findings["home"].found.endswith("file/home cannot be written: Not a directory")
        assert "set DAGSTER_HOME to a folder that is" in findings["home"].remedy

    @pytest.mark.parametrize(("free", "status"), [(10**8, "failed"), (10**9, "warning")])
    def test_full_disk(self, monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
        usage = namedtuple("usage", "free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free))
        findings = look()
        assert problems(findings) == {"disk": status}
        assert "DAGSTER_HOME" in findings["disk"].remedy

    @pytest.mark.parametrize(
        ("yaml", "status", "found"),
        [
            ("concurrency: {pools: {default_limit: 1}}", "ok", "one writer per dataset"),
            ("concurrency: {pools: {default_limit: 4}}", "warning", "default_limit 4 of pools"),
            ("telemetry: {enabled: false}", "warning", "no default_limit of pools"),
            ("", "warning", "no default_limit of pools"),
            ("concurrency: {", "failed", "cannot be read"),
        ],
    )
    def test_pools(self, home: Path, yaml: str, status: str, found: str) -> None:
        home.mkdir()
        (home / "dagster.yaml").write_text(yaml)
        findings = look()
        assert problems(findings) == ({} if status == "ok" else {"pools": status})
        assert found in findings["pools"].found


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "remedy"),
        [("azure", "Set SYNAPSE_ASSETS_SYNAPSE, "), ("x", "Set it to 'local', 'emulated' or ")],
    )
    def test_deployment(self, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str) -> None:
        monkeypatch.setenv("SYNAPSE_ASSETS_DEPLOYMENT", name)
        findings = look()
        assert findings["deployment"].found.startswith(f"SYNAPSE_ASSETS_DEPLOYMENT={name} is ")
        assert findings["deployment"].remedy.startswith(remedy)
        assert findings["commit"].found == "not looked at, because of 'deployment'"
        assert findings["java"].status == "ok"

    @pytest.mark.parametrize(
        ("root", "found", "remedy"),
        [
            ("s3://bucket/x", "has the scheme 's3:'", "Use a folder"),
            ("az://container/x", "names no storage account", "Set the account, or use the form"),
            (f"{LOCATION}?sv=1&sig=SECRET", "goes on with a query", "Take it out; a SAS token be"),
            (LOCATION.replace("windows.net", "chinacloudapi.cn"), "'china'", "Choose 'china'"),
        ],
    )
    def test_root(
        self, monkeypatch: pytest.MonkeyPatch, root: str, found: str, remedy: str
    ) -> None:
        monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", root)
        finding = look()["location"]
        assert found in finding.found
        assert finding.remedy.startswith(remedy)
        assert "SECRET" not in str(finding)

    def test_root_that_is_a_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "datastore").touch()
        findings = look()
        assert problems(findings) == {"root": "failed"} | dict.fromkeys(
            ["rights", "delta", "commit"], "skipped"
        )
        assert findings["root"].found == f"{tmp_path}/datastore is not a folder"

    def test_other_login_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", LOCATION)
        monkeypatch.setenv("SYNAPSE_ASSETS_STORAGE_KEY", KEY)
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", SAS)
        finding = look()["login"]
        assert finding.found.startswith("The environment variable AZURE_STORAGE_SAS_TOKEN is set")
        assert finding.remedy.startswith("Unset it")

    def test_spark_on_this_machine_lacks_the_driver_for_azure_storage(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", "az://container/folder")
        monkeypatch.setenv("SYNAPSE_ASSETS_SERVICES", str(tmp_path))
        datastore = Datastore(root="az://container/folder", account="account")
        subject = Subject(deployment="local", home=tmp_path)
        subject.spark = LocalSpark(datastore=datastore, abfs_jars=str(tmp_path))
        finding = check_spark(subject)
        assert finding.found.endswith(f"it is not in {tmp_path}")
        assert "`synapse-assets services --fetch`" in finding.remedy

    @pytest.mark.parametrize("variable", ["SYNAPSE_ASSETS_SYNAPSE", "SYNAPSE_ASSETS_LIVY"])
    def test_spark_pool_that_is_not_there(
        self, monkeypatch: pytest.MonkeyPatch, free_port: int, variable: str
    ) -> None:
        if variable == "SYNAPSE_ASSETS_SYNAPSE":
            monkeypatch.setenv("SYNAPSE_ASSETS_DEPLOYMENT", "emulated")
        monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port}")
        finding = look()["spark"]
        assert finding.status == "failed"
        assert f"http://127.0.0.1:{free_port} could not be asked" in finding.found
        assert "services" in finding.remedy or "SYNAPSE_ASSETS_LIVY" in finding.remedy

    def test_emulator_that_is_not_there(
        self, monkeypatch: pytest.MonkeyPatch, free_port: int
    ) -> None:
        monkeypatch.setenv("SYNAPSE_ASSETS_DEPLOYMENT", "emulated")
        monkeypatch.delenv("SYNAPSE_ASSETS_DATASTORE")
        monkeypatch.setenv("SYNAPSE_ASSETS_SYNAPSE", f"http://127.0.0.1:{free_port}")
        monkeypatch.setenv("SYNAPSE_ASSETS_AZURITE", f"http://127.0.0.1:{free_port}/{ACCOUNT}")
        started = time.monotonic()
        findings = look()
        assert time.monotonic() - started < 15
        assert findings["reach"].found.startswith(f"127.0.0.1:{free_port} does not answer: ")
        assert findings["reach"].remedy.startswith("Start it with `make services`, or set SYNAPSE")
        assert findings["commit"].status == "skipped"

    def test_name_node_that_is_not_there(
        self, monkeypatch: pytest.MonkeyPatch, free_port: int
    ) -> None:
        monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", f"hdfs://127.0.0.1:{free_port}/x")
        findings = look()
        assert findings["reach"].status == "failed"
        assert findings["reach"].remedy.startswith("Look whether the name node is up")
        assert {findings[name].status for name in ("rights", "delta", "clock")} == {"skipped"}


class TestSecrets:
    @pytest.mark.parametrize(
        ("variable", "secret"), [("STORAGE_KEY", KEY), ("STORAGE_SAS", f"?{SAS}")]
    )
    def test_none_is_shown_by_the_command(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        variable: str,
        secret: str,
    ) -> None:
        # What a library says when the proxy lets nothing through quotes what was asked for.
        with serving(Refusing) as url:
            monkeypatch.setenv("HTTPS_PROXY", url)
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", LOCATION)
            monkeypatch.setenv(f"SYNAPSE_ASSETS_{variable}", secret)
            printed = [self.printed(capfd, *arguments) for arguments in ([], ["--json"])]
        for text in printed:
            assert "(the proxy in HTTPS_PROXY) answers" in text
            assert f"{LOCATION}: " in text
            assert KEY not in text
            assert SIGNATURE not in text

    def printed(self, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            main(["doctor", *arguments])
        assert exit_.value.code == 1
        return "".join(capfd.readouterr())

    def test_none_is_shown_of_what_a_library_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", LOCATION)
        monkeypatch.setenv("SYNAPSE_ASSETS_STORAGE_KEY", KEY)
        token = make_token({"oid": "1"})

        def leak(_: Subject) -> Finding:
            raise OSError(f"Key {KEY} or GET /x?sp=r&sig={SIGNATURE}&se=1 or Bearer {token} is bad")

        (finding,) = run_checks(Subject(deployment="local", home=Path()), [Check("leak", leak)])
        assert finding.status == "failed"
        hidden = "*" * 10
        expected = f"Key {hidden} or GET /x?sp=r&sig={hidden}&se=1 or Bearer {hidden} is bad"
        assert finding.found == f"OSError: {expected}"


class TestRunning:
    def test_check_that_hangs_or_breaks_stops_no_other(self) -> None:
        ended = threading.Event()

        def hang(_: Subject) -> Finding:
            time.sleep(1)
            ended.set()
            return ok("late")

        def break_(_: Subject) -> Finding:
            raise IndexError("list index\nout of range")

        checks = [
            Check("hangs", hang, seconds=0.1),
            Check("needs it", lambda _: ok("never"), needs=("hangs",)),
            Check("needs that", lambda _: ok("never"), needs=("needs it",)),
            Check("breaks", break_),
            Check("works", lambda _: ok("well")),
        ]
        found = list(run_checks(Subject(deployment="local", home=Path()), checks))
        assert [f.status for f in found] == ["failed", "skipped", "skipped", "failed", "ok"]
        assert found[0].found == "no answer within 0.1 s"
        assert found[2].found == "not looked at, because of 'hangs'"
        assert found[3].found == "IndexError: list index out of range"
        # What it has to remove it has removed before the process ends.
        assert ended.is_set()

    def test_every_need_is_a_check_before_it(self) -> None:
        seen: set[str] = set()
        for check in CHECKS:
            assert set(check.needs) <= seen
            seen.add(check.name)

    def test_command_prints_a_line_per_check_and_counts(
        self, capsys: pytest.CaptureFixture[str], home: Path
    ) -> None:
        home.mkdir()
        (home / "dagster.yaml").touch()
        with pytest.raises(SystemExit) as exit_:
            main(["doctor"])
        lines = capsys.readouterr().out.splitlines()
        assert exit_.value.code == 0
        assert lines[0].startswith("ok  python      Python 3.")
        (at,) = [number for number, line in enumerate(lines) if line.startswith("!   pools")]
        assert lines[at + 1].startswith(" " * 16 + "Put this into it: concurrency: {pools: ")
        assert lines[-1].startswith("12 ok, 1 warning (")

    def test_command_prints_json_and_fails_with_what_failed(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SYNAPSE_ASSETS_DEPLOYMENT", "x")
        with pytest.raises(SystemExit) as exit_:
            main(["doctor", "--json"])
        told = json.loads(capsys.readouterr().out)
        assert exit_.value.code == 1
        assert (told["deployment"], told["counts"]["failed"]) == ("x", 1)
        (failed,) = [finding for finding in told["findings"] if finding["status"] == "failed"]
        assert set(failed) == {"name", "status", "found", "remedy"}
        assert failed["name"] == "deployment"


class TestIdentity:
    @pytest.fixture
    def look_at(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Finding]:
        def look_at(token: str) -> Finding:
            monkeypatch.setattr(identity, "bearer_token", lambda credential, scope: token)
            subject = Subject(deployment="local", home=Path())
            subject.datastore = Datastore(root=LOCATION, credential=DefaultChain())
            return identity.check_identity(subject)

        return look_at

    def test_token_says_who_it_is_for(self, look_at: Callable[[str], Finding]) -> None:
        claims = {"appid": "app-1", "oid": "object-2", "tid": "tenant-3", "exp": 4102444800}
        finding = look_at(make_token(claims))
        assert finding.status == "ok"
        assert finding.found == (
            "application app-1, object object-2, tenant tenant-3; token until 2100-01-01 00:00 UTC"
        )
        user = look_at(make_token({"upn": "ada@example.com", "exp": 4102444800}))
        assert user.found.startswith("user ada@example.com; token until")

    def test_token_that_is_over(self, look_at: Callable[[str], Finding]) -> None:
        finding = look_at(make_token({"oid": "1", "exp": 1}))
        assert finding.status == "failed"
        assert finding.found.endswith("token until 1970-01-01 00:00 UTC, which is over")

    @pytest.mark.parametrize("token", ["opaque", "a.!!.c", "a.W10.c"])
    def test_token_that_says_nothing(self, look_at: Callable[[str], Finding], token: str) -> None:
        finding = look_at(token)
        assert finding.found == "a token was given; it does not say to whom"

    def test_sas_that_allows_too_little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", LOCATION)
        monkeypatch.setenv("SYNAPSE_ASSETS_STORAGE_SAS", SAS)
        finding = identity.check_identity(Subject(deployment="local", home=Path()))
        assert finding.status == "warning"
        assert finding.found == (
            "SAS with the rights 'rl', until 2099-01-01T00:00:00Z: none to write, delete, create"
        )


class TestClock:
    @pytest.mark.parametrize(
        ("shift", "status", "found"),
        [
            (0, "ok", "are 0 s apart"),
            (40, "ok", "are 40 s apart"),
            (300, "warning", "clock is 300 s behind the service's"),
            (-300, "warning", "clock is 300 s ahead of the service's"),
            (2000, "failed", "clock is 2,000 s behind the service's: it refuses what is signed"),
        ],
    )
    def test_skew(
        self,
        monkeypatch: pytest.MonkeyPatch,
        shift: float,
        status: str,
        found: str,
    ) -> None:
        monkeypatch.setenv("SYNAPSE_ASSETS_DEPLOYMENT", "emulated")
        monkeypatch.delenv("SYNAPSE_ASSETS_DATASTORE")
        checks = [check for check in CHECKS if check.name == "clock"]

        class Shifted(Refusing):
            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(time.time() + shift, usegmt=True)

        with serving(Shifted) as url:
            monkeypatch.setenv("SYNAPSE_ASSETS_AZURITE", f"{url}/{ACCOUNT}")
            (finding,) = run_checks(Subject(deployment="emulated", home=Path()), checks)
        assert finding.status == status
        # The service tells whole seconds.
        near = [found.replace(f"{shift:,}".lstrip("-"), f"{abs(shift) + s:,}") for s in (-1, 0, 1)]
        assert any(text in finding.found for text in near), finding
        assert ("NTP" in finding.remedy) == (status != "ok")


@pytest.mark.services
class TestAzurite:
    @pytest.fixture
    def container(
        self, azurite: Azurite, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> str:
        """A container of this test's own, which the deployment uses."""
        name: str = request.node.name.replace("_", "-")[:50].strip("-")
        azurite.create_container(name)
        monkeypatch.setenv("SYNAPSE_ASSETS_DEPLOYMENT", "emulated")
        monkeypatch.setenv("SYNAPSE_ASSETS_AZURITE", azurite.endpoint)
        monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", f"az://{name}/folder")
        return name

    def test_all_is_well(
        self,
        container: str,
        synapse_emulator: SynapseEmulator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("SYNAPSE_ASSETS_SYNAPSE", synapse_emulator.endpoint)
        findings = look()
        assert problems(findings) == {}
        assert {"clock", "identity", "container", "rights", "commit", "spark"} <= set(findings)
        datastore = Subject(deployment="emulated", home=Path()).datastore
        assert datastore.storage().list_files(datastore.uri()) == []

    def test_no_such_container(self, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", "az://is-not-there")
        findings = look()
        finding = findings["container"]
        assert finding.found == f"the account '{ACCOUNT}' has no container 'is-not-there'"
        assert finding.remedy == "Create it, or name another one with SYNAPSE_ASSETS_DATASTORE."
        assert findings["rights"].status == "skipped"

    def test_key_of_another_account(self, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(credentials, "EMULATOR_KEY", KEY)
        findings = look()
        assert findings["container"].status == "failed"
        assert "failed to authenticate" in findings["container"].found
        assert findings["container"].remedy.startswith("Look whether the key or the SAS is of this")
        assert KEY not in str(findings)

    def test_sas_that_may_only_read(
        self, azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        token = generate_container_sas(
            ACCOUNT,
            container,
            account_key=credentials.EMULATOR_KEY,
            permission=ContainerSasPermissions(read=True, list=True),
            expiry=dt.datetime.now(dt.timezone.utc) + dt.timedelta(hours=1),
        )
        login = f"BlobEndpoint={azurite.endpoint};SharedAccessSignature={token};"
        public = {"account_name": ACCOUNT, "anon": False}
        # The emulator's own credential has the account's key only.
        monkeypatch.setattr(
            Emulator,
            "adlfs_options",
            lambda *_: Options(public, lambda: {"connection_string": login}),
        )
        endpoint = {"endpoint": azurite.endpoint, "allow_http": "true"}
        options = {"account_name": ACCOUNT, **endpoint, "sas_token": token}
        monkeypatch.setattr(Emulator, "delta_options", lambda *_: options)
        findings = look()
        assert findings["container"].status == findings["delta"].status == "ok"
        assert findings["rights"].status == "failed"
        assert findings["rights"].found.startswith("Could not write abfs://")
        assert "'Storage Blob Data Contributor'" in findings["rights"].remedy
        assert findings["commit"].status == "skipped"
        assert token.rpartition("sig=")[2] not in str(findings)

    def test_store_that_does_not_keep_the_condition_of_a_write(
        self, container: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from deltalake import DeltaTable

        monkeypatch.setattr(DeltaTable, "create_write_transaction", lambda *_, **__: None)
        finding = look()["commit"]
        assert finding.found == "two writers of one log entry both won: a commit may be lost"
        assert "If-None-Match" in finding.remedy


@pytest.fixture
def on_azure(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    """The deployment 'azure' on stand-ins, of which none is there."""
    settings = {
        "DEPLOYMENT": "azure",
        "CLOUD": "emulator",
        "DATASTORE": "az://container/folder",
        "AZURITE": f"http://127.0.0.1:{free_port}/{ACCOUNT}",
        "SYNAPSE": f"http://127.0.0.1:{free_port}",
        "SPARK_POOL": SYNAPSE_POOL,
        "SUBSCRIPTION": ML_SUBSCRIPTION,
        "RESOURCE_GROUP": ML_RESOURCE_GROUP,
        "ML_WORKSPACE": ML_WORKSPACE,
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"SYNAPSE_ASSETS_{name}", value)


def test_workspace_that_is_not_there(
    on_azure: None, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("ARM_CLOUD_METADATA_URL", f"https://127.0.0.1:{free_port}/metadata")
    monkeypatch.setenv("AZUREML_CURRENT_CLOUD", "StandIn")
    # In a process of its own: azure-ai-ml keeps what it was told of a cloud.
    code = "from synapse_assets.cli import main; main(['doctor', '--json'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (finding,) = [f for f in json.loads(done.stdout)["findings"] if f["name"] == "cpu"]
    assert finding["status"] == "failed"
    assert finding["found"].endswith('Unknown cloud environment "StandIn".')
    assert finding["remedy"].endswith("`make services` starts the stand-in.")


@pytest.mark.services
@pytest.mark.usefixtures("on_azure")
class TestAzureML:
    @pytest.fixture
    def look_at(
        self, azureml: AzureMLStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Finding]:
        def look_at(cluster: str, **settings: str) -> Finding:
            monkeypatch.setenv("SYNAPSE_ASSETS_ML_CLUSTER", cluster)
            for name, value in settings.items():
                monkeypatch.setenv(f"SYNAPSE_ASSETS_{name}", value)
            checks = [check for check in CHECKS if check.name == "cpu"]
            (finding,) = run_checks(Subject(deployment=deployment(), home=Path()), checks)
            return finding

        return look_at

    def test_cluster_is_there_or_to_be_made_or_another_one(
        self, look_at: Callable[..., Finding], tmp_path: Path
    ) -> None:
        found = look_at("doctors")
        assert found.status == "ok"
        assert found.found.endswith(
            "is not there yet: the first run makes it, of 0 to 4 nodes of STANDARD_D2_V2"
        )
        cpu = Subject(deployment="azure", home=tmp_path).cpu
        assert isinstance(cpu, AzureMLCpu)
        cpu.ensure_cluster(say=print, warn=print)
        found = look_at("doctors")
        assert found.status == "ok"
        assert found.found.endswith("is 'Succeeded', and as it is configured")
        other = cpu.model_copy(update={"cluster": "doctors-other", "max_nodes": 9})
        other.ensure_cluster(say=print, warn=print)
        found = look_at("doctors-other")
        assert found.status == "warning"
        assert "its greatest number of nodes is 9 and not 4" in found.found
        assert found.remedy.startswith("Change the cluster in Studio, or the resource")

    @pytest.mark.parametrize(
        ("status", "remedy"),
        [
            (401, "Log in again (`az login`)"),
            (403, "Give the identity the roles 'AzureML Data Scientist'"),
            (500, "Start it with `make services`"),
        ],
    )
    def test_workspace_that_refuses(
        self, look_at: Callable[..., Finding], azureml: AzureMLStandIn, status: int, remedy: str
    ) -> None:
        faults = azureml.folder / "faults"
        faults.write_text(f"GET /workspaces/{ML_WORKSPACE}$ {status} before 9\n")
        try:
            finding = look_at("refused")
        finally:
            faults.unlink()
        assert finding.status == "failed"
        assert f"HTTP {status}" in finding.found
        assert finding.remedy.startswith(remedy)

    def test_workspace_of_another_name(self, look_at: Callable[..., Finding]) -> None:
        finding = look_at("any", ML_WORKSPACE="nowhere")
        assert "The workspace 'nowhere' was not found" in finding.found
        assert finding.remedy.startswith("Look at SYNAPSE_ASSETS_SUBSCRIPTION, SYNAPSE_ASSETS_RES")


@pytest.mark.services
class TestHdfs:
    @pytest.fixture
    def root(
        self, hdfs: Hdfs, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> str:
        """A folder of this test's own, of the user who runs HDFS, which the deployment uses."""
        from hdfs_native import Client

        name: str = request.node.name
        Client(hdfs.url).mkdirs(f"/{name}", 0o755, True)
        monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", f"{hdfs.url}/{name}")
        return name

    def test_all_is_well(
        self,
        hdfs: Hdfs,
        root: str,
        synapse_emulator: SynapseEmulator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from hdfs_native import Client

        monkeypatch.setenv("SYNAPSE_ASSETS_SYNAPSE", synapse_emulator.endpoint)
        findings = look()
        assert problems(findings) == {}
        assert {"clock", "identity", "root", "rights", "commit"} <= set(findings)
        assert list(Client(hdfs.url).list_status(f"/{root}")) == []

    def test_folder_of_another_user(self, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HADOOP_USER_NAME", "stranger")
        findings = look()
        assert findings["identity"].found == "user 'stranger' (HADOOP_USER_NAME)"
        assert "permissions 755" in findings["root"].found
        assert findings["rights"].status == "failed"
        assert "Permission denied: user=stranger, access=WRITE" in findings["rights"].found
        assert "\\n" not in findings["rights"].found
        assert findings["rights"].remedy == "Give the user (HADOOP_USER_NAME) the right to it."
        assert problems(findings) == {
            "rights": "failed",
            "clock": "skipped",
            "commit": "skipped",
        }


def make_token(claims: dict[str, object]) -> str:
    """Return a token that nobody signed."""
    parts = [{"alg": "none"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts]
    return ".".join([*encoded, "signature"])
