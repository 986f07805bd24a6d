"""One datastore in every store, fresh for every test."""

from pathlib import Path

import pytest

from synapse_assets.datastore import Datastore
from synapse_assets_tests.contract.stores import STORES, Store


@pytest.fixture(params=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(request.param, tmp_path)


@pytest.fixture
def datastore(store: Store) -> Datastore:
    return store.open()
