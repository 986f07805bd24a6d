"""Local copies of stored files: checked by their hash, kept for the next use, and cleaned.

A copy is in the cache under its hash, and handed out as a hard link of it, so that cleaning the
cache never takes a file from somebody who reads it.
"""

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from synapse_assets.datastore.storage import Storage, for_each_file, replacing
from synapse_assets.errors import StorageError

# Environment variable: folder that keeps copies, and how many bytes of them.
CACHE = "SYNAPSE_ASSETS_CACHE"
CACHE_BYTES = "SYNAPSE_ASSETS_CACHE_BYTES"

_DEFAULT_CACHE_BYTES = 10 << 30


def download(uri: str, file: Mapping[str, Any], storage: Storage) -> Path:
    """Return a local copy of a stored file, to be read only.

    Args:
        uri: Where the file lies.
        file: The file as its dataset's entries describe it, as fields of `DataFile`.
        storage: The store.

    Raises:
        StorageError: The file is gone, or its content is not what was committed.
    """
    return download_all([(uri, file)], storage)[0]


def download_all(files: Iterable[tuple[str, Mapping[str, Any]]], storage: Storage) -> list[Path]:
    """Return local copies of stored files, in order; several are fetched at a time.

    Args:
        files: Where each file lies, and what its dataset's entries say of it.
        storage: The store.

    Raises:
        StorageError: A file is gone, or its content is not what was committed.
    """
    try:
        return for_each_file(lambda item: _copy(*item, storage), files)
    finally:
        # Once for all of them: it looks at each file in the cache.
        _clean(_cache())


def _copy(uri: str, file: Mapping[str, Any], storage: Storage) -> Path:
    copy = _folder() / uuid.uuid4().hex / str(file["name"]).rpartition("/")[2]
    copy.parent.mkdir()
    sha256 = file["sha256"]
    if sha256 is None:
        # A blob that has landed has no hash yet, so no other use of it can be told to be the same.
        _fetch(uri, copy, storage)
        return copy
    cached = _cache() / sha256
    with contextlib.suppress(FileNotFoundError):
        _link(cached, copy)
        os.utime(cached)
        return copy
    found = _fetch(uri, copy, storage)
    if found != sha256:
        copy.unlink()
        raise StorageError(
            f"{uri} does not hold what was committed: its sha256 is {found}, and {sha256} was "
            "written. Somebody changed it: materialize the asset again, or restore an older "
            "version."
        )
    # The copy is there: it is of use even if the cache is full, or may not be written.
    with contextlib.suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        _link(copy, cached)
    return copy


def _fetch(uri: str, path: Path, storage: Storage) -> str:
    try:
        return storage.download(uri, path)
    except FileNotFoundError as e:
        raise StorageError(
            f"{uri} is gone: its version was vacuumed, or somebody removed the file. Materialize "
            "the asset again, or use another version."
        ) from e


def _cache() -> Path:
    chosen = os.environ.get(CACHE)
    return Path(chosen) if chosen else Path.home() / ".cache" / "synapse_assets" / "files"


@functools.cache
def _folder() -> Path:
    """Return this process's folder for copies; it goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="synapse-assets-files-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the two lie on different file systems."""
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:
        with replacing(target) as partial:
            shutil.copyfile(source, partial)


def _clean(cache: Path) -> None:
    """Remove what was not used for longest until the cache is within its limit."""
    limit = int(os.environ.get(CACHE_BYTES) or _DEFAULT_CACHE_BYTES)
    kept = []
    for path in cache.iterdir() if cache.is_dir() else ():
        # Another process may be cleaning, too.
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            kept.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size
