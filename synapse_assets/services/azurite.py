"""Azurite, Microsoft's emulator of Azure Blob and Queue Storage."""

import shutil
import tempfile
from pathlib import Path

from synapse_assets.services.downloads import fetch_azurite, require_node
from synapse_assets.services.process import HOST, Server, Service, answers, choose_port

# The one account of every Azurite and its key, which Microsoft publishes.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

_START_SECONDS = 60.0
_PROBE_PATH = f"/{ACCOUNT}?comp=list"


class Azurite(Service):
    """One Azurite with its data in one folder, as a context manager or by `start` and `stop`.

    It serves the Blob and the Queue endpoint. The ports stay the same over `kill` and `start`, so
    that its clients can wait for it to come back.

    Azurite writes its list of blobs to disk every five seconds, and a killed one forgets what it
    answered since. Azure does not. With `durable` it writes the list before each answer, as a test
    that kills it needs; that costs more the more blobs there are.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        port: int | None = None,
        queue_port: int | None = None,
        durable: bool = False,
    ) -> None:
        """Create the server without starting it.

        Args:
            folder: Keeps the data; None for a temporary folder that goes with `stop`.
            port: Where the Blob endpoint listens; None for a free port.
            queue_port: Where the Queue endpoint listens; None for a free port.
            durable: Whether data survives `kill` from the moment it was acknowledged.

        Raises:
            ConfigurationError: A port that was asked for is taken.
        """
        self.port = choose_port(port, server="Azurite")
        self.queue_port = choose_port(queue_port, server="Azurite's queue", others=[self.port])
        taken = [self.port, self.queue_port]
        # Nothing here uses tables, but Azurite insists on serving them.
        self._table_port = choose_port(None, server="Azurite", others=taken)
        self._durable = durable
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="synapse-assets-azurite-"))
        self._server: Server | None = None

    @property
    def endpoint(self) -> str:
        """The Blob endpoint of the account."""
        return f"http://{HOST}:{self.port}/{ACCOUNT}"

    @property
    def queue_endpoint(self) -> str:
        """The Queue endpoint of the account."""
        return f"http://{HOST}:{self.queue_port}/{ACCOUNT}"

    @property
    def server(self) -> Server:
        """The server's process."""
        if self._server is None:
            self._server = Server("Azurite", self._command(), log_file=self.folder / "azurite.log")
        return self._server

    def start(self) -> None:
        """Start it on the data that its folder holds, and return when both endpoints answer.

        Raises:
            ConfigurationError: Node.js or npm is missing.
            SynapseAssetsError: It did not start.
        """
        try:
            self.server.start()
            self.server.wait_until(
                lambda: all(
                    answers(port, path=_PROBE_PATH) for port in (self.port, self.queue_port)
                ),
                seconds=_START_SECONDS,
            )
        except BaseException:  # also an interruption
            self.server.kill()
            raise

    def stop(self) -> None:
        """Stop it after it has saved what it holds."""
        self.server.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End it as a crash would; `start` brings it back."""
        self.server.kill()

    def create_container(self, name: str) -> None:
        """Create a container if there is none of that name."""
        from azure.core.exceptions import ResourceExistsError
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient(self.endpoint, credential=ACCOUNT_KEY) as client:
            try:
                client.create_container(name)
            except ResourceExistsError:
                return

    def _command(self) -> list[str | Path]:
        changes = ["ordered.js", *(["durable.js"] if self._durable else [])]
        folder = Path(__file__).with_name("azurite")
        return [
            require_node(),
            *(f"--require={folder / change}" for change in changes),
            fetch_azurite(),
            "--silent",
            "--disableTelemetry",
            # It knows the service versions up to its own release; clients are newer.
            "--skipApiVersionCheck",
            *("--location", self.folder / "azurite"),
            *("--blobHost", HOST, "--blobPort", str(self.port)),
            *("--queueHost", HOST, "--queuePort", str(self.queue_port)),
            *("--tableHost", HOST, "--tablePort", str(self._table_port)),
        ]
