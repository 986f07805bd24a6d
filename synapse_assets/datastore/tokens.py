"""Tokens and signatures made from a credential of azure-identity, for libraries that need them."""

import threading
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from synapse_assets.datastore.clouds import Cloud
from synapse_assets.datastore.location import Location
from synapse_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential

# A table is opened for one commit or one read, which takes less.
_RENEW_BEFORE_SECONDS = 600
# A step of Spark has to end within it; a user delegation key lives for seven days at most.
_SIGNATURE_HOURS = 24
# So that a clock that is a little behind takes the signature too.
_CLOCK_SKEW_MINUTES = 15

_tokens: "dict[TokenCredential, AccessToken]" = {}
_lock = threading.Lock()


def bearer_token(credential: "TokenCredential", cloud: Cloud) -> str:
    """Return a token for storage, valid for ten minutes or more if the service gives such ones.

    It is kept until then: azure-identity keeps no tokens of the Azure CLI, which takes a second
    for each.

    Raises:
        ConfigurationError: Logging in failed.
    """
    from azure.core.exceptions import AzureError

    with _lock:
        token = _tokens.get(credential)
        if token is None or token.expires_on - time.time() <= _RENEW_BEFORE_SECONDS:
            try:
                token = credential.get_token(cloud.storage_scope)
            except AzureError as error:
                raise ConfigurationError(
                    f"Logging in to Azure failed: {_reason(error)} Check the datastore's "
                    "credential, and that this machine reaches Azure."
                ) from error
            _tokens[credential] = token
        return str(token.token)


def user_delegation_sas(credential: "TokenCredential", location: Location) -> str:
    """Return a SAS of the location's container, signed by who the credential is.

    It lives for a day. The identity needs the right to make user delegation keys, which the role
    'Storage Blob Data Contributor' includes.

    Raises:
        ConfigurationError: The service gave no key to sign with.
    """
    from azure.core.exceptions import AzureError
    from azure.storage.blob import (
        BlobServiceClient,
        ContainerSasPermissions,
        generate_container_sas,
    )

    now = datetime.now(timezone.utc)
    start = now - timedelta(minutes=_CLOCK_SKEW_MINUTES)
    expiry = now + timedelta(hours=_SIGNATURE_HOURS)
    try:
        with BlobServiceClient(location.account_url(), credential=credential) as client:
            key = client.get_user_delegation_key(start, expiry)
    except AzureError as error:
        raise ConfigurationError(
            f"{location.account_url()} gave no key to sign Spark's access with: {_reason(error)} "
            "Give the identity the role 'Storage Blob Data Contributor' on the account."
        ) from error
    return generate_container_sas(
        account_name=location.account,
        container_name=location.container,
        user_delegation_key=key,
        # ABFS renames (m), and reads access lists (e) to tell hierarchical accounts from flat ones.
        permission=ContainerSasPermissions.from_string("rwdlacme"),
        start=start,
        expiry=expiry,
        protocol="https",
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
