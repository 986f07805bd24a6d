"""A real Spark cluster, in Spark's standalone mode."""

from synapse_assets.services.livy import installed_spark, spark_environment
from synapse_assets.services.process import HOST, Server, Service, choose_ports, read_json


class SparkCluster(Service):
    """One Master and some Workers, each a process of its own, from the installed pyspark."""

    def __init__(self, *, workers: int = 2, cores: int = 1, memory: str = "1g") -> None:
        """Create the servers without starting them.

        Args:
            workers: Number of Workers.
            cores: Cores that each Worker gives to executors.
            memory: Memory that each Worker gives to executors.
        """
        super().__init__(None)
        port, self._web_port, *ports = choose_ports("Spark", *[None] * (2 + 2 * workers))
        self.url = f"spark://{HOST}:{port}"
        self._workers = workers
        spark = installed_spark()

        def server(role: str, *arguments: str, port: int, web_port: int) -> Server:
            return Server(
                f"Spark's {role}",
                [
                    spark / "bin" / "spark-class",
                    f"org.apache.spark.deploy.{role.lower()}.{role}",
                    *("--host", HOST, "--port", str(port), "--webui-port", str(web_port)),
                    *arguments,
                ],
                log_file=self.folder / f"{role.lower()}-{port}.log",
                environment={
                    **spark_environment(spark),
                    "SPARK_DAEMON_MEMORY": "256m",
                    "SPARK_LOCAL_DIRS": str(self.folder),
                },
            )

        self.servers = [server("Master", port=port, web_port=self._web_port)]
        for own, own_web in zip(ports[::2], ports[1::2], strict=True):
            resources = ["--cores", str(cores), "--memory", memory]
            folder = ["--work-dir", str(self.folder / f"work-{own}")]
            worker = server("Worker", *resources, *folder, self.url, port=own, web_port=own_web)
            self.servers.append(worker)

    def is_ready(self) -> bool:
        """Return whether the Master has heard from each Worker."""
        state = read_json(self._web_port, path="/json/") or {}
        return bool(state.get("aliveworkers") == self._workers)
