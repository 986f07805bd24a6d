"""What deltalake is told, and that it uses it.

That is seen from the requests it makes: an endpoint and an authority on this machine answer.
"""

import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from azure.core.exceptions import ClientAuthenticationError

from synapse_assets.datastore import tokens
from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.credentials import (
    AccountKey,
    AzureCli,
    DefaultChain,
    Emulator,
    ManagedIdentity,
    SasToken,
    StorageCredential,
    WorkloadIdentity,
)
from synapse_assets.errors import ConfigurationError
from synapse_assets_tests.datastore.credentials.samples import (
    CERTIFICATE,
    CLIENT_SECRET,
    KEY,
    SAS,
    SECRET,
    FakeIdentity,
    name_of,
    place,
    place_of,
)


class Service(ThreadingHTTPServer):
    """Stands for storage, for the authority and for the identity host; keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], str]] = []
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """Gives out a token, and refuses everything else."""

    server: Service

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.command, self.path, headers, body))
        gives = "token" in self.path
        expiry = {"expires_in": 3600, "expires_on": str(int(time.time()) + 3600)}
        answer = json.dumps({"access_token": "from-service", **expiry}).encode() if gives else b""
        self.send_response(200 if gives else 403)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET  # noqa: N815 (the name that http.server calls)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class TestDelta:
    def open_table(self, credential: StorageCredential, service: Service) -> list[Any]:
        """Return the requests that deltalake makes to look for a table."""
        from deltalake import DeltaTable

        location = place_of(credential)
        # An authority on this machine stands for the one of the cloud.
        cloud = replace(location.cloud, authority_host=service.url)
        location = replace(location, cloud=cloud)
        options = credential.delta_options(location)
        assert all(isinstance(value, str) for value in options.values())
        if not isinstance(credential, Emulator):
            assert options["endpoint"] == "https://acct.blob.core.windows.net"
            options |= {"endpoint": f"{service.url}/{location.account}", "allow_http": "true"}
        options |= {"max_retries": "0", "retry_timeout": "1s", "timeout": "5s"}
        # `DeltaTable.is_deltatable` keeps the interpreter's lock, and the service would starve.
        with pytest.raises(OSError, match="403"):
            DeltaTable(location.object_store_uri(location.uri("t")), storage_options=options)
        return service.requests

    def test_account_key_signs(self, service: Service) -> None:
        ((_, path, headers, _),) = self.open_table(AccountKey(key=KEY), service)
        assert path == "/acct/data/root/t/_delta_log/_last_checkpoint"
        assert headers["authorization"].startswith("SharedKey acct:")

    def test_emulator_is_where_it_says(self, service: Service) -> None:
        credential = Emulator(endpoint=f"{service.url}/devstoreaccount1")
        ((_, path, headers, _),) = self.open_table(credential, service)
        assert path == "/devstoreaccount1/data/root/t/_delta_log/_last_checkpoint"
        assert headers["authorization"].startswith("SharedKey devstoreaccount1:")

    def test_sas_is_in_the_query(self, service: Service) -> None:
        ((_, path, headers, _),) = self.open_table(SasToken(token=f"?{SAS}"), service)
        assert "authorization" not in headers
        assert set(parse_qsl(SAS)) <= set(parse_qsl(urlsplit(path).query))

    def test_client_secret_gets_its_own_token(self, service: Service) -> None:
        (_, token_path, _, form), (_, _, headers, _) = self.open_table(CLIENT_SECRET, service)
        assert token_path == "/tenant/oauth2/v2.0/token"
        sent = dict(parse_qsl(form))
        assert (sent["client_id"], sent["client_secret"]) == ("client", SECRET)
        assert headers["authorization"] == "Bearer from-service"

    def test_workload_identity_gets_its_own_token(
        self, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "federated").write_text("federated-assertion")
        monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(tmp_path / "federated"))
        monkeypatch.setenv("AZURE_TENANT_ID", "tenant")
        credential = WorkloadIdentity(client_id="client")
        (_, token_path, _, form), (_, _, headers, _) = self.open_table(credential, service)
        assert token_path == "/tenant/oauth2/v2.0/token"
        assert dict(parse_qsl(form))["client_assertion"] == "federated-assertion"
        assert headers["authorization"] == "Bearer from-service"

    def test_managed_identity_asks_its_host(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{service.url}/msi/token")
        # A login in the environment is not taken instead.
        for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_CLIENT_ID"):
            monkeypatch.setenv(name, "other")
        credential = ManagedIdentity(client_id="client")
        (method, asked, _, _), (_, _, headers, _) = self.open_table(credential, service)
        assert method == "GET"
        assert parse_qs(urlsplit(asked).query) == {
            "api-version": ["2019-08-01"],
            "resource": ["https://storage.azure.com"],
            "client_id": ["client"],
        }
        assert headers["authorization"] == "Bearer from-service"

    @pytest.mark.parametrize("name", ["IMDS_ENDPOINT", "MSI_ENDPOINT"])
    def test_managed_identity_of_another_host_goes_through_azure_identity(
        self,
        service: Service,
        identity: FakeIdentity,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        monkeypatch.setenv(name, service.url)
        ((_, _, headers, _),) = self.open_table(ManagedIdentity(), service)
        assert headers["authorization"] == "Bearer planted-token-1"

    def test_azure_cli_is_called(
        self, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        later = datetime.now() + timedelta(hours=1)  # noqa: DTZ005 (as the CLI writes it)
        answer = {
            "accessToken": "from-cli",
            "tokenType": "Bearer",
            "expiresOn": f"{later:%Y-%m-%d %H:%M:%S.%f}",
        }
        program = tmp_path / "az"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        ((_, _, headers, _),) = self.open_table(AzureCli(), service)
        assert headers["authorization"] == "Bearer from-cli"

    @pytest.mark.parametrize("credential", [CERTIFICATE, DefaultChain()], ids=name_of)
    def test_others_bring_a_token(
        self, credential: StorageCredential, service: Service, identity: FakeIdentity
    ) -> None:
        ((_, _, headers, _),) = self.open_table(credential, service)
        assert headers["authorization"] == "Bearer planted-token-1"

    def test_token_is_kept_until_shortly_before_it_expires(self, identity: FakeIdentity) -> None:
        def token() -> str:
            return DefaultChain().delta_options(place())["bearer_token"]

        assert [token(), token()] == ["planted-token-1", "planted-token-1"]
        tokens._tokens.clear()
        identity.seconds = 500
        assert [token(), token()] == ["planted-token-2", "planted-token-3"]

    def test_failed_login_says_why(self) -> None:
        failing = mock.Mock(spec=FakeIdentity)
        failing.get_token.side_effect = ClientAuthenticationError("AADSTS7000215:\nno such secret")
        with pytest.raises(ConfigurationError, match="AADSTS7000215: no such secret Check the"):
            tokens.bearer_token(failing, get_cloud("public"))

    @pytest.mark.parametrize("cloud", ["us-government", "china"])
    def test_other_clouds_have_their_endpoints(self, cloud: str) -> None:
        options = CLIENT_SECRET.delta_options(place(cloud))
        assert options["endpoint"] == f"https://acct.blob.{get_cloud(cloud).storage_suffix}"
        assert options["authority_host"] == get_cloud(cloud).authority_host
