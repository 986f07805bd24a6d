"""A Spark pool whose batches are over as soon as they are asked for: the rest is our own share."""

import json
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

from synapse_assets.compute.channel import chunk_uri
from synapse_assets_tests.real.json_server import JsonServer

_PIPES_VERSION = "0.1"


class StubPool(JsonServer):
    """Livy's batches, and Synapse's below any path.

    It does at once what a step on the pool does: it writes the step's last words and its manifest,
    which names no files. The datastore has to be a folder of this machine.

    Attributes:
        seconds: How long it took over each batch that it was asked for, in their order.
        names: The names of these batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.names: list[str] = []

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, Any]:
        """Run a batch, or tell of one."""
        if method == "POST":
            started = time.perf_counter()
            view = self.run(json.loads(body))
            self.seconds.append(time.perf_counter() - started)
            return HTTPStatus.OK, view
        number = target.partition("?")[0].rpartition("/batches/")[2]
        if not number.isdecimal():
            return HTTPStatus.NOT_FOUND, {}
        return HTTPStatus.OK, self.view(int(number))

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what the batch would do, and return what the service says of it."""
        job = json.loads(Path(request["args"][0]).read_text())
        messages: list[dict[str, Any]] = [
            {"__dagster_pipes_version": _PIPES_VERSION, "method": method, "params": {}}
            for method in ("opened", "closed")
        ]
        chunk = {"stdout": "", "stderr": "", "messages": messages, "lost": 0, "is_last": True}
        outputs = {
            name: {
                "kind": "TabularDataset",
                "folder": target["folder"],
                "files": [],
                "rows": 0,
                "metadata": {},
            }
            for name, target in job["outputs"].items()
        }
        manifest = {
            "attempt": job["attempt"],
            "outputs": outputs,
            "environment": {},
            "seconds": {"load": 0.0, "run": 0.0},
        }
        _write(chunk_uri(job["output"], 1), chunk)
        _write(job["manifest"], manifest)
        self.names.append(request["name"])
        return self.view(len(self.names) - 1)

    def view(self, number: int) -> dict[str, Any]:
        """Return what the service says of a batch."""
        return {
            "id": number,
            "state": "success",
            "name": self.names[number],
            "result": "Succeeded",
            "appId": None,
            "log": [],
        }


def _write(location: str, content: dict[str, Any]) -> None:
    path = Path(location)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
