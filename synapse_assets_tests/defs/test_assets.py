from typing import Any

import dagster as dg
import pytest

from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.defs.titanic.assets import survival_model


class RecordingCpu:
    """Stands in for a compute target, to see what an asset asks of it."""

    def __init__(self) -> None:
        self.inputs: dict[str, DatasetVersion] = {}

    def run(self, _step: Any, *, context: Any, inputs: dict[str, DatasetVersion]) -> "RecordingCpu":
        del context
        self.inputs = inputs
        return self

    def get_materialize_result(self) -> dg.MaterializeResult[Any]:
        return dg.MaterializeResult()


@pytest.mark.parametrize(
    ("there", "trained_on"),
    [
        (["sample"], ("sample",)),
        (["sample", "a"], ("a",)),
        (["a", "b"], ("a", "b")),
    ],
)
def test_generated_sample_is_trained_on_only_while_it_is_alone(
    there: list[str], trained_on: tuple[str, ...]
) -> None:
    files = tuple(DataFile(path=name, size=1, rows=1, partition=name) for name in there)
    table = DatasetVersion("titanic_prepared", "/nowhere", "TabularDataset", 0, files)
    cpu = RecordingCpu()
    survival_model(dg.build_asset_context(), cpu=cpu, titanic_prepared=table)
    assert cpu.inputs["titanic_prepared"].partitions == trained_on
