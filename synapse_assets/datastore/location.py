"""Where a datastore lies: one place, however its URL is spelled."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from synapse_assets.datastore.clouds import CLOUDS, Cloud
from synapse_assets.errors import ConfigurationError

EMULATOR_ACCOUNT = "devstoreaccount1"

_AZURE_SCHEMES = ("abfss", "abfs", "az", "https")
# https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
_CONTAINER = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_ENCODED = re.compile("%[0-9A-Fa-f]{2}")
_EXAMPLE = "abfss://container@account.dfs.core.windows.net/folder"
_SERVED = (
    f"a folder ('./data', 'file:///data'), Azure storage ('{_EXAMPLE}', 'az://container/folder', "
    "'https://account.blob.core.windows.net/container/folder') or HDFS ('hdfs://host:8020/folder')"
)


@dataclass(frozen=True)
class Location:
    """One root location. Two spellings of the same place make two equal objects.

    Attributes:
        kind: The kind of store.
        cloud: The cloud that the datastore was set up for; only Azure storage depends on it.
        path: Absolute path: of the folder on this machine, in the container or on HDFS. Without
            a slash at its end, so it is empty for the root of a container or of HDFS.
        container: The container on Azure.
        account: The storage account on Azure.
        host: Name node ('host:port') or name service of HDFS.
    """

    kind: Literal["local", "azure", "hdfs"]
    cloud: Cloud
    path: str
    container: str = ""
    account: str = ""
    host: str = ""

    @classmethod
    def parse(cls, root: str, *, account: str | None, cloud: Cloud) -> "Location":
        """Return the location that a path or a URL names.

        Args:
            root: A path, or a URL of a folder on this machine, on Azure storage or on HDFS.
            account: The storage account, for URLs that do not name it ('az://container/path').
            cloud: The cloud that an account of Azure must belong to.

        Raises:
            ConfigurationError: The root names no place that is served, or carries a secret. The
                message never repeats a password or a query.
        """
        if not root.strip():
            raise ConfigurationError(f"The datastore root is empty. Name {_SERVED}.")
        try:
            url = urlsplit(root)
        except ValueError as error:
            raise ConfigurationError(
                f"The datastore root is not a URL ({error}). Name {_SERVED}."
            ) from None
        shown = _shown(url) if url.scheme else root
        try:
            return _parse(root, url, account=account, cloud=cloud)
        except _RefusedError as refused:
            raise ConfigurationError(f"The datastore root {shown!r} {refused}") from None

    def uri(self, *parts: str) -> str:
        """Return the canonical URI of `parts` below this location.

        It is the form that Hadoop's drivers take: 'abfss://container@account.dfs.<suffix>/path'
        ('abfs:' in the emulator's cloud, which has no TLS), 'hdfs://host:port/path', or an
        absolute path. Nothing in it is percent-encoded.
        """
        if self.kind == "local":
            return str(Path(self.path).joinpath(*parts))
        if self.kind == "hdfs":
            base = f"hdfs://{self.host}"
        else:
            scheme = "abfss" if self.cloud.tls else "abfs"
            host = self.cloud.account_host(self.account, "dfs")
            base = f"{scheme}://{self.container}@{host}"
        below = "".join(f"/{part.strip('/')}" for part in parts if part.strip("/"))
        return f"{base}{self.path}{below}"

    def object_store_uri(self, uri: str) -> str:
        """Return a URI at or below `uri()` in the form for deltalake and polars.

        The Rust library below them (object_store 0.13) takes an 'abfss:' URL of the public cloud
        only. 'az://container/path' works in every cloud, with the account among the options.
        """
        if self.kind != "azure":
            return uri
        base = self.uri().removesuffix(self.path)
        return f"az://{self.container}{uri.removeprefix(base)}"

    def account_url(self) -> str:
        """Return the URL of the account's blob service, for the SDK of Azure."""
        return f"https://{self.cloud.account_host(self.account, 'blob')}"


class _RefusedError(Exception):
    """Raised with what is wrong with a root, to follow its name, and what to do."""


def _shown(url: SplitResult) -> str:
    """Return a URL as messages may show it, without a password and a query."""
    user, at, host = url.netloc.rpartition("@")
    if url.scheme == "file":
        return f"file:{'//' + host if url.netloc else ''}{url.path}"
    return f"{url.scheme}://{user.partition(':')[0]}{at}{host}{url.path}"


def _parse(root: str, url: SplitResult, *, account: str | None, cloud: Cloud) -> Location:
    """Return the location that a path or a URL names."""
    if not url.scheme:
        return Location(kind="local", cloud=cloud, path=_local_path(root))
    _check_parts(url)
    if url.scheme == "file":
        if url.hostname not in (None, "localhost"):
            raise _RefusedError(
                f"names the host '{url.hostname}'. A 'file:' URL of this machine has three "
                "slashes: 'file:///data'."
            )
        return Location(kind="local", cloud=cloud, path=_local_path(unquote(url.path)))
    if url.scheme == "hdfs":
        path = _remote_path(url.path)
        return Location(kind="hdfs", cloud=cloud, host=_hdfs_host(url), path=path)
    if url.scheme in _AZURE_SCHEMES:
        return _parse_azure(url, account=account, cloud=cloud)
    raise _RefusedError(
        f"has the scheme '{url.scheme}:', which this version does not serve. Use {_SERVED}."
    )


def _check_parts(url: SplitResult) -> None:
    """Refuse a URL that carries a secret or a query, or whose port is none."""
    if ":" in url.netloc.rpartition("@")[0]:
        raise _RefusedError(
            "carries a password, which would show up in logs. Take it out, and give the datastore "
            "a credential instead."
        )
    if url.query or re.search("(^|&)sig=", url.fragment):
        raise _RefusedError(
            "goes on with a query or a SAS token, which would show up in logs. Take it out; a SAS "
            "token belongs in the credential of kind 'sas'."
        )
    if url.fragment:
        raise _RefusedError(
            "goes on with '#', which ends the path of a URL. Use a folder without it."
        )
    try:
        _ = url.port
    except ValueError:
        raise ConfigurationError(
            f"The port in the datastore root {_shown(url)!r} is not a number up to 65535."
        ) from None


def _local_path(path: str) -> str:
    """Return a path as an absolute one that every library reads the same way."""
    # Without '..': some of the libraries see the same place under another name.
    folder = os.path.abspath(Path(path).expanduser())  # noqa: PTH100
    _refuse_encoded(folder)
    # POSIX keeps two slashes at the start apart from one; no system that we run on does.
    return "/" + folder.lstrip("/")


def _remote_path(path: str) -> str:
    """Return the path of a remote URL, with single slashes and none at its end."""
    segments = [segment for segment in path.split("/") if segment not in ("", ".")]
    if ".." in segments:
        raise _RefusedError(
            "has '..' in its path, which stores take for a name. Write the path without it."
        )
    if re.search(r"[\x00-\x1f\x7f\\?#]", path):
        raise _RefusedError(
            "has a backslash, a question mark, a hash or a control character in its path, which "
            "libraries read differently. Use a folder without it."
        )
    _refuse_encoded(path)
    return "".join(f"/{segment}" for segment in segments)


def _refuse_encoded(path: str) -> None:
    """Refuse a path that a URL reader would decode."""
    if _ENCODED.search(path):
        raise _RefusedError(
            "has a percent sign before two digits, which Delta libraries take for an encoded "
            "character. Use a folder without it."
        )


def _hdfs_host(url: SplitResult) -> str:
    """Return the authority of an HDFS URL."""
    if "@" in url.netloc:
        raise _RefusedError(
            "names a user. HDFS takes it from the environment variable HADOOP_USER_NAME: take it "
            "out of the URL."
        )
    if not url.hostname:
        raise _RefusedError(
            "names no host. Name the name node or the name service: 'hdfs://host:8020/folder'."
        )
    if url.port is None:
        # It may be a name service, whose name is a key of Hadoop's configuration: as it stands.
        return url.netloc.removesuffix(":")
    return url.netloc.lower()


def _parse_azure(url: SplitResult, *, account: str | None, cloud: Cloud) -> Location:
    """Return the location that a URL of Azure storage names."""
    container, at, host = url.netloc.rpartition("@")
    path = url.path
    if url.scheme == "https":
        if at:
            raise _RefusedError(
                "has an '@', which an 'https:' URL of Azure storage has not: "
                "'https://account.blob.core.windows.net/container/folder'."
            )
        # Portal and SDK write encoded URLs; the other schemes are read as they stand.
        container, _, path = unquote(path).lstrip("/").partition("/")
    elif url.scheme == "az" and not at:
        container, host = host, ""
    named = _account_of(host, cloud=cloud) if host else None
    chosen = account.lower() if account else None
    if named and chosen and named != chosen:
        raise _RefusedError(
            f"names the account '{named}', and the setting the account '{chosen}'. Leave one of "
            "them out."
        )
    name = named or chosen or (EMULATOR_ACCOUNT if cloud.name == "emulator" else None)
    if name is None:
        raise _RefusedError(
            f"names no storage account. Set the account, or use the form '{_EXAMPLE}'."
        )
    if not _ACCOUNT.fullmatch(name):
        raise ConfigurationError(
            f"'{name}' cannot be a storage account: its name has 3 to 24 lower-case letters and "
            "digits, and nothing after it."
        )
    if name == EMULATOR_ACCOUNT and cloud.name != "emulator":
        raise ConfigurationError(
            f"The account '{name}' is the emulator's: choose the cloud 'emulator' with it."
        )
    if not container:
        raise _RefusedError(f"names no container. Use the form '{_EXAMPLE}'.")
    if not _CONTAINER.fullmatch(container):
        raise _RefusedError(
            f"names the container '{container}', which cannot be one: a name has 3 to 63 "
            "lower-case letters, digits and single hyphens, and begins and ends with a letter or "
            "a digit."
        )
    clean = _remote_path(path)
    if any(segment.endswith(".") for segment in clean.split("/")):
        raise _RefusedError(
            "has a folder that ends with a dot, which Azure storage drops. Use a folder without it."
        )
    return Location(kind="azure", cloud=cloud, path=clean, container=container, account=name)


def _account_of(host: str, *, cloud: Cloud) -> str:
    """Return the account that a host belongs to."""
    account, _, rest = host.lower().partition(".")
    service, _, suffix = rest.partition(".")
    if service in ("blob", "dfs"):
        if suffix == cloud.storage_suffix:
            return account
        for other in CLOUDS:
            if suffix == other.storage_suffix:
                raise _RefusedError(
                    f"lies in the cloud '{other.name}', and the cloud '{cloud.name}' is chosen: "
                    f"choose '{other.name}'."
                )
    raise _RefusedError(
        f"names the host '{host}', which is no storage account of the cloud '{cloud.name}'. The "
        f"host has the form 'account.dfs.{cloud.storage_suffix}', or 'blob' for 'dfs', without a "
        "port."
    )
