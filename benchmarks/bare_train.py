"""Train without an orchestrator: what the work itself costs, second half.

Usage: python -m benchmarks.bare_train FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from synapse_assets.steps.train import train


def main() -> None:
    folder = Path(sys.argv[1])
    model = folder / "survival_model"
    model.mkdir()
    train(ds.dataset(folder / "titanic_prepared"), model, _ignore)


def _ignore(output: str, /, **values: Any) -> None:
    """Take what a step reports: nobody shows it."""


if __name__ == "__main__":
    main()
