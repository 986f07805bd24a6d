"""A real HDFS of one NameNode and one DataNode."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from synapse_assets.compute.java import require_java
from synapse_assets.errors import ConfigurationError
from synapse_assets.services.downloads import fetch_hdfs_jars
from synapse_assets.services.process import HOST, Server, Service, choose_port, read_json

_START_SECONDS = 90.0
_JAVA_OPTIONS = ["-Xmx256m", "-XX:+UseSerialGC", "-Djava.net.preferIPv4Stack=true"]
_SERVER_PACKAGE = "org.apache.hadoop.hdfs.server"

_LOG4J = """\
log4j.rootLogger=INFO,console
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.target=System.err
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n
"""


class Hdfs(Service):
    """One NameNode and one DataNode with their data in one folder.

    A context manager, or `start` and `stop`. Permissions are checked as on any HDFS, and the user
    who starts it is the superuser. The ports stay the same over `kill_…` and `start_…`, so that
    clients can wait for a server to come back.
    """

    def __init__(self, *, folder: Path | None = None, port: int | None = None) -> None:
        """Create the servers without starting them.

        Args:
            folder: Keeps the data; None for a temporary folder that goes with `stop`.
            port: Where the NameNode listens for clients; None for a free port.

        Raises:
            ConfigurationError: The port that was asked for is taken, or the folder's path has
                characters that HDFS cannot take.
        """
        self.ports = {"namenode": choose_port(port, server="HDFS")}
        for use in ("namenode-http", "datanode", "datanode-ipc", "datanode-http"):
            taken = list(self.ports.values())
            self.ports[use] = choose_port(None, server="HDFS", others=taken)
        self._temporary = folder is None
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="synapse-assets-hdfs-"))).absolute()
        if "%" in self.folder.as_uri():
            # It takes the folder's URI for a format of thread names, and does not start.
            raise ConfigurationError(
                f"HDFS's DataNode cannot keep data in {str(self.folder)!r}: the path may hold "
                "ASCII letters, digits and '-._~/' only. Choose another folder."
            )
        self._servers: dict[str, Server] = {}

    @property
    def url(self) -> str:
        """The root of the file system."""
        return f"hdfs://{HOST}:{self.ports['namenode']}"

    @property
    def namenode(self) -> Server:
        """The NameNode's process, which holds the names of all files."""
        return self._server("namenode.NameNode")

    @property
    def datanode(self) -> Server:
        """The DataNode's process, which holds the content of all files."""
        return self._server("datanode.DataNode")

    def start(self) -> None:
        """Start both on the data that the folder holds, and return when files can be written.

        Raises:
            ConfigurationError: Java or Maven is missing.
            SynapseAssetsError: One of them did not start.
        """
        self._write_configuration()
        self._format()
        try:
            # At once: the DataNode keeps asking for the NameNode until it is there.
            self.namenode.start()
            self.datanode.start()
            self._wait()
        except BaseException:  # also an interruption
            self.datanode.kill()
            self.namenode.kill()
            raise

    def stop(self) -> None:
        """Stop both."""
        self.datanode.stop()
        self.namenode.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill_namenode(self) -> None:
        """End the NameNode as a crash would."""
        self.namenode.kill()

    def start_namenode(self) -> None:
        """Start the NameNode again, and return when it has heard from a running DataNode."""
        self.namenode.start()
        self._wait()

    def kill_datanode(self) -> None:
        """End the DataNode as a crash would."""
        self.datanode.kill()

    def start_datanode(self) -> None:
        """Start the DataNode again, and return when a running NameNode has heard from it."""
        self.datanode.start()
        self._wait()

    def check(self) -> None:
        """Raise a SynapseAssetsError if one of them has ended."""
        self.namenode.check()
        self.datanode.check()

    def _wait(self) -> None:
        """Return when what was started of the two answers, and files can be written if both."""
        both = self.namenode.is_running and self.datanode.is_running
        if self.namenode.is_running:
            self.namenode.wait_until(
                lambda: self._namenode_is_ready(with_datanode=both), seconds=_START_SECONDS
            )
        if self.datanode.is_running:
            self.datanode.wait_until(
                lambda: self._datanode_is_ready(with_namenode=both), seconds=_START_SECONDS
            )

    def _namenode_is_ready(self, *, with_datanode: bool) -> bool:
        state = self._ask("namenode", bean="NameNode,name=FSNamesystemState")
        if state is None or not with_datanode:
            return state is not None
        # Also that the DataNode is there: a killed one counts as alive for minutes.
        self.datanode.check()
        return state.get("FSState") == "Operational" and state.get("NumLiveDataNodes") == 1

    def _datanode_is_ready(self, *, with_namenode: bool) -> bool:
        state = self._ask("datanode", bean="DataNode,name=DataNodeInfo")
        if state is None or not with_namenode:
            return state is not None
        self.namenode.check()
        actors = json.loads(state.get("BPServiceActorInfo") or "[]")
        return bool(state.get("ClusterId")) and any(
            actor.get("ActorState") == "RUNNING" for actor in actors
        )

    def _ask(self, server: str, *, bean: str) -> dict[str, Any] | None:
        """Return what a server tells of itself, None if it does not answer yet."""
        port = self.ports[f"{server}-http"]
        answer = read_json(port, path=f"/jmx?qry=Hadoop:service={bean}") or {}
        beans: list[dict[str, Any]] = answer.get("beans") or []
        return beans[0] if beans else None

    def _server(self, main_class: str) -> Server:
        if main_class not in self._servers:
            name = main_class.split(".")[1]
            self._servers[main_class] = Server(
                f"HDFS's {name}",
                self._command(main_class),
                log_file=self.folder / f"{name.lower()}.log",
            )
        return self._servers[main_class]

    def _command(self, main_class: str, *arguments: str) -> list[str | Path]:
        classpath = [self.folder / "conf", *fetch_hdfs_jars()]
        return [
            require_java() / "bin" / "java",
            *_JAVA_OPTIONS,
            *("-classpath", os.pathsep.join(map(str, classpath))),
            f"{_SERVER_PACKAGE}.{main_class}",
            *arguments,
        ]

    def _format(self) -> None:
        """Make the empty file system, unless the folder holds one."""
        done = self.folder / "formatted"
        if done.exists():
            return
        for name in ("name", "data"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        server = Server(
            "HDFS's format",
            self._command("namenode.NameNode", "-format", "-nonInteractive"),
            log_file=self.folder / "format.log",
        )
        server.run(seconds=_START_SECONDS)
        done.touch()

    def _write_configuration(self) -> None:
        folder = self.folder / "conf"
        for webapp in ("hdfs", "datanode", "static"):
            # The web servers want these to be there, and serve the state of each server anyway.
            (folder / "webapps" / webapp).mkdir(parents=True, exist_ok=True)
        (folder / "log4j.properties").write_text(_LOG4J, encoding="utf-8")
        _write_site(
            folder / "core-site.xml",
            {"fs.defaultFS": self.url, "hadoop.tmp.dir": str(self.folder / "tmp")},
        )
        address = {use: f"{HOST}:{port}" for use, port in self.ports.items()}
        _write_site(
            folder / "hdfs-site.xml",
            {
                "dfs.replication": "1",
                "dfs.namenode.name.dir": (self.folder / "name").as_uri(),
                "dfs.namenode.rpc-address": address["namenode"],
                "dfs.namenode.http-address": address["namenode-http"],
                "dfs.namenode.datanode.registration.ip-hostname-check": "false",
                # Out of safe mode as soon as the DataNode has told what it holds, and not before.
                "dfs.namenode.safemode.min.datanodes": "1",
                "dfs.namenode.safemode.threshold-pct": "1.0",
                "dfs.namenode.safemode.extension": "0",
                "dfs.datanode.data.dir": (self.folder / "data").as_uri(),
                "dfs.datanode.hostname": HOST,
                "dfs.datanode.address": address["datanode"],
                "dfs.datanode.ipc.address": address["datanode-ipc"],
                "dfs.datanode.http.address": address["datanode-http"],
                "dfs.heartbeat.interval": "1",
            },
        )


def _write_site(path: Path, properties: dict[str, str]) -> None:
    lines = [
        f"  <property><name>{name}</name><value>{escape(value)}</value></property>"
        for name, value in properties.items()
    ]
    text = "\n".join(['<?xml version="1.0"?>', "<configuration>", *lines, "</configuration>"])
    path.write_text(text + "\n", encoding="utf-8")
