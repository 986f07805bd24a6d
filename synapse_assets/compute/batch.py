"""A batch: a step that was handed to a compute target, seen from the orchestrator."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum


class BatchState(Enum):
    """The states of a batch, on every target."""

    RUNNING = "running"
    ENDED = "ended"
    VANISHED = "vanished"

    @property
    def is_final(self) -> bool:
        """Whether the batch will never run again."""
        return self is not BatchState.RUNNING


@dataclass(frozen=True)
class Submission:
    """What a target needs to start a batch.

    Attributes:
        name: Name of the batch, which carries the attempt's key.
        bundle: Location of the bundle.
        job_file: Location of the job file.
    """

    name: str
    bundle: str
    job_file: str


class BatchService(ABC):
    """The verbs of one target. The life cycle of an attempt is built on them, once for all.

    Batch ids are opaque strings.
    """

    @abstractmethod
    def submit(self, submission: Submission) -> str:
        """Start a batch and return its id."""

    @abstractmethod
    def get_state(self, batch_id: str) -> BatchState:
        """Return the state of a batch; VANISHED for an id that the service does not know."""

    @abstractmethod
    def wait(self, batch_id: str, *, seconds: float) -> None:
        """Return when the batch may have changed its state, after `seconds` at the latest."""

    @abstractmethod
    def cancel(self, batch_id: str) -> None:
        """Stop a batch, and return when nothing of it runs any more."""

    @abstractmethod
    def describe_end(self, batch_id: str) -> str:
        """Return how a batch ended and the tail of its log, for the message of a failure."""
