"""Who asks a service of Azure to run something."""

import functools
import time
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


class _EmulatorLogin:
    """A credential with the emulators' token, as azure-core wants one."""

    def get_token(self, *scopes: str, **options: Any) -> "AccessToken":
        from azure.core.credentials import AccessToken

        return AccessToken(EMULATOR_TOKEN, int(time.time()) + _YEAR)


_EMULATOR_LOGIN = _EmulatorLogin()
_UNAUTHORIZED = 401


class _Login:
    """A credential whose errors are told from those of the service, which was not asked then."""

    def __init__(self, credential: "TokenCredential") -> None:
        self.credential = credential

    def get_token(self, *scopes: str, **options: Any) -> "AccessToken":
        from azure.core.exceptions import AzureError, ClientAuthenticationError

        try:
            return self.credential.get_token(*scopes, **options)
        except AzureError as e:
            is_refused = isinstance(e, ClientAuthenticationError)
            raise CallError(
                f"There is no token for the service: {e}",
                status=_UNAUTHORIZED if is_refused else None,
                was_sent=False,
            ) from e


# One object per credential, which is one per configuration: clients are kept by it.
@functools.lru_cache(maxsize=16)
def _login(credential: Any) -> _Login:
    return _Login(credential)


def login_to(place: str, *, credential: Credential, cloud: Cloud) -> Any:
    """Return the credential for a service, as azure-core wants one.

    It is the same object for the same configuration.

    Raises:
        ConfigurationError: The credential is no identity.
    """
    is_emulator = cloud.name == "emulator"
    login: Any = _EMULATOR_LOGIN if is_emulator else credential.token_credential(cloud)
    if login is None:
        raise ConfigurationError(
            f"{place} wants an identity, and an account key or a SAS is none: give the "
            "resource another credential."
        )
    return _login(login)
