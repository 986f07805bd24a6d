"""What `synapse-assets services` and `emulator` do: run services until they are told to stop."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from synapse_assets import settings
from synapse_assets.compute.login import EMULATOR_TOKEN
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import Emulator
from synapse_assets.services import CONTAINER
from synapse_assets.services.azurite import Azurite
from synapse_assets.services.downloads import (
    fetch_abfs_jars,
    fetch_azurite,
    fetch_hdfs_jars,
    fetch_livy_jars,
    locked,
    services_folder,
)
from synapse_assets.services.hdfs import Hdfs
from synapse_assets.services.livy import Livy, spark_conf_for
from synapse_assets.services.process import choose_port
from synapse_assets.services.synapse import SYNAPSE_POOL, SYNAPSE_PORT, SynapseEmulator

# The ports that the clients of Azurite and HDFS take if none is given.
AZURITE_PORT = 10_000
AZURITE_QUEUE_PORT = 10_001
HDFS_PORT = 8020

MASTER = "local[2]"

_CHECK_SECONDS = 1.0

_Say = Callable[[str], None]
_SPARK_DOWNLOADS: Mapping[str, Callable[[], Any]] = {
    "Spark's ABFS driver": fetch_abfs_jars,
    "Apache Livy": fetch_livy_jars,
}
_STORAGE_DOWNLOADS: Mapping[str, Callable[[], Any]] = {
    "Azurite": fetch_azurite,
    "HDFS": fetch_hdfs_jars,
}


def run_services(
    *,
    azurite_port: int = AZURITE_PORT,
    azurite_queue_port: int = AZURITE_QUEUE_PORT,
    hdfs_port: int = HDFS_PORT,
    synapse_port: int = SYNAPSE_PORT,
    data: Path | None = None,
    say: _Say = print,
) -> None:
    """Fetch and start the whole emulated deployment, and stop it on Ctrl-C or SIGTERM.

    That is Azurite, HDFS and the emulator of Synapse's Spark pools. What is stored is kept for the
    next time.

    Args:
        azurite_port: Where Azurite's Blob endpoint listens.
        azurite_queue_port: Where Azurite's Queue endpoint listens.
        hdfs_port: Where the NameNode listens for clients.
        synapse_port: Where the emulator of Synapse listens.
        data: Keeps the data; None for a folder beside the downloads.
        say: Takes each line of progress.

    Raises:
        ConfigurationError: A port is taken, a program is missing, or the services run already.
        SynapseAssetsError: A service did not start, or ended.
    """
    data = data or services_folder() / "data"
    busy = f"The services run already: another process works on {data}."
    with (
        _until_interrupted(say, "Stopped. The data is kept for the next time."),
        locked(data / ".lock", busy=busy),
        ExitStack() as stack,
    ):
        # Whatever would stop them is looked for before the downloads.
        for port in (azurite_port, azurite_queue_port):
            choose_port(port, server="Azurite")
        choose_port(hdfs_port, server="HDFS")
        choose_port(synapse_port, server="The Synapse emulator")
        fetch_all(say)
        azurite = Azurite(folder=data / "azurite", port=azurite_port, queue_port=azurite_queue_port)
        started = time.monotonic()
        stack.enter_context(azurite)
        azurite.create_container(CONTAINER)
        say(f"Azurite answers on {azurite.endpoint} ({time.monotonic() - started:.1f} s).")
        hdfs = Hdfs(folder=data / "hdfs", port=hdfs_port)
        started = time.monotonic()
        stack.enter_context(hdfs)
        say(f"HDFS answers on {hdfs.url} ({time.monotonic() - started:.1f} s).")
        livy, synapse = _start_emulator(
            stack, azurite.endpoint, port=synapse_port, folder=data, say=say
        )
        say(_usage(hdfs))
        while True:
            time.sleep(_CHECK_SECONDS)
            azurite.server.check()
            hdfs.check()
            livy.check()
            synapse.check()


def run_emulator(
    *,
    port: int = SYNAPSE_PORT,
    pools: Sequence[str] = (SYNAPSE_POOL,),
    master: str = MASTER,
    say: _Say = print,
) -> None:
    """Fetch and start the emulator of Synapse's Spark pools, and stop it on Ctrl-C or SIGTERM.

    Its batches open the Azurite of `synapse-assets services`, or the one that the environment
    names.

    Args:
        port: Where it listens.
        pools: Names of the Spark pools.
        master: The Spark master on which all pools run their batches.
        say: Takes each line of progress.

    Raises:
        ConfigurationError: The port is taken, or a program is missing.
        SynapseAssetsError: It did not start, or ended.
    """
    with _until_interrupted(say, "Stopped."), ExitStack() as stack:
        choose_port(port, server="The Synapse emulator")
        _fetch(_SPARK_DOWNLOADS, say)
        livy, synapse = _start_emulator(
            stack,
            os.environ.get(settings.AZURITE),
            port=port,
            pools=pools,
            master=master,
            say=say,
        )
        say("Ctrl-C stops it, and all of its batches.")
        while True:
            time.sleep(_CHECK_SECONDS)
            livy.check()
            synapse.check()


def fetch_all(say: _Say) -> None:
    """Fetch what the services and Spark's driver for Azure storage are made of, unless it is here.

    Raises:
        ConfigurationError: A program is missing, or something could not be fetched.
    """
    _fetch({**_STORAGE_DOWNLOADS, **_SPARK_DOWNLOADS}, say)


def _fetch(downloads: Mapping[str, Callable[[], Any]], say: _Say) -> None:
    for what, fetch in downloads.items():
        say(f"Looking for {what} ...")
        started = time.monotonic()
        fetch()
        say(f"{what} is here ({time.monotonic() - started:.1f} s).")


def _start_emulator(
    stack: ExitStack,
    azurite_endpoint: str | None,
    *,
    port: int,
    pools: Sequence[str] = (SYNAPSE_POOL,),
    master: str = MASTER,
    folder: Path | None = None,
    say: _Say,
) -> tuple[Livy, SynapseEmulator]:
    """Start Livy and what makes a Synapse of it; the stack stops both."""
    credential = Emulator(endpoint=azurite_endpoint) if azurite_endpoint else Emulator()
    datastore = Datastore(root=f"az://{CONTAINER}", cloud="emulator", credential=credential)
    started = time.monotonic()
    livy = Livy(
        folder=folder and folder / "livy", master=master, spark_conf=spark_conf_for(datastore)
    )
    stack.enter_context(livy)
    synapse = SynapseEmulator(
        folder=folder and folder / "synapse", port=port, livy_url=livy.url, pools=pools
    )
    stack.enter_context(synapse)
    say(
        f"Synapse's Spark pools answer on {synapse.endpoint} "
        f"({time.monotonic() - started:.1f} s): {', '.join(pools)} on {master}, with the bearer "
        f"token '{EMULATOR_TOKEN}'. Their batches open Azurite on {credential.endpoint}."
    )
    return livy, synapse


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


def _usage(hdfs: Hdfs) -> str:
    return f"""
To use Azurite, in another terminal:
  export {settings.DEPLOYMENT}=emulated
To use HDFS:
  export {settings.DEPLOYMENT}=emulated
  export {settings.DATASTORE}={hdfs.url}/synapse_assets
Then as always: make run, make ui. Ctrl-C stops all of them.
"""
