"""Stores and services of which a part can be broken."""

import uuid
from collections.abc import Iterator

import pytest

from synapse_assets.datastore import Datastore
from synapse_assets.services import Azurite, Hdfs, SynapseEmulator
from synapse_assets_tests.real.fake_livy import FakeLivy
from synapse_assets_tests.real.faults import Setup, setup_of
from synapse_assets_tests.real.haste import hurried
from synapse_assets_tests.real.pool_bench import Bench


@pytest.fixture
def setup(azurite: Azurite) -> Iterator[Setup]:
    with setup_of(azurite) as made:
        yield made


@pytest.fixture
def on_hdfs(hdfs: Hdfs) -> Iterator[Datastore]:
    yield Datastore(root=f"{hdfs.url}/faults-{uuid.uuid4().hex[:8]}")
    hdfs.start()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    pools = [f"spark{number}" for number in range(500)]
    with hurried(), FakeLivy() as fake, SynapseEmulator(livy_url=fake.url, pools=pools) as emulator:
        yield Bench(fake, emulator, tmp_path_factory.mktemp("faults"))
