"""The emulator of Synapse's Spark pools: see `synapse_api` for what it serves."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from synapse_assets.services.process import HOST, Server, Service, answers, choose_port

# Where `synapse-assets services` starts it, and the Spark pool that it has there. Synapse itself
# has no port but 443.
SYNAPSE_PORT = 10_100
SYNAPSE_POOL = "spark01"

_START_SECONDS = 60.0


class SynapseEmulator(Service):
    """Synapse's Spark batch API in front of a Livy that is running."""

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
        self.port = choose_port(port, server="The Synapse emulator")
        self.pools = tuple(pools)
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="synapse-assets-synapse-"))
        self.server = Server(
            "The Synapse emulator",
            [
                *(sys.executable, "-m", "synapse_assets.services.synapse_api"),
                *("--port", str(self.port), "--livy", livy_url),
                *(part for pool in self.pools for part in ("--pool", pool)),
            ],
            log_file=self.folder / "synapse.log",
        )

    @property
    def endpoint(self) -> str:
        """What stands for a workspace's development endpoint, for `SparkClient`."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        """Start it without any batch, and return when it answers.

        Raises:
            SynapseAssetsError: It did not start.
        """
        try:
            self.server.start()
            self.server.wait_until(lambda: answers(self.port), seconds=_START_SECONDS)
        except BaseException:  # also an interruption
            self.server.kill()
            raise

    def stop(self) -> None:
        """Stop it; Livy goes on with the batches, and the emulator forgets them."""
        self.server.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End it as a crash would."""
        self.server.kill()

    def check(self) -> None:
        """Raise a SynapseAssetsError if it has ended."""
        self.server.check()
