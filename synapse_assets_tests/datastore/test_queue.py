"""The queue of a real Azurite."""

import time
import uuid

import pytest

from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import Emulator
from synapse_assets.datastore.queue import Receipt, StorageQueue
from synapse_assets.errors import StorageError
from synapse_assets.services import Azurite

pytestmark = pytest.mark.services


@pytest.fixture
def queue(azurite: Azurite) -> StorageQueue:
    credential = Emulator(endpoint=azurite.endpoint, queue_endpoint=azurite.queue_endpoint)
    datastore = Datastore(root="az://any", cloud="emulator", credential=credential)
    return datastore.storage_queue(f"queue-{uuid.uuid4().hex[:12]}")


def test_messages_stay_until_they_are_deleted(queue: StorageQueue) -> None:
    bodies = [f"<{number}> & ü" for number in range(70)]
    for body in bodies:
        queue.put(body)
    received = queue.receive(at_most=65, hidden_seconds=60)
    assert [message.body for message in received] == bodies[:65]
    assert {message.received for message in received} == {1}
    queue.delete(message.receipt for message in received)
    assert len(queue.receive(at_most=100, hidden_seconds=60)) == 5


def test_a_message_comes_again_and_its_old_receipt_is_void(queue: StorageQueue) -> None:
    queue.put("again")
    (first,) = queue.receive(at_most=1, hidden_seconds=1)
    assert queue.receive(at_most=1, hidden_seconds=1) == []
    time.sleep(1.2)
    (second,) = queue.receive(at_most=1, hidden_seconds=60)
    assert (second.receipt.id, second.received) == (first.receipt.id, 2)
    queue.delete([first.receipt])
    queue.delete([second.receipt])
    # Both are gone now, and a third delete is for nothing.
    queue.delete([first.receipt, second.receipt, Receipt("unknown", first.receipt.pop_receipt)])


def test_nothing_is_asked_for_nothing(queue: StorageQueue) -> None:
    assert queue.receive(at_most=0, hidden_seconds=60) == []


def test_a_queue_that_is_not_there_is_named(queue: StorageQueue) -> None:
    with pytest.raises(StorageError, match=f"Create the queue '{queue.name}'"):
        queue.receive(at_most=1, hidden_seconds=60)
    queue.create()
    queue.create()
    assert queue.receive(at_most=1, hidden_seconds=60) == []
