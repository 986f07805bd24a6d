"""Logins by a shared secret: an account key, a SAS, and the emulator's published key."""

import base64
import binascii
from datetime import datetime, timezone
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import Field

from synapse_assets.datastore.credentials.base import (
    Options,
    StorageCredential,
    abfs_properties,
    adlfs_base_options,
)
from synapse_assets.datastore.location import EMULATOR_ACCOUNT, Location
from synapse_assets.errors import ConfigurationError

# Not a secret: https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
_EMULATOR_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


class AccountKey(StorageCredential):
    """The key of the storage account, which may do everything with it."""

    kind: Literal["account_key"] = "account_key"
    key: str = Field(repr=False, description="The key, by dg.EnvVar.")

    def _adlfs(self, location: Location) -> Options:
        return Options(adlfs_base_options(location), {"account_key": self._checked_key()})

    def _delta_login(self, location: Location) -> dict[str, str]:
        return {"account_key": self._checked_key()}

    def _hadoop(self, location: Location) -> Options:
        return Options(
            abfs_properties(location, {"account.auth.type": "SharedKey"}),
            abfs_properties(location, {"account.key": self._checked_key()}),
        )

    def _queue_login(self, location: Location) -> tuple[str, Any]:
        url, _ = super()._queue_login(location)
        return url, {"account_name": location.account, "account_key": self._checked_key()}

    def _own_secret(self) -> str | None:
        return self.key

    def _checked_key(self) -> str:
        key = self.key.strip()
        try:
            decoded = base64.b64decode(key, validate=True)
        except binascii.Error:
            decoded = b""
        if not decoded:
            raise ConfigurationError(
                "The account key is not what Azure gives out, which is a text in base64 that ends "
                "with '=='. Copy it anew from the account's page 'Access keys'."
            )
        return key


class SasToken(StorageCredential):
    """A shared access signature of the account or of the container."""

    kind: Literal["sas"] = "sas"
    token: str = Field(
        repr=False, description="The token, by dg.EnvVar; a question mark before it is dropped."
    )

    def _adlfs(self, location: Location) -> Options:
        return Options(adlfs_base_options(location), {"sas_token": self._checked_token()})

    def _delta_login(self, location: Location) -> dict[str, str]:
        return {"sas_token": self._checked_token()}

    def _hadoop(self, location: Location) -> Options:
        return sas_configuration(location, self._checked_token())

    def _queue_login(self, location: Location) -> tuple[str, Any]:
        token = self._checked_token()
        services = parse_qs(token).get("ss", [""])[0]
        if "q" not in services:
            raise ConfigurationError(
                "The SAS token opens no queues. Make one of the account for the services Blob and "
                "Queue ('ss=bq'), or choose another credential."
            )
        url, _ = super()._queue_login(location)
        return url, token

    def _own_secret(self) -> str | None:
        return self.token

    def _checked_token(self) -> str:
        token = self.token.strip().rpartition("?")[2]
        fields = parse_qs(token)
        if "sig" not in fields:
            raise ConfigurationError(
                "The SAS token has no signature ('sig='). Copy all of it, from 'sv=' or 'sp=' on."
            )
        expiry = _expiry(fields.get("se", [""])[0])
        if expiry is not None and expiry <= datetime.now(timezone.utc):
            raise ConfigurationError(
                f"The SAS token expired on {expiry:%Y-%m-%d at %H:%M} UTC. Make a new one, with "
                "the rights to read, write, delete, list and create."
            )
        return token


class Emulator(StorageCredential):
    """Azurite's well-known account, with the key that Microsoft publishes for it."""

    kind: Literal["emulator"] = "emulator"
    endpoint: str = Field(
        default=f"http://127.0.0.1:10000/{EMULATOR_ACCOUNT}",
        description="URL of Azurite's blob service, with the account.",
    )
    queue_endpoint: str = Field(
        default=f"http://127.0.0.1:10001/{EMULATOR_ACCOUNT}",
        description="URL of Azurite's queue service, with the account.",
    )

    def _adlfs(self, location: Location) -> Options:
        # adlfs takes a host with https only, other endpoints in this form.
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={EMULATOR_ACCOUNT};"
            f"AccountKey={_EMULATOR_KEY};BlobEndpoint={self._checked_endpoint()};"
        )
        return Options(
            {"account_name": EMULATOR_ACCOUNT, "anon": False}, {"connection_string": connection}
        )

    def _delta_login(self, location: Location) -> dict[str, str]:
        return {
            # With 'use_emulator' the endpoint would come from an environment variable alone.
            "endpoint": self._checked_endpoint(),
            "allow_http": "true",
            "account_key": _EMULATOR_KEY,
        }

    def _hadoop(self, location: Location) -> Options:
        public = {
            "fs.azure.abfs.endpoint": urlsplit(self._checked_endpoint()).netloc,
            "fs.azure.account.hns.enabled": "false",
            "fs.azure.fns.account.service.type": "BLOB",
            "fs.azure.always.use.https": "false",
            # The driver's other client drops Azurite's answers that have no body.
            "fs.azure.networking.library": "JDK_HTTP_URL_CONNECTION",
            **abfs_properties(location, {"account.auth.type": "SharedKey"}),
        }
        return Options(public, abfs_properties(location, {"account.key": _EMULATOR_KEY}))

    def _queue_login(self, location: Location) -> tuple[str, Any]:
        key = {"account_name": EMULATOR_ACCOUNT, "account_key": _EMULATOR_KEY}
        return _checked_emulator_url(self.queue_endpoint), key

    def _check_location(self, location: Location) -> None:
        super()._check_location(location)
        if location.account != EMULATOR_ACCOUNT:
            raise ConfigurationError(
                f"The emulator has the account '{EMULATOR_ACCOUNT}', and the datastore names "
                f"'{location.account}'. Choose the cloud and the credential of that account."
            )

    def _refuse_other_logins(self) -> None:
        # The options name the account's key and its address, which goes first everywhere.
        pass

    def _checked_endpoint(self) -> str:
        return _checked_emulator_url(self.endpoint)


def _checked_emulator_url(endpoint: str) -> str:
    """Return the URL of one of the emulator's services in its usual form."""
    url = urlsplit(endpoint)
    if url.scheme != "http" or not url.netloc or url.path.strip("/") != EMULATOR_ACCOUNT:
        raise ConfigurationError(
            f"The emulator's endpoint is {endpoint!r}, which does not have the form "
            f"'http://127.0.0.1:10000/{EMULATOR_ACCOUNT}'."
        )
    return f"http://{url.netloc}/{EMULATOR_ACCOUNT}"


def sas_configuration(location: Location, token: str) -> Options:
    """Return the properties by which the ABFS driver uses a SAS."""
    return Options(
        abfs_properties(location, {"account.auth.type": "SAS"}),
        abfs_properties(location, {"sas.fixed.token": token}),
    )


def _expiry(text: str) -> datetime | None:
    """Return the time in the field 'se' of a SAS; None if a stored policy has it."""
    moment = text.rstrip("Z").partition(".")[0]
    for form in ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"):
        try:
            return datetime.strptime(moment, form).replace(tzinfo=timezone.utc)
        except ValueError:
            continue
    return None
