"""One datastore in every store, fresh for every test; and every compute target."""

import os
from pathlib import Path

import pytest

from synapse_assets.datastore import Datastore
from synapse_assets_tests.contract.stores import AZURITE, CONTAINER, HDFS, STORES, Store
from synapse_assets_tests.contract.targets import LIVY, SYNAPSE, TARGETS, Target, parameters

_SERVICES = {"azurite", "hdfs"}


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.services] if name in _SERVICES else [])
        for name in STORES
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(request, request.param, folder=tmp_path)


def open_store(request: pytest.FixtureRequest, name: str, *, folder: Path) -> Store:
    """Return a store of `folder`'s own, whose service is started if it is not there yet."""
    variables = {}
    if name in _SERVICES:
        service = request.getfixturevalue(name)
        if name == "azurite":
            service.create_container(CONTAINER)
            variables = {AZURITE: service.endpoint}
        else:
            variables = {HDFS: service.url}
    os.environ.update(variables)
    return Store(name, folder, variables)


@pytest.fixture
def datastore(store: Store) -> Datastore:
    return store.open()


@pytest.fixture(params=parameters(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    target = TARGETS[request.param]
    if "livy" in target.services:
        os.environ[LIVY] = request.getfixturevalue("livy").url
    if "azureml" in target.services:
        request.getfixturevalue("azureml")
    if "synapse_emulator" in target.services:
        os.environ[SYNAPSE] = request.getfixturevalue("synapse_emulator").endpoint
    return target


@pytest.fixture
def target_store(request: pytest.FixtureRequest, target: Target, tmp_path: Path) -> Store:
    """The store that the target is tried with."""
    return open_store(request, target.store, folder=tmp_path)
