"""Logins by a token of Microsoft Entra: identities that Azure gives, secrets, and people."""

import importlib
import os
from abc import abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from synapse_assets.datastore.clouds import Cloud
from synapse_assets.datastore.credentials.base import (
    Options,
    StorageCredential,
    abfs_properties,
    adlfs_base_options,
    kind_of,
)
from synapse_assets.datastore.credentials.keys import sas_configuration
from synapse_assets.datastore.credentials.tokens import bearer_token, user_delegation_sas
from synapse_assets.datastore.location import Location
from synapse_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential

_PROVIDERS = "org.apache.hadoop.fs.azurebfs.oauth2"
# Hosts that hand out a managed identity's tokens in a way that object_store does not speak: Azure
# Arc, Azure ML and Cloud Shell, Service Fabric.
_FOREIGN_IDENTITY_HOSTS = ("IMDS_ENDPOINT", "MSI_ENDPOINT", "IDENTITY_SERVER_THUMBPRINT")


class EntraCredential(StorageCredential):
    """A login that azure-identity turns into tokens.

    A subclass says how to make the credential, and overrides what a library can do by itself.
    Otherwise deltalake gets a token, and Hadoop a SAS that the identity signs.
    """

    @abstractmethod
    def _create(self, identity: Any, cloud: Cloud) -> Any:
        """Return a credential of `identity`, which is azure.identity or azure.identity.aio."""

    @abstractmethod
    def _chain_variables(self) -> dict[str, str]:
        """Return the variables by which the default chain finds this identity and no other."""

    def _token_credential(self, cloud: Cloud) -> "TokenCredential":
        credential: TokenCredential = _created_once(self, cloud)
        return credential

    def _async_token_credential(self, cloud: Cloud) -> "AsyncTokenCredential":
        credential: AsyncTokenCredential = _created(self, cloud, "azure.identity.aio")
        return credential

    def _environment(self, cloud: Cloud) -> dict[str, str]:
        return {"AZURE_AUTHORITY_HOST": cloud.authority_host, **self._chain_variables()}

    def _adlfs(self, location: Location) -> Options:
        return Options(adlfs_base_options(location))

    def _delta_login(self, location: Location) -> dict[str, str]:
        cloud = location.cloud
        return {"bearer_token": bearer_token(self._token_credential(cloud), cloud.storage_scope)}

    def _hadoop(self, location: Location) -> Options:
        sas = user_delegation_sas(self._token_credential(location.cloud), location)
        return sas_configuration(location, sas)


class ManagedIdentity(EntraCredential):
    """The identity that Azure gives to the machine or the container."""

    kind: Literal["managed_identity"] = "managed_identity"
    client_id: str | None = Field(
        default=None,
        description="Client id of a user-assigned identity; without it the machine's own.",
    )

    def _create(self, identity: Any, cloud: Cloud) -> Any:
        return identity.ManagedIdentityCredential(client_id=self.client_id)

    def _chain_variables(self) -> dict[str, str]:
        return {
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
            **({"AZURE_CLIENT_ID": self.client_id} if self.client_id else {}),
        }

    def _delta_login(self, location: Location) -> dict[str, str]:
        if any(os.environ.get(name) for name in _FOREIGN_IDENTITY_HOSTS):
            return super()._delta_login(location)
        login = {"client_id": self.client_id} if self.client_id else {}
        # App Service and Container Apps; delta-rs does not look for it.
        endpoint = os.environ.get("IDENTITY_ENDPOINT")
        return {**login, "msi_endpoint": endpoint} if endpoint else login

    def _hadoop(self, location: Location) -> Options:
        properties = {
            "account.auth.type": "OAuth",
            "account.oauth.provider.type": f"{_PROVIDERS}.MsiTokenProvider",
        }
        if self.client_id:
            properties["account.oauth2.client.id"] = self.client_id
        return Options(abfs_properties(location, properties))


class WorkloadIdentity(EntraCredential):
    """The identity of a pod; Azure Kubernetes Service sets what the fields default to."""

    kind: Literal["workload_identity"] = "workload_identity"
    client_id: str | None = Field(default=None, description="Else AZURE_CLIENT_ID.")
    tenant_id: str | None = Field(default=None, description="Else AZURE_TENANT_ID.")
    token_file: str | None = Field(default=None, description="Else AZURE_FEDERATED_TOKEN_FILE.")

    def _create(self, identity: Any, cloud: Cloud) -> Any:
        client_id, tenant_id, token_file = self._identity()
        return identity.WorkloadIdentityCredential(
            client_id=client_id,
            tenant_id=tenant_id,
            token_file_path=token_file,
            authority=cloud.authority_host,
        )

    def _chain_variables(self) -> dict[str, str]:
        client_id, tenant_id, token_file = self._identity()
        return {
            "AZURE_TOKEN_CREDENTIALS": "WorkloadIdentityCredential",
            "AZURE_CLIENT_ID": client_id,
            "AZURE_TENANT_ID": tenant_id,
            "AZURE_FEDERATED_TOKEN_FILE": token_file,
        }

    def _delta_login(self, location: Location) -> dict[str, str]:
        client_id, tenant_id, token_file = self._identity()
        return {
            "client_id": client_id,
            "tenant_id": tenant_id,
            "federated_token_file": token_file,
            "authority_host": location.cloud.authority_host,
        }

    def _hadoop(self, location: Location) -> Options:
        client_id, tenant_id, token_file = self._identity()
        properties = {
            "account.auth.type": "OAuth",
            "account.oauth.provider.type": f"{_PROVIDERS}.WorkloadIdentityTokenProvider",
            "account.oauth2.msi.authority": f"{location.cloud.authority_host}/",
            "account.oauth2.msi.tenant": tenant_id,
            "account.oauth2.client.id": client_id,
            "account.oauth2.token.file": token_file,
        }
        return Options(abfs_properties(location, properties))

    def _identity(self) -> tuple[str, str, str]:
        """Return client, tenant and token file."""
        return (
            self._field_or_variable("client_id", "AZURE_CLIENT_ID"),
            self._field_or_variable("tenant_id", "AZURE_TENANT_ID"),
            self._field_or_variable("token_file", "AZURE_FEDERATED_TOKEN_FILE"),
        )

    def _field_or_variable(self, name: str, variable: str) -> str:
        value = getattr(self, name) or os.environ.get(variable)
        if not value:
            raise ConfigurationError(
                f"The credential of kind 'workload_identity' has no {name}, and the environment "
                f"variable {variable} is not set. On Azure Kubernetes Service, label the pod "
                "'azure.workload.identity/use: \"true\"'; elsewhere set the field."
            )
        return str(value)


class ClientSecret(EntraCredential):
    """An app registration (service principal) with a secret."""

    kind: Literal["client_secret"] = "client_secret"
    tenant_id: str = Field(description="Id of the tenant.")
    client_id: str = Field(description="Client id of the app registration.")
    client_secret: str = Field(repr=False, description="Its secret, by dg.EnvVar.")

    def _create(self, identity: Any, cloud: Cloud) -> Any:
        return identity.ClientSecretCredential(
            self.tenant_id, self.client_id, self.client_secret, authority=cloud.authority_host
        )

    def _chain_variables(self) -> dict[str, str]:
        return {
            "AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential",
            "AZURE_TENANT_ID": self.tenant_id,
            "AZURE_CLIENT_ID": self.client_id,
            "AZURE_CLIENT_SECRET": self.client_secret,
        }

    def _delta_login(self, location: Location) -> dict[str, str]:
        return {
            "tenant_id": self.tenant_id,
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "authority_host": location.cloud.authority_host,
        }

    def _hadoop(self, location: Location) -> Options:
        endpoint = f"{location.cloud.authority_host}/{self.tenant_id}/oauth2/token"
        public = {
            "account.auth.type": "OAuth",
            "account.oauth.provider.type": f"{_PROVIDERS}.ClientCredsTokenProvider",
            "account.oauth2.client.endpoint": endpoint,
            "account.oauth2.client.id": self.client_id,
        }
        secret = {"account.oauth2.client.secret": self.client_secret}
        return Options(abfs_properties(location, public), abfs_properties(location, secret))


class ClientCertificate(EntraCredential):
    """An app registration (service principal) with a certificate."""

    kind: Literal["client_certificate"] = "client_certificate"
    tenant_id: str = Field(description="Id of the tenant.")
    client_id: str = Field(description="Client id of the app registration.")
    certificate_path: str = Field(description="File in PEM or PKCS12 form, with the private key.")
    password: str | None = Field(
        default=None, repr=False, description="Password of the file, by dg.EnvVar."
    )

    def _create(self, identity: Any, cloud: Cloud) -> Any:
        if not Path(self.certificate_path).is_file():
            raise ConfigurationError(
                f"The certificate {self.certificate_path} is not there. Name the file with the "
                "certificate and its private key, in PEM or PKCS12 form."
            )
        return identity.CertificateCredential(
            self.tenant_id,
            self.client_id,
            self.certificate_path,
            password=self.password,
            authority=cloud.authority_host,
        )

    def _chain_variables(self) -> dict[str, str]:
        return {
            "AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential",
            "AZURE_TENANT_ID": self.tenant_id,
            "AZURE_CLIENT_ID": self.client_id,
            "AZURE_CLIENT_CERTIFICATE_PATH": self.certificate_path,
            **({"AZURE_CLIENT_CERTIFICATE_PASSWORD": self.password} if self.password else {}),
        }


class AzureCli(EntraCredential):
    """Whoever is logged in with `az login`."""

    kind: Literal["azure_cli"] = "azure_cli"

    def _create(self, identity: Any, cloud: Cloud) -> Any:
        return identity.AzureCliCredential()

    def _chain_variables(self) -> dict[str, str]:
        return {"AZURE_TOKEN_CREDENTIALS": "AzureCliCredential"}

    def _delta_login(self, location: Location) -> dict[str, str]:
        return {"use_azure_cli": "true"}


class DefaultChain(EntraCredential):
    """Whatever azure-identity's default chain finds first: variables, identities, Azure CLI."""

    kind: Literal["default"] = "default"

    def _create(self, identity: Any, cloud: Cloud) -> Any:
        return identity.DefaultAzureCredential(authority=cloud.authority_host)

    def _chain_variables(self) -> dict[str, str]:
        return {}


@lru_cache(maxsize=32)
def _created_once(credential: EntraCredential, cloud: Cloud) -> Any:
    return _created(credential, cloud, "azure.identity")


def _created(credential: EntraCredential, cloud: Cloud, module: str) -> Any:
    """Return the credential of azure-identity, or say what it misses."""
    try:
        return credential._create(importlib.import_module(module), cloud)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"The credential of kind '{kind_of(credential)}' is not complete: {reason}"
        ) from error
