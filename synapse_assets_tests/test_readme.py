"""The README's own examples run as they stand there."""

import re
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from synapse_assets import (
    ComputeTarget,
    DatasetIOManager,
    DatasetVersion,
    Datastore,
    LocalCpu,
    StagedDataset,
    Step,
)
from synapse_assets.datasets.table import resolve

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_own_assets_of_the_readme_run(
    examples: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, asset, frame_asset = examples
    package = tmp_path / "my_project" / "steps"
    package.mkdir(parents=True)
    (tmp_path / "my_project" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "count.py").write_text(step)
    monkeypatch.syspath_prepend(tmp_path)

    @dg.asset
    def titanic_prepared() -> pl.DataFrame:
        return pl.DataFrame({"deck": ["A", "A", "U"], "survived": [1, 1, 0], "age": [1.0, 2, 3]})

    names: dict[str, Any] = {
        "COUNT": Step("my_project.steps.count:count"),
        "ComputeTarget": ComputeTarget,
        "DatasetVersion": DatasetVersion,
        "StagedDataset": StagedDataset,
        "dg": dg,
        "pl": pl,
    }
    exec(asset + frame_asset, names)
    datastore = Datastore(root=str(tmp_path / "datastore"))
    result = dg.materialize(
        [titanic_prepared, names["survivors_by_deck"], names["oldest"]],
        resources={
            "cpu": LocalCpu(datastore=datastore),
            "io_manager": DatasetIOManager(datastore=datastore),
        },
    )
    assert result.success
    by_deck = pl.scan_delta(resolve(datastore, "survivors_by_deck").uri).sort("deck").collect()
    assert by_deck["survived_sum"].to_list() == [2, 0]
    assert resolve(datastore, "oldest").rows == 3
    # Naming a step imports its package, and never the step.
    assert "my_project.steps.count" not in sys.modules


def test_readme_names_only_commands_that_make_has() -> None:
    makefile = README.with_name("Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)", README.read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_readme_links_to_files_that_are_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link
