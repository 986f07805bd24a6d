"""A datastore in a folder, fresh for every test."""

from pathlib import Path

import pytest

from synapse_assets.datastore import Datastore


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    return Datastore(root=str(tmp_path / "datastore"))
