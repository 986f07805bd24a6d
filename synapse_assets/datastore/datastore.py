"""The datastore resource: one root location, given to every library in the form it wants."""

import contextlib
import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import dagster as dg
from pydantic import Field

from synapse_assets.errors import ConfigurationError

if TYPE_CHECKING:
    import pyarrow.fs
    from fsspec import AbstractFileSystem

# Folders of the datastore that are not datasets. A leading underscore keeps them apart from
# dataset names, which begin with a letter or a digit.
BUNDLES = "_bundles"
ATTEMPTS = "_attempts"


class Datastore(dg.ConfigurableResource["Datastore"]):
    """One root location below which every dataset, bundle and attempt lies.

    The rest of the package never looks at the scheme: it asks the datastore for a file system,
    for Delta's storage options or for Hadoop's configuration.
    """

    root: str = Field(
        description="Folder that holds the datasets, for example '/data/titanic'. "
        "A 'file:' URL names the same place."
    )

    def uri(self, *parts: str) -> str:
        """Return the location of `parts` below the root, as one absolute path.

        Raises:
            ConfigurationError: The root has a scheme that no store here serves, names a host, or
                has a name that Delta libraries would misread.
        """
        scheme, host = urlsplit(self.root)[:2]
        if scheme == "file" and host not in ("", "localhost"):
            raise ConfigurationError(
                f"The datastore root {self.root!r} names the host '{host}'. "
                "A 'file:' URL of this machine has three slashes: 'file:///data'."
            )
        if scheme not in ("", "file"):
            raise ConfigurationError(
                f"The datastore root {self.root!r} has the scheme '{scheme}:', which this "
                "version does not serve. Use a folder, for example SYNAPSE_ASSETS_DATASTORE=./data."
            )
        root = unquote(urlsplit(self.root).path) if scheme else self.root
        # Without '..': some of the libraries see the same place under another name.
        folder = os.path.abspath(Path(root).expanduser())  # noqa: PTH100
        if re.search("%[0-9A-Fa-f]{2}", folder):
            raise ConfigurationError(
                f"The datastore root {folder!r} has a percent sign before two digits, which Delta "
                "libraries take for an encoded character. Use a folder without it."
            )
        return str(Path(folder).joinpath(*parts))

    def filesystem(self) -> "AbstractFileSystem":
        """Return the fsspec file system on which the URIs of this datastore are paths."""
        import fsspec

        return fsspec.filesystem("file", auto_mkdir=True)

    def arrow_filesystem(self) -> "pyarrow.fs.FileSystem":
        """Return the same file system for pyarrow."""
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem()

    def read_text(self, uri: str) -> str | None:
        """Return the text at `uri`, None if there is nothing."""
        try:
            return str(self.filesystem().read_text(uri, encoding="utf-8"))
        except FileNotFoundError:
            return None

    def write_atomically(self, uri: str, content: bytes) -> None:
        """Write `content` to `uri`: a reader sees all of it or what was there before."""
        filesystem = self.filesystem()
        # On a file system the rename is the atomic part.
        temporary = f"{uri}.{uuid.uuid4().hex[:8]}.tmp"
        filesystem.pipe_file(temporary, content)
        filesystem.mv(temporary, uri)

    def remove(self, uri: str) -> None:
        """Remove the file at `uri`, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem().rm_file(uri)

    def write_once(self, uri: str, content: bytes) -> None:
        """Write `content` to `uri` unless something is there, as for names made from content."""
        if not self.filesystem().exists(uri):
            self.write_atomically(uri, content)

    def delta_storage_options(self) -> dict[str, str]:
        """Return the storage options that `deltalake` needs to reach this datastore."""
        return {}

    def hadoop_configuration(self) -> dict[str, str]:
        """Return the Hadoop properties that Spark needs to reach this datastore."""
        return {}
