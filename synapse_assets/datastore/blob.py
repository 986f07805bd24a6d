"""Azure Blob Storage and ADLS Gen2, through their SDK and adlfs."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_assets.datastore.storage import Storage, StoredFile, replacing
from synapse_assets.errors import StorageError

if TYPE_CHECKING:
    import pyarrow.fs
    from azure.core.credentials import TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential
    from azure.storage.blob import BlobServiceClient, ContainerClient
    from fsspec import AbstractFileSystem

# Of each of these, the SDK waits about 1, 3, 5, 9 and 17 seconds between its tries.
_RETRIES = 5
_FIRST_BACKOFF_SECONDS = 1
_BACKOFF_BASE = 2
_CONNECTION_SECONDS = 10
_READ_SECONDS = 60
# A large blob goes over several connections; each holds a block or two in memory.
_CONNECTIONS = 4
_BLOCK_BYTES = 8 << 20
_FOLDER_KEYS = ("hdi_isfolder", "Hdi_isfolder")


class BlobStorage(Storage):
    """One container."""

    def __init__(
        self,
        *,
        container: str,
        options: Mapping[str, Any],
        credential: "TokenCredential | None" = None,
        make_async_credential: "Callable[[], AsyncTokenCredential | None] | None" = None,
    ) -> None:
        """Create the store; nothing is contacted.

        Args:
            container: Name of the container.
            options: What adlfs takes: account and login, see `StorageCredential.adlfs_options`.
            credential: How to get tokens; azure-identity's default chain where the options
                hold no login and this is None.
            make_async_credential: Returns the same for adlfs.
        """
        self._container = container
        self._options = dict(options)
        self._credential = credential
        self._make_async_credential = make_async_credential

    def read_bytes(self, uri: str) -> bytes | None:
        """Return the content of a blob, None if there is none."""
        with self._explained("read", uri):
            blob = self._client.get_blob_client(self._name(uri))
            with _NoBlob():
                return bytes(blob.download_blob(max_concurrency=_CONNECTIONS).readall())
        return None

    def write_atomically(self, uri: str, content: bytes) -> None:
        """Put one blob: a put is atomic."""
        with self._explained("write", uri):
            self._client.upload_blob(self._name(uri), content, overwrite=True)

    def write_once(self, uri: str, content: bytes) -> None:
        """Put a blob with If-None-Match, so that only one of several writers puts it."""
        from azure.core.exceptions import ResourceExistsError

        with self._explained("write", uri), contextlib.suppress(ResourceExistsError):
            self._client.upload_blob(self._name(uri), content, overwrite=False)

    def remove(self, uri: str) -> None:
        """Remove the blob at `uri`, if there is one."""
        with self._explained("remove", uri), _NoBlob():
            self._client.delete_blob(self._name(uri))

    def list_files(self, uri: str) -> list[StoredFile]:
        """Return all blobs below a folder, sorted by path."""
        prefix = f"{self._name(uri)}/".lstrip("/")
        with self._explained("list", uri):
            found = [
                _stored(blob, path=str(blob.name).removeprefix(prefix))
                for blob in self._client.list_blobs(prefix, include=["metadata"])
                if not _is_folder(blob.metadata)
            ]
        return sorted(found, key=lambda file: file.path)

    def stat(self, uri: str) -> StoredFile | None:
        """Return what the store knows of one blob, None if there is none."""
        with self._explained("look at", uri), _NoBlob():
            found = self._client.get_blob_client(self._name(uri)).get_blob_properties()
            if not _is_folder(found.metadata):
                return _stored(found, path=uri.rpartition("/")[2])
        return None

    def upload(self, path: Path, uri: str) -> StoredFile:
        """Copy a local file to a blob, in blocks."""
        size = path.stat().st_size
        with self._explained("write", uri), path.open("rb") as stream:
            blob = self._client.get_blob_client(self._name(uri))
            made = blob.upload_blob(
                stream, length=size, overwrite=True, max_concurrency=_CONNECTIONS
            )
        return StoredFile(
            path=uri.rpartition("/")[2],
            size=size,
            etag=made["etag"].strip('"'),
            modified=made["last_modified"].timestamp(),
        )

    def download(self, uri: str, path: Path) -> None:
        """Copy a blob to a local path, in blocks."""
        with self._explained("read", uri), replacing(path) as temporary:
            blob = self._client.get_blob_client(self._name(uri))
            with temporary.open("wb") as stream:
                blob.download_blob(max_concurrency=_CONNECTIONS).readinto(stream)

    def arrow_filesystem(self) -> "pyarrow.fs.FileSystem":
        """Return adlfs in pyarrow's clothes."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self.filesystem()))

    def arrow_path(self, uri: str) -> str:
        """Return a URI as 'container/blob'."""
        return f"{self._container}/{self._name(uri)}"

    def filesystem(self) -> "AbstractFileSystem":
        """Return adlfs' file system; the URIs of this package are paths on it."""
        options = dict(self._options)
        if self._make_async_credential is not None:
            options["credential"] = self._make_async_credential()
        return _adlfs_class()(**options)

    @functools.cached_property
    def _client(self) -> "ContainerClient":
        return self._service().get_container_client(self._container)

    def _service(self) -> "BlobServiceClient":
        from azure.storage.blob import BlobServiceClient, ExponentialRetry

        settings: dict[str, Any] = {
            "retry_policy": ExponentialRetry(
                initial_backoff=_FIRST_BACKOFF_SECONDS,
                increment_base=_BACKOFF_BASE,
                retry_total=_RETRIES,
            ),
            "connection_timeout": _CONNECTION_SECONDS,
            "read_timeout": _READ_SECONDS,
            "max_single_put_size": _BLOCK_BYTES,
            "max_block_size": _BLOCK_BYTES,
            "max_single_get_size": _BLOCK_BYTES,
            "max_chunk_get_size": _BLOCK_BYTES,
        }
        options = self._options
        if "connection_string" in options:
            return BlobServiceClient.from_connection_string(
                options["connection_string"], **settings
            )
        login = options.get("account_key") or options.get("sas_token") or self._credential
        if login is None:
            from azure.identity import DefaultAzureCredential

            login = DefaultAzureCredential()
        return BlobServiceClient(f"https://{options['account_host']}", login, **settings)

    def _name(self, uri: str) -> str:
        """Return the name of the blob in the container: a URI is not encoded."""
        return uri.partition("://")[2].partition("/")[2]

    @contextlib.contextmanager
    def _explained(self, operation: str, uri: str) -> Iterator[None]:
        """Raise what goes wrong as a StorageError that says what, where, and what to do."""
        from azure.core.exceptions import AzureError

        try:
            yield
        except AzureError as e:
            problem = str(e).strip().partition("\n")[0].rstrip(".")
            raise StorageError(f"Could not {operation} {uri}: {problem}. {self._remedy(e)}") from e

    def _remedy(self, error: Exception) -> str:
        from azure.core.exceptions import ServiceRequestError, ServiceResponseError

        code = str(getattr(error, "error_code", None) or "")
        status = getattr(error, "status_code", None)
        if code == "ContainerNotFound":
            return f"Create the container '{self._container}', or choose another root."
        if isinstance(error, ServiceRequestError | ServiceResponseError):
            return "Look whether the account exists and this machine reaches it, and run it again."
        if code.startswith("AuthenticationFailed") or status == 401:
            return "Look whether the datastore's credential is the right one and still valid."
        if status == 403:
            return (
                "Give the identity in use the role 'Storage Blob Data Contributor' on the "
                "container, or look at the account's firewall."
            )
        if status in (429, 500, 503):
            return "The service is overloaded or down: run it again later."
        return "Run 'synapse-assets doctor' to see what is wrong with the datastore."


class _NoBlob(contextlib.AbstractContextManager[None, bool]):
    """Takes a blob that is not there for nothing; a container that is not there is an error."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        from azure.core.exceptions import ResourceNotFoundError

        is_missing = isinstance(error, ResourceNotFoundError)
        return is_missing and getattr(error, "error_code", None) != "ContainerNotFound"


def _stored(blob: Any, *, path: str) -> StoredFile:
    return StoredFile(
        path=path,
        size=blob.size,
        etag=str(blob.etag).strip('"'),
        modified=blob.last_modified.timestamp(),
    )


def _is_folder(metadata: Mapping[str, str] | None) -> bool:
    """Tell a folder, which an account with a hierarchical namespace lists as an empty blob."""
    return any((metadata or {}).get(key) == "true" for key in _FOLDER_KEYS)


@functools.cache
def _adlfs_class() -> "type[AbstractFileSystem]":
    from adlfs import AzureBlobFileSystem

    class FileSystem(AzureBlobFileSystem):  # type: ignore[misc]
        """adlfs that takes a path as it stands: it would read '#' and '?' as parts of a URL."""

        @classmethod
        def _strip_protocol(cls, path: Any) -> Any:
            if isinstance(path, list):
                return [cls._strip_protocol(item) for item in path]
            if "://" not in path:
                return path.lstrip("/")
            authority, slash, name = path.partition("://")[2].partition("/")
            return f"{authority.partition('@')[0]}{slash}{name}"

    return FileSystem
