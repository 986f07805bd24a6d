"""A real Spark cluster, in Spark's standalone mode."""

import shutil
import tempfile
from pathlib import Path

from synapse_assets.services.livy import installed_spark, spark_environment
from synapse_assets.services.process import HOST, Server, Service, choose_port, read_json

_START_SECONDS = 60.0
_PACKAGE = "org.apache.spark.deploy"


class SparkCluster(Service):
    """One Master and some Workers, each a process of its own, from the installed pyspark."""

    def __init__(
        self, *, workers: int = 2, cores: int = 1, memory: str = "1g", port: int | None = None
    ) -> None:
        """Create the servers without starting them.

        Args:
            workers: Number of Workers.
            cores: Cores that each Worker gives to executors.
            memory: Memory that each Worker gives to executors.
            port: Where the Master listens; None for a free port.

        Raises:
            ConfigurationError: The port that was asked for is taken.
        """
        ports = [choose_port(port, server="Spark's Master")]
        while len(ports) < 2 + 2 * workers:
            ports.append(choose_port(None, server="Spark", others=ports))
        self.port, self._web_port = ports[:2]
        self.folder = Path(tempfile.mkdtemp(prefix="synapse-assets-spark-"))
        self._spark_home = installed_spark()
        self.master = self._server("Master", port=self.port, web_port=self._web_port)
        self.workers = [
            self._server(
                "Worker",
                *("--cores", str(cores), "--memory", memory),
                *("--work-dir", str(self.folder / f"work-{own}"), self.url),
                port=own,
                web_port=own_web,
            )
            for own, own_web in zip(ports[2::2], ports[3::2], strict=True)
        ]

    @property
    def url(self) -> str:
        """What `spark.master` takes."""
        return f"spark://{HOST}:{self.port}"

    def start(self) -> None:
        """Start all of them, and return when the Master has heard from each Worker.

        Raises:
            ConfigurationError: Java is missing.
            SynapseAssetsError: One of them did not start.
        """
        try:
            for server in (self.master, *self.workers):
                server.start()
            self.master.wait_until(self._is_ready, seconds=_START_SECONDS)
        except BaseException:  # also an interruption
            for server in (*self.workers, self.master):
                server.kill()
            raise

    def stop(self) -> None:
        """Stop all of them, and the executors too."""
        for server in (*self.workers, self.master):
            server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ready(self) -> bool:
        for worker in self.workers:
            worker.check()
        state = read_json(self._web_port, path="/json/") or {}
        return bool(state.get("aliveworkers") == len(self.workers))

    def _server(self, role: str, *arguments: str, port: int, web_port: int) -> Server:
        return Server(
            f"Spark's {role}",
            [
                self._spark_home / "bin" / "spark-class",
                f"{_PACKAGE}.{role.lower()}.{role}",
                *("--host", HOST, "--port", str(port), "--webui-port", str(web_port)),
                *arguments,
            ],
            log_file=self.folder / f"{role.lower()}-{port}.log",
            environment={
                **spark_environment(self._spark_home),
                "SPARK_DAEMON_MEMORY": "256m",
                "SPARK_LOCAL_DIRS": str(self.folder),
            },
        )
