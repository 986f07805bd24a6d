"""What every way to log in to Azure storage gives, and what all of them check."""

import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import ConfigDict, SerializerFunctionWrapHandler, model_serializer

from synapse_assets.datastore.clouds import Cloud
from synapse_assets.datastore.location import Location
from synapse_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential

_HIDDEN = "**********"

# adlfs and delta-rs read these by themselves, and take them before what they are given.
_OTHER_LOGINS = (
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CLIENT_ID",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
)


@dataclass(frozen=True)
class Options:
    """Settings of a library, told apart by who may see them.

    Attributes:
        public: Settings that may be written to a file or an argument. JSON-able.
        secret: Settings that travel in the environment or in memory only.
    """

    public: Mapping[str, Any]
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)

    def merged(self) -> dict[str, Any]:
        """Return all settings, for use in this process."""
        return {**self.public, **self.secret}


class StorageCredential(dg.Config):
    """One way to log in to Azure storage.

    A field that holds a secret is left out of representations, and takes a `dg.EnvVar`, so that
    the secret is in no configuration that Dagster stores or shows. Every method reads the
    secrets, so it works where Dagster has resolved the variables: in a run, or in a resource
    from `process_config_and_initialize()`.

    The public methods check that credential, cloud and location belong together; a kind of
    credential implements the private ones.
    """

    # An error of pydantic repeats what it was given, the secret too.
    model_config = ConfigDict(hide_input_in_errors=True)

    @model_serializer(mode="wrap")
    def _hide_secrets(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            name: value if value is None or name not in fields or fields[name].repr else _HIDDEN
            for name, value in serialize(self).items()
        }

    def token_credential(self, cloud: Cloud) -> "TokenCredential | None":
        """Return the credential of azure-identity, None for an account key or a SAS.

        It is one object per configuration, so that it keeps its tokens. Do not close it.
        """
        self._check_cloud(cloud)
        return self._token_credential(cloud)

    def async_token_credential(self, cloud: Cloud) -> "AsyncTokenCredential | None":
        """Return a new credential of azure-identity for adlfs, which closes it itself.

        In this process it goes to adlfs as `credential=`, beside `adlfs_options`.
        """
        self._check_cloud(cloud)
        return self._async_token_credential(cloud)

    def adlfs_options(self, location: Location) -> Options:
        """Return the keyword options of `adlfs.AzureBlobFileSystem`.

        For a login by token they make adlfs use azure-identity's default chain, which finds the
        same identity in a process that has the variables of `environment`.
        """
        self._check_location(location)
        self._refuse_other_logins()
        return self._adlfs(location)

    def delta_options(self, location: Location) -> dict[str, str]:
        """Return the storage options of deltalake and polars, for `location.object_store_uri`.

        Call it anew for each table that is opened: some logins give a token that expires. The
        others refresh by themselves while the table is open.
        """
        self._check_location(location)
        self._refuse_other_logins()
        # All of it is explicit: delta-rs fills in what is missing from the environment.
        return {
            "account_name": location.account,
            # object_store knows the public cloud's endpoint only.
            "endpoint": location.account_url(),
            "use_emulator": "false",
            # Any value keeps delta-rs from taking another login out of the environment.
            "use_azure_cli": "false",
            "skip_signature": "false",
            **self._delta_login(location),
        }

    def hadoop_configuration(self, location: Location) -> Options:
        """Return the properties of Hadoop's ABFS driver (hadoop-azure 3.4.1 or later)."""
        self._check_location(location)
        return self._hadoop(location)

    def queue_login(self, location: Location) -> tuple[str, Any]:
        """Return the URL of the account's queue service, and what its SDK logs in with there."""
        self._check_location(location)
        return self._queue_login(location)

    def environment(self, cloud: Cloud) -> dict[str, str]:
        """Return the variables by which a subprocess' default chain finds this identity.

        They may hold secrets. Empty for an account key or a SAS, which are no identity.
        """
        self._check_cloud(cloud)
        return self._environment(cloud)

    def _token_credential(self, cloud: Cloud) -> "TokenCredential | None":
        return None

    def _async_token_credential(self, cloud: Cloud) -> "AsyncTokenCredential | None":
        return None

    def _environment(self, cloud: Cloud) -> dict[str, str]:
        return {}

    @abstractmethod
    def _adlfs(self, location: Location) -> Options: ...

    @abstractmethod
    def _delta_login(self, location: Location) -> dict[str, str]: ...

    @abstractmethod
    def _hadoop(self, location: Location) -> Options: ...

    def _queue_login(self, location: Location) -> tuple[str, Any]:
        host = location.cloud.account_host(location.account, "queue")
        return f"https://{host}", self._token_credential(location.cloud)

    def _own_secret(self) -> str | None:
        """Return the secret that a variable of the libraries may hold without harm."""
        return None

    def _check_cloud(self, cloud: Cloud) -> None:
        kind = kind_of(self)
        for name, value in self:
            # It is a text, so the name of the variable would go for the secret.
            if isinstance(value, dg.EnvVar):
                raise ConfigurationError(
                    f"The field '{name}' of the credential of kind '{kind}' still names an "
                    "environment variable. Outside of a run, take the resource from "
                    "`process_config_and_initialize()`."
                )
        if (kind == "emulator") != (cloud.name == "emulator"):
            raise ConfigurationError(
                f"The credential of kind '{kind}' does not belong to the cloud '{cloud.name}': the "
                "cloud 'emulator' takes the credential of kind 'emulator', and no other cloud "
                "does. Change one of them."
            )

    def _check_location(self, location: Location) -> None:
        if location.kind != "azure":
            raise ConfigurationError(
                f"The datastore {location.uri()} is not on Azure storage, and takes no credential. "
                "Take the credential out of the datastore."
            )
        self._check_cloud(location.cloud)

    def _refuse_other_logins(self) -> None:
        """Refuse variables by which the libraries would log in as somebody else."""
        for name in _OTHER_LOGINS:
            value = os.environ.get(name)
            if value and value != self._own_secret():
                raise ConfigurationError(
                    f"The environment variable {name} is set, and libraries of Azure storage would "
                    f"log in with it instead of the credential of kind '{kind_of(self)}'. Unset "
                    "it; keep a secret of the datastore in a variable of another name."
                )


def kind_of(credential: StorageCredential) -> str:
    """Return the literal that tells a kind of credential apart."""
    return str(type(credential).model_fields["kind"].default)


def adlfs_base_options(location: Location) -> dict[str, Any]:
    """Return what every login tells adlfs."""
    return {
        "account_name": location.account,
        "account_host": location.cloud.account_host(location.account, "blob"),
        "anon": False,
    }


def abfs_properties(location: Location, properties: Mapping[str, str]) -> dict[str, str]:
    """Return properties of the ABFS driver for this account alone."""
    host = location.cloud.account_host(location.account, "dfs")
    return {f"fs.azure.{name}.{host}": value for name, value in properties.items()}
