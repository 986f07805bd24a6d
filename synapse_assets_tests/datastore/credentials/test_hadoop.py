"""What the ABFS driver of Hadoop is told."""

from datetime import timedelta
from unittest import mock
from urllib.parse import parse_qsl

import pytest
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobServiceClient, UserDelegationKey

from synapse_assets.datastore.credentials import (
    AccountKey,
    AzureCli,
    DefaultChain,
    Emulator,
    ManagedIdentity,
    SasToken,
    StorageCredential,
)
from synapse_assets.errors import ConfigurationError
from synapse_assets_tests.datastore.credentials.samples import (
    CERTIFICATE,
    CLIENT_SECRET,
    KEY,
    SAS,
    SECRET,
    WORKLOAD,
    FakeIdentity,
    name_of,
    place,
)

_HOST = "acct.dfs.core.windows.net"
_OAUTH = "org.apache.hadoop.fs.azurebfs.oauth2"


class TestHadoop:
    @pytest.mark.parametrize(
        ("credential", "public", "secret"),
        [
            (
                ManagedIdentity(),
                {"account.oauth.provider.type": f"{_OAUTH}.MsiTokenProvider"},
                {},
            ),
            (
                ManagedIdentity(client_id="client"),
                {
                    "account.oauth.provider.type": f"{_OAUTH}.MsiTokenProvider",
                    "account.oauth2.client.id": "client",
                },
                {},
            ),
            (
                WORKLOAD,
                {
                    "account.oauth.provider.type": f"{_OAUTH}.WorkloadIdentityTokenProvider",
                    "account.oauth2.msi.authority": "https://login.microsoftonline.com/",
                    "account.oauth2.msi.tenant": "tenant",
                    "account.oauth2.client.id": "client",
                    "account.oauth2.token.file": "/token",
                },
                {},
            ),
            (
                CLIENT_SECRET,
                {
                    "account.oauth.provider.type": f"{_OAUTH}.ClientCredsTokenProvider",
                    "account.oauth2.client.endpoint": (
                        "https://login.microsoftonline.com/tenant/oauth2/token"
                    ),
                    "account.oauth2.client.id": "client",
                },
                {"account.oauth2.client.secret": SECRET},
            ),
            (AccountKey(key=f" {KEY}\n"), {}, {"account.key": KEY}),
            (SasToken(token=f"?{SAS}"), {}, {"sas.fixed.token": SAS}),
        ],
        ids=lambda value: name_of(value) if isinstance(value, StorageCredential) else "",
    )
    def test_properties_of_the_account(
        self, credential: StorageCredential, public: dict[str, str], secret: dict[str, str]
    ) -> None:
        kinds = {AccountKey: "SharedKey", SasToken: "SAS"}
        public = {"account.auth.type": kinds.get(type(credential), "OAuth"), **public}
        options = credential.hadoop_configuration(place())
        assert options.public == {f"fs.azure.{name}.{_HOST}": text for name, text in public.items()}
        assert options.secret == {f"fs.azure.{name}.{_HOST}": text for name, text in secret.items()}

    def test_emulator(self) -> None:
        host = "devstoreaccount1.dfs.core.windows.net"
        credential = Emulator(endpoint="http://127.0.0.1:10123/devstoreaccount1/")
        options = credential.hadoop_configuration(place("emulator", None))
        assert options.public == {
            "fs.azure.abfs.endpoint": "127.0.0.1:10123",
            "fs.azure.account.hns.enabled": "false",
            "fs.azure.fns.account.service.type": "BLOB",
            "fs.azure.always.use.https": "false",
            "fs.azure.networking.library": "JDK_HTTP_URL_CONNECTION",
            f"fs.azure.account.auth.type.{host}": "SharedKey",
        }
        assert list(options.secret) == [f"fs.azure.account.key.{host}"]

    @pytest.mark.parametrize("credential", [CERTIFICATE, DefaultChain(), AzureCli()], ids=name_of)
    def test_others_sign_a_sas(
        self,
        credential: StorageCredential,
        identity: FakeIdentity,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        key = UserDelegationKey()  # type: ignore[no-untyped-call]
        key.signed_oid = key.signed_tid = "1"
        key.signed_start, key.signed_expiry = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
        key.signed_service, key.signed_version, key.value = "b", "2024-11-04", KEY
        get_key = mock.create_autospec(BlobServiceClient.get_user_delegation_key, return_value=key)
        monkeypatch.setattr(BlobServiceClient, "get_user_delegation_key", get_key)
        options = credential.hadoop_configuration(place("china"))
        # A signature is asked for where it is used, and once.
        assert get_key.call_count == 0
        assert options.secret is options.secret
        assert get_key.call_count == 1
        client, start, expiry = get_key.call_args.args
        assert client.url == "https://acct.blob.core.chinacloudapi.cn/"
        assert expiry - start <= timedelta(days=1, minutes=15)
        host = "acct.dfs.core.chinacloudapi.cn"
        assert options.public == {f"fs.azure.account.auth.type.{host}": "SAS"}
        sas = options.secret[f"fs.azure.sas.fixed.token.{host}"]
        fields = dict(parse_qsl(sas))
        assert set("rwdlc") <= set(fields["sp"])
        assert (fields["sr"], fields["spr"], fields["skoid"]) == ("c", "https", "1")
        # It is a SAS as a user would bring one.
        brought = SasToken(token=sas).hadoop_configuration(place("china"))
        assert brought.merged() == options.merged()

    def test_identity_without_the_right_is_told(
        self, identity: FakeIdentity, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refuse = mock.create_autospec(
            BlobServiceClient.get_user_delegation_key,
            side_effect=HttpResponseError("AuthorizationPermissionMismatch"),
        )
        monkeypatch.setattr(BlobServiceClient, "get_user_delegation_key", refuse)
        with pytest.raises(ConfigurationError, match=r"acct.blob.*Mismatch.*Data Contributor"):
            DefaultChain().hadoop_configuration(place()).merged()
