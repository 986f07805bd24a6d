"""The real services, one of each for all tests of a session.

A service that cannot be had skips its tests, and says why. SYNAPSE_ASSETS_REQUIRE_SERVICES=1, which
CI sets, makes it a failure.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import Emulator
from synapse_assets.errors import ConfigurationError
from synapse_assets.services import (
    ABFS_JARS,
    AzureMLStandIn,
    Azurite,
    Hdfs,
    Livy,
    SynapseEmulator,
    spark_conf_for,
)


@contextmanager
def skipping_without_services() -> Iterator[None]:
    """Skip the test, or fail it where services are required, when one cannot be had."""
    try:
        yield
    except ConfigurationError as e:
        if os.environ.get("SYNAPSE_ASSETS_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """An Azurite that may be killed, as long as it is started again."""
    with skipping_without_services():
        server = Azurite(folder=tmp_path_factory.mktemp("azurite"), durable=True)
        server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    """An HDFS whose servers may be killed, as long as they are started again."""
    with skipping_without_services():
        servers = Hdfs(folder=tmp_path_factory.mktemp("hdfs"))
        servers.start()
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def spark_abfs_jars() -> list[Path]:
    """The jars that go first on Spark's classpath for the ABFS driver."""
    with skipping_without_services():
        return ABFS_JARS.jars()


@pytest.fixture(scope="session")
def livy(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Livy]:
    """A Livy whose batches open Azurite, and what tests keep on this machine."""
    datastore = Datastore(
        root="az://any/any", cloud="emulator", credential=Emulator(endpoint=azurite.endpoint)
    )
    with skipping_without_services():
        server = Livy(
            folder=tmp_path_factory.mktemp("livy"),
            spark_conf=spark_conf_for(datastore),
            local_folders=[tmp_path_factory.getbasetemp()],
        )
        server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def synapse_emulator(
    livy: Livy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SynapseEmulator]:
    """A Synapse workspace with one Spark pool, whose batches run on that Livy."""
    server = SynapseEmulator(livy_url=livy.url, folder=tmp_path_factory.mktemp("synapse"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def azureml(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureMLStandIn]:
    """An Azure ML workspace whose nodes open Azurite."""
    datastore = Datastore(
        root="az://any/any", cloud="emulator", credential=Emulator(endpoint=azurite.endpoint)
    )
    server = AzureMLStandIn(
        node_variables=datastore.process_environment(), folder=tmp_path_factory.mktemp("azureml")
    )
    server.start()
    os.environ.update(server.client_variables)
    yield server
    server.stop()
