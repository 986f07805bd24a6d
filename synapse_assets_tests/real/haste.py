"""What lets a matrix of faults be tried in a minute."""

import contextlib
from collections.abc import Iterator

import pytest

from synapse_assets.compute import attempt, batches, calls, chunk_reader
from synapse_assets.compute.cpu import cluster
from synapse_assets_tests.real import fault_proxy


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Make what waits for seconds wait for tenths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_MIN_POLL_SECONDS", 0.05)
        patch.setattr(calls, "_PAUSES", (0.05, 0.1, 0.2, 0.3))
        patch.setattr(batches, "_LOOKS", (0.0, 0.1, 0.2, 0.3))
        patch.setattr(attempt, "_FIRST_POLL_SECONDS", 0.05)
        patch.setattr(chunk_reader, "_POLL_SECONDS", 0.05)
        patch.setattr(cluster, "_POLL_SECONDS", 0.1)
        patch.setattr(fault_proxy, "_DOWN_SECONDS", 0.3)
        patch.setattr(fault_proxy, "_TRICKLE_SECONDS", 0.3)
        yield
