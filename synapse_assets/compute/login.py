"""Who asks a service of Azure to run something."""

import time
from typing import TYPE_CHECKING, Any

from synapse_assets.datastore.clouds import Cloud
from synapse_assets.datastore.credentials import Credential
from synapse_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken

# The bearer token of the emulators. Not a secret: they serve this machine only.
EMULATOR_TOKEN = "emulator"  # noqa: S105
_YEAR = 365 * 24 * 60 * 60


class _EmulatorLogin:
    """A credential with the emulators' token, as azure-core wants one."""

    def get_token(self, *scopes: str, **options: Any) -> "AccessToken":
        from azure.core.credentials import AccessToken

        return AccessToken(EMULATOR_TOKEN, int(time.time()) + _YEAR)


_EMULATOR_LOGIN = _EmulatorLogin()


def login_to(place: str, *, credential: Credential, cloud: Cloud) -> Any:
    """Return the credential for a service, as azure-core wants one; one object per configuration.

    Raises:
        ConfigurationError: The credential is no identity.
    """
    if cloud.name == "emulator":
        return _EMULATOR_LOGIN
    login = credential.token_credential(cloud)
    if login is None:
        raise ConfigurationError(
            f"{place} wants an identity, and an account key or a SAS is none: give the "
            "resource another credential."
        )
    return login
