"""The emulator of Synapse's Spark pools: see `synapse_api` for what it serves."""

import sys
from collections.abc import Sequence
from pathlib import Path

from synapse_assets.services.process import HOST, Server, Service, answers, choose_ports

# Where `synapse-assets services` starts it, and the Spark pool that it has there. Synapse itself
# has no port but 443.
SYNAPSE_PORT = 10_100
SYNAPSE_POOL = "spark01"


class SynapseEmulator(Service):
    """Synapse's Spark batch API in front of a Livy that is running.

    Once it has ended it knows nothing of its batches; Livy goes on with them.
    """

    def __init__(
        self,
        *,
        livy_url: str,
        pools: Sequence[str] = (SYNAPSE_POOL,),
        folder: Path | None = None,
        port: int | None = None,
    ) -> None:
        """Create the server without starting it.

        Args:
            livy_url: The Livy that runs the batches.
            pools: Names of the Spark pools; all of them run their batches on that Livy.
            folder: Keeps the log; None for a temporary folder that goes with `stop`.
            port: Where it listens; None for a free port.

        Raises:
            ConfigurationError: The port that was asked for is taken.
        """
        (self.port,) = choose_ports("The Synapse emulator", port)
        super().__init__(folder)
        command = [sys.executable, "-m", "synapse_assets.services.synapse_api"]
        command += ["--port", str(self.port), "--livy", livy_url]
        command += [part for pool in pools for part in ("--pool", pool)]
        log_file = self.folder / "synapse.log"
        self.servers = [Server("The Synapse emulator", command, log_file=log_file)]

    @property
    def endpoint(self) -> str:
        """What stands for a workspace's development endpoint, for `SparkClient`."""
        return f"http://{HOST}:{self.port}"

    def is_ready(self) -> bool:
        """Return whether it answers."""
        return answers(self.port)
