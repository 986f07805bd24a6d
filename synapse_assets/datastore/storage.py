"""File operations at absolute URIs, with the same promises on every store.

One set of classes serves both ends: the datastore in the orchestrator, and the runner where a step
runs. For the runner's sake this module and what it imports need the standard library alone; a
store's library is loaded when the store is used.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from synapse_assets.errors import StorageError

if TYPE_CHECKING:
    import pyarrow.fs
    from fsspec import AbstractFileSystem

# Environment variable of a process that holds its secrets: {"storage": ..., "hadoop": ...}.
SECRETS = "SYNAPSE_ASSETS_SECRETS"
# Room for the ending of a temporary file: names have at most 255 bytes.
_MAX_NAME = 200
# Hides the latency of a store. With the four connections of one large blob it is no more than the
# ten that the SDK of Azure keeps open.
_FILES_AT_A_TIME = 7
_CHUNK_BYTES = 1 << 20
# As many as Azure lists in one answer.
PAGE_FILES = 5_000
_ROOM = "Make room on the disk, or choose another place, and run it again."
_RIGHT = "Give the user who runs this the right to read and write there."
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EACCES: _RIGHT,
    errno.EPERM: _RIGHT,
    errno.EROFS: _RIGHT,
}

_File = TypeVar("_File")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class StoredFile:
    """One file that a store lists.

    Attributes:
        path: Location relative to the folder that was listed, with '/' between its parts.
        size: Size in bytes.
        etag: The store's own tag of the content; time and size where it has none.
        modified: When it was written, in seconds since 1970 (UTC).
    """

    path: str
    size: int
    etag: str
    modified: float


@dataclass(frozen=True)
class Page:
    """A part of a listing.

    Attributes:
        files: Some files, in the store's order; there may be none.
        following: The store's mark of the page that follows, None after the last one.
    """

    files: tuple[StoredFile, ...]
    following: str | None


class Storage(ABC):
    """One store. Every path is an absolute URI as `Datastore.uri` makes it."""

    @abstractmethod
    def read_bytes(self, uri: str) -> bytes | None:
        """Return the content of a file, None if there is none."""

    @abstractmethod
    def write_atomically(self, uri: str, content: bytes) -> None:
        """Write `content` to `uri`: a reader sees all of it or what was there before."""

    @abstractmethod
    def remove(self, uri: str) -> None:
        """Remove the file at `uri`, if there is one."""

    @abstractmethod
    def list_pages(
        self, uri: str, *, prefix: str = "", start: str | None = None, size: int = PAGE_FILES
    ) -> Iterator[Page]:
        """Yield the files below a folder in pages, each when it is asked for.

        The order is the store's own: the same every time, and paths that begin alike follow each
        other.

        Args:
            uri: The folder; without files if it is not there.
            prefix: Only paths that begin so.
            start: `Page.following`, for the pages from there on. It stays valid while files come
                and go.
            size: Number of files in a page, at most.
        """

    @abstractmethod
    def stat(self, uri: str) -> StoredFile | None:
        """Return what the store knows of one file (its `path` is its name), None if none is."""

    @abstractmethod
    def upload(self, path: Path, uri: str) -> StoredFile:
        """Copy a local file to `uri`, in constant memory, and return what the store made of it."""

    @abstractmethod
    def download(self, uri: str, path: Path) -> str:
        """Copy the file at `uri` to a local path, in constant memory, and return its sha256."""

    @abstractmethod
    def filesystem(self) -> "AbstractFileSystem":
        """Return the fsspec file system; URIs are paths on it as they stand."""

    def read_text(self, uri: str) -> str | None:
        """Return the text at `uri`, None if there is nothing."""
        content = self.read_bytes(uri)
        return None if content is None else content.decode()

    def written(self, uri: str) -> StoredFile:
        """Return what the store knows of a file that was just written.

        Raises:
            StorageError: It is gone.
        """
        stored = self.stat(uri)
        if stored is None:
            raise StorageError(f"{uri} was written and is gone: run the step again.")
        return stored

    def write_once(self, uri: str, content: bytes) -> None:
        """Write `content` to `uri` unless something is there, as for names made from content."""
        if self.stat(uri) is None:
            self.write_atomically(uri, content)

    def list_files(self, uri: str) -> list[StoredFile]:
        """Return all files below a folder, sorted by path; none if there is no such folder."""
        found = (file for page in self.list_pages(uri) for file in page.files)
        return sorted(found, key=lambda file: file.path)

    def arrow_filesystem(self) -> "pyarrow.fs.FileSystem":
        """Return the store as pyarrow's file system, for paths as `arrow_path` gives them."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self.filesystem()))

    def arrow_path(self, uri: str) -> str:
        """Return a URI as a path on `arrow_filesystem`."""
        return uri

    @contextlib.contextmanager
    def arrow_output(self, uri: str) -> "Iterator[tuple[str, pyarrow.fs.FileSystem]]":
        """Yield a path for pyarrow to write to, and its file system; at the end it is at `uri`."""
        self.make_folder(uri.rpartition("/")[0])
        yield self.arrow_path(uri), self.arrow_filesystem()

    def make_folder(self, uri: str) -> None:
        """Make a folder where the store needs one before a file can be written to it."""
        return


class LocalStorage(Storage):
    """The file system of this machine."""

    def read_bytes(self, uri: str) -> bytes | None:
        try:
            with _explained("read", uri):
                return Path(uri).read_bytes()
        except FileNotFoundError:
            return None

    def write_atomically(self, uri: str, content: bytes) -> None:
        with _explained("write", uri), replacing(Path(uri)) as temporary:
            temporary.write_bytes(content)

    def remove(self, uri: str) -> None:
        with _explained("remove", uri):
            Path(uri).unlink(missing_ok=True)

    def list_pages(
        self, uri: str, *, prefix: str = "", start: str | None = None, size: int = PAGE_FILES
    ) -> Iterator[Page]:
        # The names in one folder are held in memory at a time, and each file is looked at when
        # its page is asked for.
        def described() -> Iterator[StoredFile]:
            for path, entry in walk_folders(list_folder, prefix=prefix, start=start):
                # It may have gone since its folder was listed.
                with contextlib.suppress(FileNotFoundError), _explained("look at", entry.path):
                    yield _describe(entry.stat(), name=path)

        def list_folder(path: str) -> "Iterator[tuple[str, bool, os.DirEntry[str]]]":
            folder = f"{uri}/{path}".rstrip("/")
            with (
                contextlib.suppress(FileNotFoundError, NotADirectoryError),
                _explained("list", folder),
                os.scandir(folder) as found,
            ):
                for entry in sorted(found, key=lambda entry: entry.name):
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if is_folder or entry.is_file():
                        yield entry.name, is_folder, entry

        return paged(described(), size=size)

    def make_folder(self, uri: str) -> None:
        with _explained("make the folder", uri):
            Path(uri).mkdir(parents=True, exist_ok=True)

    def stat(self, uri: str) -> StoredFile | None:
        path = Path(uri)
        with _explained("look at", uri):
            return _describe(path.stat(), name=path.name) if path.is_file() else None

    def upload(self, path: Path, uri: str) -> StoredFile:
        target = Path(uri)
        # It may lie there already.
        if path != target:
            with _explained("write", uri), replacing(target) as temporary:
                shutil.copyfile(path, temporary)
        return _describe(target.stat(), name=target.name)

    def download(self, uri: str, path: Path) -> str:
        with _explained("read", uri), replacing(path) as temporary:
            shutil.copyfile(uri, temporary)
            return sha256_of(temporary)

    def filesystem(self) -> "AbstractFileSystem":
        import fsspec

        return fsspec.filesystem("file", auto_mkdir=True)

    def arrow_filesystem(self) -> "pyarrow.fs.FileSystem":
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem()


def open_storage(spec: Mapping[str, Any], secrets: Mapping[str, str]) -> Storage:
    """Return the store that `Datastore.storage_spec` describes, in another process.

    Args:
        spec: 'store' and what that store's class takes beside secrets.
        secrets: Further options of the store, which no file may hold.
    """
    store, options = spec["store"], {k: v for k, v in spec.items() if k != "store"}
    if store == "blob":
        from synapse_assets.datastore.blob import BlobStorage

        return BlobStorage(
            container=options["container"], options={**options["options"], **secrets}
        )
    if store == "hdfs":
        from synapse_assets.datastore.hdfs import HdfsStorage

        return HdfsStorage(**options)
    return LocalStorage()


def for_each_file(function: Callable[[_File], _Result], files: Iterable[_File]) -> list[_Result]:
    """Return what `function` gives for each file, in order; several are worked on at a time.

    The error of the first file that has one is raised; those that have not begun are left out.
    """
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        return list(pool.map(function, files))


def paged(files: Iterable[StoredFile], *, size: int) -> Iterator[Page]:
    """Yield files in pages, each marked with the path of the last file of the one before."""
    iterator = iter(files)
    page = tuple(itertools.islice(iterator, size))
    while True:
        following = tuple(itertools.islice(iterator, 1))
        if not following:
            yield Page(page, None)
            return
        yield Page(page, page[-1].path)
        page = following + tuple(itertools.islice(iterator, size - 1))


def walk_folders(
    list_folder: Callable[[str], Iterable[tuple[str, bool, _File]]],
    *,
    prefix: str,
    start: str | None,
) -> Iterator[tuple[str, _File]]:
    """Yield the files of a tree, folder by folder, each folder's in the order of their names.

    Args:
        list_folder: Returns what is in a folder, by its path below the tree's root, in the order
            of names: name, whether it is a folder, and what is known of it.
        prefix: Only paths that begin so; other folders are not listed.
        start: Only paths after this one.
    """
    after = [] if start is None else start.split("/")

    def walk(folder: list[str]) -> Iterator[tuple[str, _File]]:
        for name, is_folder, known in list_folder("/".join(folder)):
            parts = [*folder, name]
            path = "/".join(parts)
            if not is_folder:
                if path.startswith(prefix) and parts > after:
                    yield path, known
            # Of the folders on the way to `start` only the rest is wanted.
            elif parts >= after[: len(parts)] and (
                f"{path}/".startswith(prefix) or prefix.startswith(f"{path}/")
            ):
                yield from walk(parts)

    return walk([])


def sha256_of(path: Path) -> str:
    """Return the hash of a file's content in hexadecimal; memory does not grow with the file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes its name at the end unless that failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name[:_MAX_NAME]}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as e:
        temporary.unlink(missing_ok=True)
        if isinstance(e, OSError) and _REMEDIES.get(e.errno or 0) is _ROOM:
            # Here, since it is the disk of this machine, wherever the content comes from.
            raise StorageError(f"Could not write {path}: {e.strerror}. {_ROOM}") from e
        raise


@contextlib.contextmanager
def _explained(operation: str, uri: str) -> Iterator[None]:
    """Raise what the file system refuses as a StorageError: what, where, and what to do."""
    try:
        yield
    except (StorageError, FileNotFoundError, FileExistsError, NotADirectoryError):
        raise
    except OSError as e:
        remedy = _REMEDIES.get(e.errno or 0, "Look at the disk or the mount, and run it again.")
        raise StorageError(f"Could not {operation} {uri}: {e.strerror or e}. {remedy}") from e


def _describe(status: os.stat_result, *, name: str) -> StoredFile:
    return StoredFile(
        path=name,
        size=status.st_size,
        etag=f"{status.st_mtime_ns:x}-{status.st_size:x}",
        modified=status.st_mtime,
    )
