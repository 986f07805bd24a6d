"""A code location with one job on a pool, for a real Dagster server.

POOL_TARGET and POOL_FOLDER in the environment name the target and the folder of its store; where
services answer is there, too. The run's config says which step runs.
"""

import os
from pathlib import Path
from typing import Any

import dagster as dg

from synapse_assets.compute.step import Step
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets_tests.contract.stores import STORES
from synapse_assets_tests.contract.targets import TARGETS

POOL_TARGET = "SYNAPSE_ASSETS_TEST_POOL_TARGET"
POOL_FOLDER = "SYNAPSE_ASSETS_TEST_POOL_FOLDER"


class Call(dg.Config):
    """A function of `example_steps.plain`, and what it is called with."""

    function: str
    parameters: dict[str, Any]


@dg.asset
def numbers(
    context: dg.AssetExecutionContext, config: Call, target: ComputeTarget
) -> dg.MaterializeResult[StagedDataset]:
    """Run the step on the pool."""
    step = Step(f"synapse_assets_tests.example_steps.plain:{config.function}", config.parameters)
    return target.run(step, context=context, inputs={}).get_materialize_result()


@dg.definitions
def definitions() -> dg.Definitions:
    """Return the asset, its job, and the resources that the environment names."""
    target = TARGETS[os.environ[POOL_TARGET]]
    datastore = STORES[target.store](Path(os.environ[POOL_FOLDER]))
    return dg.Definitions(
        assets=[numbers],
        jobs=[dg.define_asset_job("the_job", selection=[numbers])],
        resources={
            "target": target.make(datastore=datastore),
            "io_manager": DatasetIOManager(datastore=datastore),
        },
    )
