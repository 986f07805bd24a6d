"""What holds after every fault of a store."""

import contextlib
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import commit, resolve
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import Emulator
from synapse_assets.errors import StorageError
from synapse_assets.services import Azurite
from synapse_assets.services.azurite import ACCOUNT, ACCOUNT_KEY
from synapse_assets_tests.datasets.staging import values_of
from synapse_assets_tests.real.fault_proxy import FaultProxy

CONTAINER = "faults"
SLOT = Slot("table")
# The library of Delta and the SDK of Azure wait for half a minute each, and a commit uses both.
LONGEST_SECONDS = 75.0
MIB = 1 << 20


def assert_explains(error: BaseException, *, location: str) -> None:
    """Check that an error says what, where and what to do, and that no secret is in it."""
    message = str(error)
    assert message.startswith(("Could not ", "Cannot ")), message
    assert location in message
    assert "\n" not in message
    assert "\x1b" not in message
    assert message.count(". ") >= 1, f"no remedy: {message}"
    shown = unquote("".join(traceback.format_exception(error)))
    assert ACCOUNT_KEY not in shown
    assert "sig=" not in shown
    assert "Bearer " not in shown


def try_commit(
    datastore: Datastore, staged: StagedDataset, slot: Slot = SLOT
) -> StorageError | None:
    """Commit and return the error if there is one, which has to be a good one."""
    try:
        commit(datastore, staged, slot=slot)
    except StorageError as e:
        assert_explains(e, location=f"/{slot.name}")
        return e
    return None


def assert_made_once(
    datastore: Datastore, staged: StagedDataset, *, was_told: bool, slot: Slot = SLOT
) -> int:
    """Check a table of version 0 after a commit with a fault, and finish it.

    Returns how many versions the commit with the fault had made.
    """
    newest = resolve(datastore, slot.name)
    made = newest.version
    assert made == 1 if was_told else made in (0, 1)
    assert values_of(datastore, newest) == [made + 1]
    for _ in range(2):
        assert commit(datastore, staged, slot=slot).version == 1
    after = resolve(datastore, slot.name)
    assert (after.version, values_of(datastore, after)) == (1, [2])
    assert values_of(datastore, resolve(datastore, slot.name, version=0)) == [1]
    return made


def azurite_at(endpoint: str, folder: str) -> Datastore:
    return Datastore(
        root=f"az://{CONTAINER}/{folder}", cloud="emulator", credential=Emulator(endpoint=endpoint)
    )


@dataclass(frozen=True)
class Setup:
    """One place, reached through a proxy and past it."""

    proxy: FaultProxy
    broken: Datastore
    direct: Datastore


@contextlib.contextmanager
def setup_of(azurite: Azurite) -> Iterator[Setup]:
    azurite.create_container(CONTAINER)
    folder = uuid.uuid4().hex[:12]
    with FaultProxy(port=azurite.port) as proxy:
        broken = azurite_at(proxy.endpoint(ACCOUNT), folder)
        yield Setup(proxy, broken, azurite_at(azurite.endpoint, folder))


def later(seconds: float, action: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        time.sleep(seconds)
        action()

    thread = threading.Thread(target=run)
    thread.start()
    return thread
