"""Azure Queue Storage: messages that are received, and deleted when their work is safe."""

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synapse_assets.datastore.blob import error_code, translate
from synapse_assets.datastore.storage import for_each_file, translated

if TYPE_CHECKING:
    from azure.storage.queue import QueueClient

# A request brings no more than this:
# https://learn.microsoft.com/rest/api/storageservices/get-messages
_PAGE = 32
# Who asks looks again a few seconds later, so a request that fails may say so soon.
_RETRIES = 3
_BACKOFF_SECONDS = 1
_CONNECTION_SECONDS = 5
_READ_SECONDS = 15
# Never: https://learn.microsoft.com/rest/api/storageservices/put-message
_NO_EXPIRY = -1


@dataclass(frozen=True)
class Receipt:
    """What deletes a message that was received.

    Attributes:
        id: The message's id.
        pop_receipt: Proof of this receipt; the next one, by whomever, makes it void.
    """

    id: str
    pop_receipt: str


@dataclass(frozen=True)
class Message:
    """A message as it was received.

    Attributes:
        receipt: What deletes it.
        body: Its text as it stands in the queue.
        received: How often it was received, this time included.
    """

    receipt: Receipt
    body: str
    received: int


class StorageQueue:
    """One queue of a storage account."""

    def __init__(self, *, url: str, name: str, credential: Any) -> None:
        """Create the client; nothing is contacted.

        Args:
            url: URL of the account's queue service.
            name: Name of the queue.
            credential: What the SDK logs in with, see `StorageCredential.queue_login`.
        """
        self.name = name
        self.url = f"{url}/{name}"
        self._account_url = url
        self._credential = credential

    def sibling(self, name: str) -> "StorageQueue":
        """Return another queue of the same account."""
        return StorageQueue(url=self._account_url, name=name, credential=self._credential)

    def receive(self, *, at_most: int, hidden_seconds: int) -> list[Message]:
        """Return messages, oldest first as far as the service keeps that; they stay in the queue.

        Args:
            at_most: The largest number of messages.
            hidden_seconds: How long nobody receives them again.

        Raises:
            StorageError: The queue is not there, refused it, or was out of reach.
        """
        with self._explained("receive from"):
            found = self._client.receive_messages(
                messages_per_page=min(at_most, _PAGE),
                max_messages=at_most,
                visibility_timeout=hidden_seconds,
            )
            return [
                Message(
                    receipt=Receipt(id=str(message.id), pop_receipt=str(message.pop_receipt)),
                    body=str(message.content),
                    received=int(message.dequeue_count or 1),
                )
                for message in found
            ]

    def delete(self, receipts: Iterable[Receipt]) -> None:
        """Delete messages; those that are gone, or were received again since, are left alone.

        Raises:
            StorageError: The queue is not there, refused it, or was out of reach.
        """
        with self._explained("delete from"):
            for_each_file(self._delete, receipts)

    def put(self, body: str) -> None:
        """Put a message that stays until it is deleted; the queue is made if it is not there.

        Raises:
            StorageError: The queue refused it, or was out of reach.
        """
        from azure.core.exceptions import ResourceNotFoundError

        with self._explained("write to"):
            try:
                self._client.send_message(body, time_to_live=_NO_EXPIRY)
            except ResourceNotFoundError:
                self.create()
                self._client.send_message(body, time_to_live=_NO_EXPIRY)

    def create(self) -> None:
        """Create the queue if it is not there.

        Raises:
            StorageError: The account refused it, or was out of reach.
        """
        from azure.core.exceptions import ResourceExistsError

        with self._explained("create"), contextlib.suppress(ResourceExistsError):
            self._client.create_queue()

    def _delete(self, receipt: Receipt) -> None:
        from azure.core.exceptions import HttpResponseError

        try:
            self._client.delete_message(receipt.id, receipt.pop_receipt)
        except HttpResponseError as e:
            # Deleted before, or in the hands of whoever received it since.
            if error_code(e) not in ("MessageNotFound", "PopReceiptMismatch"):
                raise

    @functools.cached_property
    def _client(self) -> "QueueClient":
        from azure.storage.queue import ExponentialRetry, QueueClient

        return QueueClient(
            self._account_url,
            self.name,
            self._credential,
            retry_policy=ExponentialRetry(
                initial_backoff=_BACKOFF_SECONDS,
                increment_base=2,
                retry_total=_RETRIES,
                random_jitter_range=1,
            ),
            connection_timeout=_CONNECTION_SECONDS,
            read_timeout=_READ_SECONDS,
        )

    def _explained(self, operation: str) -> contextlib.AbstractContextManager[None]:
        remedies = {
            "QueueNotFound": f"Create the queue '{self.name}', or choose another one.",
            "403": "Give the identity in use the role 'Storage Queue Data Contributor' on the "
            "account, or look at the account's firewall.",
            "other": "Look whether the account has queues and this machine reaches it.",
        }
        what = f"{operation} the queue"
        return translated(lambda error: translate(error, what, self.url, remedies))
