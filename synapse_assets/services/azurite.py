"""Azurite, Microsoft's emulator of Azure Blob and Queue Storage."""

from pathlib import Path

from synapse_assets import settings
from synapse_assets.datastore.credentials import EMULATOR_KEY
from synapse_assets.datastore.location import EMULATOR_ACCOUNT
from synapse_assets.datastore.storage import first_line
from synapse_assets.errors import ConfigurationError
from synapse_assets.services import downloads
from synapse_assets.services.process import HOST, Server, Service, answers, choose_ports

# The one account of every Azurite and its key.
ACCOUNT, ACCOUNT_KEY = EMULATOR_ACCOUNT, EMULATOR_KEY

_PROBE_PATH = f"/{ACCOUNT}?comp=list"


class Azurite(Service):
    """One Azurite, which serves the Blob and the Queue endpoint.

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
        """Fetch the server, unless it is here, without starting it.

        Args:
            folder: Keeps the data; None for a temporary folder that goes with `stop`.
            port: Where the Blob endpoint listens; None for a free port.
            queue_port: Where the Queue endpoint listens; None for a free port.
            durable: Whether data survives `kill` from the moment it was acknowledged.

        Raises:
            ConfigurationError: A port that was asked for is taken, or Node.js or npm is missing.
        """
        # Nothing here uses tables, but Azurite insists on serving them.
        self.port, self.queue_port, table_port = choose_ports("Azurite", port, queue_port, None)
        node = downloads.require_program("node")
        program = downloads.AZURITE_PACKAGES.fetch() / "node_modules/azurite/dist/src/azurite.js"
        super().__init__(folder)
        changes = ["ordered.js", *(["durable.js"] if durable else [])]
        command: list[str | Path] = [
            node,
            *(f"--require={Path(__file__).with_name('azurite') / change}" for change in changes),
            program,
            *("--silent", "--disableTelemetry"),
            # It knows the service versions up to its own release; clients are newer.
            "--skipApiVersionCheck",
            *("--location", self.folder / "azurite"),
            *("--blobHost", HOST, "--blobPort", str(self.port)),
            *("--queueHost", HOST, "--queuePort", str(self.queue_port)),
            *("--tableHost", HOST, "--tablePort", str(table_port)),
        ]
        self.servers = [Server("Azurite", command, log_file=self.folder / "azurite.log")]

    @property
    def endpoint(self) -> str:
        """The Blob endpoint of the account."""
        return f"http://{HOST}:{self.port}/{ACCOUNT}"

    @property
    def queue_endpoint(self) -> str:
        """The Queue endpoint of the account."""
        return f"http://{HOST}:{self.queue_port}/{ACCOUNT}"

    def is_ready(self) -> bool:
        """Return whether both endpoints answer."""
        return all(answers(port, path=_PROBE_PATH) for port in (self.port, self.queue_port))

    def create_container(self, name: str) -> None:
        """Create a container if there is none of that name."""
        create_container(self.endpoint, name)


def create_container(endpoint: str, name: str) -> None:
    """Create a container of the Azurite on an endpoint, if there is none of that name.

    Raises:
        ConfigurationError: Azurite does not answer there.
    """
    from azure.core.exceptions import AzureError, ResourceExistsError
    from azure.storage.blob import BlobServiceClient

    with BlobServiceClient(endpoint, credential=ACCOUNT_KEY, retry_total=0) as client:
        try:
            client.create_container(name)
        except ResourceExistsError:
            return
        except AzureError as e:
            raise ConfigurationError(
                f"The Azurite on {endpoint} has no container '{name}' and did not make it: "
                f"{first_line(e)}. Start it, or name another one with {settings.AZURITE}."
            ) from e
