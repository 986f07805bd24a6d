"""Who asks a service of Azure to run something."""

import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from synapse_assets.compute.calls import CallError
from synapse_assets.datastore.clouds import Cloud
from synapse_assets.datastore.credentials import Credential
from synapse_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential

# The bearer token of the emulators. Not a secret: they serve this machine only.
EMULATOR_TOKEN = "emulator"  # noqa: S105
_YEAR = 365 * 24 * 60 * 60


@dataclass(frozen=True)
class _EmulatorCredential:
    """A credential with the emulators' token, as azure-core wants one."""

    def get_token(self, *scopes: str, **options: Any) -> "AccessToken":
        from azure.core.credentials import AccessToken

        return AccessToken(EMULATOR_TOKEN, int(time.time()) + _YEAR)


# Those of one credential, which is one per configuration, are equal: clients are kept by it.
@dataclass(unsafe_hash=True)
class _Login:
    """A credential whose errors are told from those of the service, which was not asked then."""

    credential: "TokenCredential | _EmulatorCredential"

    def get_token(self, *scopes: str, **options: Any) -> "AccessToken":
        from azure.core.exceptions import AzureError, ClientAuthenticationError

        try:
            return self.credential.get_token(*scopes, **options)
        except AzureError as e:
            is_refused = isinstance(e, ClientAuthenticationError)
            raise CallError(
                f"There is no token for the service: {e}",
                status=HTTPStatus.UNAUTHORIZED if is_refused else None,
                was_sent=False,
            ) from e


def login_to(place: str, *, credential: Credential, cloud: Cloud) -> Any:
    """Return the credential for a service, as azure-core wants one.

    It is an equal one for the same configuration.

    Raises:
        ConfigurationError: The credential is no identity.
    """
    is_emulator = cloud.name == "emulator"
    found = _EmulatorCredential() if is_emulator else credential.token_credential(cloud)
    if found is None:
        raise ConfigurationError(
            f"{place} wants an identity, and an account key or a SAS is none: give the "
            "resource another credential."
        )
    return _Login(found)
