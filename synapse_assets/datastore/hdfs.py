"""HDFS, through hdfs-native, which needs neither Java nor libhdfs."""

import functools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_assets.datastore.storage import (
    FolderStorage,
    StoredFile,
    could_not,
    name_of,
    sha256_of,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from hdfs_native import Client

_CHUNK_BYTES = 4 << 20
# A name node that starts anew is waited for, half a minute long; the default is three minutes.
_PATIENCE = {
    "dfs.client.failover.max.attempts": "6",
    "dfs.client.failover.sleep.max.millis": "8000",
}


class HdfsStorage(FolderStorage):
    """One name node or name service."""

    def __init__(self, *, host: str, configuration: Mapping[str, str] | None = None) -> None:
        """Create the store; nothing is contacted.

        Args:
            host: Name node ('host:port') or name service.
            configuration: Hadoop properties beside those of HADOOP_CONF_DIR.
        """
        self._host = host
        self._configuration = {**_PATIENCE, **(configuration or {})}

    def _read(self, uri: str) -> bytes:
        with self._client.read(_strip(uri)) as stream:
            return bytes(stream.read())

    def _remove(self, uri: str) -> None:
        self._client.delete(_strip(uri), False)

    def _stat(self, uri: str) -> StoredFile | None:
        status = self._client.get_file_info(_strip(uri))
        return None if status.isdir else self._describe(status, name_of(uri))

    def _describe(self, known: Any, path: str) -> StoredFile:
        return StoredFile(
            path=path,
            size=known.length,
            etag=f"{known.modification_time:x}-{known.length:x}",
            modified=known.modification_time / 1000,
        )

    def _list_folder(self, uri: str) -> Iterator[tuple[str, bool, Any]]:
        # The name node gives a folder's content in portions and in the order of names.
        for status in self._client.list_status(_strip(uri), False):
            yield name_of(status.path), status.isdir, status

    def _create(self, uri: str, content: bytes) -> None:
        with self._client.create(_strip(uri)) as stream:
            stream.write(content)

    def _put(self, path: Path, uri: str) -> None:
        with self._client.create(_strip(uri)) as target, path.open("rb") as source:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)

    def _rename(self, source: str, target: str, *, overwrite: bool) -> None:
        self._client.rename(_strip(source), _strip(target), overwrite)

    def _download(self, uri: str, path: Path) -> str:
        with self._client.read(_strip(uri)) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)
        return sha256_of(path)

    def _translate(self, error: Exception, operation: str, uri: str) -> Exception | None:
        # hdfs-native raises bare errors of Rust for whatever it has no class for.
        remedy = (
            "Give the user (HADOOP_USER_NAME) the right to it."
            if isinstance(error, PermissionError) or "Permission denied" in str(error)
            else "Look whether the name node and the data nodes are up, and run it again."
        )
        return could_not(operation, uri, error, remedy)

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


def _strip(uri: str) -> str:
    """Return the path of a URI as it stands."""
    if "://" not in uri:
        return uri
    _, slash, path = uri.partition("://")[2].partition("/")
    return f"{slash or '/'}{path}"


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
