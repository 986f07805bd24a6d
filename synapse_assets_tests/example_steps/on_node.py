"""Steps that tell what a node of a cluster gives them."""

import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
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


def add_ranks(
    numbers: pyarrow.dataset.Dataset, report: Callable[..., None], told: Path
) -> dict[str, dict[str, dict[str, str]]]:
    """Send what each node has to node 0, which writes the sum."""
    rank, own = int(os.environ["RANK"]), int(os.environ["RANK"]) + numbers.count_rows()
    print(f"node {rank} of {os.environ['WORLD_SIZE']}", flush=True)
    report("told", rank=rank)
    if rank:
        with _connect_to_master() as connection:
            connection.send(own)
    else:
        with Listener(_master()) as listener:
            for _ in range(int(os.environ["WORLD_SIZE"]) - 1):
                with listener.accept() as connection:
                    own += connection.recv()
    (told / f"{rank}.txt").write_text(str(own))
    return {"told": {f"{rank}.txt": {"from": str(rank)}}}


def fail_on_node_1(told: Path, waits: bool) -> None:
    """Refuse the input on node 1, where node 0 waits for it or has nothing left to do."""
    if os.environ["RANK"] == "1":
        if not waits:
            time.sleep(2)
        raise ValueError("the half of node 1 is not there: mend it.")
    if waits:
        time.sleep(120)
    (told / "half.txt").write_text("half")


def linger(folder: str, told: Path) -> None:
    """Run long on every node, and tell each one's process."""
    (Path(folder) / os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(120)


def _master() -> tuple[str, int]:
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def _connect_to_master() -> Connection:
    while True:
        try:
            return Client(_master())
        except ConnectionRefusedError:
            time.sleep(0.1)
