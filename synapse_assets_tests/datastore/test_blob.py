"""What a user is told when Azure storage refuses something."""

import pytest
from azure.core.exceptions import HttpResponseError, ServiceRequestError
from azure.storage.blob import StorageErrorCode

from synapse_assets.datastore.blob import BlobStorage
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
