"""A service without a network that says what it is told to, and a clock that it runs by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from synapse_assets.compute import attempt, batches, calls, chunk_reader
from synapse_assets.compute.calls import CallError
from synapse_assets.compute.client import BatchClient, LogTail, RemoteBatch


class Clock:
    """A clock that nobody has to wait for: who sleeps moves it on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.on_sleep: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()

    def install(self, patch: pytest.MonkeyPatch) -> "Clock":
        """Let the life cycle of batches run by this clock."""
        clock = self

        class Event:
            """An event that nobody sets while another one waits for it."""

            def __init__(self) -> None:
                self._is_set = False

            def set(self) -> None:
                self._is_set = True

            def is_set(self) -> bool:
                return self._is_set

            def wait(self, seconds: float) -> bool:
                if not self._is_set:
                    clock.sleep(seconds)
                return self._is_set

        for module in (attempt, batches, calls):
            patch.setattr(module, "time", self)
        patch.setattr(chunk_reader, "threading", SimpleNamespace(Event=Event))
        return self


@dataclass
class ScriptedClient(BatchClient):
    """Answers each verb with what its script says, and with the last of it for ever.

    Attributes:
        post: Answers to POST.
        get: Answers to GET of a batch.
        listed: Answers to GET of the list, each a page of it.
        delete: Answers to DELETE.
        completed: Answers to `complete`; None to leave a batch as it is.
        log: The lines of the log; an error if it cannot be read.
        gives_log_whole: Whether all of the log comes, or only its end.
        calls: The verbs that were called, and when, by the clock.
    """

    # As a plain Livy is.
    forgets_deleted = True

    clock: Clock
    post: Sequence[RemoteBatch | CallError] = (RemoteBatch("7", "starting"),)
    get: Sequence[RemoteBatch | CallError] = (RemoteBatch("7", "running"),)
    listed: Sequence[Sequence[RemoteBatch] | CallError] = ((),)
    delete: Sequence[CallError | None] = (None,)
    completed: Sequence[RemoteBatch | CallError] | None = None
    log: Sequence[str] | CallError = ()
    gives_log_whole: bool = False
    calls: list[tuple[str, float]] = field(default_factory=list)
    requests: list[Mapping[str, Any]] = field(default_factory=list)

    def count(self, verb: str) -> int:
        return [name for name, _ in self.calls].count(verb)

    def post_batch(self, request: Mapping[str, Any]) -> RemoteBatch:
        self.requests.append(request)
        batch: RemoteBatch = self._answer("post", self.post)
        return batch

    def get_batch(self, batch_id: str) -> RemoteBatch:
        batch: RemoteBatch = self._answer("get", self.get)
        return batch

    def list_batches(self, start: int) -> tuple[list[RemoteBatch], int]:
        everything = self._answer("list", self.listed)
        return list(everything)[start : start + self.page_size], len(everything)

    def delete_batch(self, batch_id: str) -> None:
        self._answer("delete", self.delete)

    def complete(self, batch: RemoteBatch) -> RemoteBatch:
        if self.completed is None:
            return batch
        found: RemoteBatch = self._answer("complete", self.completed)
        return found

    def get_batch_logs(self, batch_id: str, *, size: int) -> LogTail:
        lines = self._answer("log", [self.log])
        earlier = 0 if self.gives_log_whole else max(0, len(lines) - size)
        return LogTail(lines[earlier:], earlier)

    def _answer(self, verb: str, script: Sequence[Any]) -> Any:
        answer = script[min(self.count(verb), len(script) - 1)]
        self.calls.append((verb, self.clock.now))
        if isinstance(answer, CallError):
            raise answer
        return answer
