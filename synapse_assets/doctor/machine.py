"""Checks of this machine: versions, Java, disk, and Dagster's home."""

import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from dagster_shared.yaml_utils import load_yaml_from_path

from synapse_assets.compute.java import MINIMUM_JAVA, require_java
from synapse_assets.console import format_size
from synapse_assets.doctor.check import Finding, Subject, failed, ok, warning

# What `make test-matrix` runs.
_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 10), (3, 13)
_SPARKS = ("3.5.", "4.")
# A step keeps its inputs, its outputs and what Spark shuffles in the temporary folder.
_LITTLE_SPACE = 5_000_000_000
_NO_SPACE = 500_000_000

_POOLS = "concurrency: {pools: {default_limit: 1, granularity: op}}"


def check_python(_: Subject) -> Finding:
    """Look at the versions of Python and pyspark."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    try:
        spark = metadata.version("pyspark")
    except metadata.PackageNotFoundError:
        return failed(
            f"Python {version} at {sys.executable}, which has no pyspark",
            "Install it: `make run` does, into .venv.",
        )
    found = f"Python {version} with pyspark {spark}"
    if not _OLDEST_PYTHON <= sys.version_info[:2] <= _NEWEST_PYTHON:
        return warning(
            f"{found}; Python 3.10 to 3.13 was tested",
            "Use one of those: `make run PYTHON=python3.13`, after `make clean`.",
        )
    if not spark.startswith(_SPARKS):
        return warning(
            f"{found}; pyspark 3.5 and 4 were tested", "Install one of those, as 'pyspark<3.6'."
        )
    return ok(found)


def check_java(_: Subject) -> Finding:
    """Look for the Java that Spark will use."""
    return ok(f"Java {MINIMUM_JAVA} or newer, in {require_java()}")


def check_home(subject: Subject) -> Finding:
    """Try to write where Dagster keeps its records."""
    home = subject.home
    folder = existing(home)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        return failed(
            f"{home} cannot be written: {e.strerror}",
            "Make it writable, or set DAGSTER_HOME to a folder that is.",
        )
    there = "" if folder == home else ", not there yet: the first run makes it"
    return ok(f"{home} can be written{there}")


def check_disk(subject: Subject) -> Finding:
    """Look at the free space of the folders that runs fill."""
    folders = {"DAGSTER_HOME": subject.home, "temporary folder": Path(tempfile.gettempdir())}
    if subject.kind == "local":
        folders["datastore"] = Path(subject.datastore.location.path)
    free = {name: shutil.disk_usage(existing(path)).free for name, path in folders.items()}
    tightest = min(free, key=lambda name: free[name])
    found = "free: " + ", ".join(f"{name} {format_size(size)}" for name, size in free.items())
    remedy = f"Free some of the disk of the {tightest} ({folders[tightest]}), or choose another."
    if free[tightest] < _NO_SPACE:
        return failed(found, remedy)
    if free[tightest] < _LITTLE_SPACE:
        return warning(found, remedy)
    return ok(found)


def check_pools(subject: Subject) -> Finding:
    """Look whether Dagster lets one run at a time write a dataset."""
    file = subject.home / "dagster.yaml"
    if not file.exists():
        return ok("one writer per dataset at a time: the first run writes it to dagster.yaml")
    try:
        settings = load_yaml_from_path(str(file))
    except Exception as e:  # noqa: BLE001 -- the library's errors have no base of their own
        return failed(f"{file} cannot be read: {' '.join(str(e).split())}", "Mend that file.")
    limit: object = settings
    for key in ("concurrency", "pools", "default_limit"):
        limit = limit.get(key) if isinstance(limit, dict) else None
    if limit == 1:
        return ok(f"one writer per dataset at a time (default_limit 1 in {file})")
    what = "no default_limit of pools" if limit is None else f"default_limit {limit} of pools"
    return warning(
        f"{file} has {what}: two runs may write one dataset at the same time; nothing is lost, "
        "but the later one wins and both take longer",
        f"Put this into it: {_POOLS}",
    )


def existing(path: Path) -> Path:
    """Return a path, or the nearest of the folders above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
