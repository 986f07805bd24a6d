"""Land and prepare without an orchestrator: what the work itself costs, first half.

Usage: python -m benchmarks.bare_prepare INPUT FOLDER SPARK_CONF_JSON
"""

import json
import sys
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from synapse_assets.steps.land import land
from synapse_assets.steps.prepare import prepare


def main() -> None:
    source, folder, conf = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    copies = folder / "titanic_input"
    quarantined = folder / "titanic_quarantined_files"
    for output in (copies, quarantined):
        output.mkdir(parents=True)
    land([source], copies, quarantined, _ignore)
    builder = SparkSession.builder
    for key, value in conf.items():
        builder = builder.config(key, value)
    uris = [str(path) for path in copies.iterdir()]
    for name, table in prepare(builder.getOrCreate(), uris, _ignore).items():
        table.write.parquet(str(folder / name))


def _ignore(output: str, /, **values: Any) -> None:
    """Take what a step reports: nobody shows it."""


if __name__ == "__main__":
    main()
