"""Batches that are subprocesses of the orchestrator."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from synapse_assets.compute.batch import BatchService, BatchState, Submission
from synapse_assets.compute.runner import EXIT_STEP_FAILED, WATCH_PARENT
from synapse_assets.datastore import Datastore

_TERMINATION_GRACE_SECONDS = 5.0
_TAIL_LINES = 40
_STDOUT, _STDERR = 1, 2


@dataclass
class _Process:
    popen: "subprocess.Popen[bytes]"
    folder: str
    forwarders: list[threading.Thread]
    ended: threading.Event
    is_closed: bool = False
    tail: "deque[str]" = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))


class LocalProcesses(BatchService):
    """Runs each batch as a process group of its own.

    What a batch prints goes to this process's stdout and stderr as it comes, so that it lands,
    apart, in the compute log of the Dagster step. A batch never outlives the orchestrator: its
    standard input is held open, and it kills itself when that closes.
    """

    def __init__(
        self,
        datastore: Datastore,
        *,
        environment: Callable[[str], Mapping[str, str]] | None = None,
    ) -> None:
        """Create the service.

        Args:
            datastore: Where bundles and job files lie, and what the batches log in to.
            environment: Returns variables to add to a batch's own, given the folder that the
                batch runs in, which is removed with everything in it when the batch has ended.
        """
        self._datastore = datastore
        self._environment = environment
        self._processes: dict[str, _Process] = {}

    def submit(self, submission: Submission) -> str:
        """Start the bundle in a new process group, in a folder of its own."""
        folder = tempfile.mkdtemp(prefix="synapse-assets-")
        storage = self._datastore.storage()
        try:
            bundle, job_file = (str(Path(folder, name)) for name in ("bundle.zip", "job.json"))
            storage.download(submission.bundle, Path(bundle))
            storage.download(submission.job_file, Path(job_file))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        environment = {
            **os.environ,
            # What a killed process leaves behind goes with its folder.
            "TMPDIR": folder,
            **self._datastore.process_environment(),
            **(self._environment(folder) if self._environment else {}),
            # Engines start Python workers of their own, which need the step's code too.
            "PYTHONPATH": os.pathsep.join(filter(None, (bundle, os.environ.get("PYTHONPATH")))),
            "PYTHONUNBUFFERED": "1",
            WATCH_PARENT: "1",
        }
        popen = subprocess.Popen(
            [sys.executable, bundle, job_file],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        process = _Process(popen, folder, [], threading.Event())
        # `Popen.wait` with a timeout looks every 50 ms; this one hears of the end at once.
        threading.Thread(target=_watch, args=(process,), daemon=True).start()
        for stream, descriptor in ((popen.stdout, _STDOUT), (popen.stderr, _STDERR)):
            if stream is None:  # pragma: no cover -- both are pipes
                raise AssertionError
            thread = threading.Thread(
                target=_forward, args=(stream, descriptor, process.tail), daemon=True
            )
            thread.start()
            process.forwarders.append(thread)
        batch_id = str(popen.pid)
        self._processes[batch_id] = process
        return batch_id

    def find(self, submission: Submission) -> str | None:
        """Return None: a batch does not outlive the orchestrator that asked for it."""
        return None

    def get_state(self, batch_id: str, submission: Submission) -> BatchState:
        """Return the state of a batch that this process started."""
        process = self._processes.get(batch_id)
        if process is None:
            return BatchState.VANISHED
        if process.popen.poll() is None:
            return BatchState.RUNNING
        # Nobody waits any more for a batch that has ended.
        self._close(process)
        return BatchState.ENDED

    def wait(self, batch_id: str, *, seconds: float) -> None:
        """Return when the process has ended and its output has been forwarded."""
        process = self._processes[batch_id]
        if process.ended.wait(seconds):
            self._close(process)

    def cancel(self, batch_id: str, submission: Submission) -> None:
        """Terminate the whole process group; kill what is left of it after a grace period."""
        process = self._processes.get(batch_id)
        if process is None:
            return
        _signal_group(process.popen.pid, signal.SIGTERM)
        try:
            process.ended.wait(_TERMINATION_GRACE_SECONDS)
        finally:
            self._close(process)

    def describe_end(self, batch_id: str) -> str:
        """Return the exit code or signal, and the last lines of output."""
        process = self._processes[batch_id]
        code = process.popen.returncode
        if code == EXIT_STEP_FAILED:
            how = "the step failed"
        elif code is not None and code < 0:
            how = f"the process was killed by {signal.Signals(-code).name}"
        else:
            how = f"the process ended with exit code {code}"
        return "\n".join([how, *process.tail])

    def _close(self, process: _Process) -> None:
        """End what the process may have left behind, and take in the last of its output."""
        if process.is_closed:
            return
        process.is_closed = True
        _signal_group(process.popen.pid, signal.SIGKILL)
        process.popen.wait()
        for thread in process.forwarders:
            thread.join(_TERMINATION_GRACE_SECONDS)
        if process.popen.stdin is not None:
            process.popen.stdin.close()
        shutil.rmtree(process.folder, ignore_errors=True)


def _watch(process: _Process) -> None:
    process.popen.wait()
    process.ended.set()


def _forward(stream: IO[bytes], descriptor: int, tail: "deque[str]") -> None:
    with stream:
        for line in stream:
            os.write(descriptor, line)
            tail.append(line.decode(errors="replace").rstrip("\n"))


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)
