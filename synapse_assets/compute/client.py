"""The seam to a service that runs batches: five verbs, and a batch as the service tells of it."""

import datetime as dt
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synapse_assets.compute.batch import BatchState

logger = logging.getLogger(__name__)

# Every state that Livy and Synapse have (azure-synapse-spark: LivyStates), and every status of
# Azure ML (JobStatus in mfe.json). One that is not here is not final. 'NotResponding' has lost its
# heartbeat, and may come back.
_STATES = {
    BatchState.QUEUED: "not_started NotStarted Scheduled Queued Paused",
    BatchState.STARTING: "starting Starting Provisioning Preparing",
    BatchState.RUNNING: "recovering running idle busy Running NotResponding Unknown",
    BatchState.ENDING: "shutting_down Finalizing CancelRequested",
    BatchState.ENDED: "success error dead killed Completed Failed Canceled",
}
STATES: Mapping[str, BatchState] = {
    word: state for state, words in _STATES.items() for word in words.split()
}
# Synapse's verdict, which is there also for a batch that never came to Livy.
_VERDICTS = ("Succeeded", "Failed", "Cancelled")


@dataclass(frozen=True)
class RemoteBatch:
    """A batch as its service tells of it.

    Attributes:
        id: Its id, an opaque string.
        state: Its state, in the service's own word.
        name: The name it was given; None where the service does not tell.
        result: Synapse's verdict: 'Uncertain' until there is one; None elsewhere.
        application_id: YARN's or Spark's id of the application, None until there is one.
        links: Pages about it, by the name of the metadata that shows them.
        log: The last lines of its log, where they come with it.
        errors: What the service says went wrong: 'message', 'errorCode', 'source'.
        started: When it got what it runs on, None where the service does not tell.
        ended: When it ended.
    """

    id: str
    state: str
    name: str | None = None
    result: str | None = None
    application_id: str | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    log: Sequence[str] = ()
    errors: Sequence[Mapping[str, str]] = ()
    started: dt.datetime | None = None
    ended: dt.datetime | None = None

    @property
    def phase(self) -> BatchState:
        """Its state in our words; one that is unknown here is taken to run."""
        if self.result in _VERDICTS:
            return BatchState.ENDED
        if self.state not in STATES:
            _tell_unknown(self.state)
        return STATES.get(self.state, BatchState.RUNNING)

    @property
    def seconds(self) -> float | None:
        """How long it held what it ran on, None where the service does not tell."""
        if self.started is None or self.ended is None:
            return None
        return (self.ended - self.started).total_seconds()


@functools.cache
def _tell_unknown(state: str) -> None:
    logger.warning("The state '%s' of a batch, which is unknown here, is taken for running.", state)


@dataclass(frozen=True)
class LogTail:
    """The end of a batch's log.

    Attributes:
        lines: The lines.
        earlier: How many come before them.
    """

    lines: Sequence[str]
    earlier: int = 0


class BatchClient(ABC):
    """The five verbs. Each sends a request once; whoever calls decides what to do about errors.

    Every verb raises a `CallError` if the request did not succeed.

    Attributes:
        page_size: How many batches a list has at once.
        forgets_deleted: Whether a batch that was deleted is not found any more, and has ended then.
        names_are_ids: Whether a second request for the same name starts nothing.
    """

    page_size = 100
    forgets_deleted = False
    names_are_ids = False

    @abstractmethod
    def post_batch(self, request: Mapping[str, Any]) -> RemoteBatch:
        """Ask for a batch, in the service's own fields; 'tags' are left out where unknown."""

    @abstractmethod
    def get_batch(self, batch_id: str) -> RemoteBatch:
        """Return a batch."""

    @abstractmethod
    def list_batches(self, start: int) -> tuple[list[RemoteBatch], int]:
        """Return up to `page_size` batches from number `start` on, and how many there are."""

    @abstractmethod
    def delete_batch(self, batch_id: str) -> None:
        """End a batch."""

    @abstractmethod
    def get_batch_logs(self, batch_id: str, *, size: int) -> LogTail:
        """Return the end of a batch's log, `size` lines of it or more if there are so many."""

    def complete(self, batch: RemoteBatch) -> RemoteBatch:
        """Return a batch with what the service tells only of one at its end."""
        return batch

    def find_batches(self, name: str) -> list[RemoteBatch]:
        """Return the batches of a submission; a name of one's own may come before its name."""
        return [batch for batch in self.all_batches() if (batch.name or "").endswith(name)]

    def all_batches(self) -> Iterator[RemoteBatch]:
        """Yield every batch that the service knows, page by page."""
        start, total = 0, 1
        while start < total:
            page, total = self.list_batches(start)
            yield from page
            if not page:
                return
            start += len(page)
