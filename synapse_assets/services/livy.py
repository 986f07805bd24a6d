"""A real Apache Livy that runs batches with the installed Spark."""

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from synapse_assets.compute.java import require_java
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ConfigurationError
from synapse_assets.services.downloads import fetch_abfs_jars, fetch_livy_jars
from synapse_assets.services.process import HOST, Server, Service, answers, choose_port

_START_SECONDS = 90.0
_JAVA_OPTIONS = ["-Xmx512m", "-XX:+UseSerialGC", "-Djava.net.preferIPv4Stack=true"]
# Each line of a batch's log is kept in Livy's memory, up to this many of each batch.
_LOG_LINES = 2000
# Livy forgets a batch this long after its end; it looks once a minute.
_RETENTION = "7d"
# A batch that waits for its store would take half a minute to end.
_BATCH_END_SECONDS = 5

# Not what the batches print: that is in their logs.
_LOG4J = """\
log4j.rootLogger=INFO,console
log4j.logger.org.apache.livy.utils.LineBufferedStream=WARN
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.target=System.err
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n
"""

# Livy ends a batch by a signal to spark-submit, and the Python that spark-submit has started would
# go on, and what that has started. On a cluster its container goes as a whole. Spark holds the
# other end of standard input. Our runner is a process group; a driver that is none goes alone.
_PYTHON = """\
#!/bin/sh
exec 3<&0
(cat <&3; kill -s KILL -- -$$ || kill -s KILL $$) >/dev/null 2>&1 &
exec {python} "$@" 3<&- </dev/null
"""


class Livy(Service):
    """One Livy server; its batches are spark-submit processes on this machine, in client mode.

    The port stays the same over `kill` and `start`, but a new server knows nothing of the batches
    of the last one.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        port: int | None = None,
        master: str = "local[1]",
        spark_conf: Mapping[str, str] | None = None,
        local_folders: Sequence[Path] = (),
        spark_home: Path | None = None,
    ) -> None:
        """Create the server without starting it.

        Args:
            folder: Keeps configuration and logs; None for a temporary folder that goes with `stop`.
            port: Where Livy listens; None for a free port.
            master: The Spark master on which the batches run.
            spark_conf: Spark properties of all batches, see `spark_conf_for`. They may hold a key:
                they lie in a file that only this user can read.
            local_folders: Where files of batches may lie on this machine.
            spark_home: The Spark that runs the batches; None for the installed pyspark.

        Raises:
            ConfigurationError: The port that was asked for is taken.
        """
        self.port = choose_port(port, server="Livy")
        self.master = master
        self._spark_conf = dict(spark_conf or {})
        self._local_folders = [folder.absolute() for folder in local_folders]
        self._spark_home = spark_home or installed_spark()
        self._temporary = folder is None
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="synapse-assets-livy-"))).absolute()
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """The root of Livy's REST API."""
        return f"http://{HOST}:{self.port}"

    @property
    def server(self) -> Server:
        """The server's process; those of its batches are in the same process group."""
        if self._server is None:
            self._server = Server(
                "Livy",
                self._command(),
                log_file=self.folder / "livy.log",
                environment=self._environment(),
            )
        return self._server

    def start(self) -> None:
        """Start it without any batch, and return when it answers.

        Raises:
            ConfigurationError: Java or Maven is missing.
            SynapseAssetsError: It did not start.
        """
        self._write_configuration()
        try:
            self.server.start()
            self.server.wait_until(
                lambda: answers(self.port, path="/batches"), seconds=_START_SECONDS
            )
        except BaseException:  # also an interruption
            self.server.kill()
            raise

    def stop(self) -> None:
        """Stop it and all of its batches."""
        self.server.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End the server as a crash would; its batches go on, until `start` or `stop`."""
        self.server.crash()

    def check(self) -> None:
        """Raise a SynapseAssetsError if the server has ended."""
        self.server.check()

    def _command(self) -> list[str | Path]:
        classpath = [self.folder / "conf", *fetch_livy_jars()]
        return [
            require_java() / "bin" / "java",
            *_JAVA_OPTIONS,
            *("-classpath", os.pathsep.join(map(str, classpath))),
            "org.apache.livy.server.LivyServer",
        ]

    def _environment(self) -> Mapping[str, str]:
        """Return the variables of the server, which its batches inherit."""
        options = [
            os.environ.get("SPARK_SUBMIT_OPTS", ""),
            # The JVM does not look at TMPDIR.
            f'"-Djava.io.tmpdir={self.folder / "tmp"}"',
            f"-Dspark.shutdown.timeout={_BATCH_END_SECONDS}s",
        ]
        return {
            "LIVY_HOME": str(self.folder),
            "LIVY_CONF_DIR": str(self.folder / "conf"),
            "LIVY_LOG_DIR": str(self.folder / "logs"),
            **spark_environment(self._spark_home),
            "SPARK_CONF_DIR": str(self.folder / "spark-conf"),
            "SPARK_LOCAL_DIRS": str(self.folder / "tmp"),
            "SPARK_SUBMIT_OPTS": " ".join(options).strip(),
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": str(self.folder / "python"),
        }

    def _write_configuration(self) -> None:
        # What killed batches have left.
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        for name in ("conf", "logs", "spark-conf", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "conf" / "log4j.properties").write_text(_LOG4J, encoding="utf-8")
        _write_properties(
            self.folder / "conf" / "livy.conf",
            {
                "livy.server.host": HOST,
                "livy.server.port": str(self.port),
                "livy.spark.master": self.master,
                # Livy asks Spark, too, and understands the answer with some makes of Java only.
                "livy.spark.scala-version": _scala_version(self._spark_home),
                "livy.file.local-dir-whitelist": ",".join(map(str, self._local_folders)),
                "livy.cache-log.size": str(_LOG_LINES),
                "livy.server.session.state-retain.sec": _RETENTION,
            },
        )
        _write_properties(
            self.folder / "spark-conf" / "spark-defaults.conf",
            {
                # Nothing here listens beyond this machine.
                "spark.driver.host": HOST,
                "spark.driver.bindAddress": HOST,
                "spark.ui.enabled": "false",
                "spark.ui.showConsoleProgress": "false",
                **self._spark_conf,
            },
        )
        python = self.folder / "python"
        python.write_text(_PYTHON.format(python=shlex.quote(sys.executable)), encoding="utf-8")
        python.chmod(0o700)


def spark_conf_for(datastore: Datastore) -> dict[str, str]:
    """Return the Spark properties by which a batch opens a datastore, its secrets among them.

    Raises:
        ConfigurationError: The driver for Azure storage could not be fetched.
    """
    hadoop = datastore.hadoop_configuration().merged()
    properties = {f"spark.hadoop.{name}": str(value) for name, value in hadoop.items()}
    if datastore.location.kind == "azure":
        # Its threads would keep spark-submit's JVM from ending (hadoop-azure 3.5.0).
        properties["spark.hadoop.fs.azure.metrics.collection.enabled"] = "false"
        jars = os.pathsep.join(map(str, fetch_abfs_jars()))
        properties["spark.driver.extraClassPath"] = jars
        properties["spark.executor.extraClassPath"] = jars
        # Otherwise the driver keeps threads, for which spark-submit waits for ever at its end.
        properties["spark.hadoop.fs.azure.metrics.collection.enabled"] = "false"
    return properties


def installed_spark() -> Path:
    """Return the home folder of the installed pyspark's Spark.

    Raises:
        ConfigurationError: pyspark is not installed.
    """
    spec = find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise ConfigurationError("Livy needs Spark, and pyspark is not installed: install it.")
    return Path(spec.origin).parent


def spark_environment(spark_home: Path) -> Mapping[str, str]:
    """Return the variables by which Spark's own scripts find Java and Spark, on this machine."""
    return {
        "JAVA_HOME": str(require_java()),
        "SPARK_HOME": str(spark_home),
        "SPARK_LOCAL_IP": HOST,
    }


def _scala_version(spark_home: Path) -> str:
    """Return the version of Scala that Spark is made of, as '2.12'."""
    core = next((spark_home / "jars").glob("spark-core_*.jar"))
    return core.name.partition("_")[2].partition("-")[0]


def _write_properties(path: Path, properties: Mapping[str, str]) -> None:
    """Write properties in Java's form, to a file that only this user can read."""
    text = "".join(
        f"{name} {value}\n".replace("\\", "\\\\") for name, value in properties.items() if value
    )
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text, encoding="utf-8")
