"""One credential of each kind, with planted secrets, and where they open."""

import base64
import time
from dataclasses import dataclass
from typing import Any

from azure.core.credentials import AccessToken

from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.credentials import (
    AccountKey,
    AzureCli,
    ClientCertificate,
    ClientSecret,
    DefaultChain,
    Emulator,
    ManagedIdentity,
    SasToken,
    StorageCredential,
    WorkloadIdentity,
)
from synapse_assets.datastore.location import Location

KEY = base64.b64encode(b"planted" * 9).decode()
SECRET = "planted-secret"
PASSWORD = "planted-password"
SAS = "sv=2024-11-04&sr=c&sp=rwdlc&se=2999-01-01T00%3A00%3A00Z&sig=planted%2Bsignature%3D"
PLANTED = (KEY, SECRET, PASSWORD, "planted")

WORKLOAD = WorkloadIdentity(client_id="client", tenant_id="tenant", token_file="/token")
CLIENT_SECRET = ClientSecret(tenant_id="tenant", client_id="client", client_secret=SECRET)
CERTIFICATE = ClientCertificate(
    tenant_id="tenant", client_id="client", certificate_path="/c.pem", password=PASSWORD
)
BY_TOKEN: list[StorageCredential] = [
    ManagedIdentity(),
    ManagedIdentity(client_id="client"),
    WORKLOAD,
    CLIENT_SECRET,
    CERTIFICATE,
    AzureCli(),
    DefaultChain(),
]
BY_SECRET: list[StorageCredential] = [AccountKey(key=KEY), SasToken(token=SAS)]
ALL = [*BY_TOKEN, *BY_SECRET, Emulator()]


def name_of(credential: StorageCredential) -> str:
    """Return what a test is called after."""
    return type(credential).__name__


def place(cloud: str = "public", account: str | None = "acct") -> Location:
    return Location.parse("az://data/root", account=account, cloud=get_cloud(cloud))


def place_of(credential: StorageCredential) -> Location:
    emulator = isinstance(credential, Emulator)
    return place("emulator", None) if emulator else place()


@dataclass(eq=False)
class FakeIdentity:
    """Stands for a credential of azure-identity and counts how often it is asked."""

    seconds: int = 3600
    asked: int = 0

    def get_token(self, *scopes: str, **kwargs: Any) -> AccessToken:
        assert scopes == ("https://storage.azure.com/.default",)
        self.asked += 1
        return AccessToken(f"planted-token-{self.asked}", int(time.time()) + self.seconds)
