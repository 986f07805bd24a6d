"""The datastore resource: one root location, given to every library in the form it wants."""

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import ConfigDict, Field

from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.credentials import Credential, DefaultChain, Options
from synapse_assets.datastore.location import Location
from synapse_assets.datastore.storage import SECRETS, LocalStorage, Storage, open_storage
from synapse_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient
    from fsspec import AbstractFileSystem
    from upath import UPath

    from synapse_assets.datastore.queue import StorageQueue

# Folders of the datastore that are not datasets. A leading underscore keeps them apart from
# dataset names, which begin with a letter or a digit.
BUNDLES = "_bundles"
ATTEMPTS = "_attempts"

# Otherwise a store that is down keeps a run waiting for three minutes at each request; and a few
# retries are over within a second, while a service that starts anew takes several.
_DELTA_PATIENCE = {
    "max_retries": "100",
    "retry_timeout": "25s",
    "backoff_config.max_backoff": "4s",
    "connect_timeout": "10s",
    "timeout": "60s",
}


class Datastore(dg.ConfigurableResource["Datastore"]):
    """One root location below which every dataset, bundle and attempt lies.

    The rest of the package never looks at the scheme: it asks the datastore for file operations,
    for Delta's storage options or for Hadoop's configuration.
    """

    # An error of pydantic repeats what it was given, the secrets of a credential too.
    model_config = ConfigDict(hide_input_in_errors=True)

    root: str = Field(
        description="Where everything lies: a folder ('./data'), Azure storage "
        "('abfss://container@account.dfs.core.windows.net/folder', 'az://container/folder', "
        "'https://account.blob.core.windows.net/container/folder') or HDFS "
        "('hdfs://host:8020/folder')."
    )
    account: str | None = Field(
        default=None, description="Storage account, where the root does not name it."
    )
    cloud: str = Field(
        default="public",
        description="Cloud of the account: 'public', 'us-government', 'china' or 'emulator'.",
    )
    credential: Credential = Field(
        default=DefaultChain(),
        discriminator="kind",
        description="How to log in to Azure storage; not used with a folder or HDFS.",
    )

    @property
    def location(self) -> Location:
        """The place that the root names.

        Raises:
            ConfigurationError: The root names no place that is served.
        """
        return Location.parse(self.root, account=self.account, cloud=get_cloud(self.cloud))

    def uri(self, *parts: str) -> str:
        """Return the location of `parts` below the root: an absolute path or a URL.

        Raises:
            ConfigurationError: The root names no place that is served.
        """
        return self.location.uri(*parts)

    def storage(self) -> Storage:
        """Return the store's file operations, for URIs as `uri` makes them."""
        return _open(self.location, self.credential)

    def filesystem(self) -> "AbstractFileSystem":
        """Return the fsspec file system on which the URIs of this datastore are paths."""
        return self.storage().filesystem()

    def path(self, *parts: str) -> "UPath":
        """Return a location below the root as a path of universal-pathlib, for your own code."""
        from upath import UPath

        location = self.location
        if location.kind != "azure":
            return UPath(self.uri(*parts))
        options = self.credential.adlfs_options(location).merged()
        credential = self.credential.async_token_credential(location.cloud)
        if credential is not None:
            options["credential"] = credential
        path: UPath = UPath(location.object_store_uri(self.uri(*parts)), **options)
        return path

    def container_client(self) -> "ContainerClient":
        """Return the Azure SDK's client of the container, logged in and with our retries.

        Raises:
            ConfigurationError: The datastore is not on Azure storage.
        """
        from synapse_assets.datastore.blob import BlobStorage

        storage = self.storage()
        if not isinstance(storage, BlobStorage):
            raise ConfigurationError(
                f"The datastore {self.uri()} is not on Azure storage and has no container."
            )
        return storage.container_client

    def storage_queue(self, name: str, *, account: str | None = None) -> "StorageQueue":
        """Return a queue of Azure Queue Storage, with the login of this datastore.

        Args:
            name: Name of the queue.
            account: The account that it lies in; the datastore's own unless told.

        Raises:
            ConfigurationError: The datastore is not on Azure storage, or logs in by a secret
                that opens its own account only.
        """
        location = self.location
        if account is not None and account != location.account:
            if self.credential.token_credential(location.cloud) is None:
                raise ConfigurationError(
                    f"The datastore's secret opens the account '{location.account}' and no queue "
                    f"of '{account}'. Take a queue of its own account, or a login by token."
                )
            location = replace(location, account=account)
        return _open_queue(location, self.credential, name)

    def delta_uri(self, uri: str) -> str:
        """Return a URI in the form that `deltalake` takes, and polars too."""
        return self.location.object_store_uri(uri)

    def delta_storage_options(self) -> dict[str, str]:
        """Return the storage options that `deltalake` needs to reach the store.

        They may hold a token: ask for them anew for each table that is opened.
        """
        location = self.location
        if location.kind != "azure":
            return {}
        return {**_DELTA_PATIENCE, **self.credential.delta_options(location)}

    def hadoop_configuration(self) -> Options:
        """Return the Hadoop properties that Spark needs to reach the store, without a prefix."""
        location = self.location
        if location.kind != "azure":
            return Options({})
        return self.credential.hadoop_configuration(location)

    def storage_spec(self) -> Mapping[str, Any]:
        """Return what another process needs to open the store, without any secret."""
        location = self.location
        if location.kind == "azure":
            options = self.credential.adlfs_options(location).public
            return {"store": "blob", "container": location.container, "options": options}
        if location.kind == "hdfs":
            return {"store": "hdfs", "host": location.host}
        return {"store": "local"}

    def process_environment(self) -> Mapping[str, str]:
        """Return the variables by which a process on this machine logs in to the store.

        They hold what no file and no argument may: other users of the machine see neither.
        """
        location = self.location
        if location.kind != "azure":
            return {}
        secrets = {
            "storage": self.credential.adlfs_options(location).secret,
            "hadoop": self.hadoop_configuration().secret,
        }
        return {
            **self.credential.environment(location.cloud),
            **({SECRETS: json.dumps(secrets)} if any(secrets.values()) else {}),
        }


@functools.lru_cache(maxsize=32)
def _open(location: Location, credential: Credential) -> Storage:
    """Return the store of a location; one and the same for each, since it keeps connections."""
    if location.kind == "local":
        return LocalStorage()
    if location.kind == "hdfs":
        return open_storage({"store": "hdfs", "host": location.host}, {})
    from synapse_assets.datastore.blob import BlobStorage

    return BlobStorage(
        container=location.container,
        options=credential.adlfs_options(location).merged(),
        credential=credential.token_credential(location.cloud),
        make_async_credential=lambda: credential.async_token_credential(location.cloud),
    )


@functools.lru_cache(maxsize=32)
def _open_queue(location: Location, credential: Credential, name: str) -> "StorageQueue":
    """Return the queue of that name; one and the same for each, since it keeps connections."""
    from synapse_assets.datastore.queue import StorageQueue

    url, login = credential.queue_login(location)
    return StorageQueue(url=url, name=name, credential=login)
