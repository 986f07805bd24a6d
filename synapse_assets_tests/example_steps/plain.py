"""Steps without an engine of their own: they run on every compute target."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset

logger = logging.getLogger(__name__)


def make_rows(report: Callable[..., None], rows: int = 3) -> dict[str, pa.Table]:
    """Return a table of `rows` rows."""
    report("numbers", note="made here", shares=[0.5], page={"raw_value": "# hi", "type": "md"})
    logger.info("making %d rows", rows)
    return {"numbers": pa.table({"n": list(range(rows))})}


def split(
    numbers: pyarrow.dataset.Dataset, names: list[Path], files: Path
) -> dict[str, pa.Table | dict[str, dict[str, str]]]:
    """Read a table and files; return a table and files."""
    table = numbers.to_table()
    (files / "sub").mkdir()
    (files / "sub" / "names.txt").write_text("\n".join(path.name for path in names))
    return {
        "doubled": pa.table({"n": pa.compute.multiply(table["n"], 2)}),
        "files": {"sub/names.txt": {"count": str(len(names))}},
    }


def fill(files: Path, name: str = "a.txt") -> None:
    """Fill the folder with one file."""
    (files / name).write_text("content")


def report_unknown_type(report: Callable[..., None], files: Path) -> None:
    """Report metadata of a type that nobody knows."""
    report("files", odd={"raw_value": 1, "type": "hologram"})


def refuse() -> dict[str, pa.Table]:
    """Refuse the input, as a step does that its user has to mend."""
    print("looking at the input")
    raise ValueError("input.csv, line 3: the age 'x' is not a number: mend it.")


def crash() -> dict[str, pa.Table]:
    """Fail for a reason that is nobody's sentence."""
    return {"numbers": pa.table({"n": [1 / 0]})}


def return_unknown() -> dict[str, pa.Table]:
    """Return an output that there is not."""
    return {"nobody": pa.table({"n": [1]})}


def return_nothing() -> None:
    """Return nothing although a table is wanted."""


def exit_silently() -> None:
    """End the process with success, and without a manifest."""
    os._exit(0)


def kill_itself() -> dict[str, pa.Table]:
    """Die as by the out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def kill_itself_while_writing(files: Path) -> None:
    """Die with a file half written."""
    (files / "whole.txt").write_text("whole")
    with (files / "half.txt").open("w") as file:
        file.write("half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def say_much(lines: int = 10) -> dict[str, pa.Table]:
    """Print to both streams, and report a check through Dagster Pipes itself."""
    from dagster_pipes import PipesContext

    for number in range(lines):
        print(f"out {number}")
        print(f"err {number}", file=sys.stderr)
    PipesContext.get().report_asset_check(
        asset_key="numbers", check_name="enough", passed=True, severity="ERROR"
    )
    return {"numbers": pa.table({"n": [lines]})}


def run_long(pid_file: str, seconds: float = 120.0) -> dict[str, pa.Table]:
    """Run long, with a child and a grandchild."""
    child = subprocess.Popen(["sh", "-c", f"sleep {seconds} & wait"])
    Path(pid_file).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(seconds)
    return {"numbers": pa.table({"n": [1]})}


def count_calls(counter: str, gate: str | None = None) -> dict[str, pa.Table]:
    """Leave a mark for every call, and wait until there is a file `gate`."""
    with Path(counter).open("a") as marks:
        marks.write("x")
    print("counted")
    while gate is not None and not Path(gate).exists():
        time.sleep(0.1)
    return {"numbers": pa.table({"n": [1]})}


def meet(folder: str, number: int, others: int, seconds: float = 120.0) -> dict[str, pa.Table]:
    """Wait until as many others are there at the same time, and return one's own number."""
    Path(folder).mkdir(exist_ok=True)
    (Path(folder) / str(number)).touch()
    deadline = time.monotonic() + seconds
    while len(list(Path(folder).iterdir())) <= others:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {sorted(Path(folder).iterdir())} are there")
        time.sleep(0.1)
    return {"numbers": pa.table({"n": [number] * (number + 1)})}
