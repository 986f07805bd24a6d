"""The channel from a step on a cluster to its orchestrator: numbered chunks in the datastore.

It is shipped in the step's bundle and needs the standard library alone. A chunk is JSON:
    stdout, stderr   what the driver's Python process printed since the chunk before
    messages         messages of Dagster Pipes
    is_last          whether the step has ended, and no chunk follows
    lost             how many bytes of output the chunk leaves out, where the store was down
Beside the folder a file changes with every beat for as long as the step lives, so that one which
its service has forgotten is not taken for dead. Who wants to end such a step leaves a file, too.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from synapse_assets.datastore.storage import Storage

if TYPE_CHECKING:
    from dagster_pipes import PipesMessageWriter

BEAT_SECONDS = 5.0
# What comes meanwhile goes with the same chunk.
_GATHER_SECONDS = 0.5
_MAX_CHUNK_BYTES = 1 << 20
# A step that prints faster than the store takes it waits.
_MAX_BUFFER_BYTES = 8 << 20
_CLOSING_SECONDS = 30.0
_CHILDREN_SECONDS = 2.0
_READ_BYTES = 1 << 16


def chunk_uri(folder: str, number: int) -> str:
    """Return the location of a chunk; the first one has the number 1."""
    return f"{folder}/{number:08d}.json"


def beat_uri(folder: str) -> str:
    """Return the location of the file that changes while the step lives."""
    return f"{folder}.beat"


def stop_uri(folder: str) -> str:
    """Return the location of the file that has the step end itself."""
    return f"{folder}.stop"


def done_uri(folder: str, node: int) -> str:
    """Return the location of the file that a node beside the first one leaves when it is done."""
    return f"{folder}.done-{node}"


class Channel:
    """Writes chunks from a thread of its own, half a second after there is something to say."""

    def __init__(
        self,
        storage: Storage,
        folder: str,
        *,
        stop: Callable[[], None] | None = None,
        first: int = 1,
    ) -> None:
        """Create the channel.

        Args:
            storage: The store.
            folder: Location of the folder for the chunks.
            stop: Is called, in another thread, when somebody wants the step to end.
            first: Number of the first chunk.
        """
        self._stop = stop
        self._storage = storage
        self._folder = folder
        self._first = first
        self._changed = threading.Condition()
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        self._messages: list[Mapping[str, Any]] = []
        self._lost = 0
        self._is_closed = False
        self._is_failing = False
        self._thread = threading.Thread(target=self._write_chunks, daemon=True)

    @contextlib.contextmanager
    def opened(self) -> Iterator["Channel"]:
        """Take in what this process and its children print, until the end of the block."""
        self._thread.start()
        try:
            with self._captured(1, sys.stdout, "stdout"), self._captured(2, sys.stderr, "stderr"):
                yield self
        finally:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
            self._thread.join(_CLOSING_SECONDS)

    def write_message(self, message: Mapping[str, Any]) -> None:
        """Send a message of Dagster Pipes."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()

    def pipes_writer(self) -> "PipesMessageWriter[Any]":
        """Return the message writer for `open_dagster_pipes`."""
        import dagster_pipes

        channel = self

        class Writer(dagster_pipes.PipesMessageWriter[Any]):
            @contextlib.contextmanager
            def open(self, params: Any) -> Iterator[Any]:
                yield channel

        return Writer()

    @contextlib.contextmanager
    def _captured(self, descriptor: int, stream: Any, name: str) -> Iterator[None]:
        """Copy what goes to a file descriptor into the channel, and let it go where it went."""
        kept = os.dup(descriptor)
        reading, writing = os.pipe()
        os.dup2(writing, descriptor)
        os.close(writing)

        def copy() -> None:
            with os.fdopen(reading, "rb", buffering=0) as pipe:
                while content := pipe.read(_READ_BYTES):
                    os.write(kept, content)
                    self._add_output(name, content)

        thread = threading.Thread(target=copy, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stream.flush()
            os.dup2(kept, descriptor)
            # A child that was left behind may hold the pipe open for ever.
            thread.join(_CHILDREN_SECONDS)

    def _add_output(self, name: str, content: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_failing or not self._is_full())
            if self._is_full():
                self._lost += len(content)
                return
            self._output[name] += content
            self._changed.notify_all()

    def _is_full(self) -> bool:
        return sum(map(len, self._output.values())) >= _MAX_BUFFER_BYTES

    def _write_chunks(self) -> None:
        number, next_beat = self._first, time.monotonic()
        while True:
            if time.monotonic() >= next_beat:
                self._beat()
                next_beat = time.monotonic() + BEAT_SECONDS
            with self._changed:
                is_due = self._changed.wait_for(
                    lambda: self._is_closed or self._has_something(), next_beat - time.monotonic()
                )
                if not is_due:
                    continue
                if not self._is_closed:
                    self._changed.wait_for(lambda: self._is_closed, _GATHER_SECONDS)
                chunk = self._take()
            self._store(chunk_uri(self._folder, number), chunk)
            number += 1
            if chunk["is_last"]:
                return

    def _beat(self) -> None:
        # One that the store does not take is followed by others.
        with contextlib.suppress(Exception):
            self._storage.write_atomically(beat_uri(self._folder), str(time.time()).encode())
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._stop and self._storage.read_text(stop_uri(self._folder)) is not None:
            self._stop()

    def _has_something(self) -> bool:
        return bool(self._messages or any(self._output.values()))

    def _take(self) -> dict[str, Any]:
        """Return the next chunk, and take its content out of the buffers."""
        chunk: dict[str, Any] = {}
        for name, buffer in self._output.items():
            end = len(buffer)
            if end > _MAX_CHUNK_BYTES:
                # Whole lines, so that no character is cut in two.
                end = buffer.rfind(b"\n", 0, _MAX_CHUNK_BYTES) + 1 or _MAX_CHUNK_BYTES
            chunk[name] = bytes(buffer[:end]).decode("utf-8", "surrogateescape")
            del buffer[:end]
        chunk["messages"], self._messages = self._messages, []
        chunk["lost"], self._lost = self._lost, 0
        chunk["is_last"] = self._is_closed and not self._has_something()
        self._changed.notify_all()
        return chunk

    def _store(self, uri: str, chunk: Mapping[str, Any]) -> None:
        """Write a chunk, again and again where the store fails: a step outlives a store's rest."""
        content = json.dumps(chunk).encode()
        pause = _GATHER_SECONDS
        while True:
            try:
                self._storage.write_atomically(uri, content)
            except Exception as e:  # noqa: BLE001 -- a log that cannot be stored ends no step
                with self._changed:
                    self._is_failing = True
                    self._changed.notify_all()
                os.write(2, f"The output could not be stored, trying again: {e}\n".encode())
                time.sleep(pause)
                pause = min(pause * 2, _CLOSING_SECONDS)
            else:
                self._is_failing = False
                return


class SilentChannel(Channel):
    """That of a node beside the first one: it stores nothing, and ends the step when asked to."""

    @contextlib.contextmanager
    def opened(self) -> Iterator["Channel"]:
        """Look for who wants the step to end, for as long as the process lives."""
        threading.Thread(target=self._watch, daemon=True).start()
        yield self

    def write_message(self, message: Mapping[str, Any]) -> None:
        """Print what the step logs, and leave out all other messages."""
        if message["method"] == "log":
            print(message["params"]["message"], file=sys.stderr)

    def _watch(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            with contextlib.suppress(Exception):
                self._stop_if_asked()
