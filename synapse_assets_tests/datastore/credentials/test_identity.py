"""Who azure-identity finds, here and in a subprocess."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.credentials import (
    AzureCli,
    Emulator,
    ManagedIdentity,
    StorageCredential,
    WorkloadIdentity,
)
from synapse_assets.errors import ConfigurationError
from synapse_assets_tests.datastore.credentials.samples import (
    BY_SECRET,
    BY_TOKEN,
    CERTIFICATE,
    CLIENT_SECRET,
    PASSWORD,
    WORKLOAD,
    name_of,
    place_of,
)


class TestEnvironment:
    @pytest.mark.parametrize(
        ("credential", "chain"),
        [
            (ManagedIdentity(client_id="client"), ["ManagedIdentityCredential"]),
            (WORKLOAD, ["WorkloadIdentityCredential"]),
            (CLIENT_SECRET, ["EnvironmentCredential", "ClientSecretCredential"]),
            (CERTIFICATE, ["EnvironmentCredential", "CertificateCredential"]),
            (AzureCli(), ["AzureCliCredential"]),
        ],
        ids=lambda value: name_of(value) if isinstance(value, StorageCredential) else "",
    )
    def test_default_chain_has_this_identity_and_no_other(
        self,
        credential: StorageCredential,
        chain: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from azure.identity import DefaultAzureCredential

        variables = credential.environment(get_cloud("china"))
        assert variables["AZURE_AUTHORITY_HOST"] == "https://login.chinacloudapi.cn"
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if credential is CERTIFICATE:
            monkeypatch.setenv("AZURE_CLIENT_CERTIFICATE_PATH", str(certificate(tmp_path)))
        (found,) = DefaultAzureCredential().credentials
        inner = getattr(found, "_credential", None)
        names = [type(found).__name__]
        if len(chain) > 1:
            names.append(type(inner).__name__)
        assert names == chain

    @pytest.mark.parametrize("credential", [*BY_SECRET, Emulator()], ids=name_of)
    def test_secret_is_no_identity(self, credential: StorageCredential) -> None:
        cloud = place_of(credential).cloud
        assert credential.environment(cloud) == {}
        assert credential.token_credential(cloud) is None


def certificate(folder: Path) -> Path:
    """Return a file with a self-signed certificate and its key, behind the password."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(timezone.utc)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(PASSWORD.encode()),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


class TestTokenCredential:
    @pytest.mark.parametrize("credential", BY_TOKEN, ids=name_of)
    def test_is_one_object_per_configuration_and_cloud(
        self, credential: StorageCredential, tmp_path: Path
    ) -> None:
        if credential is CERTIFICATE:
            path = str(certificate(tmp_path))
            credential = CERTIFICATE.model_copy(update={"certificate_path": path})
        public, china = get_cloud("public"), get_cloud("china")
        first = credential.token_credential(public)
        assert first is credential.model_copy().token_credential(public)
        assert first is not credential.token_credential(china)

    def test_missing_certificate_is_told(self) -> None:
        with pytest.raises(ConfigurationError, match=r"not complete.*/c\.pem"):
            CERTIFICATE.token_credential(get_cloud("public"))

    def test_wrong_password_is_told_and_not_repeated(self, tmp_path: Path) -> None:
        update = {"certificate_path": str(certificate(tmp_path)), "password": "planted-wrong"}
        credential = CERTIFICATE.model_copy(update=update)
        with pytest.raises(ConfigurationError, match="'client_certificate' is not comp") as caught:
            credential.token_credential(get_cloud("public"))
        assert "planted" not in str(caught.value)

    def test_workload_identity_names_the_variable_that_is_missing(self) -> None:
        with pytest.raises(ConfigurationError, match=r"no tenant_id, and.*AZURE_TENANT_ID is not"):
            WorkloadIdentity(client_id="client").token_credential(get_cloud("public"))
