"""The ways to log in to Azure storage: one class each, told apart by `kind`.

A resource declares the field so (Dagster needs the discriminator in `Field` itself, and a default
that is a credential):

    credential: Credential = Field(default=DefaultChain(), discriminator="kind")
"""

from synapse_assets.datastore.credentials.base import Options, StorageCredential
from synapse_assets.datastore.credentials.entra import (
    AzureCli,
    ClientCertificate,
    ClientSecret,
    DefaultChain,
    ManagedIdentity,
    WorkloadIdentity,
)
from synapse_assets.datastore.credentials.keys import AccountKey, Emulator, SasToken

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

__all__ = [
    "AccountKey",
    "AzureCli",
    "ClientCertificate",
    "ClientSecret",
    "Credential",
    "DefaultChain",
    "Emulator",
    "ManagedIdentity",
    "Options",
    "SasToken",
    "StorageCredential",
    "WorkloadIdentity",
]
