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
from pathlib import Path
from typing import IO

from synapse_assets.compute.batch import Batch, BatchState, Submission
from synapse_assets.compute.runner import EXIT_STEP_FAILED, WATCH_PARENT

_TERMINATION_GRACE_SECONDS = 5.0
_TAIL_LINES = 40
_STDOUT, _STDERR = 1, 2


class LocalBatch(Batch):
    """A batch that is a process group of its own, in a folder of its own.

    What it prints goes to this process's stdout and stderr as it comes, so that it lands, apart,
    in the compute log of the Dagster step. It never outlives the orchestrator: its standard input
    is held open, and it kills itself when that closes.
    """

    def __init__(
        self,
        submission: Submission,
        *,
        environment: Callable[[str], Mapping[str, str]] = lambda _: {},
    ) -> None:
        """Create it; nothing is started.

        Args:
            submission: What asks for it.
            environment: Returns variables to add to its own, given the folder that it runs in,
                which is removed with everything in it when it has ended.
        """
        super().__init__(submission)
        self._environment = environment
        self._popen: subprocess.Popen[bytes] | None = None
        self._folder = ""
        self._ended = threading.Event()
        self._is_closed = False
        self._forwarders: list[threading.Thread] = []
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def submit(self) -> str:
        """Start the bundle in a new process group, in a folder of its own."""
        datastore = self.submission.datastore
        self._folder = folder = tempfile.mkdtemp(prefix="synapse-assets-")
        storage = datastore.storage()
        try:
            bundle, job_file = (str(Path(folder, name)) for name in ("bundle.zip", "job.json"))
            storage.download(self.submission.bundle, Path(bundle))
            storage.download(self.submission.job_file, Path(job_file))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        environment = {
            **os.environ,
            # What a killed process leaves behind goes with its folder.
            "TMPDIR": folder,
            **datastore.process_environment(),
            **self._environment(folder),
            # Engines start Python workers of their own, which need the step's code too.
            "PYTHONPATH": os.pathsep.join(filter(None, (bundle, os.environ.get("PYTHONPATH")))),
            "PYTHONUNBUFFERED": "1",
            WATCH_PARENT: "1",
        }
        self._popen = popen = subprocess.Popen(
            [sys.executable, bundle, job_file],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        for stream, descriptor in ((popen.stdout, _STDOUT), (popen.stderr, _STDERR)):
            assert stream is not None
            thread = threading.Thread(target=self._forward, args=(stream, descriptor), daemon=True)
            thread.start()
            self._forwarders.append(thread)
        # `Popen.wait` with a timeout looks every 50 ms; this one hears of the end at once.
        threading.Thread(target=self._watch, args=(popen,), daemon=True).start()
        return str(popen.pid)

    def find(self) -> str | None:
        """Return None: a batch does not outlive the orchestrator that asked for it."""
        return None

    def get_state(self) -> BatchState:
        """Return its state; that of a batch which another process started is VANISHED."""
        if self._popen is None:
            return BatchState.VANISHED
        if self._popen.poll() is None:
            return BatchState.RUNNING
        # Nobody waits any more for a batch that has ended.
        self._close()
        return BatchState.ENDED

    def wait(self, seconds: float) -> None:
        """Return when the process has ended and its output has been forwarded."""
        if self._ended.wait(seconds):
            self._close()

    def cancel(self) -> None:
        """Terminate the whole process group; kill what is left of it after a grace period."""
        if self._popen is None or self._is_closed:
            return
        _signal_group(self._popen.pid, signal.SIGTERM)
        try:
            self._ended.wait(_TERMINATION_GRACE_SECONDS)
        finally:
            self._close()

    def describe_end(self) -> str:
        """Return the exit code or signal, and the last lines of output."""
        code = None if self._popen is None else self._popen.returncode
        if code == EXIT_STEP_FAILED:
            how = "the step failed"
        elif code is not None and code < 0:
            how = f"the process was killed by {signal.Signals(-code).name}"
        else:
            how = f"the process ended with exit code {code}"
        return "\n".join([how, *self._tail])

    def _close(self) -> None:
        """End what the process may have left behind, and take in the last of its output."""
        popen = self._popen
        if popen is None or self._is_closed:
            return
        self._is_closed = True
        _signal_group(popen.pid, signal.SIGKILL)
        popen.wait()
        for thread in self._forwarders:
            thread.join(_TERMINATION_GRACE_SECONDS)
        if popen.stdin is not None:
            popen.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _watch(self, popen: "subprocess.Popen[bytes]") -> None:
        popen.wait()
        self._ended.set()

    def _forward(self, stream: IO[bytes], descriptor: int) -> None:
        with stream:
            for line in stream:
                os.write(descriptor, line)
                self._tail.append(line.decode(errors="replace").rstrip("\n"))


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)
