"""Azure Blob Storage and ADLS Gen2, through their SDK and adlfs."""

import contextlib
import functools
import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from synapse_assets.datastore.storage import (
    PAGE_FILES,
    Page,
    Storage,
    StoredFile,
    could_not,
    name_of,
)
from synapse_assets.errors import StorageError

if TYPE_CHECKING:
    import pyarrow.fs
    from azure.core.credentials import TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential
    from azure.storage.blob import BlobClient, ContainerClient
    from fsspec import AbstractFileSystem

# Of each kind of trouble. Between the tries it waits 1, 2, 4, 8 and 8 seconds, or longer if the
# service says so.
_RETRIES = 5
_MAX_BACKOFF_SECONDS = 8
_MAX_RETRY_AFTER_SECONDS = 30
_CONNECTION_SECONDS = 10
_READ_SECONDS = 30
# A large blob goes over several connections; the SDK holds two or three blocks of each in memory.
_CONNECTIONS = 4
_BLOCK_BYTES = 8 << 20
# The SDK takes an answer out of its connection in pieces of this size, by default of 4 KiB.
_PIECE_BYTES = 256 << 10
_TOO_MANY_REQUESTS, _UNAVAILABLE = 429, 503
_FOLDER_KEYS = ("hdi_isfolder", "Hdi_isfolder")
_BUSY = "The service is overloaded or down: run it again later."
_LOGIN = "Look whether the datastore's credential is the right one and still valid."
# What to do about an error of a storage account, by the service's code or the status.
_REMEDIES = {
    "AuthenticationFailed": _LOGIN,
    "401": _LOGIN,
    **dict.fromkeys(("429", "500", "503"), _BUSY),
}


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
        # Large blobs take turns: together their blocks would take any amount of memory.
        self._large = threading.Lock()

    def _read(self, uri: str) -> bytes:
        return bytes(self._blob(uri).download_blob(max_concurrency=_CONNECTIONS).readall())

    def _write(self, uri: str, content: bytes) -> None:
        self._blob(uri).upload_blob(content, overwrite=True)

    def _remove(self, uri: str) -> None:
        self._blob(uri).delete_blob()

    def _stat(self, uri: str) -> StoredFile | None:
        found = self._blob(uri).get_blob_properties()
        return None if _is_folder(found.metadata) else _stored(found, path=name_of(uri))

    def list_pages(
        self, uri: str, *, prefix: str = "", start: str | None = None, size: int = PAGE_FILES
    ) -> Iterator[Page]:
        folder = f"{_blob_name(uri)}/".lstrip("/")
        with self._explained("list", uri):
            pages: Any = self.container_client.list_blobs(
                folder + prefix, include=["metadata"], results_per_page=size
            ).by_page(start)
        while True:
            with self._explained("list", uri):
                found = next(pages, None)
                if found is None:
                    return
                files = tuple(
                    _stored(blob, path=str(blob.name).removeprefix(folder))
                    for blob in found
                    if not _is_folder(blob.metadata)
                )
            yield Page(files, pages.continuation_token or None)

    def _upload(self, path: Path, uri: str) -> StoredFile:
        size = path.stat().st_size
        turn = self._large if size > _BLOCK_BYTES else contextlib.nullcontext()
        with turn, path.open("rb") as stream:
            made = self._blob(uri).upload_blob(
                stream, length=size, overwrite=True, max_concurrency=_CONNECTIONS
            )
        etag, modified = made["etag"].strip('"'), made["last_modified"].timestamp()
        return StoredFile(path=name_of(uri), size=size, etag=etag, modified=modified)

    def _download(self, uri: str, path: Path) -> str:
        found = self._blob(uri).download_blob(max_concurrency=_CONNECTIONS)
        # The first request brings the whole of a small blob, and tells the size of a large one.
        turn = self._large if found.size > _BLOCK_BYTES else contextlib.nullcontext()
        with turn, path.open("w+b") as file:
            target = _HashedFile(file)
            found.readinto(target)  # type: ignore[arg-type]  # all that the SDK needs of a file
        return target.sha256.hexdigest()

    def arrow_filesystem(self) -> "pyarrow.fs.FileSystem":
        """Return pyarrow's own file system for a login by key or SAS, otherwise adlfs.

        Its own does not know every way to get a token, and is several times as fast.
        """
        return self._native_filesystem or super().arrow_filesystem()

    @functools.cached_property
    def _native_filesystem(self) -> "pyarrow.fs.FileSystem | None":
        options = self._options
        login = {name: options[name] for name in ("account_key", "sas_token") if name in options}
        # With a dot before it, the name of the account comes before that.
        suffix = options.get("account_host", "").partition(".blob.")[2]
        scheme, host = "https", f".{{}}.{suffix}"
        if "connection_string" in options:
            parts = (part.partition("=") for part in options["connection_string"].split(";"))
            connection = {name: value for name, _, value in parts}
            login = {"account_key": connection["AccountKey"]}
            scheme, host = urlsplit(connection["BlobEndpoint"])[:2]
        if not login:
            return None
        try:
            from pyarrow.fs import AzureFileSystem

            return AzureFileSystem(
                options["account_name"],
                **login,
                blob_storage_authority=host.format("blob"),
                blob_storage_scheme=scheme,
                dfs_storage_authority=host.format("dfs"),
                dfs_storage_scheme=scheme,
            )
        except (ImportError, TypeError):
            # pyarrow has it since 16, with a SAS since 20.
            return None

    def arrow_path(self, uri: str) -> str:
        return f"{self._container}/{_blob_name(uri)}"

    def filesystem(self) -> "AbstractFileSystem":
        options = dict(self._options)
        if self._make_async_credential is not None:
            options["credential"] = self._make_async_credential()
        return _adlfs_class()(**options)

    @functools.cached_property
    def container_client(self) -> "ContainerClient":
        """The SDK's client of the container."""
        from azure.storage.blob import BlobServiceClient, ExponentialRetry

        settings: dict[str, Any] = {
            **_retries(ExponentialRetry),
            "connection_timeout": _CONNECTION_SECONDS,
            "read_timeout": _READ_SECONDS,
            "connection_data_block_size": _PIECE_BYTES,
            "max_single_put_size": _BLOCK_BYTES,
            "max_block_size": _BLOCK_BYTES,
            "max_single_get_size": _BLOCK_BYTES,
            "max_chunk_get_size": _BLOCK_BYTES,
        }
        options = self._options
        login = options.get("account_key") or options.get("sas_token") or self._credential
        if login is None and "connection_string" not in options:
            from azure.identity import DefaultAzureCredential

            login = DefaultAzureCredential()
        service: BlobServiceClient = _connect(BlobServiceClient, options, login, **settings)
        return service.get_container_client(self._container)

    def _blob(self, uri: str) -> "BlobClient":
        return self.container_client.get_blob_client(_blob_name(uri))

    def _translate(self, error: Exception, operation: str, uri: str) -> Exception | None:
        from azure.core.exceptions import ResourceNotFoundError

        code = error_code(error)
        # A container that is not there is an error, too, where a blob is asked for.
        if isinstance(error, ResourceNotFoundError) and code != "ContainerNotFound":
            return FileNotFoundError(f"There is no file {uri}.")
        remedies = {
            "ContainerNotFound": f"Create the container '{self._container}', or choose another "
            "root.",
            "unreachable": "Look whether the account exists and this machine reaches it, and run "
            "it again.",
            "403": "Give the identity in use the role 'Storage Blob Data Contributor' on the "
            "container, or look at the account's firewall.",
            "other": "Run 'synapse-assets doctor' to see what is wrong with the datastore.",
        }
        return translate(error, operation, uri, remedies)


class _HashedFile:
    """A file that is hashed from its beginning on, wherever in it the SDK writes next.

    The blocks of a large blob come over several connections, and as many as there are may come
    before the turn of one that is late: they are read again then, and not kept in memory.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.sha256 = hashlib.sha256()
        self._file = file
        self._hashed = 0
        self._early: dict[int, int] = {}

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def write(self, block: bytes) -> int:
        start = self._file.tell()
        size = self._file.write(block)
        self._early[start] = size
        while (length := self._early.pop(self._hashed, None)) is not None:
            if self._hashed != start:
                self._file.seek(self._hashed)
                block = self._file.read(length)
            self.sha256.update(block)
            self._hashed += length
        self._file.seek(start + size)
        return size


def translate(
    error: Exception, operation: str, what: str, remedies: Mapping[str, str]
) -> StorageError | None:
    """Return an error of the SDK as one that says what, where, and what to do.

    Args:
        error: The error.
        operation: What is done.
        what: With what.
        remedies: What to do, by the service's code or the status; 'unreachable' is for no answer,
            and 'other' for everything else.
    """
    from azure.core.exceptions import AzureError, ServiceRequestError, ServiceResponseError

    if not isinstance(error, AzureError):
        return None
    no_answer = isinstance(error, ServiceRequestError | ServiceResponseError)
    status = "unreachable" if no_answer else str(getattr(error, "status_code", ""))
    known = {**_REMEDIES, **remedies}
    remedy = known.get(error_code(error)) or known.get(status) or known["other"]
    return could_not(operation, what, error, remedy)


def error_code(error: Exception) -> str:
    """Return the service's code of an error; the SDK has an enumeration for those it knows."""
    found = getattr(error, "error_code", None)
    return str(getattr(found, "value", found) or "")


def _blob_name(uri: str) -> str:
    """Return the name of the blob in the container: a URI is not encoded."""
    return uri.partition("://")[2].partition("/")[2]


def _connect(client: Any, options: Mapping[str, Any], login: Any, **settings: Any) -> Any:
    """Return a client of the account that adlfs' options name."""
    connection = options.get("connection_string")
    if connection is not None:
        return client.from_connection_string(connection, **settings)
    return client(f"https://{options['account_host']}", login, **settings)


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


def _retries(base: Any) -> dict[str, Any]:
    """Return the options of a client of the SDK that is as patient as its service asks for.

    The SDK's own policy starts with a pause of 15 seconds, tries each kind of trouble three times
    at most, takes 429 for an answer, and does not look at Retry-After.

    Args:
        base: That policy: the client's, or the asynchronous client's.
    """

    class Retry(base):  # type: ignore[misc]
        def get_backoff_time(self, settings: dict[str, Any]) -> float:
            seconds = min(2.0 ** (settings["count"] - 1), _MAX_BACKOFF_SECONDS)
            seconds *= random.uniform(0.75, 1.25)  # noqa: S311 -- jitter, not a secret
            answer = settings["history"][-1].http_response if settings["history"] else None
            asked = "" if answer is None else answer.headers.get("Retry-After", "")
            least = min(int(asked), _MAX_RETRY_AFTER_SECONDS) if asked.isdigit() else 0
            return float(max(seconds, least))

    def as_unavailable(response: Any) -> None:
        if response.http_response.status_code == _TOO_MANY_REQUESTS:
            response.http_response.status_code = _UNAVAILABLE

    troubles = ("total", "connect", "read", "status")
    policy = Retry(**{f"retry_{trouble}": _RETRIES for trouble in troubles})
    return {"retry_policy": policy, "raw_response_hook": as_unavailable}


@functools.cache
def _adlfs_class() -> "type[AbstractFileSystem]":
    from adlfs import AzureBlobFileSystem
    from azure.storage.blob.aio import BlobServiceClient, ExponentialRetry

    class FileSystem(AzureBlobFileSystem):  # type: ignore[misc]
        """adlfs that takes a path as it stands: it would read '#' and '?' as parts of a URL."""

        def do_connect(self) -> None:
            """Make the client with our retries."""
            login = self.credential or self.account_key or self.sas_token
            settings = _retries(ExponentialRetry)
            self.service_client = _connect(BlobServiceClient, vars(self), login, **settings)

        @classmethod
        def _strip_protocol(cls, path: Any) -> Any:
            if isinstance(path, list):
                return [cls._strip_protocol(item) for item in path]
            if "://" not in path:
                return path.lstrip("/")
            authority, slash, name = path.partition("://")[2].partition("/")
            return f"{authority.partition('@')[0]}{slash}{name}"

    return FileSystem
