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
from dataclasses import dataclass
from pathlib import Path

from synapse_assets import settings
from synapse_assets.compute.java import require_java
from synapse_assets.errors import ConfigurationError

_COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_AZURITE_SOURCES = [
    Path(__file__).with_name("azurite") / name for name in ("package.json", "package-lock.json")
]
_PROGRAMS = {
    "mvn": "Maven, and PATH has no 'mvn'. Install it (Debian, Ubuntu: apt-get install maven; "
    "macOS: brew install maven).",
    "npm": "npm, and PATH has no 'npm'. Install it (Debian, Ubuntu: apt-get install npm; macOS: "
    "brew install node).",
    "node": "Node.js 20, and PATH has no 'node'. Install it (Debian, Ubuntu: apt-get install "
    "nodejs; macOS: brew install node).",
}


@dataclass(frozen=True)
class Download:
    """Something to fetch.

    Attributes:
        name: Begins the name of its folder.
        title: What messages call it.
        key: Returns what it is made of: with another key it gets another folder.
        fill: Fetches it into a folder.
    """

    name: str
    title: str
    key: Callable[[], str]
    fill: Callable[[Path], None]

    @property
    def folder(self) -> Path:
        """Where it is, once it was fetched."""
        digest = hashlib.sha256(self.key().encode()).hexdigest()
        return services_folder() / f"{self.name}-{digest[:12]}"

    def fetch(self) -> Path:
        """Return its folder, filled now or earlier.

        Raises:
            ConfigurationError: A program is missing, or could not fetch it.
        """
        folder = self.folder
        if folder.exists():
            return folder
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():
                # Filled under another name: what has its own name is whole.
                unfinished = folder.with_name(f".{folder.name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                self.fill(unfinished)
                unfinished.rename(folder)
        return folder

    def jars(self) -> list[Path]:
        """Return its jars, fetched if they are not there."""
        return sorted(self.fetch().glob("*.jar"))


def jars(name: str, title: str, *coordinates: str, transitive: bool = True) -> Download:
    """Return jars to fetch.

    Args:
        name: Begins the name of the folder.
        title: What messages call them.
        coordinates: What to fetch, each as 'group:artifact:version'.
        transitive: Whether to fetch also what these need at run time.
    """
    dependencies = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version>"
        "</dependency>".format(*coordinate.split(":"))
        for coordinate in coordinates
    )
    pom = (
        "<project><modelVersion>4.0.0</modelVersion><groupId>synapse_assets</groupId>"
        "<artifactId>services</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{dependencies}</dependencies></project>\n"
    )

    def fill(folder: Path) -> None:
        require_java()
        mvn = require_program("mvn")
        with tempfile.TemporaryDirectory() as project:
            Path(project, "pom.xml").write_text(pom, encoding="utf-8")
            options = ["--batch-mode", "--quiet", f"-DoutputDirectory={folder}"]
            options += [f"-DexcludeTransitive={str(not transitive).lower()}"]
            command = [mvn, *options, "-DincludeScope=runtime", _COPY_DEPENDENCIES]
            _run(command, folder=Path(project), what=", ".join(coordinates))

    return Download(name, title, lambda: f"{pom}{transitive}", fill)


def _fill_azurite(folder: Path) -> None:
    for source in _AZURITE_SOURCES:
        shutil.copy(source, folder)
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    _run([require_program("npm"), "ci", *options], folder=folder, what="azurite")


def services_folder() -> Path:
    """Return the folder for downloads, and for the data of `synapse-assets services`."""
    named = os.environ.get(settings.SERVICES)
    return Path(named or settings.project_folder() / ".services").absolute()


def require_program(name: str) -> str:
    """Return the path of a program.

    Raises:
        ConfigurationError: It is not there.
    """
    found = shutil.which(name)
    if found is None:
        raise ConfigurationError(f"The services need {_PROGRAMS[name]}")
    return found


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


# The last one for Node.js 20.
AZURITE_PACKAGES = Download(
    "azurite-3.35.0",
    "Azurite",
    lambda: "".join(source.read_text(encoding="utf-8") for source in _AZURITE_SOURCES),
    _fill_azurite,
)
HDFS_JARS = jars(
    "hdfs",
    "HDFS",
    "org.apache.hadoop:hadoop-common:3.4.2",
    "org.apache.hadoop:hadoop-hdfs:3.4.2",
    "org.apache.hadoop:hadoop-hdfs-client:3.4.2",
)
# Its ABFS driver works on Blob endpoints, and Azurite has no other. Complete as it is: what else
# hadoop-azure names (HTTP client, Jackson, SLF4J) Spark brings in versions of its own, which must
# not be pushed aside.
ABFS_JARS = jars(
    "abfs",
    "Spark's ABFS driver",
    "org.apache.hadoop:hadoop-azure:3.5.0",
    "org.apache.hadoop:hadoop-client-api:3.5.0",
    "org.apache.hadoop:hadoop-client-runtime:3.5.0",
    "org.hdrhistogram:HdrHistogram:2.1.12",
    transitive=False,
)
# Batches need the server alone; interactive sessions would need livy-repl and livy-rsc too.
LIVY_JARS = jars("livy", "Apache Livy", "org.apache.livy:livy-server:0.7.1-incubating")
