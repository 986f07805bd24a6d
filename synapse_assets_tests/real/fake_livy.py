"""A small Livy in threads of this process, whose batches run the runner itself in a second or so.

It answers as the REST documentation of Apache Livy 0.7 and 0.8 says
(https://livy.apache.org/docs/latest/rest-api.html), and refuses a name that is taken as Livy does
since 0.7. What a batch does is what `runner.main_on_cluster` does, without Spark: it claims the
job, runs the step, writes what it said and last the manifest. A test tells it when to go on.
"""

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from synapse_assets.compute import runner
from synapse_assets.compute.channel import chunk_uri
from synapse_assets.datastore.storage import LocalStorage
from synapse_assets_tests.real.json_server import JsonServer

PHASES = ("not_started", "starting", "running")
_LOG = ["stdout: ", "the batch says this", "stderr: "]


@dataclass
class Plan:
    """What a batch does.

    Attributes:
        seconds: How long each phase takes.
        held: The phase that ends when `release` is set, and not by itself; None for none.
        release: Lets a batch go on.
        is_endless: Whether it runs until it is killed.
        state: How it ends, in Livy's words.
        leaves: What it leaves: a manifest, the reason why there is none, or nothing.
        log_lines: How long its log is.
        list_lag: How long after its POST a batch is not listed, in seconds.
    """

    seconds: float = 0.25
    held: str | None = None
    release: threading.Event = field(default_factory=threading.Event)
    is_endless: bool = False
    state: str = "success"
    leaves: str = "manifest"
    log_lines: int = 0
    list_lag: float = 0.0


@dataclass
class Batch:
    """One batch, which runs in a thread."""

    id: int
    request: Mapping[str, Any]
    plan: Plan
    state: str = PHASES[0]
    is_claimed: bool = False
    killed: threading.Event = field(default_factory=threading.Event)
    log: list[str] = field(default_factory=lambda: list(_LOG))
    thread: threading.Thread | None = None
    born: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """The name it was asked for with."""
        return str(self.request["name"])

    @property
    def runs(self) -> bool:
        """Whether anything of it still runs."""
        return self.thread is not None and self.thread.is_alive()

    def join(self) -> None:
        """Return when nothing of it runs any more."""
        if self.thread is not None:
            self.thread.join()

    def view(self) -> dict[str, Any]:
        """Return what Livy tells of it."""
        running = self.state not in PHASES[:1]
        return {
            "id": self.id,
            "name": self.name,
            "owner": None,
            "proxyUser": None,
            "state": self.state,
            "appId": f"application_{self.id}" if running else None,
            "appInfo": {"driverLogUrl": None, "sparkUiUrl": None},
            "log": self.log[-10:],
        }

    def run(self) -> None:
        """Go through the phases, do the work, and end."""
        for phase in PHASES:
            self.state = phase
            if not self._stay(phase):
                self.state = "killed"
                return
        try:
            self.state = self._work()
        except Exception as e:  # noqa: BLE001 -- what Spark would print
            self.log.append(f"{type(e).__name__}: {e}")
            self.state = "dead"

    def _stay(self, phase: str) -> bool:
        """Wait until the phase is over; return False if the batch was killed."""
        deadline = time.monotonic() + self.plan.seconds
        while not self.killed.is_set():
            is_held = self.plan.held == phase and not self.plan.release.is_set()
            is_endless = self.plan.is_endless and phase == PHASES[-1]
            if time.monotonic() > deadline and not is_held and not is_endless:
                return True
            if phase == PHASES[-1] and not self.is_claimed:
                # The first thing that a driver does.
                if not self._claim():
                    return True
                self.is_claimed = True
            time.sleep(0.01)
        return False

    def _job(self) -> dict[str, Any]:
        job: dict[str, Any] = json.loads(Path(self.request["args"][0]).read_text(encoding="utf-8"))
        return job

    def _claim(self) -> bool:
        claim = Path(self._job()["claim"])
        try:
            with claim.open("x") as file:
                file.write(f"application_{self.id}")
        except FileExistsError:
            return False
        return True

    def _work(self) -> str:
        self.log += [f"line {number}" for number in range(self.plan.log_lines)]
        if not self.is_claimed:
            self.log.append("Another batch does this work already.")
            return "dead"
        job, storage = self._job(), LocalStorage()
        if self.plan.leaves == "manifest":
            runner.run(job, storage=storage, spark=_no_spark)
        elif self.plan.leaves == "failure":
            reason = {"message": "input.csv, line 3: mend it.", "traceback": ""}
            storage.write_atomically(job["failure"], json.dumps(reason).encode())
        chunk = {"stdout": "", "stderr": "", "messages": [], "lost": 0, "is_last": True}
        storage.write_atomically(chunk_uri(job["output"], 1), json.dumps(chunk).encode())
        return self.plan.state


def _no_spark() -> Any:
    raise AssertionError


class FakeLivy(JsonServer):
    """The server, as a context manager. Its port stays the same over `forget`."""

    def __init__(self) -> None:
        """Create the server without starting it."""
        super().__init__()
        self._lock = threading.Lock()
        self._batches: dict[int, Batch] = {}
        self._plans: dict[str, Plan] = {}
        self._next = 0
        self.all: list[Batch] = []

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for batch in self.all:
            batch.killed.set()

    def plan(self, attempt: str, plan: Plan) -> None:
        """Say what the batches of an attempt will do."""
        self._plans[attempt] = plan

    def batches_of(self, attempt: str) -> list[Batch]:
        """Return every batch that an attempt ever had, also those that Livy forgot."""
        return [batch for batch in list(self.all) if attempt in batch.name]

    def forget(self) -> None:
        """Forget all batches as a new server would; they go on."""
        with self._lock:
            self._batches.clear()

    def forget_batch(self, number: int) -> None:
        """Forget one batch, as if it had never been asked for."""
        with self._lock:
            batch = self._batches.pop(number)
            self.all.remove(batch)

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return status and body for a request."""
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        _, _, *parts = url.path.split("/")
        if not parts:
            if method == "POST":
                return self._create(json.loads(body))
            return 200, self._page(int(query.get("from", 0)), int(query.get("size", 100)))
        batch = self._batches.get(int(parts[0]))
        if batch is None:
            return 404, {"msg": f"Session '{parts[0]}' not found."}
        if method == "DELETE":
            batch.killed.set()
            batch.join()
            with self._lock:
                self._batches.pop(batch.id, None)
            return 200, {"msg": "deleted"}
        if parts[1:] == ["log"]:
            return 200, self._log(batch, query)
        return 200, batch.view()

    def _create(self, request: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._lock:
            for other in self._batches.values():
                if other.name == request["name"]:
                    return 400, {
                        "msg": "requirement failed: Duplicate session name: "
                        f"Some({other.name}) for session {self._next}"
                    }
            plan = next(
                (plan for attempt, plan in list(self._plans.items()) if attempt in request["name"]),
                Plan(),
            )
            batch = Batch(self._next, request, plan)
            self._next += 1
            self._batches[batch.id] = batch
            self.all.append(batch)
            batch.thread = threading.Thread(target=batch.run, daemon=True)
            batch.thread.start()
        return 201, batch.view()

    def _page(self, start: int, size: int) -> dict[str, Any]:
        now = time.monotonic()
        with self._lock:
            batches = [
                batch for batch in self._batches.values() if now - batch.born >= batch.plan.list_lag
            ]
        page = [batch.view() for batch in batches[start : start + size]]
        return {"from": start, "total": len(batches), "sessions": page}

    def _log(self, batch: Batch, query: Mapping[str, str]) -> dict[str, Any]:
        size = int(query.get("size", 100))
        size = len(batch.log) if size < 0 else size
        start = int(query.get("from", -1))
        start = max(0, len(batch.log) - size) if start < 0 else start
        lines = batch.log[start : start + size]
        return {"id": batch.id, "from": start, "total": len(batch.log), "log": lines}
