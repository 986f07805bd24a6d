"""A real Apache Livy that runs batches with the installed Spark."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from synapse_assets.compute.java import require_java
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ConfigurationError
from synapse_assets.services import downloads
from synapse_assets.services.java import java_command, write_log4j
from synapse_assets.services.process import HOST, Server, Service, answers, choose_ports

# Each line of a batch's log is kept in Livy's memory, up to this many of each batch.
_LOG_LINES = 2000
# Livy forgets a batch this long after its end; it looks once a minute.
_RETENTION = "7d"
# A batch that waits for its store would take half a minute to end.
_BATCH_END_SECONDS = 5

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

    A new server knows nothing of the batches of the last one.
    """

    start_seconds = 90.0

    def __init__(
        self,
        *,
        folder: Path | None = None,
        master: str = "local[1]",
        spark_conf: Mapping[str, str] | None = None,
        local_folders: Sequence[Path] = (),
    ) -> None:
        """Fetch the server, unless it is here, without starting it.

        Args:
            folder: Keeps configuration and logs; None for a temporary folder that goes with `stop`.
            master: The Spark master on which the batches run.
            spark_conf: Spark properties of all batches, see `spark_conf_for`. They may hold a key:
                they lie in a file that only this user can read.
            local_folders: Where files of batches may lie on this machine.

        Raises:
            ConfigurationError: Java, Maven or pyspark is missing.
        """
        (self.port,) = choose_ports("Livy", None)
        self._master = master
        self._spark_conf = dict(spark_conf or {})
        self._local_folders = [folder.absolute() for folder in local_folders]
        self._spark = installed_spark()
        jars = downloads.LIVY_JARS.jars()
        super().__init__(folder)
        command = java_command(
            "org.apache.livy.server.LivyServer",
            jars=jars,
            configuration=self.folder / "conf",
            memory="512m",
        )
        log_file = self.folder / "livy.log"
        server = Server("Livy", command, log_file=log_file, environment=self._environment())
        self.servers = [server]

    @property
    def url(self) -> str:
        """The root of Livy's REST API."""
        return f"http://{HOST}:{self.port}"

    def is_ready(self) -> bool:
        """Return whether it answers."""
        return answers(self.port, path="/batches")

    def kill(self) -> None:
        """End the server as a crash would; its batches go on, until `start` or `stop`."""
        self.servers[0].crash()

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
            **spark_environment(self._spark),
            "SPARK_CONF_DIR": str(self.folder / "spark-conf"),
            "SPARK_LOCAL_DIRS": str(self.folder / "tmp"),
            "SPARK_SUBMIT_OPTS": " ".join(options).strip(),
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": str(self.folder / "python"),
        }

    def prepare(self) -> None:
        """Write the configuration."""
        # What killed batches have left.
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        for name in ("logs", "spark-conf", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        write_log4j(self.folder / "conf")
        core = next((self._spark / "jars").glob("spark-core_*.jar")).name
        _write_properties(
            self.folder / "conf" / "livy.conf",
            {
                "livy.server.host": HOST,
                "livy.server.port": str(self.port),
                "livy.spark.master": self._master,
                # Livy asks Spark, too, and understands the answer with some makes of Java only.
                "livy.spark.scala-version": core.partition("_")[2].partition("-")[0],
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
        # Otherwise hadoop-azure 3.5.0 keeps threads, for which spark-submit's JVM waits for ever.
        properties["spark.hadoop.fs.azure.metrics.collection.enabled"] = "false"
        jars = os.pathsep.join(map(str, downloads.ABFS_JARS.jars()))
        properties["spark.driver.extraClassPath"] = jars
        properties["spark.executor.extraClassPath"] = jars
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


def _write_properties(path: Path, properties: Mapping[str, str]) -> None:
    """Write properties in Java's form, to a file that only this user can read."""
    text = "".join(
        f"{name} {value}\n".replace("\\", "\\\\") for name, value in properties.items() if value
    )
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text, encoding="utf-8")
