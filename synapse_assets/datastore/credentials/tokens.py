"""Tokens and signatures made from a credential of azure-identity, for libraries that need them."""

import threading
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

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

_tokens: dict[tuple[int, str], "tuple[TokenCredential, AccessToken]"] = {}
_lock = threading.Lock()


def bearer_token(credential: "TokenCredential", scope: str) -> str:
    """Return a token that is valid for ten minutes or more, if the service gives such ones.

    It is kept until then: azure-identity keeps no tokens of the Azure CLI, which takes a second
    for each.

    Raises:
        ConfigurationError: Logging in failed.
    """
    key = (id(credential), scope)
    with _lock:
        kept = _tokens.get(key)
        if kept is not None and kept[1].expires_on - time.time() > _RENEW_BEFORE_SECONDS:
            return str(kept[1].token)
        token = _get_token(credential, scope)
        # The credential is kept beside, so that no other gets its id.
        _tokens[key] = (credential, token)
        return str(token.token)


def _get_token(credential: "TokenCredential", scope: str) -> "AccessToken":
    from azure.core.exceptions import AzureError

    try:
        return credential.get_token(scope)
    except AzureError as error:
        raise login_failed(error) from error


def login_failed(error: Exception) -> ConfigurationError:
    """Return the error that says why no token was given."""
    reason = " ".join(str(error).split())[:500]
    return ConfigurationError(
        f"Logging in to Azure failed: {reason} Check the datastore's credential, and that this "
        "machine reaches Azure."
    )


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
        reason = " ".join(str(error).split())[:500]
        raise ConfigurationError(
            f"{location.account_url()} gave no key to sign Spark's access with: {reason} Give the "
            "identity the role 'Storage Blob Data Contributor' on the account."
        ) from error
    return generate_container_sas(
        account_name=location.account,
        container_name=location.container,
        user_delegation_key=key,
        permission=ContainerSasPermissions(
            read=True,
            write=True,
            delete=True,
            list=True,
            add=True,
            create=True,
            # ABFS renames, and reads access lists to tell hierarchical accounts from flat ones.
            move=True,
            execute=True,
        ),
        start=start,
        expiry=expiry,
        protocol="https",
    )
