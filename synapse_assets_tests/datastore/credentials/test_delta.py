"""What deltalake is told, and that it uses it.

That is seen from the requests it makes: an endpoint on this machine answers.
"""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock
from urllib.parse import parse_qsl, urlsplit

import pytest
from azure.core.exceptions import ClientAuthenticationError

from synapse_assets.datastore import tokens
from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.credentials import (
    AccountKey,
    DefaultChain,
    Emulator,
    SasToken,
    StorageCredential,
)
from synapse_assets.errors import ConfigurationError
from synapse_assets_tests.datastore.credentials.samples import (
    BY_TOKEN,
    KEY,
    SAS,
    FakeIdentity,
    name_of,
    place,
    place_of,
)


class Service(ThreadingHTTPServer):
    """Stands for storage, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """Refuses everything."""

    server: Service

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers))
        self.send_response(403)
        self.send_header("content-length", "0")
        self.end_headers()

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
        ((path, headers),) = self.open_table(AccountKey(key=KEY), service)
        assert path == "/acct/data/root/t/_delta_log/_last_checkpoint"
        assert headers["authorization"].startswith("SharedKey acct:")

    def test_emulator_is_where_it_says(self, service: Service) -> None:
        credential = Emulator(endpoint=f"{service.url}/devstoreaccount1")
        ((path, headers),) = self.open_table(credential, service)
        assert path == "/devstoreaccount1/data/root/t/_delta_log/_last_checkpoint"
        assert headers["authorization"].startswith("SharedKey devstoreaccount1:")

    def test_sas_is_in_the_query(self, service: Service) -> None:
        ((path, headers),) = self.open_table(SasToken(token=f"?{SAS}"), service)
        assert "authorization" not in headers
        assert set(parse_qsl(SAS)) <= set(parse_qsl(urlsplit(path).query))

    @pytest.mark.parametrize("credential", BY_TOKEN, ids=name_of)
    def test_identity_brings_a_token_and_no_other_login_is_taken(
        self,
        credential: StorageCredential,
        service: Service,
        identity: FakeIdentity,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_CLIENT_ID"):
            monkeypatch.setenv(name, "other")
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{service.url}/msi/token")
        ((_, headers),) = self.open_table(credential, service)
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
        options = AccountKey(key=KEY).delta_options(place(cloud))
        assert options["endpoint"] == f"https://acct.blob.{get_cloud(cloud).storage_suffix}"
