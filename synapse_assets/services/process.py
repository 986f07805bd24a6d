"""Servers as child processes, and the ports they listen on."""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from synapse_assets.errors import ConfigurationError, SynapseAssetsError
from synapse_assets.services import guard

HOST = "127.0.0.1"

# Below the ports that Linux and macOS give to outgoing connections. While a killed server is down,
# one of those could take its port, and a client that keeps trying could even reach itself.
_FREE_PORTS = range(16_000, 30_000)

_GRACE_SECONDS = 10.0
_TAIL_LINES = 15
_POLL_SECONDS = 0.1
_PROBE_SECONDS = 2.0

_AnyService = TypeVar("_AnyService", bound="Service")


class Service(ABC):
    """What `start` starts and `stop` stops; as a context manager it does both."""

    @abstractmethod
    def start(self) -> None:
        """Start it, and return when it can be used."""

    @abstractmethod
    def stop(self) -> None:
        """Stop all that `start` has started."""

    def __enter__(self: _AnyService) -> _AnyService:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class Server:
    """A server in a process group of its own that does not outlive this process (see `guard`)."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log_file: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Create the server without starting it.

        Args:
            name: What messages call it.
            command: Program and arguments.
            log_file: Takes what it prints; added to, not overwritten.
            environment: Variables beside those of this process.
        """
        self.name = name
        self.log_file = log_file
        self._command = [str(part) for part in command]
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process is there; it may not answer yet."""
        return self._process is not None and self._process.poll() is None

    @property
    def process_group(self) -> int | None:
        """The process group of the server, None before its first start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process; `wait_until` tells when it answers."""
        if self.is_running:
            return
        self.kill()  # leaves nothing of one that ended by itself
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        launcher = [sys.executable, "-I", "-S", guard.__file__, str(_GRACE_SECONDS)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, *self._command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )

    def wait_until(self, is_ready: Callable[[], bool], *, seconds: float) -> None:
        """Return when the server is ready; stop it if it is not within `seconds`.

        Raises:
            SynapseAssetsError: The server ended or was not ready in time; says what it logged last.
        """
        end = time.monotonic() + seconds
        while not is_ready():
            if not self.is_running:
                self.kill()
                raise self._failure("ended while it started")
            if time.monotonic() > end:
                self.kill()
                raise self._failure(f"did not answer within {seconds:.0f} s")
            time.sleep(_POLL_SECONDS)

    def run(self, *, seconds: float) -> None:
        """Run the process to its end.

        Raises:
            SynapseAssetsError: It failed, or took longer than `seconds`.
        """
        self.start()
        assert self._process is not None
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired as e:
            raise self._failure(f"took longer than {seconds:.0f} s") from e
        finally:
            self.kill()
        if code != 0:
            raise self._failure(f"failed with exit code {code}")

    def check(self) -> None:
        """Raise a SynapseAssetsError if the server has ended."""
        if not self.is_running:
            self.kill()
            raise self._failure("ended")

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
            self._process.wait(_GRACE_SECONDS)

    def _end(self, send: Callable[[int, int], None], number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            send(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _failure(self, what: str) -> SynapseAssetsError:
        text = self.log_file.read_text(encoding="utf-8", errors="replace")
        tail = "\n".join(text.splitlines()[-_TAIL_LINES:])
        return SynapseAssetsError(f"{self.name} {what}. The end of {self.log_file}:\n{tail}")


def choose_port(port: int | None, *, server: str, others: Sequence[int] = ()) -> int:
    """Return a port that nothing listens on: `port`, or a free one if it is None.

    Args:
        port: The port that is wanted; None for any.
        server: What the message calls the server that wants it.
        others: Ports that are spoken for.

    Raises:
        ConfigurationError: The port that is wanted is taken.
    """
    if port is not None:
        if not is_free(port):
            raise ConfigurationError(
                f"{server} cannot listen on port {port} of {HOST}: it is taken. Stop what uses it "
                "or choose another port."
            )
        return port
    for candidate in random.sample(_FREE_PORTS, len(_FREE_PORTS)):
        if candidate not in others and is_free(candidate):
            return candidate
    raise ConfigurationError(f"{server} found no free port on {HOST}.")


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
    """Return what an HTTP server on this machine answers, None if it does not answer yet."""
    answer = _get(port, path)
    if answer is None or answer[0] != HTTPStatus.OK:
        return None
    try:
        return json.loads(answer[1])
    except ValueError:
        return None


def _get(port: int, path: str) -> tuple[int, bytes] | None:
    connection = http.client.HTTPConnection(HOST, port, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
