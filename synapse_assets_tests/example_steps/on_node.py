"""Steps that tell what a node of a cluster gives them."""

import os
import sys
import time
from pathlib import Path

import pyarrow.dataset


def tell(numbers: pyarrow.dataset.Dataset, told: Path) -> None:
    """Write the command line and what the environment tells of the input."""
    names = ("AZUREML_DATAREFERENCE_numbers", "numbers", "GREETING")
    lines = [*sys.argv[1:], *(os.environ[name] for name in names), str(numbers.count_rows())]
    (told / "lines.txt").write_text("\n".join(lines))


def be_preempted(marks: str, told: Path) -> None:
    """Wait for one's end at the first call, and end at the second."""
    with Path(marks).open("a") as file:
        file.write("x")
    print(f"call {len(Path(marks).read_text())}", flush=True)
    if Path(marks).read_text() == "x":
        time.sleep(120)
    (told / "lines.txt").write_text("done")
