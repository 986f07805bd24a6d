"""What the services are made of, fetched once into a folder that git ignores.

The packages come through the clients that the machine has set up, npm and Maven, and only in the
versions below.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from synapse_assets import settings
from synapse_assets.compute.java import require_java
from synapse_assets.errors import ConfigurationError

FOLDER = "SYNAPSE_ASSETS_SERVICES"

# The last one for Node.js 20. azurite/package.json and its lock name it too.
AZURITE_VERSION = "3.35.0"
HDFS_VERSION = "3.4.2"
# Its ABFS driver works on Blob endpoints, and Azurite has no other.
ABFS_VERSION = "3.5.0"
LIVY_VERSION = "0.7.1-incubating"

_HDFS = [
    f"org.apache.hadoop:{artifact}:{HDFS_VERSION}"
    for artifact in ("hadoop-common", "hadoop-hdfs", "hadoop-hdfs-client")
]
# Complete as it is: what else hadoop-azure names (HTTP client, Jackson, SLF4J) Spark brings in
# versions of its own, which must not be pushed aside.
_ABFS = [
    f"org.apache.hadoop:hadoop-azure:{ABFS_VERSION}",
    f"org.apache.hadoop:hadoop-client-api:{ABFS_VERSION}",
    f"org.apache.hadoop:hadoop-client-runtime:{ABFS_VERSION}",
    "org.hdrhistogram:HdrHistogram:2.1.12",
]
# Batches need the server alone; interactive sessions would need livy-repl and livy-rsc too.
_LIVY = [f"org.apache.livy:livy-server:{LIVY_VERSION}"]
_COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_AZURITE_FILES = ("package.json", "package-lock.json")


def services_folder() -> Path:
    """Return the folder for downloads, and for the data of `synapse-assets services`."""
    return Path(os.environ.get(FOLDER) or settings.project_folder() / ".services").absolute()


def fetch_hdfs_jars() -> list[Path]:
    """Return the jars that HDFS's NameNode and DataNode run from, fetched if they are not there."""
    return fetch_jars("hdfs", _HDFS)


def fetch_abfs_jars() -> list[Path]:
    """Return the jars that give Spark the ABFS driver, fetched if they are not there."""
    return fetch_jars("abfs", _ABFS, transitive=False)


def fetch_livy_jars() -> list[Path]:
    """Return the jars that Apache Livy's server runs from, fetched if they are not there."""
    return fetch_jars("livy", _LIVY)


def abfs_jars_folder() -> Path:
    """Return where `fetch_abfs_jars` puts the jars; nothing is fetched."""
    return _folder("abfs", _jars_key(_ABFS, transitive=False))


def fetch_jars(name: str, coordinates: Sequence[str], *, transitive: bool = True) -> list[Path]:
    """Return jars, fetched if they are not there.

    Args:
        name: Begins the name of the folder.
        coordinates: What to fetch, each as 'group:artifact:version'.
        transitive: Whether to fetch also what these need at run time.

    Raises:
        ConfigurationError: Maven is missing, or could not fetch them.
    """
    pom = _pom(coordinates)

    def fill(folder: Path) -> None:
        require_java()
        mvn = _require("mvn", "Maven", "apt-get install maven; macOS: brew install maven")
        with tempfile.TemporaryDirectory() as project:
            file = Path(project, "pom.xml")
            file.write_text(pom, encoding="utf-8")
            _run(
                [
                    *(mvn, "--batch-mode", "--quiet", "--file", str(file), _COPY_DEPENDENCIES),
                    f"-DoutputDirectory={folder}",
                    f"-DexcludeTransitive={str(not transitive).lower()}",
                    "-DincludeScope=runtime",
                ],
                folder=Path(project),
                what=", ".join(coordinates),
            )

    key = _jars_key(coordinates, transitive=transitive)
    return sorted(_fetch(name, key, fill).glob("*.jar"))


def fetch_azurite() -> Path:
    """Return the script that Node.js runs as Azurite, fetched if it is not there.

    Raises:
        ConfigurationError: Node.js is missing, or npm could not fetch the packages.
    """
    sources = [Path(__file__).with_name("azurite") / name for name in _AZURITE_FILES]

    def fill(folder: Path) -> None:
        npm = _require("npm", "npm", "apt-get install npm; macOS: brew install node")
        for source in sources:
            shutil.copy(source, folder)
        _run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            folder=folder,
            what=f"azurite {AZURITE_VERSION}",
        )

    key = "".join(source.read_text(encoding="utf-8") for source in sources)
    folder = _fetch(f"azurite-{AZURITE_VERSION}", key, fill)
    return folder / "node_modules" / "azurite" / "dist" / "src" / "azurite.js"


def require_node() -> str:
    """Return the path of Node.js.

    Raises:
        ConfigurationError: There is none.
    """
    return _require("node", "Node.js 20", "apt-get install nodejs; macOS: brew install node")


@contextmanager
def locked(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold a lock that one process has at a time, and that goes with the process.

    Args:
        path: The lock's file.
        busy: Raised as a ConfigurationError if another process holds it; None waits for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError as e:
            raise ConfigurationError(busy) from e
        yield


def _fetch(name: str, key: str, fill: Callable[[Path], None]) -> Path:
    """Return the folder that `fill` filled, now or earlier, for this `key`."""
    folder = _folder(name, key)
    root = folder.parent
    if folder.exists():
        return folder
    with locked(root / f".{folder.name}.lock"):
        if not folder.exists():
            # Filled under another name: what has its own name is whole.
            unfinished = root / f".{folder.name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            fill(unfinished)
            unfinished.rename(folder)
    return folder


def _folder(name: str, key: str) -> Path:
    return services_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _jars_key(coordinates: Sequence[str], *, transitive: bool) -> str:
    return f"{_pom(coordinates)}{transitive}"


def _pom(coordinates: Sequence[str]) -> str:
    dependencies = []
    for coordinate in coordinates:
        group, artifact, version = coordinate.split(":")
        dependencies.append(
            f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
            f"<version>{version}</version></dependency>"
        )
    return (
        "<project><modelVersion>4.0.0</modelVersion><groupId>synapse_assets</groupId>"
        "<artifactId>services</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{''.join(dependencies)}</dependencies></project>\n"
    )


def _require(program: str, name: str, remedy: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise ConfigurationError(
            f"The services need {name}, and PATH has no '{program}'. Install it (Debian, "
            f"Ubuntu: {remedy})."
        )
    return found


def _run(command: Sequence[str], *, folder: Path, what: str) -> None:
    result = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)  # Maven colours its errors
        lines = [line.strip() for line in plain.splitlines() if line.strip()]
        reason = lines[0] if lines else f"exit code {result.returncode}"
        raise ConfigurationError(f"{Path(command[0]).name} could not fetch {what}: {reason}")
