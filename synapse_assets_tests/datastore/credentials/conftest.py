"""Tests see no login of the machine that they run on."""

import os

import pytest

from synapse_assets.datastore import tokens
from synapse_assets.datastore.credentials import StorageCredential
from synapse_assets_tests.datastore.credentials.samples import FakeIdentity


@pytest.fixture(autouse=True)
def no_azure_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("AZURE_", "IDENTITY_", "IMDS_", "MSI_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_kept_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_tokens", {})


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> FakeIdentity:
    fake = FakeIdentity()
    monkeypatch.setattr(StorageCredential, "token_credential", lambda self, cloud: fake)
    return fake
