"""What `synapse-assets services` and `emulator` do: run services until they are told to stop."""

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from synapse_assets import settings
from synapse_assets.compute.login import EMULATOR_TOKEN
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import Emulator
from synapse_assets.services import CONTAINER, downloads
from synapse_assets.services.azureml import (
    ML_RESOURCE_GROUP,
    ML_SUBSCRIPTION,
    ML_WORKSPACE,
    AzureMLStandIn,
)
from synapse_assets.services.azurite import Azurite
from synapse_assets.services.hdfs import Hdfs
from synapse_assets.services.livy import Livy, spark_conf_for
from synapse_assets.services.process import Service, choose_ports
from synapse_assets.services.synapse import SYNAPSE_POOL, SYNAPSE_PORT, SynapseEmulator

_MASTER = "local[2]"
_CHECK_SECONDS = 1.0
_STORES = (downloads.AZURITE_PACKAGES, downloads.HDFS_JARS)
_SPARK = (downloads.ABFS_JARS, downloads.LIVY_JARS)

_Say = Callable[[str], None]


@dataclass(frozen=True)
class Ports:
    """Where the services listen. Clients take all but the last by default."""

    azurite: int = 10_000
    azurite_queue: int = 10_001
    hdfs: int = 8020
    synapse: int = SYNAPSE_PORT
    azureml: int = 10_200


def run_services(*, ports: Ports = Ports(), data: Path | None = None, say: _Say = print) -> None:
    """Fetch and start Azurite, HDFS and the emulators, and stop them on Ctrl-C or SIGTERM.

    What is stored is kept for the next time.

    Args:
        ports: Where they listen.
        data: Keeps the data; None for a folder beside the downloads.
        say: Takes each line of progress.

    Raises:
        ConfigurationError: A port is taken, a program is missing, or the services run already.
        SynapseAssetsError: A service did not start, or ended.
    """
    data = data or downloads.services_folder() / "data"
    busy = f"The services run already: another process works on {data}."
    with (
        _until_interrupted(say, "Stopped. The data is kept for the next time."),
        downloads.locked(data / ".lock", busy=busy),
        _Supervisor(say) as supervisor,
    ):
        # Whatever would stop them is looked for before the downloads.
        choose_ports("The services", *astuple(ports))
        fetch_all(say)
        azurite = Azurite(
            folder=data / "azurite", port=ports.azurite, queue_port=ports.azurite_queue
        )
        supervisor.start(azurite, f"Azurite answers on {azurite.endpoint}")
        azurite.create_container(CONTAINER)
        hdfs = Hdfs(folder=data / "hdfs", port=ports.hdfs)
        supervisor.start(hdfs, f"HDFS answers on {hdfs.url}")
        file = _start_emulators(
            supervisor,
            Emulator(endpoint=azurite.endpoint),
            ports=(ports.synapse, ports.azureml),
            folder=data,
        )
        say(f"""
In another terminal, to use Azurite:
  export {settings.DEPLOYMENT}=emulated
To use HDFS:
  export {settings.DEPLOYMENT}=emulated
  export {settings.DATASTORE}={hdfs.url}/synapse_assets
To use all that stands in for Azure:
  . {shlex.quote(str(file))}
Then as always: make run, make ui. Ctrl-C stops all of them.
""")
        supervisor.watch()


def run_emulator(
    *,
    port: int | None = SYNAPSE_PORT,
    pools: Sequence[str] = (SYNAPSE_POOL,),
    master: str = _MASTER,
    say: _Say = print,
) -> None:
    """Fetch and start the emulators alone, and stop them on Ctrl-C or SIGTERM.

    What they run opens the Azurite of `synapse-assets services`, or the one that the environment
    names.

    Args:
        port: Where that of Synapse listens; None for any free port, as that of Azure ML always.
        pools: Names of the Spark pools.
        master: The Spark master on which all pools run their batches.
        say: Takes each line of progress.

    Raises:
        ConfigurationError: A port is taken, or a program is missing.
        SynapseAssetsError: One of them did not start, or ended.
    """
    endpoint = os.environ.get(settings.AZURITE)
    credential = Emulator(endpoint=endpoint) if endpoint else Emulator()
    with _until_interrupted(say, "Stopped."), _Supervisor(say) as supervisor:
        choose_ports("The Synapse emulator", port)
        _fetch(_SPARK, say)
        file = _start_emulators(
            supervisor, credential, ports=(port, None), pools=pools, master=master
        )
        say(f"To use both: . {shlex.quote(str(file))}\nCtrl-C stops them, and all that they run.")
        supervisor.watch()


def fetch_all(say: _Say) -> None:
    """Fetch what the services and Spark's driver for Azure storage are made of, unless it is here.

    Raises:
        ConfigurationError: A program is missing, or something could not be fetched.
    """
    _fetch((*_STORES, *_SPARK), say)


def _fetch(wanted: Sequence[downloads.Download], say: _Say) -> None:
    for download in wanted:
        say(f"Looking for {download.title} ...")
        started = time.monotonic()
        download.fetch()
        say(f"{download.title} is here ({time.monotonic() - started:.1f} s).")


def _start_emulators(
    supervisor: "_Supervisor",
    credential: Emulator,
    *,
    ports: tuple[int | None, int | None],
    pools: Sequence[str] = (SYNAPSE_POOL,),
    master: str = _MASTER,
    folder: Path | None = None,
) -> Path:
    """Start what stands in for Synapse and Azure ML; return a file that sets up a shell."""
    datastore = Datastore(root=f"az://{CONTAINER}", cloud="emulator", credential=credential)
    livy = Livy(
        folder=folder and folder / "livy", master=master, spark_conf=spark_conf_for(datastore)
    )
    supervisor.start(livy, f"Livy answers on {livy.url}")
    synapse = SynapseEmulator(
        folder=folder and folder / "synapse", port=ports[0], livy_url=livy.url, pools=pools
    )
    supervisor.start(
        synapse,
        f"Synapse's Spark pools answer on {synapse.endpoint}: {', '.join(pools)} on {master}, with "
        f"the bearer token '{EMULATOR_TOKEN}', and open Azurite on {credential.endpoint}",
    )
    azureml = AzureMLStandIn(
        folder=folder and folder / "azureml",
        port=ports[1],
        node_variables=datastore.process_environment(),
    )
    supervisor.start(
        azureml, f"Azure ML's workspace '{ML_WORKSPACE}' answers on {azureml.endpoint}"
    )
    variables = {
        settings.DEPLOYMENT: "azure",
        settings.CLOUD: "emulator",
        settings.DATASTORE: f"az://{CONTAINER}/azure",
        settings.AZURITE: credential.endpoint,
        settings.SYNAPSE: synapse.endpoint,
        settings.SPARK_POOL: pools[0],
        settings.SUBSCRIPTION: ML_SUBSCRIPTION,
        settings.RESOURCE_GROUP: ML_RESOURCE_GROUP,
        settings.ML_WORKSPACE: ML_WORKSPACE,
        **azureml.client_variables,
    }
    file = azureml.folder / "azure.env"
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    file.write_text("".join(lines), encoding="utf-8")
    return file


class _Supervisor(ExitStack):
    """Services that run, and are stopped at the end in the opposite order."""

    def __init__(self, say: _Say) -> None:
        super().__init__()
        self._say = say
        self._services: list[Service] = []

    def start(self, service: Service, text: str) -> None:
        """Start a service, and say so."""
        started = time.monotonic()
        self._services.append(self.enter_context(service))
        self._say(f"{text} ({time.monotonic() - started:.1f} s).")

    def watch(self) -> None:
        """Raise a SynapseAssetsError as soon as one of them has ended."""
        while True:
            time.sleep(_CHECK_SECONDS)
            for service in self._services:
                service.check()


@contextmanager
def _until_interrupted(say: _Say, farewell: str) -> Iterator[None]:
    """End on Ctrl-C or SIGTERM, and say so."""
    # SIGTERM as Ctrl-C: the services are stopped on the way out.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        say(farewell)
    finally:
        signal.signal(signal.SIGTERM, previous)
