"""A CPU on this machine: what it takes of a step's options."""

from pathlib import Path

import dagster as dg
import pytest

from synapse_assets.compute.cpu import CpuOptions, LocalCpu
from synapse_assets.compute.step import Step
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import resolve
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ConfigurationError
from synapse_assets_tests.datasets.staging import numbers, put


def tell(datastore: Datastore, config: CpuOptions) -> None:
    """Materialize what a step is told of its surroundings."""

    @dg.asset
    def told(
        context: dg.AssetExecutionContext, cpu: LocalCpu, config: CpuOptions
    ) -> dg.MaterializeResult[StagedDataset]:
        step = Step("synapse_assets_tests.example_steps.on_node:tell")
        inputs = {"numbers": resolve(cpu.datastore, "numbers")}
        done = cpu.run(step, context=context, inputs=inputs, options=config)
        return done.get_materialize_result()

    dg.materialize(
        [told],
        resources={
            "cpu": LocalCpu(datastore=datastore),
            "io_manager": DatasetIOManager(datastore=datastore),
        },
        run_config={"ops": {"told": {"config": config.set_values()}}},
    )


def test_step_gets_arguments_and_variables_as_on_a_cluster(tmp_path: Path) -> None:
    datastore = Datastore(root=str(tmp_path))
    uri = put(datastore, Slot("numbers"), numbers(1, 2, 3)).uri
    tell(
        datastore,
        CpuOptions(
            arguments=["--numbers", "${{inputs.numbers}}"],
            environment_variables={"GREETING": "hello"},
            # There is no cluster to hold three nodes of.
            instance_count=3,
            memory="1g",
        ),
    )
    text = datastore.storage().read_text(resolve(datastore, "told").file("lines.txt"))
    assert text == f"--numbers\n{uri}\n{uri}\n{uri}\nhello\n3"


def test_options_are_checked_as_for_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="instance_count"):
        LocalCpu(datastore=Datastore(root=str(tmp_path))).check(CpuOptions(instance_count=0))
