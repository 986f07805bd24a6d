"""Azure Blob Storage and ADLS Gen2, through their SDK and adlfs."""

import contextlib
import functools
import hashlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from synapse_assets.datastore.storage import PAGE_FILES, Page, Storage, StoredFile, replacing
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
# A large blob goes over several connections; each holds a block or two in memory.
_CONNECTIONS = 4
_BLOCK_BYTES = 8 << 20
# What one request brings of the rest of a large blob: the SDK holds it two or three times.
_RANGE_BYTES = 4 << 20
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

    def read_bytes(self, uri: str) -> bytes | None:
        with self._explained("read", uri):
            blob = self.container_client.get_blob_client(self._name(uri))
            with _NoBlob():
                return bytes(blob.download_blob(max_concurrency=_CONNECTIONS).readall())
        return None

    def write_atomically(self, uri: str, content: bytes) -> None:
        with self._explained("write", uri):
            self.container_client.upload_blob(self._name(uri), content, overwrite=True)

    def remove(self, uri: str) -> None:
        with self._explained("remove", uri), _NoBlob():
            self.container_client.delete_blob(self._name(uri))

    def list_pages(
        self, uri: str, *, prefix: str = "", start: str | None = None, size: int = PAGE_FILES
    ) -> Iterator[Page]:
        folder = f"{self._name(uri)}/".lstrip("/")
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

    def stat(self, uri: str) -> StoredFile | None:
        with self._explained("look at", uri), _NoBlob():
            found = self.container_client.get_blob_client(self._name(uri)).get_blob_properties()
            if not _is_folder(found.metadata):
                return _stored(found, path=uri.rpartition("/")[2])
        return None

    def upload(self, path: Path, uri: str) -> StoredFile:
        size = path.stat().st_size
        turn = self._large if size > _BLOCK_BYTES else contextlib.nullcontext()
        with self._explained("write", uri), turn, path.open("rb") as stream:
            blob = self.container_client.get_blob_client(self._name(uri))
            made = blob.upload_blob(
                stream, length=size, overwrite=True, max_concurrency=_CONNECTIONS
            )
        return StoredFile(
            path=uri.rpartition("/")[2],
            size=size,
            etag=made["etag"].strip('"'),
            modified=made["last_modified"].timestamp(),
        )

    def download(self, uri: str, path: Path) -> str:
        digest = hashlib.sha256()
        blob = self.container_client.get_blob_client(self._name(uri))
        with (
            self._explained("read", uri),
            replacing(path) as temporary,
            temporary.open("wb") as target,
        ):
            # In order, as the hash needs them: the SDK itself writes them as they arrive.
            for block in self._blocks(blob):
                target.write(block)
                digest.update(block)
        return digest.hexdigest()

    def _blocks(self, blob: "BlobClient") -> Iterator[bytes]:
        """Yield a blob's content, in order; a large one's comes over several connections."""
        from azure.core import MatchConditions

        first = blob.download_blob()
        # The first request brings the whole of a small blob, and tells the size of a large one.
        yield first.read(_BLOCK_BYTES)
        if first.size <= _BLOCK_BYTES:
            return

        def read(offset: int) -> bytes:
            block = blob.download_blob(
                offset,
                min(_RANGE_BYTES, first.size - offset),
                etag=first.properties.etag,
                match_condition=MatchConditions.IfNotModified,
            )
            return bytes(block.readall())

        pool = ThreadPoolExecutor(_CONNECTIONS)
        with self._large:
            try:
                running: deque[Future[bytes]] = deque()
                for offset in range(_BLOCK_BYTES, first.size, _RANGE_BYTES):
                    running.append(pool.submit(read, offset))
                    if len(running) == _CONNECTIONS:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def arrow_filesystem(self) -> "pyarrow.fs.FileSystem":
        """Return pyarrow's own file system for a login by key or SAS, otherwise adlfs.

        Its own does not know every way to get a token, and is several times as fast.
        """
        return self._native_filesystem or super().arrow_filesystem()

    @functools.cached_property
    def _native_filesystem(self) -> "pyarrow.fs.FileSystem | None":
        options = self._options
        login = {name: options[name] for name in ("account_key", "sas_token") if name in options}
        if "connection_string" in options:
            parts = (part.partition("=") for part in options["connection_string"].split(";"))
            connection = {name: value for name, _, value in parts}
            url = urlsplit(connection["BlobEndpoint"])
            login = {"account_key": connection["AccountKey"]}
            hosts = {"blob": url.netloc, "dfs": url.netloc}
            scheme = url.scheme
        elif login:
            # With a dot before it, the name of the account comes before that.
            suffix = options["account_host"].partition(".blob.")[2]
            hosts = {service: f".{service}.{suffix}" for service in ("blob", "dfs")}
            scheme = "https"
        else:
            return None
        try:
            from pyarrow.fs import AzureFileSystem

            return AzureFileSystem(
                options["account_name"],
                **login,
                blob_storage_authority=hosts["blob"],
                blob_storage_scheme=scheme,
                dfs_storage_authority=hosts["dfs"],
                dfs_storage_scheme=scheme,
            )
        except (ImportError, TypeError):
            # pyarrow has it since 16, with a SAS since 20.
            return None

    def arrow_path(self, uri: str) -> str:
        return f"{self._container}/{self._name(uri)}"

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
        if "connection_string" in options:
            service = BlobServiceClient.from_connection_string(
                options["connection_string"], **settings
            )
            return service.get_container_client(self._container)
        login = options.get("account_key") or options.get("sas_token") or self._credential
        if login is None:
            from azure.identity import DefaultAzureCredential

            login = DefaultAzureCredential()
        service = BlobServiceClient(f"https://{options['account_host']}", login, **settings)
        return service.get_container_client(self._container)

    def _name(self, uri: str) -> str:
        """Return the name of the blob in the container: a URI is not encoded."""
        return uri.partition("://")[2].partition("/")[2]

    def _explained(self, operation: str, uri: str) -> contextlib.AbstractContextManager[None]:
        return explained(
            operation,
            uri,
            {
                "ContainerNotFound": f"Create the container '{self._container}', or choose another "
                "root.",
                "BlobNotFound": "Its version was vacuumed, or somebody removed the file: "
                "materialize the asset again, or use another version.",
                "unreachable": "Look whether the account exists and this machine reaches it, and "
                "run it again.",
                "403": "Give the identity in use the role 'Storage Blob Data Contributor' on the "
                "container, or look at the account's firewall.",
                "other": "Run 'synapse-assets doctor' to see what is wrong with the datastore.",
            },
        )


@contextlib.contextmanager
def explained(operation: str, what: str, remedies: Mapping[str, str]) -> Iterator[None]:
    """Raise what the SDK raises as a StorageError that says what, where, and what to do.

    Args:
        operation: What is done.
        what: With what.
        remedies: What to do, by the service's code or the status; 'unreachable' is for no answer,
            and 'other' for everything else.
    """
    from azure.core.exceptions import AzureError, ServiceRequestError, ServiceResponseError

    try:
        yield
    except AzureError as e:
        no_answer = isinstance(e, ServiceRequestError | ServiceResponseError)
        status = "unreachable" if no_answer else str(getattr(e, "status_code", ""))
        known = {**_REMEDIES, **remedies}
        remedy = known.get(error_code(e)) or known.get(status) or known["other"]
        problem = str(e).strip().partition("\n")[0].rstrip(".")
        raise StorageError(f"Could not {operation} {what}: {problem}. {remedy}") from e


def error_code(error: Exception) -> str:
    """Return the service's code of an error; the SDK has an enumeration for those it knows."""
    found = getattr(error, "error_code", None)
    return str(getattr(found, "value", found) or "")


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
            settings = _retries(ExponentialRetry)
            if self.connection_string is not None:
                self.service_client = BlobServiceClient.from_connection_string(
                    self.connection_string, **settings
                )
                return
            login = self.credential or self.account_key or self.sas_token
            self.service_client = BlobServiceClient(
                f"https://{self.account_host}", login, **settings
            )

        @classmethod
        def _strip_protocol(cls, path: Any) -> Any:
            if isinstance(path, list):
                return [cls._strip_protocol(item) for item in path]
            if "://" not in path:
                return path.lstrip("/")
            authority, slash, name = path.partition("://")[2].partition("/")
            return f"{authority.partition('@')[0]}{slash}{name}"

    return FileSystem
