"""Any store that Hadoop knows, through the Java process that a Spark driver runs beside.

For a driver on a cluster: it needs the standard library and pyspark alone, logs in as the cluster
does, and holds no secret.
"""

import atexit
import contextlib
import functools
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_assets.datastore.storage import (
    PAGE_FILES,
    LocalStorage,
    Page,
    Storage,
    StoredFile,
    paged,
    replacing,
    sha256_of,
    walk_folders,
)
from synapse_assets.errors import StorageError

if TYPE_CHECKING:
    import pyarrow.fs
    from fsspec import AbstractFileSystem
    from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
    from pyspark.sql import SparkSession

_CHUNK_BYTES = 4 << 20
# How often a rename is tried again when another writer keeps putting a file in its way.
_RENAMES = 5
_CAUSES = 8

_ABFS_ANSWER = re.compile(r'Operation failed: "(?P<problem>[^"]*)", (?P<status>\d+),')
_NO_FILE = "FileNotFoundException"
_FILE_EXISTS = "FileAlreadyExistsException"
# The driver for Azure storage takes a container that is not there for a file that is not there.
_NO_CONTAINER = re.compile(
    "FilesystemNotFound|ContainerNotFound|specified (filesystem|container) does not exist"
)
# What to do about an error; the first pattern that is found in it counts.
_REMEDIES = (
    (_NO_CONTAINER, "Create the container, or choose another root."),
    (
        re.compile("AuthenticationFailed|AzureADAuthenticator|, 401,"),
        "Look whether the login that the cluster has for the account is right and still valid.",
    ),
    (
        re.compile("AuthorizationPermissionMismatch|AuthorizationFailure|, 403,"),
        "Give the Spark pool's identity the role 'Storage Blob Data Contributor' on the account.",
    ),
    (
        re.compile("AccessControlException|Permission denied"),
        "Give the user that the Spark application runs as the right to it.",
    ),
    (
        re.compile("KeyProviderException|InvalidConfigurationValue|ConfigurationPropertyNotFound"),
        "Give the cluster a login for the account, among the properties 'spark.hadoop.fs.azure…'.",
    ),
    (
        re.compile("No FileSystem for scheme|ClassNotFoundException|NoClassDefFoundError"),
        "Put Hadoop's driver for this kind of store on the class path of the Spark driver.",
    ),
    (
        re.compile("UnknownHost"),
        "Look whether the host's name is right and the cluster's network can resolve it.",
    ),
    (
        re.compile("ConnectException|SocketTimeout|NoRouteToHost|StandbyException"),
        "Look whether the store is up and the cluster's network reaches it, and run it again.",
    ),
    (
        re.compile("No space left on device|Disk quota exceeded"),
        "Make room on the disk, and run it again.",
    ),
    (
        re.compile(", (429|500|503),"),
        "The service is overloaded or down: run it again later.",
    ),
)
_OTHER_REMEDY = "Look at the log of the Spark driver, and run it again."


def open_hadoop_storage(uri: str, session: "SparkSession") -> "HadoopStorage | DriverStorage":
    """Return the store that a URI lies in, as `Datastore.uri` makes it.

    An absolute path is of the driver's machine, whatever the cluster's default file system.
    """
    return HadoopStorage(session) if "://" in uri else DriverStorage()


class DriverStorage(LocalStorage):
    """The file system of the driver's machine."""

    def create_once(self, uri: str, content: bytes) -> bool:
        """Create a file and tell whether it was this call that did: only one ever does."""
        path = Path(uri)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                stream.write(content)
        except FileExistsError:
            return False
        except OSError as e:
            raise StorageError(
                f"Could not create {uri}: {e.strerror}. Look whether the user that the Spark "
                "application runs as may write there, and whether there is room."
            ) from e
        return True


class HadoopStorage(Storage):
    """The stores that URLs name: Azure storage and HDFS.

    Small contents travel between Python and Java; files are copied by Java alone.
    """

    def __init__(self, session: "SparkSession") -> None:
        """Create the store; nothing is contacted.

        Args:
            session: Its configuration of Hadoop says how to reach each store.
        """
        context: Any = session.sparkContext
        self._configuration = context._jsc.hadoopConfiguration()
        self._gateway = context._gateway
        self._jvm = context._jvm

    def read_bytes(self, uri: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError), _explained("read", uri):
            path = self._path(uri)
            stream = self._filesystem(path).open(path)
            try:
                return bytes(self._java.bytes_of(stream))
            finally:
                stream.close()
        return None

    def write_atomically(self, uri: str, content: bytes) -> None:
        # Hadoop cannot replace a file on Azure storage: a reader finds nothing for a moment.
        with _explained("write", uri), self._replacing(uri, overwrite=True) as temporary:
            self._write(temporary, content)

    def create_once(self, uri: str, content: bytes) -> bool:
        """Create a file and tell whether it was this call that did: only one ever does.

        On Azure storage, the file is there a moment before its content.
        """
        with contextlib.suppress(FileExistsError), _explained("create", uri):
            if _replaces(uri):
                # A rename that fails says whether a file is there; who creates a file while
                # another one still writes it is told of a lease.
                with self._replacing(uri, overwrite=False) as temporary:
                    self._write(temporary, content)
            else:
                with self._exclusive_filesystem(uri) as filesystem:
                    self._write(self._path(uri), content, filesystem=filesystem)
            return True
        return False

    @contextlib.contextmanager
    def _exclusive_filesystem(self, uri: str) -> Iterator[Any]:
        """Yield a file system that has the store itself refuse to create a file that is there."""
        # By default, the driver looks before it creates a file on a Blob endpoint, and then
        # creates it in any case. Where there are only DFS endpoints, it does not know of this.
        configuration = self._java.configuration(self._configuration)
        configuration.setBoolean("fs.azure.enable.create.blob.idempotency", False)
        filesystem = self._java.filesystem.newInstance(self._path(uri).toUri(), configuration)
        try:
            yield filesystem
        finally:
            filesystem.close()

    def remove(self, uri: str) -> None:
        with contextlib.suppress(FileNotFoundError), _explained("remove", uri):
            path = self._path(uri)
            self._filesystem(path).delete(path, False)

    def list_pages(
        self, uri: str, *, prefix: str = "", start: str | None = None, size: int = PAGE_FILES
    ) -> Iterator[Page]:
        def list_folder(path: str) -> Iterator[tuple[str, bool, Any]]:
            with contextlib.suppress(FileNotFoundError), _explained("list", uri):
                folder = self._path(f"{uri}/{path}".rstrip("/"))
                filesystem = self._filesystem(folder)
                root = f"{filesystem.makeQualified(folder).toString().rstrip('/')}/"
                found = {str(s.getPath().toString()): s for s in filesystem.listStatus(folder)}
                for name, status in sorted(found.items()):
                    # A store that is asked for the files below a file names that file.
                    if name.startswith(root):
                        yield name.removeprefix(root), status.isDirectory(), status

        files = walk_folders(list_folder, prefix=prefix, start=start)
        return paged((_stored(status, uri=uri, path=path) for path, status in files), size=size)

    def stat(self, uri: str) -> StoredFile | None:
        with contextlib.suppress(FileNotFoundError), _explained("look at", uri):
            path = self._path(uri)
            status = self._filesystem(path).getFileStatus(path)
            if not status.isDirectory():
                return _stored(status, uri=uri, path=uri.rpartition("/")[2])
        return None

    def upload(self, path: Path, uri: str) -> StoredFile:
        with (
            _explained("write", uri),
            self._replacing(uri, overwrite=True) as temporary,
            _name_for_java(path) as name,
        ):
            source = self._jvm.java.io.FileInputStream(name)
            try:
                target = self._filesystem(temporary).create(temporary, True)
                self._java.copy(source, target)
            finally:
                source.close()
        return self.written(uri)

    def download(self, uri: str, path: Path) -> str:
        with (
            _explained("read", uri),
            replacing(path) as temporary,
            _name_for_java(temporary) as name,
        ):
            remote = self._path(uri)
            source = self._filesystem(remote).open(remote)
            try:
                self._java.copy(source, self._jvm.java.io.FileOutputStream(name))
            finally:
                source.close()
            return sha256_of(temporary)

    def filesystem(self) -> "AbstractFileSystem":
        """Raise StorageError: there is none of fsspec on a cluster."""
        raise StorageError(
            "A step on a Spark cluster has no fsspec file system of its datastore. Read and write "
            "with Spark or Arrow, or take a folder of local files."
        )

    def arrow_filesystem(self) -> "pyarrow.fs.FileSystem":
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem()

    def arrow_path(self, uri: str) -> str:
        """Return the path of a local copy: pyarrow itself needs libhdfs, which clusters lack."""
        copy = _folder() / uuid.uuid4().hex
        self.download(uri, copy)
        return str(copy)

    @contextlib.contextmanager
    def arrow_output(self, uri: str) -> "Iterator[tuple[str, pyarrow.fs.FileSystem]]":
        copy = _folder() / uuid.uuid4().hex
        try:
            yield str(copy), self.arrow_filesystem()
            self.upload(copy, uri)
        finally:
            copy.unlink(missing_ok=True)

    @functools.cached_property
    def _java(self) -> "_Java":
        return _Java(self._jvm)

    def _path(self, uri: str) -> Any:
        """Return a URI as Hadoop's path; of three parts, since no part of those is decoded."""
        scheme, _, rest = uri.partition("://")
        authority, _, path = rest.partition("/")
        return self._java.path(scheme, authority, f"/{path}")

    def _filesystem(self, path: Any) -> Any:
        """Return Hadoop's file system for a path, which Hadoop keeps."""
        return path.getFileSystem(self._configuration)

    def _write(self, path: Any, content: bytes, *, filesystem: Any = None) -> None:
        """Write a file that must not be there."""
        stream = (filesystem or self._filesystem(path)).create(path, False)
        try:
            stream.write(content)
        finally:
            stream.close()

    @contextlib.contextmanager
    def _replacing(self, uri: str, *, overwrite: bool) -> Iterator[Any]:
        """Yield the path of a new file, which takes the name at the end unless that failed."""
        folder = uri.rpartition("/")[0]
        temporary = self._path(f"{folder}/.{uuid.uuid4().hex}.tmp")
        try:
            yield temporary
            self._rename(temporary, uri, overwrite=overwrite)
        except BaseException:
            with contextlib.suppress(Exception):
                self._filesystem(temporary).delete(temporary, False)
            raise

    def _rename(self, source: Any, uri: str, *, overwrite: bool) -> None:
        """Rename a file; unless told to overwrite, raise FileExistsError if there is one."""
        target = self._path(uri)
        filesystem = self._filesystem(target)
        if _replaces(uri):
            kind = self._java.rename_option
            options = self._gateway.new_array(kind, 1)
            options[0] = kind.valueOf("OVERWRITE" if overwrite else "NONE")
            filesystem.rename(source, target, options)
            return
        for _ in range(_RENAMES):
            # False where there is a file.
            if filesystem.rename(source, target):
                return
            filesystem.delete(target, False)
        raise StorageError(
            f"Could not write {uri}: the store refused to rename a file to it. Look whether "
            "something else writes to the same place, and run it again."
        )


class _Java:
    """Names of classes and functions in Java, each looked up once: that takes several requests."""

    def __init__(self, jvm: Any) -> None:
        hadoop = jvm.org.apache.hadoop
        self.path = hadoop.fs.Path
        self.configuration = hadoop.conf.Configuration
        self.filesystem = hadoop.fs.FileSystem
        self.rename_option = getattr(hadoop.fs, "Options$Rename")
        self.bytes_of = jvm.org.apache.commons.io.IOUtils.toByteArray
        self._copy_bytes = hadoop.io.IOUtils.copyBytes

    def copy(self, source: Any, target: Any) -> None:
        """Copy a stream to another, and close both."""
        self._copy_bytes(source, target, _CHUNK_BYTES, True)


@functools.cache
def _folder() -> Path:
    """Return this process's folder for local copies; it goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="synapse-assets-arrow-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _name_for_java(path: Path) -> Iterator[str]:
    """Yield a name of a local file: in the C locale, Java opens no name that is not ASCII."""
    if str(path.absolute()).isascii():
        yield str(path.absolute())
        return
    with tempfile.TemporaryDirectory(prefix="synapse-assets-") as folder:
        link = Path(folder) / "file"
        link.symlink_to(path.absolute())
        yield str(link)


def _replaces(uri: str) -> bool:
    """Tell whether the store renames in one step, over another file or only if there is none."""
    return uri.startswith("hdfs:")


def _stored(status: Any, *, uri: str, path: str) -> StoredFile:
    size, modified = status.getLen(), status.getModificationTime()
    is_azure = uri.startswith("abfs")
    return StoredFile(
        path=path,
        size=size,
        # As the orchestrator's storage tells it.
        etag=status.getVersion().strip('"') if is_azure else f"{modified:x}-{size:x}",
        modified=modified / 1000,
    )


@contextlib.contextmanager
def _explained(operation: str, uri: str) -> Iterator[None]:
    """Raise what Java raises as an error of Python that says what, where, and what to do."""
    from py4j.protocol import Py4JError, Py4JJavaError

    try:
        yield
    except Py4JJavaError as e:
        raise _translate(e, operation, uri) from e
    except Py4JError as e:
        raise StorageError(
            f"Could not {operation} {uri}: the Java process of the Spark driver does not answer. "
            f"{_OTHER_REMEDY}"
        ) from e


def _translate(error: "Py4JJavaError", operation: str, uri: str) -> OSError:
    """Return an error of Java as the one that a user of the storage knows."""
    causes = _causes(error.java_exception)
    text = "\n".join(causes)
    name = causes[0].partition(":")[0].rpartition(".")[2]
    if not _NO_CONTAINER.search(text):
        if name == _NO_FILE:
            return FileNotFoundError(f"There is no file {uri}.")
        if name == _FILE_EXISTS:
            return FileExistsError(f"There is a file {uri} already.")
    remedy = next((remedy for known, remedy in _REMEDIES if known.search(text)), _OTHER_REMEDY)
    return StorageError(f"Could not {operation} {uri}: {_problem(causes)}. {remedy}")


def _causes(throwable: Any) -> list[str]:
    """Return an exception of Java and what caused it, each as 'class: message'."""
    causes: list[str] = []
    while throwable is not None and len(causes) < _CAUSES:
        causes.append(str(throwable.toString()))
        throwable = throwable.getCause()
    return causes


def _problem(causes: list[str]) -> str:
    """Return what is wrong in a few words, without URLs of requests and traces."""
    for cause in causes:
        answer = _ABFS_ANSWER.search(cause)
        if answer is not None:
            return f"{answer['problem'].strip().rstrip('.')} ({answer['status']})"
    first = causes[0].partition("\n")[0].partition("; For more details see")[0]
    name, _, message = first.partition(": ")
    return (message or name.rpartition(".")[2]).strip().rstrip(".")
