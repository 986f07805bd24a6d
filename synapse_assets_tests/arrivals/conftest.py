"""A datastore in a folder and an instance of Dagster, fresh for every test."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from synapse_assets.datastore import Datastore
from synapse_assets_tests.arrivals.daemon import Daemon


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    return Datastore(root=str(tmp_path / "datastore"))


@pytest.fixture
def daemon(datastore: Datastore) -> Iterator[Daemon]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Daemon(instance, datastore)
