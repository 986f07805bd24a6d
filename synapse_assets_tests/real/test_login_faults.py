"""Tokens that expire, rights that are missing, and places that are not there."""

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from azure.core.credentials import AccessToken
from azure.core.pipeline.transport import HttpRequest, RequestsTransport
from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas

from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import commit, resolve
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.blob import BlobStorage
from synapse_assets.datastore.credentials import DefaultChain, Emulator, _created_once
from synapse_assets.datastore.storage import Storage
from synapse_assets.errors import StorageError
from synapse_assets.services import Azurite
from synapse_assets.services.azurite import ACCOUNT, ACCOUNT_KEY
from synapse_assets_tests.datasets.staging import numbers, put, stage_table, values_of
from synapse_assets_tests.real.fault_proxy import FaultProxy, Rule
from synapse_assets_tests.real.faults import (
    CONTAINER,
    SLOT,
    Setup,
    assert_explains,
    assert_made_once,
    azurite_at,
    try_commit,
)


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
        root=f"az://{name}/folder", cloud="emulator", credential=Emulator(endpoint=azurite.endpoint)
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
