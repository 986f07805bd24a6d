"""What a user is told when Azure storage refuses something, and how a large blob is hashed."""

import hashlib
from pathlib import Path

import pytest
from azure.core.exceptions import HttpResponseError, ServiceRequestError
from azure.storage.blob import StorageErrorCode
from hypothesis import given
from hypothesis import strategies as st

from synapse_assets.datastore.blob import BlobStorage, _HashedFile
from synapse_assets.errors import StorageError

URI = "abfss://lake@account.dfs.core.windows.net/a"


def refused(code: StorageErrorCode | str | None, status: int) -> HttpResponseError:
    error = HttpResponseError("It says no.\nRequestId: 1\nTime: 2")
    vars(error).update(error_code=code, status_code=status)
    return error


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (refused(StorageErrorCode.CONTAINER_NOT_FOUND, 404), "Create the container 'lake'"),
        (refused(StorageErrorCode.AUTHENTICATION_FAILED, 403), "credential is the right one"),
        (refused("AuthorizationPermissionMismatch", 403), "Storage Blob Data Contributor"),
        (refused(StorageErrorCode.SERVER_BUSY, 503), "run it again later"),
        (refused(None, 429), "run it again later"),
        (refused(None, 401), "still valid"),
        (refused(None, 418), "synapse-assets doctor"),
        (ServiceRequestError("refused"), "this machine reaches it"),
    ],
)
def test_error_names_operation_place_and_remedy(error: Exception, remedy: str) -> None:
    storage = BlobStorage(container="lake", options={})
    with (
        pytest.raises(StorageError, match=rf"^Could not read {URI}: [^\n]*\. .*{remedy}") as raised,
        storage._explained("read", URI),
    ):
        raise error
    assert raised.value.__cause__ is error


@given(blocks=st.lists(st.binary(min_size=1, max_size=9), max_size=12), data=st.data())
def test_blocks_in_any_order_are_hashed_as_one_content(
    blocks: list[bytes], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = b"".join(blocks)
    starts = [len(b"".join(blocks[:number])) for number in range(len(blocks))]
    path: Path = tmp_path_factory.mktemp("blob") / "copy"
    with path.open("w+b") as file:
        hashed = _HashedFile(file)
        for number in data.draw(st.permutations(range(len(blocks)))):
            hashed.seek(starts[number])
            assert hashed.write(blocks[number]) == len(blocks[number])
            assert hashed.tell() == starts[number] + len(blocks[number])
    assert path.read_bytes() == content
    assert hashed.sha256.hexdigest() == hashlib.sha256(content).hexdigest()
