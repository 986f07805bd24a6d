"""A CPU on this machine: each step in a subprocess."""

from typing import ClassVar, Literal

from synapse_assets.compute.batch import BatchService
from synapse_assets.compute.process import LocalProcesses
from synapse_assets.compute.target import ComputeTarget


class LocalCpu(ComputeTarget):
    """Runs each step in a Python subprocess of its own."""

    engine: ClassVar[Literal["spark", "python"]] = "python"

    def batch_service(self) -> BatchService:
        """Return the subprocesses of this machine."""
        return LocalProcesses(self.datastore)
