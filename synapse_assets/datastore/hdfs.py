"""HDFS, through hdfs-native, which needs neither Java nor libhdfs."""

import contextlib
import functools
import hashlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_assets.datastore.storage import (
    PAGE_FILES,
    Page,
    Storage,
    StoredFile,
    paged,
    replacing,
    walk_folders,
)
from synapse_assets.errors import StorageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from hdfs_native import Client

_CHUNK_BYTES = 4 << 20
_FOLDER_PERMISSION = 0o755
# A name node that starts anew is waited for, half a minute long; the default is three minutes.
_PATIENCE = {
    "dfs.client.failover.max.attempts": "6",
    "dfs.client.failover.sleep.max.millis": "8000",
}


class HdfsStorage(Storage):
    """One name node or name service."""

    def __init__(self, *, host: str, configuration: Mapping[str, str] | None = None) -> None:
        """Create the store; nothing is contacted.

        Args:
            host: Name node ('host:port') or name service.
            configuration: Hadoop properties beside those of HADOOP_CONF_DIR.
        """
        self._host = host
        self._configuration = {**_PATIENCE, **(configuration or {})}

    def read_bytes(self, uri: str) -> bytes | None:
        try:
            with self._explained("read", uri), self._client.read(_strip(uri)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write_atomically(self, uri: str, content: bytes) -> None:
        with self._explained("write", uri), self._replacing(uri) as stream:
            stream.write(content)

    def remove(self, uri: str) -> None:
        with self._explained("remove", uri), contextlib.suppress(FileNotFoundError):
            self._client.delete(_strip(uri), False)

    def list_pages(
        self, uri: str, *, prefix: str = "", start: str | None = None, size: int = PAGE_FILES
    ) -> Iterator[Page]:
        root = _strip(uri).rstrip("/")

        # The name node gives a folder's content in portions and in the order of names.
        def list_folder(path: str) -> Iterator[tuple[str, bool, Any]]:
            with self._explained("list", uri), contextlib.suppress(FileNotFoundError):
                for status in self._client.list_status(f"{root}/{path}".rstrip("/") or "/", False):
                    yield status.path.rpartition("/")[2], status.isdir, status

        files = walk_folders(list_folder, prefix=prefix, start=start)
        return paged((_stored(status, path=path) for path, status in files), size=size)

    def stat(self, uri: str) -> StoredFile | None:
        with self._explained("look at", uri), contextlib.suppress(FileNotFoundError):
            status = self._client.get_file_info(_strip(uri))
            if not status.isdir:
                return _stored(status, path=uri.rpartition("/")[2])
        return None

    def upload(self, path: Path, uri: str) -> StoredFile:
        with (
            self._explained("write", uri),
            self._replacing(uri) as stream,
            path.open("rb") as source,
        ):
            while chunk := source.read(_CHUNK_BYTES):
                stream.write(chunk)
        return self.written(uri)

    def download(self, uri: str, path: Path) -> str:
        digest = hashlib.sha256()
        with (
            self._explained("read", uri),
            replacing(path) as temporary,
            self._client.read(_strip(uri)) as source,
            temporary.open("wb") as target,
        ):
            while chunk := source.read(_CHUNK_BYTES):
                target.write(chunk)
                digest.update(chunk)
        return digest.hexdigest()

    def arrow_path(self, uri: str) -> str:
        return _strip(uri)

    def filesystem(self) -> "AbstractFileSystem":
        return self._filesystem

    @functools.cached_property
    def _filesystem(self) -> "AbstractFileSystem":
        return _hdfs_class()(self._host, None, **self._configuration)

    @functools.cached_property
    def _client(self) -> "Client":
        from hdfs_native import Client

        return Client(f"hdfs://{self._host}", self._configuration)

    @contextlib.contextmanager
    def _replacing(self, uri: str) -> Iterator[Any]:
        """Yield a new file that takes the name at the end, unless that failed."""
        from hdfs_native import WriteOptions

        path = _strip(uri)
        temporary = f"{path.rpartition('/')[0]}/.{uuid.uuid4().hex}.tmp"
        self._client.mkdirs(path.rpartition("/")[0] or "/", _FOLDER_PERMISSION, True)
        try:
            with self._client.create(temporary, WriteOptions(overwrite=True)) as stream:
                yield stream
            self._client.rename(temporary, path, True)
        except BaseException:
            with contextlib.suppress(Exception):
                self._client.delete(temporary, False)
            raise

    @contextlib.contextmanager
    def _explained(self, operation: str, uri: str) -> Iterator[None]:
        """Raise what goes wrong as a StorageError that says what, where, and what to do."""
        try:
            yield
        except (StorageError, FileNotFoundError, FileExistsError):
            raise
        # hdfs-native raises bare errors of Rust for whatever it has no class for.
        except Exception as e:
            problem = str(e).strip().partition("\n")[0].rstrip(".")
            remedy = (
                "Give the user (HADOOP_USER_NAME) the right to it."
                if isinstance(e, PermissionError) or "Permission denied" in str(e)
                else "Look whether the name node and the data nodes are up, and run it again."
            )
            raise StorageError(f"Could not {operation} {uri}: {problem}. {remedy}") from e


def _strip(uri: str) -> str:
    """Return the path of a URI as it stands."""
    if "://" not in uri:
        return uri
    _, slash, path = uri.partition("://")[2].partition("/")
    return f"{slash or '/'}{path}"


def _stored(status: Any, *, path: str) -> StoredFile:
    return StoredFile(
        path=path,
        size=status.length,
        etag=f"{status.modification_time:x}-{status.length:x}",
        modified=status.modification_time / 1000,
    )


@functools.cache
def _hdfs_class() -> "type[AbstractFileSystem]":
    from hdfs_native.fsspec import HdfsFileSystem

    class FileSystem(HdfsFileSystem):
        """hdfs-native that takes a path as it stands: it would read '#' and '?' as of a URL."""

        # fsspec clears its cache in each forked process before that becomes another program, and
        # a client that goes there waits for threads that were not forked with it, for ever.
        cachable = False

        @classmethod
        def _strip_protocol(cls, path: Any) -> Any:
            return [_strip(item) for item in path] if isinstance(path, list) else _strip(path)

    return FileSystem
