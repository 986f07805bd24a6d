"""What `synapse-assets services` and `emulator` do: run services until they are told to stop."""

import functools
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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
from synapse_assets.services.azurite import Azurite, create_container
from synapse_assets.services.hdfs import Hdfs
from synapse_assets.services.livy import Livy, spark_conf_for
from synapse_assets.services.process import Service, choose_ports, is_free
from synapse_assets.services.synapse import SYNAPSE_POOL, SYNAPSE_PORT, SynapseEmulator

_CHECK_SECONDS = 1.0
_STORES = (downloads.AZURITE_PACKAGES, downloads.HDFS_JARS)
_SPARK = (downloads.ABFS_JARS, downloads.LIVY_JARS)

_Say = Callable[[str], None]
_print: _Say = functools.partial(print, flush=True)
_Start = Callable[[Service, str], None]


@dataclass(frozen=True)
class Ports:
    """Where the services listen. Clients take all but the last by default."""

    azurite: int = 10_000
    azurite_queue: int = 10_001
    hdfs: int = 8020
    synapse: int | None = SYNAPSE_PORT
    azureml: int | None = 10_200


def run_services(*, ports: Ports = Ports(), data: Path | None = None, say: _Say = _print) -> None:
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
    with (
        _alone(data),
        _supervised(say, "Stopped. The data is kept for the next time.") as start,
    ):
        # Whatever would stop them is looked for before the downloads.
        choose_ports("The services", *astuple(ports))
        fetch_all(say)
        azurite = _start_azurite(start, ports, data)
        hdfs = Hdfs(folder=data / "hdfs", port=ports.hdfs)
        start(hdfs, f"HDFS answers on {hdfs.url}")
        file = _start_emulators(start, Emulator(endpoint=azurite.endpoint), ports, folder=data)
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


def run_emulator(
    *, port: int | None, pools: Sequence[str], master: str, say: _Say = _print
) -> None:
    """Fetch and start the emulators alone, and stop them on Ctrl-C or SIGTERM.

    What they run opens the Azurite that the environment names, or the one on the usual port, which
    is started if it is not there.

    Args:
        port: Where that of Synapse listens; None for any free port, as that of Azure ML always.
        pools: Names of the Spark pools.
        master: The Spark master on which all pools run their batches.
        say: Takes each line of progress.

    Raises:
        ConfigurationError: A port is taken, a program is missing, or Azurite does not answer.
        SynapseAssetsError: One of them did not start, or ended.
    """
    ports = Ports(synapse=port, azureml=None)
    named = os.environ.get(settings.AZURITE)
    credential = Emulator(endpoint=named) if named else Emulator()
    data = downloads.services_folder() / "data"
    is_missing = named is None and is_free(ports.azurite)
    with (
        _alone(data) if is_missing else nullcontext(),
        _supervised(say, "Stopped.") as start,
    ):
        choose_ports("The Synapse emulator", port)
        if is_missing:
            _fetch(_STORES[:1], say)
            _start_azurite(start, ports, data)
        else:
            create_container(credential.endpoint, CONTAINER)
        _fetch(_SPARK, say)
        file = _start_emulators(start, credential, ports, pools=pools, master=master)
        say(f"To use both: . {shlex.quote(str(file))}\nCtrl-C stops them, and all that they run.")


def fetch_all(say: _Say = _print) -> None:
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


def _start_azurite(start: _Start, ports: Ports, data: Path) -> Azurite:
    azurite = Azurite(folder=data / "azurite", port=ports.azurite, queue_port=ports.azurite_queue)
    start(azurite, f"Azurite answers on {azurite.endpoint}")
    azurite.create_container(CONTAINER)
    return azurite


def _start_emulators(
    start: _Start,
    credential: Emulator,
    ports: Ports,
    *,
    pools: Sequence[str] = (SYNAPSE_POOL,),
    master: str = "local[2]",
    folder: Path | None = None,
) -> Path:
    """Start what stands in for Synapse and Azure ML; return a file that sets up a shell."""
    datastore = Datastore(root=f"az://{CONTAINER}", cloud="emulator", credential=credential)
    livy = Livy(
        folder=folder and folder / "livy", master=master, spark_conf=spark_conf_for(datastore)
    )
    start(livy, f"Livy answers on {livy.url}")
    synapse = SynapseEmulator(
        folder=folder and folder / "synapse", port=ports.synapse, livy_url=livy.url, pools=pools
    )
    start(
        synapse,
        f"Synapse's Spark pools answer on {synapse.endpoint}: {', '.join(pools)} on {master}, with "
        f"the bearer token '{EMULATOR_TOKEN}', and open Azurite on {credential.endpoint}",
    )
    azureml = AzureMLStandIn(
        folder=folder and folder / "azureml",
        port=ports.azureml,
        node_variables=datastore.process_environment(),
    )
    start(azureml, f"Azure ML's workspace '{ML_WORKSPACE}' answers on {azureml.endpoint}")
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


def _alone(data: Path) -> AbstractContextManager[None]:
    """Return a lock on the data of the services."""
    busy = f"The services run already: another process works on {data}."
    return downloads.locked(data / ".lock", busy=busy)


@contextmanager
def _supervised(say: _Say, farewell: str) -> Iterator[_Start]:
    """Yield what starts a service and says so; then wait for Ctrl-C or SIGTERM, and stop them all.

    Raises:
        SynapseAssetsError: One of them has ended.
    """
    services: list[Service] = []
    # SIGTERM as Ctrl-C: the services are stopped on the way out.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as running:

            def start(service: Service, text: str) -> None:
                started = time.monotonic()
                services.append(running.enter_context(service))
                say(f"{text} ({time.monotonic() - started:.1f} s).")

            yield start
            while True:
                time.sleep(_CHECK_SECONDS)
                for service in services:
                    service.check()
    except KeyboardInterrupt:
        say(farewell)
    finally:
        signal.signal(signal.SIGTERM, previous)
