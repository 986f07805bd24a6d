"""What every datastore does with names and with single files."""

from pathlib import Path

import pytest

from synapse_assets.datastore import Datastore
from synapse_assets.errors import ConfigurationError


def test_text_is_read_back_and_replaced_as_a_whole(datastore: Datastore) -> None:
    uri = datastore.uri("_attempts", "a", "record.json")
    assert datastore.storage().read_text(uri) is None
    for text in ("ü" * 1_000, "short", ""):
        datastore.storage().write_atomically(uri, text.encode())
        assert datastore.storage().read_text(uri) == text
    assert len(datastore.filesystem().find(datastore.uri("_attempts"))) == 1


def test_what_was_written_once_is_left_alone(datastore: Datastore) -> None:
    uri = datastore.uri("_bundles", "b.zip")
    datastore.storage().write_once(uri, b"first")
    datastore.storage().write_once(uri, b"second")
    assert datastore.storage().read_text(uri) == "first"


def test_file_that_is_gone_may_be_removed_again(datastore: Datastore) -> None:
    uri = datastore.uri("file")
    datastore.storage().write_atomically(uri, b"x")
    for _ in "12":
        datastore.storage().remove(uri)
    assert datastore.storage().read_text(uri) is None


def test_path_and_storage_see_each_others_files(datastore: Datastore) -> None:
    folder = datastore.path("notes", "ü b")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").write_text("from the path")
    uri = datastore.uri("notes", "ü b", "a.txt")
    assert datastore.storage().read_text(uri) == "from the path"
    datastore.storage().write_atomically(uri, b"from the storage")
    assert datastore.path("notes", "ü b", "a.txt").read_text() == "from the storage"
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_only_a_store_on_azure_has_a_container(datastore: Datastore) -> None:
    if datastore.location.kind == "azure":
        assert datastore.container_client().exists()
    else:
        with pytest.raises(ConfigurationError, match="is not on Azure storage"):
            datastore.container_client()


class TestRootOfTheLocalStore:
    @pytest.mark.parametrize("root", ["{}/data", "{}/x/../data/", "file://{}/data", "file:{}/data"])
    def test_every_spelling_means_the_same_folder(self, tmp_path: Path, root: str) -> None:
        datastore = Datastore(root=root.format(tmp_path))
        assert datastore.uri("a", "b") == f"{tmp_path}/data/a/b"

    def test_relative_root_is_of_the_working_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        assert Datastore(root="./data").uri() == f"{tmp_path}/here/data"
        assert Datastore(root="../data").uri("a") == f"{tmp_path}/data/a"

    def test_encoded_url_is_decoded(self) -> None:
        assert Datastore(root="file:///a%20b").uri() == "/a b"

    @pytest.mark.parametrize(
        ("root", "match"),
        [
            ("s3://bucket/x", "scheme 's3:'"),
            ("file://data/x", "names the host 'data'.*three slashes"),
            ("/data/100%25", "percent sign before two digits"),
        ],
    )
    def test_root_that_would_mean_another_place_is_refused(self, root: str, match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            Datastore(root=root).uri()
