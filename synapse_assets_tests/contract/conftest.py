"""One datastore in every store, fresh for every test."""

import os
from pathlib import Path

import pytest

from synapse_assets.datastore import Datastore
from synapse_assets_tests.contract.stores import AZURITE, CONTAINER, HDFS, STORES, Store

_SERVICES = {"azurite", "hdfs"}


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.services] if name in _SERVICES else [])
        for name in STORES
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    name = request.param
    variables = {}
    if name in _SERVICES:
        service = request.getfixturevalue(name)
        if name == "azurite":
            service.create_container(CONTAINER)
            variables = {AZURITE: service.endpoint}
        else:
            variables = {HDFS: service.url}
    os.environ.update(variables)
    return Store(name, tmp_path, variables)


@pytest.fixture
def datastore(store: Store) -> Datastore:
    return store.open()
