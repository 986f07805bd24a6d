"""A batch: a step that was handed to a compute target, seen from the orchestrator."""

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import dagster as dg

from synapse_assets.datastore import Datastore
from synapse_assets.datastore.datastore import ATTEMPTS

# What the record of an attempt holds beside the name of its last submission.
_KEPT = ("fingerprint", "bundle", "extras", "run_id", "batch_id")


class BatchState(Enum):
    """The states of a batch, on every target."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"
    VANISHED = "vanished"

    @property
    def is_final(self) -> bool:
        """Whether the batch will never run again."""
        return self in (BatchState.ENDED, BatchState.VANISHED)


@dataclass(frozen=True)
class Submission:
    """A request for a batch: what is asked for, and the files that tell what came of it.

    Attributes:
        datastore: Where the files lie.
        attempt: Key of the attempt, the same for every re-execution of a run.
        name: Its name and that of its batch, which no other submission has.
        fingerprint: Hash of what is to be done.
        bundle: Location of the bundle.
        extras: Locations of what the target needs beside it; vacuum keeps both.
        run_id: The run that asks.
        batch_id: Id of the batch, an opaque string; None until the service has told it.
    """

    datastore: Datastore
    attempt: str
    name: str
    fingerprint: str
    bundle: str
    extras: Sequence[str]
    run_id: str
    batch_id: str | None = None

    @classmethod
    def new(cls, datastore: Datastore, attempt: str, **values: Any) -> "Submission":
        """Return a submission of an attempt that was never made before."""
        return cls(datastore, attempt, f"{attempt}-{uuid.uuid4().hex[:8]}", **values)

    @classmethod
    def last(cls, datastore: Datastore, attempt: str) -> "Submission | None":
        """Return the last submission of an attempt, None if there is none."""
        text = datastore.storage().read_text(datastore.uri(ATTEMPTS, attempt, "record.json"))
        record = {} if text is None else json.loads(text)
        # One of an earlier release says less: its files are not where they are looked for now.
        if not {"submission", *_KEPT} <= record.keys():
            return None
        kept = {name: record[name] for name in _KEPT}
        return cls(datastore, attempt, record["submission"], **kept)

    def save(self) -> None:
        """Store it as the last one of its attempt."""
        record = {"submission": self.name, **{name: getattr(self, name) for name in _KEPT}}
        self._write(self.datastore.uri(ATTEMPTS, self.attempt, "record.json"), record)

    def uri(self, name: str) -> str:
        """Return the location of one of its files."""
        return self.datastore.uri(ATTEMPTS, self.attempt, self.name, name)

    @property
    def job_file(self) -> str:
        """Location of what the runner is told to do."""
        return self.uri("job.json")

    @property
    def output(self) -> str:
        """Location of the folder for what a step on a cluster says."""
        return self.uri("output")

    def locations(self) -> dict[str, str]:
        """Return what the runner is told of where its files are to lie, as in the job file."""
        return {
            "manifest": self.uri("manifest.json"),
            "failure": self.uri("failure.json"),
            "claim": self.uri("claim"),
            "output": self.output,
        }

    def write_job(self, job: Mapping[str, Any]) -> None:
        """Store what the runner is to do."""
        self._write(self.job_file, job)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return what one of its JSON files holds, None if it is not there."""
        text = self.datastore.storage().read_text(self.uri(name))
        return None if text is None else json.loads(text)

    def manifest(self) -> dict[str, Any] | None:
        """Return the proof that the step has finished, None if there is none."""
        return self.read("manifest.json")

    def _write(self, uri: str, value: Mapping[str, Any]) -> None:
        self.datastore.storage().write_atomically(uri, json.dumps(value, indent=1).encode())


class Batch(ABC):
    """The batch of one submission: the verbs of its target.

    The life cycle of an attempt is built on them.

    Attributes:
        keeps_messages: Whether what a step said can be read again after it has ended.
        submission: What asks for it.
        id: Its id; empty until it is known.
    """

    keeps_messages: ClassVar[bool] = False

    def __init__(self, submission: Submission) -> None:
        """Create it; nothing is contacted."""
        self.submission = submission
        self.id = submission.batch_id or ""

    @abstractmethod
    def submit(self) -> str:
        """Start one batch, and only one, and return its id.

        Raises:
            StepFailedError: The service does not take it; none was started.
        """

    @abstractmethod
    def find(self) -> str | None:
        """Return the id of a batch whose answer was lost, None if there is none."""

    @abstractmethod
    def get_state(self) -> BatchState:
        """Return its state; VANISHED if nothing knows of it any more."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Return when it may have changed its state, after `seconds` at the latest."""

    @abstractmethod
    def cancel(self) -> None:
        """Stop it, and return when nothing of it runs any more."""

    @abstractmethod
    def describe_end(self) -> str:
        """Return how it ended and the tail of its log, for the message of a failure."""

    def message_reader(self) -> dg.PipesMessageReader:
        """Return what brings the step's messages, and on a cluster its output, to this process."""
        return dg.PipesTempFileMessageReader()

    def describe_use(self) -> Mapping[str, Any]:
        """Return metadata of the assets about it: links, what it used and what it cost."""
        return {}
