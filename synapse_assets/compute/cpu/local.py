"""A CPU on this machine: each step in a subprocess."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import dagster as dg

from synapse_assets.compute.batch import Batch, Submission
from synapse_assets.compute.cpu.options import CpuOptions
from synapse_assets.compute.options import asked
from synapse_assets.compute.process import LocalBatch
from synapse_assets.compute.target import ComputeTarget


class LocalCpu(ComputeTarget):
    """Runs each step in a Python subprocess of its own.

    A step's environment variables and arguments hold here too. What else it asks for is of a
    cluster's nodes and of their containers, and there are none: it runs once, with this machine's
    memory and packages.
    """

    engine: ClassVar[Literal["spark", "python"]] = "python"

    def asked(self, options: dg.Config | None = None) -> CpuOptions:
        return asked(options, CpuOptions(), of="LocalCpu")

    def check(self, options: CpuOptions) -> None:
        options.check()

    def surroundings(self, options: CpuOptions) -> Mapping[str, Any]:
        return {
            **super().surroundings(options),
            "environment_variables": options.environment_variables or {},
            "arguments": options.arguments or [],
        }

    def batch(self, submission: Submission, options: CpuOptions) -> Batch:
        return LocalBatch(submission, environment=lambda _: options.environment_variables or {})
