"""Every spelling of a place is one location; what names no place, or a secret, is refused."""

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_assets.datastore.clouds import CLOUDS, Cloud, get_cloud
from synapse_assets.datastore.location import Location
from synapse_assets.errors import ConfigurationError

_PUBLIC = get_cloud("public")
_BASE = "abfss://data@acct.dfs.core.windows.net"

_accounts = st.from_regex(r"[a-z0-9]{3,24}", fullmatch=True).filter(
    lambda name: name != "devstoreaccount1"
)
_containers = st.from_regex(r"[a-z0-9](-?[a-z0-9]){2,30}", fullmatch=True)
_segments = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/\\?#%"),
    min_size=1,
    max_size=12,
).filter(lambda text: not text.endswith("."))
# A slash at the end of nothing, of one segment or of two.
_slashes = st.sampled_from(["", "/", "//"])


def parse(root: str, *, account: str | None = None, cloud: Cloud = _PUBLIC) -> Location:
    return Location.parse(root, account=account, cloud=cloud)


class TestAzure:
    @given(
        cloud=st.sampled_from(CLOUDS),
        account=_accounts,
        container=_containers,
        segments=st.lists(_segments, max_size=3),
        end=_slashes,
        data=st.data(),
    )
    def test_all_forms_are_one_location_and_its_uri_is_again(
        self,
        *,
        cloud: Cloud,
        account: str,
        container: str,
        segments: list[str],
        end: str,
        data: st.DataObject,
    ) -> None:
        path = "".join(data.draw(st.sampled_from(["/", "//", "/./"])) + part for part in segments)
        path += end
        suffix = cloud.storage_suffix
        dfs, blob = f"{account}.dfs.{suffix}", f"{account}.blob.{suffix}"
        forms = [
            f"abfss://{container}@{dfs}{path}",
            f"ABFSS://{container}@{dfs.upper()}{path}",
            f"abfs://{container}@{dfs}{path}",
            f"abfss://{container}@{blob}{path}",
            f"az://{container}@{blob}{path}",
            f"https://{blob}/{container}{quote(path)}",
            f"https://{dfs.upper()}/{container}{quote(path)}",
        ]
        locations = {parse(form, cloud=cloud) for form in forms}
        locations.add(parse(f"az://{container}{path}", account=account, cloud=cloud))
        assert len(locations) == 1
        (location,) = locations
        assert parse(location.uri(), cloud=cloud) == location
        assert location.uri("a", "b") == f"{location.uri()}/a/b"
        assert location.path == "".join(f"/{segment}" for segment in segments)

    def test_canonical_form_has_no_tls_in_the_emulator_alone(self) -> None:
        schemes = {
            cloud.name: parse("az://data/x", account="acct", cloud=cloud).uri().partition(":")[0]
            for cloud in CLOUDS
        }
        assert schemes.pop("emulator") == "abfs"
        assert set(schemes.values()) == {"abfss"}

    def test_emulator_has_its_account(self) -> None:
        location = parse("az://data/x", cloud=get_cloud("emulator"))
        assert location.uri("y") == "abfs://data@devstoreaccount1.dfs.core.windows.net/x/y"

    def test_object_store_has_its_own_form(self) -> None:
        location = parse("https://acct.blob.core.windows.net/data/a/a")
        assert location.object_store_uri(location.uri("t")) == "az://data/a/a/t"
        location = parse(_BASE)
        assert location.object_store_uri(location.uri("t", "data")) == "az://data/t/data"

    @pytest.mark.parametrize(
        ("root", "match"),
        [
            ("https://acct.blob.core.windows.net", "names no container.*abfss://container@"),
            ("abfss://acct.dfs.core.windows.net/x", "names no container"),
            ("az://data/x", "names no storage account. Set the account"),
            ("abfss://data@acct.dfs.core.chinacloudapi.cn/x", "choose 'china'"),
            ("https://acct.blob.core.usgovcloudapi.net/data", "choose 'us-government'"),
            ("abfss://data@acct.dfs.core.windows.net:443/x", "no storage account of the cloud"),
            ("abfss://data@acct.file.core.windows.net/x", "no storage account of the cloud"),
            ("https://example.com/data", "host 'example.com'.*account.dfs.core.windows.net"),
            ("https://data@acct.blob.core.windows.net/x", "has an '@'"),
            ("abfss://data@a-b.dfs.core.windows.net/x", "'a-b' cannot be a storage account"),
            ("abfss://data@devstoreaccount1.dfs.core.windows.net", "choose the cloud 'emulator'"),
            ("abfss://Data@acct.dfs.core.windows.net/x", "container 'Data', which cannot"),
            ("abfss://da--ta@acct.dfs.core.windows.net/x", "container 'da--ta'"),
            ("abfss://da@acct.dfs.core.windows.net/x", "container 'da'"),
            (f"{_BASE}/a/../b", "'..' in its path"),
            (f"{_BASE}/a%20b", "percent sign before two digits"),
            ("https://acct.blob.core.windows.net/data/a%2520b", "percent sign before two digits"),
            ("https://acct.blob.core.windows.net/data/a%3Fb", "a question mark"),
            (f"{_BASE}/a\\b", "a backslash"),
            (f"{_BASE}/a./b", "ends with a dot"),
            (f"{_BASE}/a#b", "goes on with '#'"),
        ],
    )
    def test_what_is_no_place_is_refused(self, root: str, match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            parse(root)

    def test_two_accounts_are_refused(self) -> None:
        assert parse(_BASE, account="ACCT") == parse(_BASE)
        with pytest.raises(ConfigurationError, match="'acct', and the setting the account 'other'"):
            parse(_BASE, account="other")


@pytest.mark.parametrize(
    "root",
    [
        f"{_BASE}/x?sv=2024&sig=planted",
        f"{_BASE}/x#sv=2024&sig=planted",
        "https://acct.blob.core.windows.net/data?sig=planted",
        "az://data?planted",
        "abfss://data:planted@acct.dfs.core.windows.net/x",
        "https://user:planted@acct.blob.core.windows.net/data",
        "hdfs://user:planted@nn:8020/x",
        "s3://user:planted@bucket/x?planted",
        "file://user:planted@host/x",
        "file:///data?planted",
    ],
)
def test_secret_in_a_url_is_refused_and_not_repeated(root: str) -> None:
    with pytest.raises(ConfigurationError, match="would show up in logs") as caught:
        parse(root, account="acct")
    assert "planted" not in str(caught.value)
    assert "planted" not in repr(caught.value.__context__)


class TestHdfs:
    @given(segments=st.lists(_segments, max_size=3), end=_slashes)
    def test_uri_is_the_same_location(self, segments: list[str], end: str) -> None:
        path = "".join(f"//{segment}" for segment in segments) + end
        location = parse(f"hdfs://NameNode:8020{path}")
        assert location == parse(f"HDFS://namenode:8020{path}")
        assert parse(location.uri()) == location
        assert location.uri() == "hdfs://namenode:8020" + "".join(f"/{part}" for part in segments)

    def test_name_service_keeps_its_case(self) -> None:
        assert parse("hdfs://MyCluster/data/").uri("t") == "hdfs://MyCluster/data/t"

    @pytest.mark.parametrize(
        ("root", "match"),
        [
            ("hdfs:///data", "names no host"),
            ("hdfs://me@nn:8020/data", "HADOOP_USER_NAME"),
            ("hdfs://nn:port/data", "port in the datastore root.*not a number"),
            ("hdfs://nn:99999/data", "port in the datastore root.*not a number"),
            ("hdfs://nn:8020/a/../b", "'..' in its path"),
            ("hdfs://nn:8020/100%25", "percent sign before two digits"),
        ],
    )
    def test_what_is_no_place_is_refused(self, root: str, match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            parse(root)


class TestLocal:
    @pytest.mark.parametrize(
        "root", ["{}/data", "{}/x/../data/", "/{}//data/.", "file://{}/data", "file:{}/data"]
    )
    def test_every_spelling_means_the_same_folder(self, tmp_path: Path, root: str) -> None:
        location = parse(root.format(tmp_path))
        assert location.uri("a", "b") == f"{tmp_path}/data/a/b"
        assert parse(location.uri()) == location

    def test_home_is_expanded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/someone")
        assert parse("~/data").uri() == "/someone/data"

    def test_encoded_url_is_decoded(self) -> None:
        assert parse("file:///a%20b").uri() == "/a b"

    def test_plain_path_may_have_what_a_url_may_not(self) -> None:
        assert parse("/data?x#y").uri() == "/data?x#y"

    @pytest.mark.parametrize(
        ("root", "match"),
        [
            ("", "root is empty"),
            ("s3://bucket/x", "scheme 's3:'.*abfss://container@.*hdfs://host"),
            ("file://data/x", "names the host 'data'.*three slashes"),
            ("file:///data#1", "goes on with '#'"),
            ("/data/100%25", "percent sign before two digits"),
            ("abfss://[x/y", "is not a URL"),
        ],
    )
    def test_root_that_would_mean_another_place_is_refused(self, root: str, match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            parse(root)
