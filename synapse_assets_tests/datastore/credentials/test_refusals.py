"""What does not go together, and secrets that cannot be any."""

import pytest

from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.credentials import AccountKey, Emulator, SasToken, StorageCredential
from synapse_assets.datastore.location import Location
from synapse_assets.errors import ConfigurationError
from synapse_assets_tests.datastore.credentials.samples import (
    ALL,
    BY_SECRET,
    BY_TOKEN,
    KEY,
    SAS,
    name_of,
    place,
)


class TestRefusals:
    @pytest.mark.parametrize("credential", ALL, ids=name_of)
    def test_emulator_and_cloud_go_together(self, credential: StorageCredential) -> None:
        emulator = isinstance(credential, Emulator)
        wrong = place("public") if emulator else place("emulator", None)
        match = "does not belong to the cloud"
        with pytest.raises(ConfigurationError, match=match):
            credential.adlfs_options(wrong)
        with pytest.raises(ConfigurationError, match=match):
            credential.delta_options(wrong)
        with pytest.raises(ConfigurationError, match=match):
            credential.hadoop_configuration(wrong)
        for method in (
            credential.token_credential,
            credential.async_token_credential,
            credential.environment,
        ):
            with pytest.raises(ConfigurationError, match=match):
                method(wrong.cloud)

    def test_folder_takes_no_credential(self) -> None:
        folder = Location.parse("/data", account=None, cloud=get_cloud("public"))
        with pytest.raises(ConfigurationError, match="/data is not on Azure storage"):
            AccountKey(key=KEY).delta_options(folder)

    def test_emulator_has_one_account(self) -> None:
        with pytest.raises(ConfigurationError, match="and the datastore names 'other'"):
            Emulator().delta_options(place("emulator", "other"))

    @pytest.mark.parametrize(
        "endpoint", ["https://127.0.0.1:10000/devstoreaccount1", "127.0.0.1:10000", "http://x/y"]
    )
    def test_endpoint_of_another_form(self, endpoint: str) -> None:
        with pytest.raises(ConfigurationError, match="does not have the form"):
            Emulator(endpoint=endpoint).hadoop_configuration(place("emulator", None))

    @pytest.mark.parametrize("key", ["planted key", "planted_", "", "DefaultEndpoints=planted;"])
    def test_key_that_is_none(self, key: str) -> None:
        with pytest.raises(ConfigurationError, match=r"base64.*Access keys") as caught:
            AccountKey(key=key).delta_options(place())
        assert "planted" not in str(caught.value)

    @pytest.mark.parametrize(
        "expiry", ["2020-02-03T04:05:06Z", "2020-02-03T04:05Z", "2020-02-03T04:05:06.1234567Z"]
    )
    def test_expired_sas(self, expiry: str) -> None:
        credential = SasToken(token=f"sv=2024&se={expiry.replace(':', '%3A')}&sig=planted")
        with pytest.raises(
            ConfigurationError, match="expired on 2020-02-03 at 04:05 UTC"
        ) as caught:
            credential.adlfs_options(place())
        assert "planted" not in str(caught.value)

    def test_sas_without_signature(self) -> None:
        with pytest.raises(ConfigurationError, match="no signature"):
            SasToken(token="sv=2024&se=2999-01-01").delta_options(place())

    @pytest.mark.parametrize("token", ["sig=x&si=policy", "sig=x&se=2999-01-01", f"?{SAS}\n"])
    def test_sas_that_is_valid(self, token: str) -> None:
        sas = SasToken(token=token).delta_options(place())["sas_token"]
        assert sas == token.strip().lstrip("?")

    @pytest.mark.parametrize(
        "name", ["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING"]
    )
    @pytest.mark.parametrize("credential", [*BY_TOKEN, *BY_SECRET], ids=name_of)
    def test_other_login_in_the_environment(
        self, credential: StorageCredential, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, "planted-other")
        for options in (credential.adlfs_options, credential.delta_options):
            with pytest.raises(ConfigurationError, match=f"{name} is set, and") as caught:
                options(place())
            assert "planted" not in str(caught.value)

    def test_own_secret_in_the_environment_is_no_other_login(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
        assert AccountKey(key=KEY).delta_options(place())["account_key"] == KEY
