"""Measure how batches on Spark pools are waited for, against the operators of Airflow.

All wait for the same stub (see `spark_stub`), in one run on this machine. Nothing here fails
because something was slow.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from benchmarks.spark_report import (
    DEFAULT,
    OURS,
    SAME_DELAY,
    SERVICES,
    Results,
    Survival,
    Wait,
    format_page,
    format_tables,
)
from benchmarks.spark_stub import ENDS, Fault

_PAGE = Path("docs/performance-spark.md")
_PACKAGES = ("dagster", "azure-synapse-spark", "requests")

# Seconds of a batch, and how often it is measured.
_REPEATS = {2: 5, 20: 5, 120: 3}
_QUICK_REPEATS = {2: 2}
# What a batch runs longer, and how long its driver takes to stop, by number of the repeat.
_OFFSETS = (0.1, 0.5, 0.9, 0.3, 0.7)
_STOPPING = (0.3, 0.5, 0.7, 0.4, 0.6)
_FAULTY_SECONDS = 3
_FAULTY_INTERVAL = 1
_WORKERS = 10
# Of one case, the start of its worker included. None takes so long by far.
_LIMIT_SECONDS = 600.0


def _at_submission(kind: str, *, is_processed: bool, retry_after: int | None = None) -> Fault:
    return Fault(kind, "POST", skip=0, is_processed=is_processed, retry_after=retry_after)


_FAULTS = {
    "submission done, answered 500": _at_submission("500", is_processed=True),
    "submission done, answered 503": _at_submission("503", is_processed=True),
    "submission done, connection reset": _at_submission("reset", is_processed=True),
    "submission not done, 503": _at_submission("503", is_processed=False),
    "submission not done, 429 with Retry-After": _at_submission(
        "429", is_processed=False, retry_after=2
    ),
    "look answered 500": Fault("500"),
    "look answered 503": Fault("503"),
    "look answered 429 with Retry-After": Fault("429", retry_after=2),
    "look: connection reset": Fault("reset"),
    "look answered 401 once": Fault("401"),
    "look answered 404 once": Fault("404"),
    "look: half of an answer": Fault("truncated"),
    "look: a state that nobody knows": Fault("unknown state"),
    "everything answered 503 for 10 s": Fault("503", seconds=10.0),
    "the batch ends as `dead`": Fault("dead"),
    "`success` without a manifest": Fault("no manifest"),
}
_ONLY_OURS = ("no manifest",)


@dataclass(frozen=True)
class _Case:
    """One batch, and who waits for it.

    Attributes:
        service: 'synapse' or 'livy'.
        who: `OURS`, `DEFAULT` or `SAME_DELAY`.
        seconds: How long it runs, without the offset.
        repeat: Which one of its kind it is.
        fault: Name of what goes wrong.
        interval: Seconds between two looks; None for the operator's default.
    """

    service: str
    who: str
    seconds: int
    repeat: int = 0
    fault: str | None = None
    interval: float | None = None

    @property
    def wait_seconds(self) -> float:
        """About how long it takes: the longest go first."""
        if self.who == DEFAULT and self.service == "synapse" and self.interval is None:
            return self.seconds + 60.0
        return float(self.seconds)


@dataclass(frozen=True)
class _Outcome:
    """What a worker and the stub tell of a case."""

    worker: Mapping[str, Any]
    stub: Mapping[str, Any]

    @property
    def delay(self) -> float:
        """Seconds from the end of the first batch to the return of who waited for it."""
        return float(self.worker["returned_at"] - self.stub["batches"][0]["ends_at"])

    def wait(self) -> Wait:
        """Return how it was waited for."""
        returned_at, delay = self.worker["returned_at"], self.delay
        return Wait(
            delay=delay if delay >= 0 else None,
            requests=sum(request["at"] <= returned_at for request in self.stub["requests"]),
            store_calls=self.worker.get("store_calls", 0),
        )

    def survival(self, fault: Fault) -> Survival:
        """Return how the fault was met."""
        returned_at = self.worker["returned_at"]
        batches = [b for b in self.stub["batches"] if b["created_at"] <= returned_at]
        return Survival(
            should_succeed=fault.kind not in ENDS,
            succeeded=self.worker["succeeded"],
            batches=len(batches),
            left_running=sum(batch["ends_at"] > returned_at for batch in batches),
            batches_again=len(self.stub["batches"]) if "again" in self.worker else None,
        )


class _Worker:
    """A process that runs cases, one at a time."""

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], log: Path
    ) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, **environment},
            )
        self._log = log

    def receive(self) -> dict[str, Any]:
        """Return the next line that it says."""
        assert self._process.stdout is not None
        timer = threading.Timer(_LIMIT_SECONDS, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            tail = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"A worker ended, or took longer than it may:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Have a case run, and return its outcome."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(case)}\n")
        self._process.stdin.flush()
        return self.receive()

    def stop(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class _Bench:
    """The stub, and workers that run cases on it."""

    def __init__(self, url: str, scratch: Path) -> None:
        self._url = url
        self._scratch = scratch
        self._number = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def workers(
        self, command: Sequence[str], **environment: str
    ) -> Iterator[tuple["queue.SimpleQueue[_Worker]", dict[str, str]]]:
        """Start workers, and yield them and what they say of their packages."""
        workers = [
            _Worker(command, environment=environment, log=self._scratch / f"{number}.log")
            for number in range(_WORKERS)
        ]
        free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        try:
            versions = [worker.receive() for worker in workers]
            for worker in workers:
                free.put(worker)
            yield free, versions[0]
        finally:
            for worker in workers:
                worker.stop()

    def run(
        self, free: "queue.SimpleQueue[_Worker]", cases: Sequence[_Case]
    ) -> list[tuple[_Case, _Outcome]]:
        """Run cases side by side, the longest first."""
        ordered = sorted(cases, key=lambda case: -case.wait_seconds)
        with ThreadPoolExecutor(_WORKERS) as pool:
            outcomes = list(pool.map(lambda case: self._run(free, case), ordered))
        by_case = dict(zip(ordered, outcomes, strict=True))
        return [(case, by_case[case]) for case in cases]

    def _run(self, free: "queue.SimpleQueue[_Worker]", case: _Case) -> _Outcome:
        with self._lock:
            self._number += 1
            url = f"{self._url}/case-{self._number}"
        fault = None if case.fault is None else asdict(_FAULTS[case.fault])
        made = {
            "seconds": case.seconds + _OFFSETS[case.repeat % len(_OFFSETS)],
            "stopping": _STOPPING[case.repeat % len(_STOPPING)],
            "fault": fault,
        }
        _ask(url, method="PUT", body=made)
        asked = {
            "service": case.service,
            "url": url,
            "interval": case.interval,
            "retries": case.fault is not None and _FAULTS[case.fault].kind not in ENDS,
        }
        worker = free.get()
        outcome = worker.run(asked)
        free.put(worker)
        result = _Outcome(outcome, _ask(url))
        what = f"{case.fault or f'{case.seconds} s'}, {case.service}, {case.who}"
        said = outcome["message"] or f"{result.delay:+.2f} s from the end"
        print(f"{what}: {said[:150]}", flush=True)
        return result


def main() -> None:
    options = _parse()
    repeats = _QUICK_REPEATS if options.quick else _REPEATS
    results = Results(machine=_describe_machine())
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="synapse-assets-bench-") as scratch, _stub() as url:
        bench = _Bench(url, Path(scratch))
        with bench.workers([sys.executable, "-m", "benchmarks.spark_ours"]) as (free, _):
            _measure_waits(bench, free, results, _our_cases(repeats))
            _measure_faults(bench, free, results, OURS)
        for seconds in repeats:
            # Of both services: the few of one may all have come at the same part of our interval.
            delays = [d for service in SERVICES for d in results.delays(seconds, service, OURS)]
            interval = max(0.1, round(2 * statistics.mean(delays), 1))
            results.intervals.update({(seconds, service): interval for service in SERVICES})
        command = [str(options.airflow), "-m", "benchmarks.spark_airflow"]
        home = Path(scratch, "airflow")
        home.mkdir()
        with bench.workers(command, AIRFLOW_HOME=str(home)) as (free, versions):
            results.machine.update(versions)
            _measure_waits(bench, free, results, _their_cases(repeats, results, options.quick))
            _measure_faults(bench, free, results, DEFAULT)
    in_order = sorted(results.waits, key=lambda key: (key[0], list(SERVICES).index(key[1])))
    results.waits.update({key: results.waits.pop(key) for key in in_order})
    print(f"\n{format_tables(results)}")
    print(f"It took {time.monotonic() - started:.0f} s.")
    if options.quick:
        print(f"Not written to {_PAGE}: only a part was measured.")
    else:
        _PAGE.write_text(format_page(results), encoding="utf-8")
        print(f"Written to {_PAGE}.")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spark", description=__doc__)
    parser.add_argument(
        "--airflow",
        type=Path,
        default=Path(".venvs/airflow/bin/python"),
        help="Python of the environment with benchmarks/requirements-airflow.txt",
    )
    parser.add_argument("--quick", action="store_true", help="short batches only; writes no page")
    return parser.parse_args()


def _our_cases(repeats: Mapping[int, int]) -> list[_Case]:
    return [
        _Case(service, OURS, seconds, repeat)
        for seconds, count in repeats.items()
        for service in SERVICES
        for repeat in range(count)
    ]


def _their_cases(repeats: Mapping[int, int], results: Results, is_quick: bool) -> list[_Case]:
    return [
        _Case(service, who, seconds, repeat, interval=interval)
        for seconds, count in repeats.items()
        for service in SERVICES
        for who, interval in (
            (DEFAULT, None),
            (SAME_DELAY, results.intervals[seconds, service]),
        )
        # A minute each is not quick.
        if not (is_quick and service == "synapse" and interval is None)
        for repeat in range(count)
    ]


def _measure_waits(
    bench: _Bench, free: "queue.SimpleQueue[_Worker]", results: Results, cases: Sequence[_Case]
) -> None:
    for case, outcome in bench.run(free, cases):
        if not outcome.worker["succeeded"]:
            raise RuntimeError(f"{case} failed without any fault: {outcome.worker['message']}")
        waits = results.waits.setdefault((case.seconds, case.service, case.who), [])
        waits.append(outcome.wait())


def _measure_faults(
    bench: _Bench, free: "queue.SimpleQueue[_Worker]", results: Results, who: str
) -> None:
    cases = [
        _Case(service, who, _FAULTY_SECONDS, fault=name, interval=_FAULTY_INTERVAL)
        for name, fault in _FAULTS.items()
        if who == OURS or fault.kind not in _ONLY_OURS
        for service in SERVICES
    ]
    for case, outcome in bench.run(free, cases):
        assert case.fault is not None
        survival = outcome.survival(_FAULTS[case.fault])
        results.faults.setdefault(case.fault, {})[case.service, who] = survival


@contextlib.contextmanager
def _stub() -> Iterator[str]:
    """Run the stub, and yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.spark_stub"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()


def _ask(url: str, *, method: str = "GET", body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, method=method, data=content)
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def _describe_machine() -> dict[str, str]:
    return {
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        "cores": str(psutil.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} on {platform.machine()}",
        "Python": platform.python_version(),
        **{package: metadata.version(package) for package in _PACKAGES},
    }


if __name__ == "__main__":
    main()
