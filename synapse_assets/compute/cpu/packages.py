"""What has to be installed where a step runs: what its code imports, in the versions of here."""

import ast
import functools
import io
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata

# What the runner needs to open the store and to write outputs, whatever the step is.
_RUNNER = ("adlfs", "azure-identity", "azure-storage-blob", "pyarrow")
# Files of a bundle that are not the step's.
_NOT_THE_STEPS = re.compile(r"vendored/|synapse_assets/(compute|datasets|datastore|errors)\b")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def python_version() -> str:
    """Return the version of Python without its last part."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def pinned_packages(bundle: bytes, extras: Iterable[str] = ()) -> list[str]:
    """Return requirements for pip, sorted by name.

    Args:
        bundle: A step's bundle.
        extras: Further requirements, which go before those that are found.
    """
    found = {name: f"{name}=={metadata.version(name)}" for name in _RUNNER}
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        names = archive.namelist()
        own = {name.partition("/")[0].removesuffix(".py") for name in names}
        for name in names:
            if name.endswith(".py") and not _NOT_THE_STEPS.match(name):
                for module in _imported(archive.read(name)):
                    if module not in own and module not in sys.stdlib_module_names:
                        found.update(_distributions_of(module))
    for extra in extras:
        match = _NAME.match(extra)
        found[_normal(match[0] if match else extra)] = extra
    return [found[name] for name in sorted(found)]


def _imported(source: bytes) -> Iterator[str]:
    """Yield the top-level names that a module imports anywhere."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _distributions_of(module: str) -> dict[str, str]:
    """Return the pinned distribution of a module; none for a namespace that several share."""
    names = {_normal(name) for name in _distributions().get(module, ())}
    if len(names) != 1:
        return {}
    (name,) = names
    # What follows a plus sign is a build of this machine's own.
    return {name: f"{name}=={metadata.version(name).partition('+')[0]}"}


@functools.lru_cache(maxsize=1)
def _distributions() -> Mapping[str, set[str]]:
    """Return the distributions that bring each top-level name.

    `metadata.packages_distributions` of Python 3.10 knows those alone that list their names.
    """
    found: dict[str, set[str]] = {}
    for distribution in metadata.distributions():
        listed = distribution.read_text("top_level.txt")
        files = distribution.files or ()
        names = listed.split() if listed else {file.parts[0].partition(".")[0] for file in files}
        for name in names:
            found.setdefault(name, set()).add(distribution.name)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
