"""What all targets behind a service have in common: their batches outlive the orchestrator."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import dagster as dg
from pydantic import ConfigDict, Field

from synapse_assets.compute.batch import Batch, BatchState, Submission
from synapse_assets.compute.batches import ServiceBatch
from synapse_assets.compute.client import BatchClient, RemoteBatch
from synapse_assets.compute.explanations import Explanation
from synapse_assets.compute.target import ComputeTarget

_DAY = 24 * 60 * 60.0


class RemoteTarget(ComputeTarget):
    """A service that runs batches, with a limit to each phase of them."""

    model_config = ConfigDict(hide_input_in_errors=True)

    # What messages call a batch.
    unit: ClassVar[str] = "batch"

    queued_timeout_seconds: float = Field(
        default=_DAY, gt=0, description="How long a batch may wait for its turn, in seconds."
    )
    starting_timeout_seconds: float = Field(
        default=30 * 60.0, gt=0, description="How long a batch may take to start, in seconds."
    )
    ending_timeout_seconds: float = Field(
        default=5 * 60.0, gt=0, description="How long a batch may take to end, in seconds."
    )
    unreachable_timeout_seconds: float = Field(
        default=10 * 60.0,
        gt=0,
        description="How long the service may be out of reach while a batch runs, in seconds.",
    )
    orphaned_timeout_seconds: float = Field(
        default=15 * 60.0,
        ge=0,
        description="How long a batch may go on without a run before the sweeper cancels it, in "
        "seconds: so long a re-execution can adopt it.",
    )

    @abstractmethod
    def client(self) -> BatchClient:
        """Return the client of the service.

        Raises:
            ConfigurationError: The credential is no identity.
        """

    @property
    @abstractmethod
    def place(self) -> str:
        """What messages call the service."""

    @abstractmethod
    def request(self, submission: Submission, options: Any) -> Mapping[str, Any]:
        """Return the request of a batch, in the words of the client."""

    @abstractmethod
    def describe(self, batch: RemoteBatch, options: Any) -> Mapping[str, Any]:
        """Return metadata about a batch: links, what it used and what it cost."""

    def explain(self, text: str) -> Explanation | None:
        """Return the cause that messages and a log's tail speak of, None if it is not known."""
        return None

    def limits(self) -> dict[BatchState, float]:
        """Return how long a batch may be in each of its states, in seconds."""
        return {
            BatchState.QUEUED: self.queued_timeout_seconds,
            BatchState.STARTING: self.starting_timeout_seconds,
            BatchState.RUNNING: self.timeout_seconds,
            BatchState.ENDING: self.ending_timeout_seconds,
        }

    def batch(self, submission: Submission, options: Any) -> Batch:
        """Return the batch of a submission, as its service knows it."""
        return ServiceBatch(self, submission, options)


def describe_batch(
    batch: RemoteBatch, size: Mapping[str, int], *, price: float | None
) -> dict[str, Any]:
    """Return the metadata that every batch has.

    Args:
        batch: The batch.
        size: How many of what it held, as {'vcores': 8}.
        price: What one of them costs in an hour, if it is known.
    """
    ((name, count),) = size.items()
    metadata: dict[str, Any] = {
        "batch": dg.MetadataValue.text(batch.id),
        name: dg.MetadataValue.int(count),
        **{link: dg.MetadataValue.url(url) for link, url in batch.links.items()},
    }
    if batch.application_id:
        metadata["application_id"] = dg.MetadataValue.text(batch.application_id)
    if batch.seconds is not None:
        used = count * batch.seconds
        metadata[f"{name.removesuffix('s')}_seconds"] = dg.MetadataValue.float(round(used, 1))
        if price is not None:
            metadata["cost"] = dg.MetadataValue.float(round(used / 3600 * price, 6))
    return metadata
