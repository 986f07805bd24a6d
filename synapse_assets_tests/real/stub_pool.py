"""A Spark pool whose batches are over as soon as they are asked for: the rest is our own share."""

import json
import re
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from synapse_assets.compute.channel import chunk_uri
from synapse_assets.services.process import HOST

_BATCHES = re.compile(r".*/batches(?:/(?P<id>\d+))?$")
_PIPES_VERSION = "0.1"


class StubPool:
    """Livy's and Synapse's batches on loopback, in threads of this process, as a context manager.

    It does at once what a step on the pool does: it writes the step's last words and its manifest,
    which names no files. The datastore has to be a folder of this machine.

    Attributes:
        seconds: How long it took over each batch that it was asked for, in their order.
        names: The names of these batches.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.names: list[str] = []
        pool = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # An answer goes out whole, and at once.
            wbufsize = -1
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                match = _BATCHES.match(self.path.partition("?")[0])
                if match is None or match["id"] is None:
                    self.send_error(HTTPStatus.NOT_FOUND)
                else:
                    self._answer(pool.view(int(match["id"])))

            def do_POST(self) -> None:
                started = time.perf_counter()
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(pool.run(json.loads(body)))
                pool.seconds.append(time.perf_counter() - started)

            def _answer(self, answer: dict[str, Any]) -> None:
                content = json.dumps(answer).encode()
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """The root of the REST API, and what stands for a workspace's endpoint."""
        return f"http://{HOST}:{self._server.server_port}"

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

    def __enter__(self) -> "StubPool":
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _write(location: str, content: dict[str, Any]) -> None:
    path = Path(location)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
