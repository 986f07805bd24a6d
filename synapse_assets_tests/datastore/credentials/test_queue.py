"""How each credential opens a queue."""

import pytest

from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import AccountKey, Emulator, ManagedIdentity, SasToken
from synapse_assets.errors import ConfigurationError
from synapse_assets_tests.datastore.credentials.samples import KEY, SAS, place

_ACCOUNT_SAS = f"ss=bq&srt=sco&{SAS}"


@pytest.mark.parametrize(
    ("cloud", "host"),
    [
        ("public", "acct.queue.core.windows.net"),
        ("us-government", "acct.queue.core.usgovcloudapi.net"),
        ("china", "acct.queue.core.chinacloudapi.cn"),
    ],
)
def test_each_cloud_has_its_own_queue_service(cloud: str, host: str) -> None:
    url, login = AccountKey(key=KEY).queue_login(place(cloud))
    assert url == f"https://{host}"
    assert login == {"account_name": "acct", "account_key": KEY}


def test_a_sas_of_the_account_opens_queues() -> None:
    assert SasToken(token=f"?{_ACCOUNT_SAS}").queue_login(place())[1] == _ACCOUNT_SAS


def test_a_sas_without_queues_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="opens no queues"):
        SasToken(token=SAS).queue_login(place())


def test_an_identity_gets_tokens_as_for_blobs() -> None:
    credential = ManagedIdentity()
    place_ = place()
    assert credential.queue_login(place_)[1] is credential.token_credential(place_.cloud)


def test_the_emulator_has_a_queue_endpoint_of_its_own() -> None:
    place_ = place("emulator", None)
    url, login = Emulator().queue_login(place_)
    assert url == "http://127.0.0.1:10001/devstoreaccount1"
    assert login["account_name"] == "devstoreaccount1"
    with pytest.raises(ConfigurationError, match="does not have the form"):
        Emulator(queue_endpoint="https://127.0.0.1:10001").queue_login(place_)


def test_a_folder_has_no_queue(tmp_path: object) -> None:
    with pytest.raises(ConfigurationError, match="not on Azure storage"):
        Datastore(root=str(tmp_path)).storage_queue("arrivals")


def test_a_queue_of_another_account_takes_a_token() -> None:
    root = "az://data/root"
    datastore = Datastore(root=root, account="acct", credential=ManagedIdentity())
    assert datastore.storage_queue("arrivals", account="other").url == (
        "https://other.queue.core.windows.net/arrivals"
    )
    by_key = Datastore(root=root, account="acct", credential=AccountKey(key=KEY))
    with pytest.raises(ConfigurationError, match="no queue of 'other'"):
        by_key.storage_queue("arrivals", account="other")
