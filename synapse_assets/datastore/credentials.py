"""The ways to log in to Azure storage: one class each, told apart by `kind`.

A resource declares the field so (Dagster needs the discriminator in `Field` itself, and a default
that is a credential):

    credential: Credential = Field(default=DefaultChain(), discriminator="kind")
"""

import base64
import binascii
import contextlib
import importlib
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlsplit

import dagster as dg
from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from synapse_assets.datastore.clouds import Cloud
from synapse_assets.datastore.location import EMULATOR_ACCOUNT, Location
from synapse_assets.datastore.tokens import bearer_token, user_delegation_sas
from synapse_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential

_HIDDEN = "**********"
# Not a secret: https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
EMULATOR_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
# adlfs and delta-rs read these by themselves, and take them before what they are given.
_OTHER_LOGINS = (
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CLIENT_ID",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
)
# By which variable azure-identity's default chain takes what its classes take as an argument.
_VARIABLES = {
    "authority": "AZURE_AUTHORITY_HOST",
    "client_id": "AZURE_CLIENT_ID",
    "tenant_id": "AZURE_TENANT_ID",
    "client_secret": "AZURE_CLIENT_SECRET",
    "certificate_path": "AZURE_CLIENT_CERTIFICATE_PATH",
    "password": "AZURE_CLIENT_CERTIFICATE_PASSWORD",
    "token_file_path": "AZURE_FEDERATED_TOKEN_FILE",
}
# What the chain is called where it is not the class itself; nothing for the whole of it.
_IN_CHAIN = {
    "ClientSecretCredential": "EnvironmentCredential",
    "CertificateCredential": "EnvironmentCredential",
    "DefaultAzureCredential": "",
}


@dataclass(frozen=True)
class Options:
    """Settings of a library, told apart by who may see them.

    Attributes:
        public: Settings that may be written to a file or an argument. JSON-able.
        make_secret: Returns the settings that travel in the environment or in memory only; to
            make them may take a request.
    """

    public: Mapping[str, Any]
    make_secret: Callable[[], Mapping[str, str]] = field(default=dict, repr=False)

    @cached_property
    def secret(self) -> Mapping[str, str]:
        """The settings that travel in the environment or in memory only."""
        return self.make_secret()

    def merged(self) -> dict[str, Any]:
        """Return all settings, for use in this process."""
        return {**self.public, **self.secret}


@dataclass(frozen=True)
class _Login:
    """What a kind of credential tells the libraries.

    Attributes:
        secret: The 'account_key' or the 'sas_token'; none for an identity.
        identity: Name of the class of azure-identity.
        arguments: What that class takes.
        hadoop: Properties of the ABFS driver's account, if it can log in by itself; otherwise it
            gets a SAS that the identity signs.
        hadoop_secret: Those of them that hold a secret.
    """

    secret: Mapping[str, str] = field(default_factory=dict)
    identity: str = ""
    arguments: Mapping[str, str | None] = field(default_factory=dict)
    hadoop: Mapping[str, str | None] = field(default_factory=dict)
    hadoop_secret: Mapping[str, str] = field(default_factory=dict)


class StorageCredential(dg.Config):
    """One way to log in to Azure storage.

    A field that holds a secret is left out of representations, and takes a `dg.EnvVar`, so that
    the secret is in no configuration that Dagster stores or shows. Every method reads the
    secrets, so it works where Dagster has resolved the variables: in a run, or in a resource
    from `process_config_and_initialize()`; and it checks that credential, cloud and location
    belong together.
    """

    # An error of pydantic repeats what it was given, the secret too.
    model_config = ConfigDict(hide_input_in_errors=True)

    kind: str

    @model_serializer(mode="wrap")
    def _hide_secrets(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            name: value if value is None or name not in fields or fields[name].repr else _HIDDEN
            for name, value in serialize(self).items()
        }

    @abstractmethod
    def _login(self, cloud: Cloud) -> _Login: ...

    def _fields(self) -> dict[str, str | None]:
        return {name: value for name, value in self if name != "kind"}

    def token_credential(self, cloud: Cloud) -> "TokenCredential | None":
        """Return the credential of azure-identity, None for an account key or a SAS.

        It is one object per configuration, so that it keeps its tokens. Do not close it.
        """
        self._check(cloud)
        credential: TokenCredential | None = _created_once(self, cloud)
        return credential

    def async_token_credential(self, cloud: Cloud) -> "AsyncTokenCredential | None":
        """Return a new credential of azure-identity for adlfs, which closes it itself.

        In this process it goes to adlfs as `credential=`, beside `adlfs_options`.
        """
        self._check(cloud)
        credential: AsyncTokenCredential | None = _created(self, cloud, "azure.identity.aio")
        return credential

    def adlfs_options(self, location: Location) -> Options:
        """Return the keyword options of `adlfs.AzureBlobFileSystem`.

        For a login by token they make adlfs use azure-identity's default chain, which finds the
        same identity in a process that has the variables of `environment`.
        """
        secret = self._login_at(location).secret
        public = {
            "account_name": location.account,
            "account_host": location.cloud.account_host(location.account, "blob"),
            "anon": False,
        }
        return Options(public, lambda: secret)

    def delta_options(self, location: Location) -> dict[str, str]:
        """Return the storage options of deltalake and polars, for `location.object_store_uri`.

        Call it anew for each table that is opened: the token of an identity expires.
        """
        secret = self._login_at(location).secret
        # All of it is explicit: delta-rs fills in what is missing from the environment.
        return {
            "account_name": location.account,
            # object_store knows the public cloud's endpoint only.
            "endpoint": location.account_url(),
            "use_emulator": "false",
            # Any value keeps delta-rs from taking another login out of the environment.
            "use_azure_cli": "false",
            "skip_signature": "false",
            **(secret or {"bearer_token": bearer_token(self._identity(location), location.cloud)}),
        }

    def hadoop_configuration(self, location: Location) -> Options:
        """Return the properties of Hadoop's ABFS driver (hadoop-azure 3.4.1 or later)."""
        login = self._login_at(location)
        host = location.cloud.account_host(location.account, "dfs")

        def of_account(properties: Mapping[str, str | None]) -> dict[str, str]:
            return {f"fs.azure.{name}.{host}": text for name, text in properties.items() if text}

        def make_sas() -> str:
            sas = login.secret.get("sas_token")
            return sas or user_delegation_sas(self._identity(location), location)

        if login.hadoop:
            return Options(of_account(login.hadoop), lambda: of_account(login.hadoop_secret))
        if "account_key" in login.secret:
            key = login.secret["account_key"]
            public = of_account({"account.auth.type": "SharedKey"})
            return Options(public, lambda: of_account({"account.key": key}))
        public = of_account({"account.auth.type": "SAS"})
        return Options(public, lambda: of_account({"sas.fixed.token": make_sas()}))

    def queue_login(self, location: Location) -> tuple[str, Any]:
        """Return the URL of the account's queue service, and what its SDK logs in with there."""
        secret = self._login_at(location).secret
        url = f"https://{location.cloud.account_host(location.account, 'queue')}"
        if "account_key" in secret:
            return url, {"account_name": location.account, **secret}
        return url, secret.get("sas_token") or self._identity(location)

    def environment(self, cloud: Cloud) -> dict[str, str]:
        """Return the variables by which a subprocess' default chain finds this identity.

        They may hold secrets. Empty for an account key or a SAS, which are no identity.
        """
        self._check(cloud)
        login = self._login(cloud)
        if not login.identity:
            return {}
        variables = {
            "AZURE_TOKEN_CREDENTIALS": _IN_CHAIN.get(login.identity, login.identity),
            "AZURE_AUTHORITY_HOST": cloud.authority_host,
            **{_VARIABLES[name]: value for name, value in login.arguments.items()},
        }
        return {name: value for name, value in variables.items() if value}

    def _identity(self, location: Location) -> "TokenCredential":
        credential = self.token_credential(location.cloud)
        assert credential is not None
        return credential

    def _check(self, cloud: Cloud) -> None:
        for name, value in self:
            # It is a text, so the name of the variable would go for the secret.
            if isinstance(value, dg.EnvVar):
                raise ConfigurationError(
                    f"The field '{name}' of the credential of kind '{self.kind}' still names an "
                    "environment variable. Outside of a run, take the resource from "
                    "`process_config_and_initialize()`."
                )
        if (self.kind == "emulator") != (cloud.name == "emulator"):
            raise ConfigurationError(
                f"The credential of kind '{self.kind}' does not belong to the cloud "
                f"'{cloud.name}': the cloud 'emulator' takes the credential of kind 'emulator', "
                "and no other cloud does. Change one of them."
            )

    def _login_at(self, location: Location) -> _Login:
        """Return the login to an account, which the libraries would not take another one for."""
        if location.kind != "azure":
            raise ConfigurationError(
                f"The datastore {location.uri()} is not on Azure storage, and takes no credential. "
                "Take the credential out of the datastore."
            )
        self._check(location.cloud)
        self._check_alone(location)
        return self._login(location.cloud)

    def _check_alone(self, _: Location) -> None:
        """Refuse variables by which the libraries would log in as somebody else."""
        fields = type(self).model_fields
        own = {getattr(self, name) for name, field in fields.items() if not field.repr}
        for name in _OTHER_LOGINS:
            if os.environ.get(name) not in (None, "", *own):
                raise ConfigurationError(
                    f"The environment variable {name} is set, and libraries of Azure storage would "
                    f"log in with it instead of the credential of kind '{self.kind}'. Unset it; "
                    "keep a secret of the datastore in a variable of another name."
                )


# --- Identities of Microsoft Entra --------------------------------------------------------------


class ManagedIdentity(StorageCredential):
    """The identity that Azure gives to the machine or the container."""

    kind: Literal["managed_identity"] = "managed_identity"
    client_id: str | None = Field(
        default=None,
        description="Client id of a user-assigned identity; without it the machine's own.",
    )

    def _login(self, _: Cloud) -> _Login:
        return _Login(
            identity="ManagedIdentityCredential",
            arguments={"client_id": self.client_id},
            hadoop={**_oauth("MsiTokenProvider"), "account.oauth2.client.id": self.client_id},
        )


class WorkloadIdentity(StorageCredential):
    """The identity of a pod; Azure Kubernetes Service sets what the fields default to."""

    kind: Literal["workload_identity"] = "workload_identity"
    client_id: str | None = Field(default=None, description="Else AZURE_CLIENT_ID.")
    tenant_id: str | None = Field(default=None, description="Else AZURE_TENANT_ID.")
    token_file: str | None = Field(default=None, description="Else AZURE_FEDERATED_TOKEN_FILE.")

    def _login(self, cloud: Cloud) -> _Login:
        client = self._field_or_variable("client_id", "AZURE_CLIENT_ID")
        tenant = self._field_or_variable("tenant_id", "AZURE_TENANT_ID")
        file = self._field_or_variable("token_file", "AZURE_FEDERATED_TOKEN_FILE")
        return _Login(
            identity="WorkloadIdentityCredential",
            arguments={
                "client_id": client,
                "tenant_id": tenant,
                "token_file_path": file,
                "authority": cloud.authority_host,
            },
            hadoop={
                **_oauth("WorkloadIdentityTokenProvider"),
                "account.oauth2.msi.authority": f"{cloud.authority_host}/",
                "account.oauth2.msi.tenant": tenant,
                "account.oauth2.client.id": client,
                "account.oauth2.token.file": file,
            },
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


class ClientSecret(StorageCredential):
    """An app registration (service principal) with a secret."""

    kind: Literal["client_secret"] = "client_secret"
    tenant_id: str = Field(description="Id of the tenant.")
    client_id: str = Field(description="Client id of the app registration.")
    client_secret: str = Field(repr=False, description="Its secret, by dg.EnvVar.")

    def _login(self, cloud: Cloud) -> _Login:
        endpoint = f"{cloud.authority_host}/{self.tenant_id}/oauth2/token"
        return _Login(
            identity="ClientSecretCredential",
            arguments={**self._fields(), "authority": cloud.authority_host},
            hadoop={
                **_oauth("ClientCredsTokenProvider"),
                "account.oauth2.client.endpoint": endpoint,
                "account.oauth2.client.id": self.client_id,
            },
            hadoop_secret={"account.oauth2.client.secret": self.client_secret},
        )


class ClientCertificate(StorageCredential):
    """An app registration (service principal) with a certificate."""

    kind: Literal["client_certificate"] = "client_certificate"
    tenant_id: str = Field(description="Id of the tenant.")
    client_id: str = Field(description="Client id of the app registration.")
    certificate_path: str = Field(description="File in PEM or PKCS12 form, with the private key.")
    password: str | None = Field(
        default=None, repr=False, description="Password of the file, by dg.EnvVar."
    )

    def _login(self, cloud: Cloud) -> _Login:
        arguments = {**self._fields(), "authority": cloud.authority_host}
        return _Login(identity="CertificateCredential", arguments=arguments)


class AzureCli(StorageCredential):
    """Whoever is logged in with `az login`."""

    kind: Literal["azure_cli"] = "azure_cli"

    def _login(self, _: Cloud) -> _Login:
        return _Login(identity="AzureCliCredential")


class DefaultChain(StorageCredential):
    """Whatever azure-identity's default chain finds first: variables, identities, Azure CLI."""

    kind: Literal["default"] = "default"

    def _login(self, cloud: Cloud) -> _Login:
        arguments = {"authority": cloud.authority_host}
        return _Login(identity="DefaultAzureCredential", arguments=arguments)


def _oauth(provider: str) -> dict[str, str]:
    return {
        "account.auth.type": "OAuth",
        "account.oauth.provider.type": f"org.apache.hadoop.fs.azurebfs.oauth2.{provider}",
    }


@lru_cache(maxsize=32)
def _created_once(credential: StorageCredential, cloud: Cloud) -> Any:
    return _created(credential, cloud, "azure.identity")


def _created(credential: StorageCredential, cloud: Cloud, module: str) -> Any:
    """Return the credential of azure-identity, None for a secret; or say what it misses."""
    login = credential._login(cloud)
    if not login.identity:
        return None
    try:
        return getattr(importlib.import_module(module), login.identity)(**login.arguments)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"The credential of kind '{credential.kind}' is not complete: {reason}"
        ) from error


# --- Shared secrets -----------------------------------------------------------------------------


class AccountKey(StorageCredential):
    """The key of the storage account, which may do everything with it."""

    kind: Literal["account_key"] = "account_key"
    key: str = Field(repr=False, description="The key, by dg.EnvVar.")

    def _login(self, cloud: Cloud) -> _Login:
        key, decoded = self.key.strip(), b""
        with contextlib.suppress(binascii.Error):
            decoded = base64.b64decode(key, validate=True)
        if not decoded:
            raise ConfigurationError(
                "The account key is not what Azure gives out, which is a text in base64 that ends "
                "with '=='. Copy it anew from the account's page 'Access keys'."
            )
        return _Login(secret={"account_key": key})


class SasToken(StorageCredential):
    """A shared access signature of the account or of the container."""

    kind: Literal["sas"] = "sas"
    token: str = Field(
        repr=False, description="The token, by dg.EnvVar; a question mark before it is dropped."
    )

    @property
    def fields(self) -> dict[str, str]:
        """What the token says of itself."""
        return {name: values[0] for name, values in parse_qs(self._plain).items()}

    @property
    def expiry(self) -> datetime | None:
        """When the token ends; None if a stored policy has that."""
        with contextlib.suppress(ValueError):
            moment = self.fields.get("se", "").rstrip("Z").partition(".")[0]
            return datetime.fromisoformat(moment).replace(tzinfo=timezone.utc)
        return None

    @property
    def _plain(self) -> str:
        return self.token.strip().rpartition("?")[2]

    def _login(self, cloud: Cloud) -> _Login:
        if "sig" not in self.fields:
            raise ConfigurationError(
                "The SAS token has no signature ('sig='). Copy all of it, from 'sv=' or 'sp=' on."
            )
        if self.expiry is not None and self.expiry <= datetime.now(timezone.utc):
            raise ConfigurationError(
                f"The SAS token expired on {self.expiry:%Y-%m-%d at %H:%M} UTC. Make a new one, "
                "with the rights to read, write, delete, list and create."
            )
        return _Login(secret={"sas_token": self._plain})

    def queue_login(self, location: Location) -> tuple[str, Any]:
        """Return the URL of the account's queue service, and the token, if it opens queues."""
        if "q" not in self.fields.get("ss", ""):
            raise ConfigurationError(
                "The SAS token opens no queues. Make one of the account for the services Blob and "
                "Queue ('ss=bq'), or choose another credential."
            )
        return super().queue_login(location)


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

    def _login(self, cloud: Cloud) -> _Login:
        return _Login(secret={"account_key": EMULATOR_KEY})

    def adlfs_options(self, location: Location) -> Options:
        """Return the options of adlfs, which takes a host with https only, or this form."""
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={EMULATOR_ACCOUNT};"
            f"AccountKey={EMULATOR_KEY};BlobEndpoint={_checked_emulator_url(self.endpoint)};"
        )
        options = super().adlfs_options(location)
        return Options(options.public, lambda: {"connection_string": connection})

    def delta_options(self, location: Location) -> dict[str, str]:
        """Return the storage options of deltalake."""
        # With 'use_emulator' the endpoint would come from an environment variable alone.
        endpoint = _checked_emulator_url(self.endpoint)
        return {**super().delta_options(location), "endpoint": endpoint, "allow_http": "true"}

    def hadoop_configuration(self, location: Location) -> Options:
        """Return the properties of the ABFS driver, which works on Azurite with these."""
        options = super().hadoop_configuration(location)
        public = {
            "fs.azure.abfs.endpoint": urlsplit(_checked_emulator_url(self.endpoint)).netloc,
            "fs.azure.account.hns.enabled": "false",
            "fs.azure.fns.account.service.type": "BLOB",
            "fs.azure.always.use.https": "false",
            # The driver's other client drops Azurite's answers that have no body.
            "fs.azure.networking.library": "JDK_HTTP_URL_CONNECTION",
            **options.public,
        }
        return Options(public, options.make_secret)

    def queue_login(self, location: Location) -> tuple[str, Any]:
        """Return the URL of Azurite's queue service, and the account's key."""
        return _checked_emulator_url(self.queue_endpoint), super().queue_login(location)[1]

    def _check_alone(self, location: Location) -> None:
        # The options name the account's key and its address, which goes before other logins.
        if location.account != EMULATOR_ACCOUNT:
            raise ConfigurationError(
                f"The emulator has the account '{EMULATOR_ACCOUNT}', and the datastore names "
                f"'{location.account}'. Choose the cloud and the credential of that account."
            )


Credential = (
    ManagedIdentity
    | WorkloadIdentity
    | ClientSecret
    | ClientCertificate
    | AzureCli
    | DefaultChain
    | AccountKey
    | SasToken
    | Emulator
)


def _checked_emulator_url(endpoint: str) -> str:
    """Return the URL of one of the emulator's services in its usual form."""
    url = urlsplit(endpoint)
    if url.scheme != "http" or not url.netloc or url.path.strip("/") != EMULATOR_ACCOUNT:
        raise ConfigurationError(
            f"The emulator's endpoint is {endpoint!r}, which does not have the form "
            f"'http://127.0.0.1:10000/{EMULATOR_ACCOUNT}'."
        )
    return f"http://{url.netloc}/{EMULATOR_ACCOUNT}"
