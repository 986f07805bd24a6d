"""What `synapse-assets services` does: run the storage services until it is told to stop."""

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from synapse_assets import settings
from synapse_assets.services import CONTAINER
from synapse_assets.services.azurite import Azurite
from synapse_assets.services.downloads import (
    fetch_abfs_jars,
    fetch_azurite,
    fetch_hdfs_jars,
    locked,
    services_folder,
)
from synapse_assets.services.hdfs import Hdfs
from synapse_assets.services.process import choose_port

# The ports that the clients of Azurite and HDFS take if none is given.
AZURITE_PORT = 10_000
AZURITE_QUEUE_PORT = 10_001
HDFS_PORT = 8020

_CHECK_SECONDS = 1.0


def run_services(
    *,
    azurite_port: int = AZURITE_PORT,
    azurite_queue_port: int = AZURITE_QUEUE_PORT,
    hdfs_port: int = HDFS_PORT,
    data: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Fetch and start Azurite and HDFS, say how to use them, and stop them on Ctrl-C or SIGTERM.

    Their data is kept for the next time.

    Args:
        azurite_port: Where Azurite's Blob endpoint listens.
        azurite_queue_port: Where Azurite's Queue endpoint listens.
        hdfs_port: Where the NameNode listens for clients.
        data: Keeps the data; None for a folder beside the downloads.
        say: Takes each line of progress.

    Raises:
        ConfigurationError: A port is taken, a program is missing, or the services run already.
        SynapseAssetsError: A service did not start, or ended.
    """
    # SIGTERM as Ctrl-C: the services are stopped on the way out.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    data = data or services_folder() / "data"
    busy = f"The services run already: another process works on {data}."
    try:
        with locked(data / ".lock", busy=busy), ExitStack() as stack:
            # Whatever would stop them is looked for before the downloads.
            for port in (azurite_port, azurite_queue_port):
                choose_port(port, server="Azurite")
            choose_port(hdfs_port, server="HDFS")
            fetch_all(say)
            azurite = Azurite(
                folder=data / "azurite", port=azurite_port, queue_port=azurite_queue_port
            )
            started = time.monotonic()
            stack.enter_context(azurite)
            azurite.create_container(CONTAINER)
            say(f"Azurite answers on {azurite.endpoint} ({time.monotonic() - started:.1f} s).")
            hdfs = Hdfs(folder=data / "hdfs", port=hdfs_port)
            started = time.monotonic()
            stack.enter_context(hdfs)
            say(f"HDFS answers on {hdfs.url} ({time.monotonic() - started:.1f} s).")
            say(_usage(hdfs))
            while True:
                time.sleep(_CHECK_SECONDS)
                azurite.server.check()
                hdfs.check()
    except KeyboardInterrupt:
        say("Stopped. The data is kept for the next time.")
    finally:
        signal.signal(signal.SIGTERM, previous)


def fetch_all(say: Callable[[str], None]) -> None:
    """Fetch what the services and Spark's driver for Azure storage are made of, unless it is here.

    Raises:
        ConfigurationError: A program is missing, or something could not be fetched.
    """
    for what, fetch in (
        ("Azurite", fetch_azurite),
        ("HDFS", fetch_hdfs_jars),
        ("Spark's ABFS driver", fetch_abfs_jars),
    ):
        say(f"Looking for {what} ...")
        started = time.monotonic()
        fetch()
        say(f"{what} is here ({time.monotonic() - started:.1f} s).")


def _usage(hdfs: Hdfs) -> str:
    return f"""
To use Azurite, in another terminal:
  export {settings.DEPLOYMENT}=emulated
To use HDFS:
  export {settings.DEPLOYMENT}=emulated
  export {settings.DATASTORE}={hdfs.url}/synapse_assets
Then as always: make run, make ui. Ctrl-C stops both.
"""
