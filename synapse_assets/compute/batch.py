"""A batch: a step that was handed to a compute target, seen from the orchestrator."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import dagster as dg


class BatchState(Enum):
    """The states of a batch, on every target."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"
    VANISHED = "vanished"
    UNKNOWN = "out of reach"

    @property
    def is_final(self) -> bool:
        """Whether the batch will never run again."""
        return self in (BatchState.ENDED, BatchState.VANISHED)


@dataclass(frozen=True)
class Submission:
    """What a target needs to start a batch.

    Attributes:
        name: Name of the batch, which no other submission has.
        attempt: Key of the attempt.
        bundle: Location of the bundle.
        extras: Locations of what the target needs beside it.
        job_file: Location of the job file.
        output: Location of the folder for what a step on a cluster says.
    """

    name: str
    attempt: str
    bundle: str
    extras: tuple[str, ...]
    job_file: str
    output: str


class BatchService(ABC):
    """The verbs of one target for one step. The life cycle of an attempt is built on them.

    Batch ids are opaque strings.

    Attributes:
        keeps_messages: Whether what a step said can be read again after it has ended.
    """

    keeps_messages: ClassVar[bool] = False

    @abstractmethod
    def submit(self, submission: Submission) -> str:
        """Start one batch, and only one, and return its id.

        Raises:
            StepFailedError: The service does not take it; none was started.
        """

    @abstractmethod
    def find(self, submission: Submission) -> str | None:
        """Return the id of the batch of a submission whose answer was lost, None if none is."""

    @abstractmethod
    def get_state(self, batch_id: str, submission: Submission) -> BatchState:
        """Return the state of a submission's batch; VANISHED if nothing knows of it any more.

        UNKNOWN if it could not be asked and was never heard of before.
        """

    @abstractmethod
    def wait(self, batch_id: str, *, seconds: float) -> None:
        """Return when the batch may have changed its state, after `seconds` at the latest."""

    @abstractmethod
    def cancel(self, batch_id: str, submission: Submission) -> None:
        """Stop a batch, and return when nothing of it runs any more."""

    @abstractmethod
    def describe_end(self, batch_id: str) -> str:
        """Return how a batch ended and the tail of its log, for the message of a failure."""

    def message_reader(self, submission: Submission) -> dg.PipesMessageReader:
        """Return what brings the step's messages, and on a cluster its output, to this process."""
        return dg.PipesTempFileMessageReader()

    def describe_use(self, batch_id: str) -> Mapping[str, Any]:
        """Return metadata of the assets about the batch: links, what it used and what it cost."""
        return {}
