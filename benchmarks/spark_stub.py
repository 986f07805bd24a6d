"""A stub of Livy's and Synapse's batch APIs whose batches sleep, on loopback.

The first part of a path names a case, which is a service of its own: it has its batches, its log of
requests, and at most one fault. Below it are Livy's API (/batches) and Synapse's (/livyApi/...).
    PUT /<case>   makes a case, from what `Case` takes
    GET /<case>   tells its requests and its batches

A batch that is given a job file does what our driver does: claims it, says something, and at the
end runs the step, which writes the manifest, and says that it was the last. Others only sleep.
"""

import contextlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, urlsplit

from synapse_assets.compute import runner
from synapse_assets.compute.channel import chunk_uri
from synapse_assets.datastore.storage import LocalStorage

_HOST = "127.0.0.1"
# How long a batch is in the states 'not_started' and 'starting'.
QUEUED_SECONDS = 0.3
STARTING_SECONDS = 0.7

_BATCHES = re.compile(
    r"/(?P<case>[\w-]+)"
    r"(?P<synapse>/livyApi/versions/[^/]+/sparkPools/[^/]+)?"
    r"/batches(/(?P<number>\d+)(?P<part>/state|/log)?)?"
)
_RESULTS = {"success": "Succeeded", "dead": "Failed", "killed": "Cancelled"}
# Faults that are in no call: how a batch of the case ends.
ENDS = ("dead", "no manifest")
_UNKNOWN_STATE = "rebalancing"
# Reset and not closed: on, and no second of waiting for what was not sent.
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        kind: A status, 'reset', 'truncated', 'unknown state', or an end of the batch: 'dead',
            'no manifest'.
        call: 'POST', or 'GET' of one batch.
        skip: How many such calls go through first.
        is_processed: Whether the service has done what it was asked for.
        retry_after: Seconds that the answer asks the client to wait.
        seconds: From the first one on, every call of the case is broken for so long; 0 for one
            call alone.
    """

    kind: str
    call: str = "GET"
    skip: int = 1
    is_processed: bool = False
    retry_after: int | None = None
    seconds: float = 0.0


class Batch:
    """A batch; its state is told by the clock."""

    def __init__(
        self, number: int, request: Mapping[str, Any], *, seconds: float, stopping: float, end: str
    ) -> None:
        self.number = number
        self._stopping = stopping
        # What a driver still has to write; its end waits for that.
        self._is_working = False
        self.request = request
        self.created_at = time.time()
        self.running_at = self.created_at + QUEUED_SECONDS + STARTING_SECONDS
        self.ends_at = self.running_at + seconds
        self.end = "dead" if end == "dead" else "success"
        arguments = request.get("args") or []
        if arguments and end not in ENDS:
            self._is_working = True
            threading.Thread(target=self._drive, args=[arguments[0]], daemon=True).start()

    @property
    def state(self) -> str:
        """The state at this moment."""
        now = time.time()
        if now >= self.ends_at and not self._is_working:
            return self.end
        if now >= self.running_at:
            return "running"
        return "starting" if now >= self.created_at + QUEUED_SECONDS else "not_started"

    def kill(self) -> None:
        """End it now."""
        if self.state not in _RESULTS:
            self._end_now("killed")

    def _drive(self, job_file: str) -> None:
        """Do what the driver of a batch of ours does."""
        storage = LocalStorage()
        self._sleep_until(self.running_at)
        with open(job_file, encoding="utf-8") as file:  # noqa: PTH123
            job = json.load(file)
        try:
            with open(job["claim"], "x"):  # noqa: PTH123
                pass
        except FileExistsError:
            self._end_now("dead")
            return

        def say(number: int, method: str, *, is_last: bool) -> None:
            params: dict[str, Any] = {"extras": {}} if method == "opened" else {}
            message = {"__dagster_pipes_version": "0.1", "method": method, "params": params}
            chunk = {
                "stdout": f"{method}\n",
                "stderr": "",
                "messages": [message],
                "lost": 0,
                "is_last": is_last,
            }
            uri = chunk_uri(job["output"], number)
            storage.write_atomically(uri, json.dumps(chunk).encode())

        say(1, "opened", is_last=False)
        self._sleep_until(self.ends_at - self._stopping)
        if self.end == "success":
            runner.run(job, storage=storage, spark=_no_spark)
            say(2, "closed", is_last=True)
            self.ends_at = max(self.ends_at, time.time() + self._stopping)
            self._is_working = False

    def _end_now(self, end: str) -> None:
        self.ends_at, self.end, self._is_working = time.time(), end, False

    def _sleep_until(self, at: float) -> None:
        time.sleep(max(0.0, at - time.time()))

    def plain(self) -> dict[str, Any]:
        """Return what Livy tells of it."""
        return {
            "id": self.number,
            "name": self.request.get("name"),
            "state": self.state,
            "appId": f"application_1_{self.number:04}",
            "appInfo": {"driverLogUrl": None, "sparkUiUrl": None},
            "log": [],
        }

    def detailed(self) -> dict[str, Any]:
        """Return what Synapse tells of it."""
        state = self.state
        times = {"notStartedAt": self.created_at, "runningAt": self.running_at}
        ended = {"success": "successAt", "dead": "deadAt", "killed": "killedAt"}
        if state in ended:
            times[ended[state]] = self.ends_at
        seen = {name: _iso(at) for name, at in times.items() if at <= time.time()}
        return {
            **self.plain(),
            "livyInfo": {**seen, "currentState": state},
            "result": _RESULTS.get(state, "Uncertain"),
            "errorInfo": [],
            "jobType": "SparkBatch",
        }


@dataclass
class Case:
    """A service of its own.

    Attributes:
        seconds: How long its batches run.
        stopping: How long of that they go on after the step's last word.
        fault: What goes wrong.
        requests: What was asked so far.
        batches: What was started so far.
    """

    seconds: float
    stopping: float
    fault: Fault | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    calls: int = 0
    broken_until: float | None = None

    def post(self, request: Mapping[str, Any]) -> Batch:
        """Start a batch."""
        with self.lock:
            end = self.fault.kind if self.fault else "success"
            batch = Batch(
                len(self.batches) + 1,
                request,
                seconds=self.seconds,
                stopping=self.stopping,
                end=end,
            )
            self.batches.append(batch)
        return batch

    def next_fault(self, call: str) -> Fault | None:
        """Return the fault that this call meets."""
        fault, now = self.fault, time.time()
        if fault is None or fault.kind in ENDS:
            return None
        with self.lock:
            if self.broken_until is not None:
                return fault if now < self.broken_until else None
            if call != fault.call:
                return None
            self.calls += 1
            if self.calls != fault.skip + 1:
                return None
            if fault.seconds:
                self.broken_until = now + fault.seconds
        return fault

    def told(self) -> dict[str, Any]:
        """Return what happened, in JSON's types."""
        return {
            "requests": self.requests,
            "batches": [
                {"created_at": batch.created_at, "ends_at": batch.ends_at, "end": batch.end}
                for batch in self.batches
            ],
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes: without it the second waits for a late acknowledgement.
    disable_nagle_algorithm = True

    @property
    def _cases(self) -> dict[str, Case]:
        assert isinstance(self.server, _Server)
        return self.server.cases

    def do_PUT(self) -> None:
        given = self._body()
        fault = None if given.get("fault") is None else Fault(**given["fault"])
        self._cases[self.path[1:]] = Case(given["seconds"], given["stopping"], fault)
        self._answer(200, {})

    def do_GET(self) -> None:
        case = self._cases.get(self.path[1:])
        if case is not None:
            self._answer(200, case.told())
        else:
            self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        at, body, url = time.time(), self._body(), urlsplit(self.path)
        found = _BATCHES.fullmatch(url.path)
        case = self._cases.get(found["case"]) if found else None
        if found is None or case is None:
            self._answer(404, {"msg": "there is no such path"})
            return
        is_one_batch = self.command == "GET" and found["number"] and found["part"] != "/log"
        fault = case.next_fault("GET" if is_one_batch else self.command.replace("GET", "LIST"))
        case.requests.append({"at": at, "method": self.command, "path": url.path})
        status = 200
        answer: dict[str, Any] = {}
        if fault is None or fault.is_processed or fault.kind in ("unknown state", "truncated"):
            status, answer = _respond(case, self.command, found, parse_qs(url.query), body)
        self._break_or_answer(fault, status, answer)

    def _break_or_answer(self, fault: Fault | None, status: int, answer: dict[str, Any]) -> None:
        if fault is None:
            self._answer(status, answer)
        elif fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            # Closed below the objects that hold it, which would say goodbye first.
            os.close(self.connection.detach())
            self.close_connection = True
        elif fault.kind == "unknown state":
            unknown = {"state": _UNKNOWN_STATE, "result": "Uncertain"}
            self._answer(status, {**answer, **{k: v for k, v in unknown.items() if k in answer}})
        elif fault.kind == "truncated":
            self._answer(status, answer, share=0.5)
        else:
            told = {"msg": "injected", "Message": "injected"}
            self._answer(int(fault.kind), told, retry_after=fault.retry_after)

    def _body(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        body: dict[str, Any] = json.loads(self.rfile.read(length)) if length else {}
        return body

    def _answer(
        self,
        status: int,
        answer: Mapping[str, Any],
        *,
        retry_after: int | None = None,
        share: float = 1.0,
    ) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(content[: int(len(content) * share)])
        self.close_connection = self.close_connection or share < 1

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: each case has its own log."""


def _respond(
    case: Case,
    method: str,
    found: "re.Match[str]",
    query: Mapping[str, list[str]],
    body: Mapping[str, Any],
) -> tuple[int, dict[str, Any]]:
    """Return status and answer of a call, without any fault."""

    def view(batch: Batch) -> dict[str, Any]:
        return batch.detailed() if query.get("detailed") == ["true"] else batch.plain()

    if method == "POST":
        return 200, view(case.post(body))
    if found["number"] is None:
        start, size = (int(query.get(key, ["20"])[0]) for key in ("from", "size"))
        shown = [view(batch) for batch in case.batches[start : start + size]]
        return 200, {"from": start, "total": len(case.batches), "sessions": shown}
    # From 1 on: Livy has a batch 0, and LivyOperator takes that for no id in a second try.
    number = int(found["number"])
    if not 1 <= number <= len(case.batches):
        return 404, {"msg": f"Session '{found['number']}' not found."}
    batch = case.batches[number - 1]
    if method == "DELETE":
        batch.kill()
        return 200, {"msg": "deleted"}
    if found["part"] == "/state":
        return 200, {"id": batch.number, "state": batch.state}
    if found["part"] == "/log":
        return 200, {"id": batch.number, "from": 0, "total": 1, "log": ["one line"]}
    return 200, view(batch)


def _no_spark() -> Any:
    raise AssertionError("nothing here uses Spark")


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, tz=timezone.utc).isoformat()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__((_HOST, 0), _Handler)
        self.cases: dict[str, Case] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that were reset on purpose."""


def main() -> None:
    """Print the address, and serve until standard input ends."""
    # Loaded before it is needed: the first batch would take longer to write what it has.
    import_module("benchmarks.spark_step")
    server = _Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://{_HOST}:{server.server_port}", flush=True)
    with contextlib.suppress(EOFError):
        input()


if __name__ == "__main__":
    main()
