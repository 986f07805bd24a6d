"""What adlfs is told."""

import json

import pytest

from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.credentials import AccountKey, Emulator, StorageCredential
from synapse_assets_tests.datastore.credentials.samples import (
    ALL,
    BY_TOKEN,
    CLIENT_SECRET,
    KEY,
    PLANTED,
    name_of,
    place,
    place_of,
)


class TestAdlfs:
    @pytest.mark.parametrize("credential", ALL, ids=name_of)
    def test_takes_every_option(self, credential: StorageCredential) -> None:
        from adlfs import AzureBlobFileSystem

        location = place_of(credential)
        options = credential.adlfs_options(location)
        json.dumps(dict(options.public))
        filesystem = AzureBlobFileSystem(**options.merged(), skip_instance_cache=True)
        # What it does not know it keeps for azure-identity.
        assert filesystem.kwargs == {}
        assert filesystem.account_name == location.account
        url = filesystem.service_client.url
        if isinstance(credential, Emulator):
            assert url.startswith("http://127.0.0.1:10000/devstoreaccount1")
        else:
            assert url.startswith("https://acct.blob.core.windows.net/")
        by_token = filesystem.credential is not None
        assert by_token == (credential in BY_TOKEN)

    def test_other_cloud_has_its_host(self) -> None:
        options = AccountKey(key=KEY).adlfs_options(place("china"))
        assert options.public["account_host"] == "acct.blob.core.chinacloudapi.cn"

    @pytest.mark.parametrize("credential", ALL, ids=name_of)
    def test_secrets_are_apart(self, credential: StorageCredential) -> None:
        options = credential.adlfs_options(place_of(credential))
        assert not [value for value in PLANTED if value in json.dumps(dict(options.public))]
        assert not [value for value in PLANTED if value in repr(options)]

    def test_credential_for_this_process_is_new_each_time(self) -> None:
        from azure.identity.aio import ClientSecretCredential

        cloud = get_cloud("us-government")
        first = CLIENT_SECRET.async_token_credential(cloud)
        assert isinstance(first, ClientSecretCredential)
        assert CLIENT_SECRET.async_token_credential(cloud) is not first
        assert AccountKey(key=KEY).async_token_credential(cloud) is None
