"""The bundle: a reproducible zip of a step's code and the runner, named by its content."""

import ast
import hashlib
import importlib.util
import io
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from synapse_assets.compute.runner import VENDORED
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.datastore import BUNDLES
from synapse_assets.errors import BundleError

# The runner, and the only other code of this package that runs beside it.
RUNNER_MODULE = "synapse_assets.compute.runner"
_RUNNER_MODULES = (
    RUNNER_MODULE,
    "synapse_assets.compute.channel",
    "synapse_assets.datasets.handlers",
    "synapse_assets.datasets.downloads",
    "synapse_assets.datastore.storage",
    "synapse_assets.datastore.blob",
    "synapse_assets.datastore.hadoop",
    "synapse_assets.datastore.hdfs",
    "synapse_assets.errors",
)
_PIPES_MODULE = "dagster_pipes"

_MAX_BYTES = 20 * 1024 * 1024
# The oldest time that a zip can hold: the same content makes the same bytes at any time.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAIN = f"""\
from {RUNNER_MODULE} import main

main()
"""
# What a cluster starts, beside the bundle: spark-submit takes no zip for a program.
LAUNCHER = f"""\
from {RUNNER_MODULE} import main_on_cluster

main_on_cluster()
"""


@dataclass(frozen=True)
class Bundle:
    """The code of a step, ready to be shipped.

    Attributes:
        content: The bytes of the zip.
        sha256: Their hash in hexadecimal: the bundle's name.
    """

    content: bytes
    sha256: str

    @classmethod
    def of_module(cls, module: str) -> "Bundle":
        """Return the bundle of a step's module.

        It holds the module and what it imports from its own package, the runner, and Dagster's
        single-file Pipes module. Packages above the step's own are there as empty stubs, so
        that importing a step never imports what its package imports for the orchestrator.

        Raises:
            BundleError: A module cannot be found, imports what is not shipped, or the bundle is
                larger than 20 MB.
        """
        files = dict(source_files(module))
        for name in _RUNNER_MODULES:
            path, source = _read(name)
            files = {**_stubs_above(name), **files, path: source}
        files[f"{VENDORED}/{_PIPES_MODULE}/__init__.py"] = _read(_PIPES_MODULE)[1]
        files["__main__.py"] = _MAIN.encode()
        _check_size(module, files)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files):
                archive.writestr(zipfile.ZipInfo(name, _ZIP_EPOCH), files[name])
        content = buffer.getvalue()
        return cls(content=content, sha256=hashlib.sha256(content).hexdigest())

    def upload(self, datastore: Datastore) -> str:
        """Store the bundle once per content and return its location."""
        return upload_once(datastore, self.content, suffix=".zip")


def upload_once(datastore: Datastore, content: bytes, *, suffix: str) -> str:
    """Store what a batch needs under the name of its content, and return its location."""
    uri = datastore.uri(BUNDLES, f"{hashlib.sha256(content).hexdigest()}{suffix}")
    datastore.storage().write_once(uri, content)
    return uri


def source_files(module: str) -> Mapping[str, bytes]:
    """Return the source of a module and of what it imports from its own package, by file name.

    Raises:
        BundleError: A module cannot be found, or imports something that cannot be shipped.
    """
    package = module.rpartition(".")[0]
    files = _stubs_above(package)
    pending = [package, module]
    while pending:
        name = pending.pop()
        path, source = _read(name)
        if path in files:
            continue
        files[path] = source
        if name != package:
            pending.append(name.rpartition(".")[0])
        for imported, line in _imports(name, source):
            if imported == package or imported.startswith(f"{package}."):
                pending.append(imported)
            else:
                _check_import(imported, where=f"{name}, line {line}", package=package)
    return files


def _imports(module: str, source: bytes) -> Iterator[tuple[str, int]]:
    """Yield the absolute names that a module imports anywhere, with their lines."""
    try:
        tree = ast.parse(source, filename=module)
    except SyntaxError as e:
        raise BundleError(f"The step module {module} has a syntax error: {e}.") from e
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base] if base else parents)
            yield base, node.lineno
            for alias in node.names:
                # 'from package import name' may mean a module or something in the package.
                submodule = f"{base}.{alias.name}"
                if node.module != "__future__" and _is_module(submodule, near=module):
                    yield submodule, node.lineno


def _is_module(name: str, *, near: str) -> bool:
    """Tell whether `name` is a module, asked only of the package that `near` belongs to."""
    if name.partition(".")[0] != near.partition(".")[0]:
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _check_import(imported: str, *, where: str, package: str) -> None:
    """Raise BundleError if what a step imports will not be there where it runs."""
    name = imported.partition(".")[0]
    if name == package.partition(".")[0]:
        raise BundleError(
            f"{where} imports {imported}, which lies outside of the step's package {package} and "
            "is not shipped. Move what the step needs into that package."
        )
    if name == "dagster":
        raise BundleError(
            f"{where} imports dagster, which is not installed where steps run. Use the `report` "
            "parameter, logging or dagster_pipes."
        )
    if name in sys.stdlib_module_names or name == _PIPES_MODULE:
        return
    if importlib.util.find_spec(name) is None:
        raise BundleError(
            f"{where} imports {imported}, which is not installed here. Install it, or correct "
            "the name."
        )


def _read(module: str) -> tuple[str, bytes]:
    """Return the path of a module inside the bundle, and its source."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise BundleError(f"There is no module {module} to ship. Check the step's entry point.")
    is_package = spec.submodule_search_locations is not None
    path = module.replace(".", "/") + ("/__init__.py" if is_package else ".py")
    return path, Path(spec.origin).read_bytes()


def _stubs_above(module: str) -> dict[str, bytes]:
    """Return empty files for the packages above a module or package."""
    parts = module.split(".")
    return {"/".join(parts[:end]) + "/__init__.py": b"" for end in range(1, len(parts))}


def _check_size(module: str, files: Mapping[str, bytes]) -> None:
    total = sum(len(content) for content in files.values())
    if total > _MAX_BYTES:
        largest = sorted(files, key=lambda name: -len(files[name]))[:3]
        named = ", ".join(f"{name} ({len(files[name]):,} bytes)" for name in largest)
        raise BundleError(
            f"The bundle of {module} has {total:,} bytes, and {_MAX_BYTES:,} are allowed. The "
            f"largest files are {named}. Read large data from a dataset instead."
        )
