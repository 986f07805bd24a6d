"""Services on this machine: servers as child processes, and the ports they listen on."""

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from synapse_assets.errors import ConfigurationError, SynapseAssetsError
from synapse_assets.services import guard

HOST = "127.0.0.1"

# Below the ports that Linux and macOS give to outgoing connections. While a killed server is down,
# one of those could take its port, and a client that keeps trying could even reach itself.
_FREE_PORTS = range(16_000, 30_000)

_TAIL_LINES = 15
_POLL_SECONDS = 0.1
_PROBE_SECONDS = 2.0

_AnyService = TypeVar("_AnyService", bound="Service")


class Server:
    """A process in a group of its own that does not outlive this process (see `guard`)."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log_file: Path,
        environment: Mapping[str, str] | None = None,
        inherits: bool = True,
        folder: Path | None = None,
        grace_seconds: float = 10.0,
    ) -> None:
        """Create the server without starting it.

        Args:
            name: What messages call it.
            command: Program and arguments.
            log_file: Takes what it prints; added to, not overwritten.
            environment: Its environment variables.
            inherits: Whether it has those of this process, too.
            folder: Where it runs; None for where this process does.
            grace_seconds: How long it may take to end when it is asked to.
        """
        self.name = name
        self.log_file = log_file
        self._command = [str(part) for part in command]
        self._environment = {**(os.environ if inherits else {}), **(environment or {})}
        self._folder = folder
        self._grace_seconds = grace_seconds
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process is there; it may not answer yet."""
        return self._process is not None and self._process.poll() is None

    @property
    def process_group(self) -> int | None:
        """The process group of the server; None before its start, and after `stop` and `kill`."""
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code of a process that has ended by itself."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self.is_running:
            return
        self.kill()  # leaves nothing of one that ended by itself
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        launcher = [sys.executable, "-I", "-S", guard.__file__, str(self._grace_seconds)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, *self._command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=self._environment,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise a SynapseAssetsError if the server has ended."""
        if not self.is_running:
            self.kill()
            raise self.failure("ended")

    def stop(self) -> None:
        """Ask the server to end, and return when it has; kill it after a grace period."""
        self._end(os.killpg, signal.SIGTERM)

    def kill(self) -> None:
        """End the server as a crash would, and return when it has let go of its ports."""
        self._end(os.kill, guard.KILL)

    def crash(self) -> None:
        """End the server alone, as a crash would: what it started lives until `start` or `stop`."""
        if self._process is not None and self.is_running:
            os.kill(self._process.pid, guard.KILL)
            self._process.wait(self._grace_seconds)

    def failure(self, what: str) -> SynapseAssetsError:
        """Return the error that says what happened, and what the server logged last."""
        text = self.log_file.read_text(encoding="utf-8", errors="replace")
        tail = "\n".join(text.splitlines()[-_TAIL_LINES:])
        return SynapseAssetsError(f"{self.name} {what}. The end of {self.log_file}:\n{tail}")

    def _end(self, send: Callable[[int, int], None], number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            send(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._grace_seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


class Service(ABC):
    """Servers that belong together, with their files in one folder.

    `start` starts it and `stop` stops it; as a context manager it does both. Its ports stay the
    same over `kill` and `start`, so that its clients can wait for it to come back.
    """

    # How long a start may take.
    start_seconds: ClassVar[float] = 60.0

    def __init__(self, folder: Path | None) -> None:
        """Create the service; who derives from it says what its `servers` are.

        Args:
            folder: Keeps its files; None for a temporary folder that goes with `stop`.
        """
        self._is_temporary = folder is None
        prefix = f"synapse-assets-{type(self).__name__.lower()}-"
        self.folder = (folder or Path(tempfile.mkdtemp(prefix=prefix))).absolute()
        self.servers: list[Server] = []

    @abstractmethod
    def is_ready(self) -> bool:
        """Return whether it can be used."""

    def prepare(self) -> None:  # noqa: B027 -- most have nothing to prepare
        """Write what its servers read at their start."""

    def start(self) -> None:
        """Start what of it does not run, and return when it can be used.

        Raises:
            SynapseAssetsError: A server ended, or was not ready in time; says what it logged last.
        """
        end = time.monotonic() + self.start_seconds
        try:
            self.prepare()
            for server in self.servers:
                server.start()
            while not self.is_ready():
                self.check()
                if time.monotonic() > end:
                    raise self.servers[0].failure(f"was not ready within {self.start_seconds:g} s")
                time.sleep(_POLL_SECONDS)
        except BaseException:  # also an interruption
            self.kill()
            raise

    def stop(self) -> None:
        """Ask it to end, so that it saves what it holds, and return when it has ended."""
        for server in reversed(self.servers):
            server.stop()
        if self._is_temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End it as a crash would; `start` brings it back."""
        for server in reversed(self.servers):
            server.kill()

    def check(self) -> None:
        """Raise a SynapseAssetsError if one of its servers has ended."""
        for server in self.servers:
            server.check()

    def __enter__(self: _AnyService) -> _AnyService:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def choose_ports(server: str, *wanted: int | None) -> list[int]:
    """Return ports that nothing listens on: those that are wanted, and free ones for None.

    Raises:
        ConfigurationError: A port that is wanted is taken; the message calls who wants it `server`.
    """
    for port in wanted:
        if port is not None and not is_free(port):
            raise ConfigurationError(
                f"{server} cannot listen on port {port} of {HOST}: it is taken. Stop what uses it "
                "or choose another port."
            )
    # At random, so that two processes that choose at the same time choose others.
    candidates = random.sample(_FREE_PORTS, len(_FREE_PORTS))
    free = (port for port in candidates if port not in wanted and is_free(port))
    return [next(free) if port is None else port for port in wanted]


def is_free(port: int) -> bool:
    """Return whether nothing listens on a port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def answers(port: int, *, path: str = "/") -> bool:
    """Return whether an HTTP server answers on a port, whatever it answers."""
    return _get(port, path) is not None


def read_json(port: int, *, path: str) -> Any:
    """Return what an HTTP server on this machine answers, None if that is no JSON yet."""
    with contextlib.suppress(ValueError):
        return json.loads(_get(port, path) or b"null")


def _get(port: int, path: str) -> bytes | None:
    connection = http.client.HTTPConnection(HOST, port, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
