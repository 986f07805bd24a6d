"""The Azure clouds, and what each of them calls its services.

Sources: hosts of storage, of logging in, of Azure Resource Manager and of Azure ML are those of
azure-ai-ml (`azure/ai/ml/_azure_environments.py`, version 1.35), where the ML host is the registry
discovery endpoint without its region; those of Synapse are azure-cli's
(`azure/cli/core/cloud.py`: `synapse_analytics_endpoint`, `synapse_analytics_resource_id`).
Storage tokens have one audience in all clouds, see
https://learn.microsoft.com/azure/storage/blobs/authorize-access-azure-active-directory.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from synapse_assets.errors import ConfigurationError

CloudName = Literal["public", "us-government", "china", "emulator"]


@dataclass(frozen=True)
class Cloud:
    """One Azure cloud.

    Attributes:
        name: The name under which a user chooses it.
        storage_suffix: What follows '<account>.<service>.' in a host of storage.
        storage_scope: Scope of a token for storage.
        authority_host: Where tokens come from, with 'https://'.
        synapse_suffix: What follows '<workspace>.' in the development endpoint of Synapse.
        synapse_scope: Scope of a token for that endpoint.
        resource_manager: Azure Resource Manager, with 'https://'.
        ml_suffix: What follows '<region>.' in the host of Azure ML.
        tls: Whether storage is reached by https; the emulator is not.
    """

    name: CloudName
    storage_suffix: str
    storage_scope: str
    authority_host: str
    synapse_suffix: str
    synapse_scope: str
    resource_manager: str
    ml_suffix: str
    tls: bool = True

    @property
    def resource_manager_scope(self) -> str:
        """Return the scope of a token for Azure Resource Manager."""
        return f"{self.resource_manager}/.default"

    def account_host(self, account: str, service: Literal["blob", "dfs", "queue"]) -> str:
        """Return the host of one service of a storage account."""
        return f"{account}.{service}.{self.storage_suffix}"


_STORAGE_SCOPE = "https://storage.azure.com/.default"

_PUBLIC = Cloud(
    name="public",
    storage_suffix="core.windows.net",
    storage_scope=_STORAGE_SCOPE,
    authority_host="https://login.microsoftonline.com",
    synapse_suffix="dev.azuresynapse.net",
    synapse_scope="https://dev.azuresynapse.net/.default",
    resource_manager="https://management.azure.com",
    ml_suffix="api.azureml.ms",
)

CLOUDS: tuple[Cloud, ...] = (
    _PUBLIC,
    Cloud(
        name="us-government",
        storage_suffix="core.usgovcloudapi.net",
        storage_scope=_STORAGE_SCOPE,
        authority_host="https://login.microsoftonline.us",
        synapse_suffix="dev.azuresynapse.usgovcloudapi.net",
        synapse_scope="https://dev.azuresynapse.usgovcloudapi.net/.default",
        resource_manager="https://management.usgovcloudapi.net",
        ml_suffix="api.ml.azure.us",
    ),
    Cloud(
        name="china",
        storage_suffix="core.chinacloudapi.cn",
        storage_scope=_STORAGE_SCOPE,
        authority_host="https://login.chinacloudapi.cn",
        synapse_suffix="dev.azuresynapse.azure.cn",
        synapse_scope="https://dev.azuresynapse.azure.cn/.default",
        resource_manager="https://management.chinacloudapi.cn",
        ml_suffix="api.ml.azure.cn",
    ),
    # Azurite answers to the public cloud's names, and nobody logs in to it with a token.
    replace(_PUBLIC, name="emulator", tls=False),
)


def get_cloud(name: str) -> Cloud:
    """Return the cloud of a name.

    Raises:
        ConfigurationError: No cloud has that name.
    """
    for cloud in CLOUDS:
        if cloud.name == name:
            return cloud
    names = ", ".join(f"'{known}'" for known in get_args(CloudName))
    raise ConfigurationError(f"The cloud {name!r} is unknown: choose one of {names}.")
