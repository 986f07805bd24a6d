"""The profiles of the Azure clouds."""

import dataclasses
from typing import get_args

import pytest

from synapse_assets.datastore.clouds import CLOUDS, Cloud, CloudName, get_cloud
from synapse_assets.errors import ConfigurationError


def test_every_name_has_one_profile() -> None:
    assert [cloud.name for cloud in CLOUDS] == list(get_args(CloudName))
    assert [get_cloud(name).name for name in get_args(CloudName)] == list(get_args(CloudName))


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(ConfigurationError, match=r"'azure' is unknown.*'public'.*'us-government'"):
        get_cloud("azure")


def test_profile_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_cloud("public").storage_suffix = "elsewhere"  # type: ignore[misc]


@pytest.mark.parametrize("cloud", CLOUDS, ids=lambda cloud: cloud.name)
def test_hosts_have_no_scheme_and_addresses_have_one(cloud: Cloud) -> None:
    for suffix in (cloud.storage_suffix, cloud.synapse_suffix, cloud.ml_suffix):
        assert "/" not in suffix
        assert not suffix.startswith(".")
    for address in (cloud.authority_host, cloud.resource_manager):
        assert address.startswith("https://")
        assert not address.endswith("/")
    for scope in (cloud.storage_scope, cloud.synapse_scope, cloud.resource_manager_scope):
        assert scope.startswith("https://")
        assert scope.endswith("/.default")
        assert "//.default" not in scope


def test_authority_hosts_are_those_of_azure_identity() -> None:
    from azure.identity import AzureAuthorityHosts

    assert {cloud.authority_host for cloud in CLOUDS} == {
        f"https://{host}"
        for host in (
            AzureAuthorityHosts.AZURE_PUBLIC_CLOUD,
            AzureAuthorityHosts.AZURE_GOVERNMENT,
            AzureAuthorityHosts.AZURE_CHINA,
        )
    }
