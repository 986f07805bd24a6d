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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_assets.datastore.storage import (
    FolderStorage,
    LocalStorage,
    StoredFile,
    could_not,
    name_of,
    sha256_of,
)
from synapse_assets.errors import StorageError

if TYPE_CHECKING:
    import pyarrow.fs
    from fsspec import AbstractFileSystem
    from pyspark.sql import SparkSession

_CHUNK_BYTES = 4 << 20
# How often a rename is tried again when another writer keeps putting a file in its way.
_RENAMES = 5
_CAUSES = 8

_ABFS_ANSWER = re.compile(r'Operation failed: "(?P<problem>[^"]*)", (?P<status>\d+),')
# The driver for Azure storage takes a container that is not there for a file that is not there.
_NO_CONTAINER = (
    "FilesystemNotFound|ContainerNotFound|specified (filesystem|container) does not exist"
)
# What to do about an error, by a pattern; the first one that is found in it counts.
_REMEDIES = {
    _NO_CONTAINER: "Create the container, or choose another root.",
    "AuthenticationFailed|AzureADAuthenticator|, 401,": "Look whether the login that the cluster "
    "has for the account is right and still valid.",
    "AuthorizationPermissionMismatch|AuthorizationFailure|, 403,": "Give the Spark pool's identity "
    "the role 'Storage Blob Data Contributor' on the account.",
    "AccessControlException|Permission denied": "Give the user that the Spark application runs as "
    "the right to it.",
    "KeyProviderException|InvalidConfigurationValue|ConfigurationPropertyNotFound": "Give the "
    "cluster a login for the account, among the properties 'spark.hadoop.fs.azure…'.",
    "No FileSystem for scheme|ClassNotFoundException|NoClassDefFoundError": "Put Hadoop's driver "
    "for this kind of store on the class path of the Spark driver.",
    "UnknownHost": "Look whether the host's name is right and the cluster's network can resolve "
    "it.",
    "ConnectException|SocketTimeout|NoRouteToHost|StandbyException": "Look whether the store is up "
    "and the cluster's network reaches it, and run it again.",
    "No space left on device|Disk quota exceeded": "Make room on the disk, and run it again.",
    ", (429|500|503),": "The service is overloaded or down: run it again later.",
}
_OTHER_REMEDY = "Look at the log of the Spark driver, and run it again."


def open_hadoop_storage(uri: str, session: "SparkSession") -> "HadoopStorage | LocalStorage":
    """Return the store that a URI lies in, as `Datastore.uri` makes it.

    An absolute path is of the driver's machine, whatever the cluster's default file system.
    """
    return HadoopStorage(session) if "://" in uri else LocalStorage()


class HadoopStorage(FolderStorage):
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
        # Each name is looked up once: that takes several requests.
        java, hadoop = context._jvm.java, context._jvm.org.apache.hadoop
        self._file_input, self._file_output = java.io.FileInputStream, java.io.FileOutputStream
        self._hadoop_path = hadoop.fs.Path
        self._hadoop_configuration = hadoop.conf.Configuration
        self._hadoop_filesystem = hadoop.fs.FileSystem
        self._rename_option = getattr(hadoop.fs, "Options$Rename")
        self._copy_bytes = hadoop.io.IOUtils.copyBytes
        self._bytes_of = context._jvm.org.apache.commons.io.IOUtils.toByteArray

    def _read(self, uri: str) -> bytes:
        filesystem, path = self._at(uri)
        stream = filesystem.open(path)
        try:
            return bytes(self._bytes_of(stream))
        finally:
            stream.close()

    def create_once(self, uri: str, content: bytes) -> bool:
        """Create a file and tell whether it was this call that did: only one ever does.

        On Azure storage, the file is there a moment before its content.
        """
        with contextlib.suppress(FileExistsError), self._explained("create", uri):
            if _replaces(uri):
                # A rename that fails says whether a file is there; who creates a file while
                # another one still writes it is told of a lease.
                with self._replacing(uri, overwrite=False) as temporary:
                    self._create(temporary, content)
            else:
                with self._exclusive_filesystem(uri) as filesystem:
                    self._create(uri, content, filesystem=filesystem)
            return True
        return False

    @contextlib.contextmanager
    def _exclusive_filesystem(self, uri: str) -> Iterator[Any]:
        """Yield a file system that has the store itself refuse to create a file that is there."""
        # By default, the driver looks before it creates a file on a Blob endpoint, and then
        # creates it in any case. Where there are only DFS endpoints, it does not know of this.
        configuration = self._hadoop_configuration(self._configuration)
        configuration.setBoolean("fs.azure.enable.create.blob.idempotency", False)
        _, path = self._at(uri)
        filesystem = self._hadoop_filesystem.newInstance(path.toUri(), configuration)
        try:
            yield filesystem
        finally:
            filesystem.close()

    def _remove(self, uri: str) -> None:
        filesystem, path = self._at(uri)
        filesystem.delete(path, False)

    def _stat(self, uri: str) -> StoredFile | None:
        filesystem, path = self._at(uri)
        status = filesystem.getFileStatus(path)
        return None if status.isDirectory() else self._describe((uri, status), name_of(uri))

    def _describe(self, known: tuple[str, Any], path: str) -> StoredFile:
        uri, status = known
        size, modified = status.getLen(), status.getModificationTime()
        is_azure = uri.startswith("abfs")
        return StoredFile(
            path=path,
            size=size,
            # As the orchestrator's storage tells it.
            etag=status.getVersion().strip('"') if is_azure else f"{modified:x}-{size:x}",
            modified=modified / 1000,
        )

    def _list_folder(self, uri: str) -> Iterator[tuple[str, bool, tuple[str, Any]]]:
        filesystem, folder = self._at(uri)
        root = f"{filesystem.makeQualified(folder).toString().rstrip('/')}/"
        found = {str(s.getPath().toString()): s for s in filesystem.listStatus(folder)}
        for name, status in sorted(found.items()):
            # A store that is asked for the files below a file names that file.
            if name.startswith(root):
                yield name.removeprefix(root), status.isDirectory(), (name, status)

    def _create(self, uri: str, content: bytes, *, filesystem: Any = None) -> None:
        usual, path = self._at(uri)
        stream = (filesystem or usual).create(path, False)
        try:
            stream.write(content)
        finally:
            stream.close()

    def _put(self, path: Path, uri: str) -> None:
        filesystem, target = self._at(uri)
        with _name_for_java(path) as name:
            self._copy(self._file_input(name), lambda: filesystem.create(target, True))

    def _download(self, uri: str, path: Path) -> str:
        filesystem, source = self._at(uri)
        with _name_for_java(path) as name:
            self._copy(filesystem.open(source), lambda: self._file_output(name))
        return sha256_of(path)

    def _copy(self, source: Any, open_target: Callable[[], Any]) -> None:
        """Copy a stream of Java to another, and close both."""
        try:
            self._copy_bytes(source, open_target(), _CHUNK_BYTES, True)
        finally:
            source.close()

    def _translate(self, error: Exception, operation: str, uri: str) -> Exception | None:
        return translate(error, operation, uri)

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

    def _at(self, uri: str) -> tuple[Any, Any]:
        """Return Hadoop's file system, which Hadoop keeps, and its path for a URI."""
        scheme, _, rest = uri.partition("://")
        authority, _, name = rest.partition("/")
        # Of three parts, since no part of those is decoded.
        path = self._hadoop_path(scheme, authority, f"/{name}")
        return path.getFileSystem(self._configuration), path

    def _rename(self, source: str, target: str, *, overwrite: bool) -> None:
        # Hadoop cannot replace a file on Azure storage: a reader finds nothing for a moment.
        (_, old), (filesystem, new) = self._at(source), self._at(target)
        if _replaces(target):
            kind = self._rename_option
            options = self._gateway.new_array(kind, 1)
            options[0] = kind.valueOf("OVERWRITE" if overwrite else "NONE")
            filesystem.rename(old, new, options)
            return
        for _ in range(_RENAMES):
            # False where there is a file.
            if filesystem.rename(old, new):
                return
            filesystem.delete(new, False)
        raise StorageError(
            f"Could not write {target}: the store refused to rename a file to it. Look whether "
            "something else writes to the same place, and run it again."
        )


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


def translate(error: Exception, operation: str, uri: str) -> OSError | None:
    """Return an error of Java as the one that a user of the storage knows."""
    from py4j.protocol import (  # type: ignore[import-untyped]
        Py4JError,
        Py4JJavaError,
    )

    if not isinstance(error, Py4JError):
        return None
    if not isinstance(error, Py4JJavaError):
        problem = "the Java process of the Spark driver does not answer"
        return could_not(operation, uri, problem, _OTHER_REMEDY)
    causes = _causes(error.java_exception)
    text = "\n".join(causes)
    name = causes[0].partition(":")[0].rpartition(".")[2]
    if not re.search(_NO_CONTAINER, text):
        if name == "FileNotFoundException":
            return FileNotFoundError(f"There is no file {uri}.")
        if name == "FileAlreadyExistsException":
            return FileExistsError(f"There is a file {uri} already.")
    remedy = next(
        (remedy for known, remedy in _REMEDIES.items() if re.search(known, text)), _OTHER_REMEDY
    )
    return could_not(operation, uri, _problem(causes), remedy)


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
