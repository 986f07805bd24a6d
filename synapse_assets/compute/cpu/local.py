"""A CPU on this machine: each step in a subprocess."""

from typing import ClassVar, Literal

import dagster as dg

from synapse_assets.compute.batch import BatchService
from synapse_assets.compute.process import LocalProcesses
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.errors import ConfigurationError


class LocalCpu(ComputeTarget):
    """Runs each step in a Python subprocess of its own."""

    engine: ClassVar[Literal["spark", "python"]] = "python"

    def batch_service(self, options: dg.Config | None) -> BatchService:
        if options is not None:
            raise ConfigurationError(
                f"LocalCpu takes no options, and a step gives it {type(options).__name__}."
            )
        return LocalProcesses(self.datastore)
