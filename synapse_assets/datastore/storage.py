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
    """One store. Every path is an absolute URI as `Datastore.uri` makes it.

    A kind of store has the verbs with an underscore. They raise what its library raises, which
    `_translate` makes an error that the user of a storage knows.
    """

    @abstractmethod
    def _read(self, uri: str) -> bytes: ...

    @abstractmethod
    def _write(self, uri: str, content: bytes) -> None: ...

    @abstractmethod
    def _remove(self, uri: str) -> None: ...

    @abstractmethod
    def _stat(self, uri: str) -> StoredFile | None: ...

    @abstractmethod
    def _upload(self, path: Path, uri: str) -> StoredFile: ...

    @abstractmethod
    def _download(self, uri: str, path: Path) -> str: ...

    @abstractmethod
    def _translate(self, error: Exception, operation: str, uri: str) -> Exception | None:
        """Return the error to raise in place of one of a library; None to leave it as it is."""

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
    def filesystem(self) -> "AbstractFileSystem":
        """Return the fsspec file system; URIs are paths on it as they stand."""

    def read_bytes(self, uri: str) -> bytes | None:
        """Return the content of a file, None if there is none."""
        with contextlib.suppress(FileNotFoundError), self._explained("read", uri):
            return self._read(uri)
        return None

    def read_text(self, uri: str) -> str | None:
        """Return the text at `uri`, None if there is nothing."""
        content = self.read_bytes(uri)
        return None if content is None else content.decode()

    def write_atomically(self, uri: str, content: bytes) -> None:
        """Write `content` to `uri`: a reader sees all of it or what was there before."""
        with self._explained("write", uri):
            self._write(uri, content)

    def write_once(self, uri: str, content: bytes) -> None:
        """Write `content` to `uri` unless something is there, as for names made from content."""
        if self.stat(uri) is None:
            self.write_atomically(uri, content)

    def remove(self, uri: str) -> None:
        """Remove the file at `uri`, if there is one."""
        with contextlib.suppress(FileNotFoundError), self._explained("remove", uri):
            self._remove(uri)

    def stat(self, uri: str) -> StoredFile | None:
        """Return what the store knows of one file (its `path` is its name), None if none is."""
        with contextlib.suppress(FileNotFoundError), self._explained("look at", uri):
            return self._stat(uri)
        return None

    def written(self, uri: str) -> StoredFile:
        """Return what the store knows of a file that was just written.

        Raises:
            StorageError: It is gone.
        """
        stored = self.stat(uri)
        if stored is None:
            raise StorageError(f"{uri} was written and is gone: run the step again.")
        return stored

    def list_files(self, uri: str) -> list[StoredFile]:
        """Return all files below a folder, sorted by path; none if there is no such folder."""
        found = (file for page in self.list_pages(uri) for file in page.files)
        return sorted(found, key=lambda file: file.path)

    def upload(self, path: Path, uri: str) -> StoredFile:
        """Copy a local file to `uri`, in constant memory, and return what the store made of it."""
        with self._explained("write", uri):
            return self._upload(path, uri)

    def download(self, uri: str, path: Path) -> str:
        """Copy the file at `uri` to a local path, in constant memory, and return its sha256.

        Raises:
            FileNotFoundError: There is none.
        """
        with self._explained("read", uri), replacing(path) as temporary:
            return self._download(uri, temporary)

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

    def _explained(self, operation: str, uri: str) -> contextlib.AbstractContextManager[None]:
        """Raise what goes wrong as an error that says what, where, and what to do."""
        return translated(lambda error: self._translate(error, operation, uri))


class FolderStorage(Storage):
    """A store that has folders, and renames files."""

    @abstractmethod
    def _list_folder(self, uri: str) -> Iterable[tuple[str, bool, Any]]:
        """Return what is in a folder: name, whether it is a folder, and what is known of it.

        That is in the order of names.
        """

    @abstractmethod
    def _describe(self, known: Any, path: str) -> StoredFile: ...

    @abstractmethod
    def _create(self, uri: str, content: bytes) -> None: ...

    @abstractmethod
    def _put(self, path: Path, uri: str) -> None:
        """Copy a local file to one that is not there."""

    @abstractmethod
    def _rename(self, source: str, target: str, *, overwrite: bool) -> None:
        """Rename a file, over another one if told so and there is one."""

    def _write(self, uri: str, content: bytes) -> None:
        with self._replacing(uri) as temporary:
            self._create(temporary, content)

    def _upload(self, path: Path, uri: str) -> StoredFile:
        with self._replacing(uri) as temporary:
            self._put(path, temporary)
        return self.written(uri)

    @contextlib.contextmanager
    def _replacing(self, uri: str, *, overwrite: bool = True) -> Iterator[str]:
        """Yield a new file's URI, which takes the name at the end unless that failed."""
        temporary = f"{uri.rpartition('/')[0]}/.{uuid.uuid4().hex}.tmp"
        try:
            yield temporary
            self._rename(temporary, uri, overwrite=overwrite)
        except BaseException:
            with contextlib.suppress(Exception):
                self._remove(temporary)
            raise

    def list_pages(
        self, uri: str, *, prefix: str = "", start: str | None = None, size: int = PAGE_FILES
    ) -> Iterator[Page]:
        # The names in one folder are held in memory at a time, and each file is looked at when
        # its page is asked for.
        def described() -> Iterator[StoredFile]:
            after = [] if start is None else start.split("/")
            for path, known in self._walk(uri, [], prefix=prefix, after=after):
                # It may have gone since its folder was listed.
                with contextlib.suppress(FileNotFoundError), self._explained("look at", uri):
                    yield self._describe(known, path)

        return _paged(described(), size=size)

    def _walk(
        self, uri: str, folder: list[str], *, prefix: str, after: list[str]
    ) -> Iterator[tuple[str, Any]]:
        """Yield the files of a tree, folder by folder, each folder's in the order of their names.

        Args:
            uri: The tree's root.
            folder: The folder in it that is walked.
            prefix: Only paths that begin so; other folders are not listed.
            after: Only paths after this one.
        """
        listed = "/".join([uri.rstrip("/"), *folder])
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            self._explained("list", listed),
        ):
            for name, is_folder, known in self._list_folder(listed):
                parts = [*folder, name]
                path = "/".join(parts)
                if not is_folder:
                    if path.startswith(prefix) and parts > after:
                        yield path, known
                # Of the folders on the way to `after` only the rest is wanted.
                elif parts >= after[: len(parts)] and (
                    f"{path}/".startswith(prefix) or prefix.startswith(f"{path}/")
                ):
                    yield from self._walk(uri, parts, prefix=prefix, after=after)


class LocalStorage(FolderStorage):
    """The file system of this machine."""

    def _read(self, uri: str) -> bytes:
        return Path(uri).read_bytes()

    def _remove(self, uri: str) -> None:
        Path(uri).unlink()

    def _stat(self, uri: str) -> StoredFile | None:
        return self._describe(Path(uri), name_of(uri)) if Path(uri).is_file() else None

    def _describe(self, known: "Path | os.DirEntry[str]", path: str) -> StoredFile:
        status = known.stat()
        return StoredFile(
            path=path,
            size=status.st_size,
            etag=f"{status.st_mtime_ns:x}-{status.st_size:x}",
            modified=status.st_mtime,
        )

    def _list_folder(self, uri: str) -> "Iterator[tuple[str, bool, os.DirEntry[str]]]":
        with os.scandir(uri or "/") as found:
            for entry in sorted(found, key=lambda entry: entry.name):
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder or entry.is_file():
                    yield entry.name, is_folder, entry

    def _create(self, uri: str, content: bytes) -> None:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        Path(uri).write_bytes(content)

    def _put(self, path: Path, uri: str) -> None:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, uri)

    def _rename(self, source: str, target: str, *, overwrite: bool) -> None:
        assert overwrite
        Path(source).replace(target)

    def _upload(self, path: Path, uri: str) -> StoredFile:
        # It may lie there already.
        return self.written(uri) if path == Path(uri) else super()._upload(path, uri)

    def _download(self, uri: str, path: Path) -> str:
        shutil.copyfile(uri, path)
        return sha256_of(path)

    def create_once(self, uri: str, content: bytes) -> bool:
        """Create a file and tell whether it was this call that did: only one ever does."""
        with contextlib.suppress(FileExistsError), self._explained("create", uri):
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
            with Path(uri).open("xb") as stream:
                stream.write(content)
            return True
        return False

    def _translate(self, error: Exception, operation: str, uri: str) -> Exception | None:
        if not isinstance(error, OSError):
            return None
        remedy = _REMEDIES.get(error.errno or 0, "Look at the disk or the mount, and run it again.")
        return could_not(operation, uri, str(error.strerror or error), remedy)

    def make_folder(self, uri: str) -> None:
        with self._explained("make the folder", uri):
            Path(uri).mkdir(parents=True, exist_ok=True)

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


def _paged(files: Iterator[StoredFile], *, size: int) -> Iterator[Page]:
    """Yield files in pages, each marked with the path of the last file of the one before."""
    while True:
        page = tuple(itertools.islice(files, size))
        is_last = len(page) < size
        yield Page(page, None if is_last else page[-1].path)
        if is_last:
            return


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


def name_of(uri: str) -> str:
    """Return the last part of a URI."""
    return uri.rpartition("/")[2]


def first_line(error: Exception | str) -> str:
    """Return the first line of an error's message, which says the most."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def could_not(operation: str, what: str, problem: Exception | str, remedy: str) -> StorageError:
    """Return the error of a store that refused something: what, with what, why, and a remedy."""
    return StorageError(f"Could not {operation} {what}: {first_line(problem)}. {remedy}")


@contextlib.contextmanager
def translated(translate: Callable[[Exception], Exception | None]) -> Iterator[None]:
    """Raise an error of a library as the one that `translate` gives for it, if it gives one."""
    try:
        yield
    except (StorageError, FileNotFoundError, FileExistsError, NotADirectoryError):
        raise
    except Exception as e:
        known = translate(e)
        if known is None:
            raise
        raise known from e
