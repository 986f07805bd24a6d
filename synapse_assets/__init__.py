"""Azure ML's pipeline of a Spark step and a CPU step, as Dagster software-defined assets.

The names below are what a user's own code imports. They load on first use, so that importing
the package costs nothing where only a part of it is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synapse_assets.compute.completed import CompletedStep
    from synapse_assets.compute.cpu.local import LocalCpu
    from synapse_assets.compute.spark.local import LocalSpark
    from synapse_assets.compute.spark.options import SparkOptions
    from synapse_assets.compute.spark.pool import LivySparkPool, SynapseSparkPool
    from synapse_assets.compute.step import Step
    from synapse_assets.compute.target import ComputeTarget
    from synapse_assets.datasets.attempt import StagedDataset
    from synapse_assets.datasets.io_manager import DatasetIOManager
    from synapse_assets.datasets.version import DataFile, DatasetVersion
    from synapse_assets.datastore.datastore import Datastore

_MODULES = {
    "CompletedStep": "synapse_assets.compute.completed",
    "ComputeTarget": "synapse_assets.compute.target",
    "DataFile": "synapse_assets.datasets.version",
    "DatasetIOManager": "synapse_assets.datasets.io_manager",
    "DatasetVersion": "synapse_assets.datasets.version",
    "Datastore": "synapse_assets.datastore.datastore",
    "LivySparkPool": "synapse_assets.compute.spark.pool",
    "LocalCpu": "synapse_assets.compute.cpu.local",
    "LocalSpark": "synapse_assets.compute.spark.local",
    "SparkOptions": "synapse_assets.compute.spark.options",
    "StagedDataset": "synapse_assets.datasets.attempt",
    "Step": "synapse_assets.compute.step",
    "SynapseSparkPool": "synapse_assets.compute.spark.pool",
}

__all__ = [
    "CompletedStep",
    "ComputeTarget",
    "DataFile",
    "DatasetIOManager",
    "DatasetVersion",
    "Datastore",
    "LivySparkPool",
    "LocalCpu",
    "LocalSpark",
    "SparkOptions",
    "StagedDataset",
    "Step",
    "SynapseSparkPool",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'synapse_assets' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
