"""The runner on several nodes, where nothing but the nodes themselves ends one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from synapse_assets.compute.cpu import node
from synapse_assets.compute.runner import EXIT_STEP_FAILED
from synapse_assets.compute.step import Step
from synapse_assets.datasets.slot import Slot
from synapse_assets.datastore import Datastore
from synapse_assets.services.process import HOST, choose_ports

Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Return a function that starts a step on each of some nodes."""

    def start_nodes(function: str, nodes: int, **parameters: Any) -> list[subprocess.Popen[str]]:
        datastore = Datastore(root=str(tmp_path))
        step = Step(f"synapse_assets_tests.example_steps.on_node:{function}")
        slot = Slot.of_asset(dg.AssetKey("told"), partition=None, metadata={})
        job = {
            "attempt": "told-1",
            "step": {"module": step.module, "function": step.function, "parameters": parameters},
            "engine": "python",
            "inputs": {},
            "outputs": {"told": asdict(slot.fresh_target(datastore, attempt="told-1"))},
            "manifest": str(tmp_path / "manifest.json"),
            "failure": str(tmp_path / "failure.json"),
            "output": str(tmp_path / "output"),
            "pipes": {},
        }
        (tmp_path / "job.json").write_text(json.dumps(job))
        bundle = step.bundle().upload(datastore)
        command = [sys.executable, node.__file__, bundle, str(tmp_path / "job.json")]
        (port,) = choose_ports("A test", None)
        place = {"MASTER_ADDR": HOST, "MASTER_PORT": str(port), "WORLD_SIZE": str(nodes)}
        storage = {"SYNAPSE_ASSETS_STORAGE": json.dumps(datastore.storage_spec())}
        return [
            subprocess.Popen(
                command,
                env={**os.environ, **storage, **place, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            for rank in range(nodes)
        ]

    return start_nodes


@pytest.mark.parametrize("waits", [True, False], ids=["node 0 waits", "node 0 is done"])
def test_node_that_fails_ends_the_others(start: Start, tmp_path: Path, waits: bool) -> None:
    processes = start("fail_on_node_1", 3, waits=waits)
    printed = [process.communicate(timeout=60)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes[1] == EXIT_STEP_FAILED, printed
    assert codes[0] < 0, printed
    assert (codes[2] < 0) == waits, printed
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure == {
        "message": "Node 1: the half of node 1 is not there: mend it.",
        "is_refusal": True,
    }
    assert "ValueError: the half of node 1" in printed[1]
    assert not (tmp_path / "manifest.json").exists()
