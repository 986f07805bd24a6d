"""A real HDFS of one NameNode and one DataNode."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from synapse_assets.errors import ConfigurationError
from synapse_assets.services import downloads
from synapse_assets.services.java import java_command, write_log4j
from synapse_assets.services.process import HOST, Server, Service, choose_ports, read_json

_SERVER_PACKAGE = "org.apache.hadoop.hdfs.server"
# Makes the empty file system, unless the folder holds one.
_FORMAT_AND_RUN = (
    '[ -e "$0" ] || { "$@" -format -nonInteractive && touch "$0"; } || exit 1; exec "$@"'
)


class Hdfs(Service):
    """One NameNode and one DataNode.

    Permissions are checked as on any HDFS, and the user who starts it is the superuser. Either
    server may be killed alone; `start` starts it again.
    """

    start_seconds = 90.0

    def __init__(self, *, folder: Path | None = None, port: int | None = None) -> None:
        """Fetch the servers, unless they are here, without starting them.

        Args:
            folder: Keeps the data; None for a temporary folder that goes with `stop`.
            port: Where the NameNode listens for clients; None for a free port.

        Raises:
            ConfigurationError: The port that was asked for is taken, Java or Maven is missing, or
                the folder's path has characters that HDFS cannot take.
        """
        uses = ("namenode", "namenode-http", "datanode", "datanode-ipc", "datanode-http")
        ports = choose_ports("HDFS", port, *[None] * 4)
        self.ports = dict(zip(uses, ports, strict=True))
        jars = downloads.HDFS_JARS.jars()
        super().__init__(folder)
        if "%" in self.folder.as_uri():
            # It takes the folder's URI for a format of thread names, and does not start.
            raise ConfigurationError(
                f"HDFS's DataNode cannot keep data in {str(self.folder)!r}: the path may hold "
                "ASCII letters, digits and '-._~/' only. Choose another folder."
            )
        self._formatted = self.folder / "formatted"
        namenode, datanode = (
            java_command(
                f"{_SERVER_PACKAGE}.{main_class}",
                jars=jars,
                configuration=self.folder / "conf",
                memory="256m",
            )
            for main_class in ("namenode.NameNode", "datanode.DataNode")
        )
        self.namenode = Server(
            "HDFS's NameNode",
            ["sh", "-c", _FORMAT_AND_RUN, self._formatted, *namenode],
            log_file=self.folder / "namenode.log",
        )
        self.datanode = Server("HDFS's DataNode", datanode, log_file=self.folder / "datanode.log")
        # At once: the DataNode keeps asking for the NameNode until it is there.
        self.servers = [self.namenode, self.datanode]

    @property
    def url(self) -> str:
        """The root of the file system."""
        return f"hdfs://{HOST}:{self.ports['namenode']}"

    def is_ready(self) -> bool:
        """Return whether both servers have heard from each other, so that files can be written."""
        # Of both: a killed DataNode counts as alive for minutes.
        state = self._ask("datanode", bean="DataNode,name=DataNodeInfo")
        actors = json.loads(state.get("BPServiceActorInfo") or "[]")
        if not state.get("ClusterId") or "RUNNING" not in [a.get("ActorState") for a in actors]:
            return False
        state = self._ask("namenode", bean="NameNode,name=FSNamesystemState")
        return state.get("FSState") == "Operational" and state.get("NumLiveDataNodes") == 1

    def prepare(self) -> None:
        """Write the configuration; remove what is left of a file system that was made in part."""
        if not self._formatted.exists():
            for name in ("name", "data"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
        folder = self.folder / "conf"
        write_log4j(folder)
        for webapp in ("hdfs", "datanode", "static"):
            # The web servers want these to be there, and serve the state of each server anyway.
            (folder / "webapps" / webapp).mkdir(parents=True, exist_ok=True)
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

    def _ask(self, server: str, *, bean: str) -> Mapping[str, Any]:
        """Return what a server tells of itself, nothing if it does not answer yet."""
        path = f"/jmx?qry=Hadoop:service={bean}"
        beans = (read_json(self.ports[f"{server}-http"], path=path) or {}).get("beans")
        return beans[0] if beans else {}


def _write_site(path: Path, properties: Mapping[str, str]) -> None:
    lines = [
        f"  <property><name>{name}</name><value>{escape(value)}</value></property>"
        for name, value in properties.items()
    ]
    text = "\n".join(['<?xml version="1.0"?>', "<configuration>", *lines, "</configuration>"])
    path.write_text(text + "\n", encoding="utf-8")
