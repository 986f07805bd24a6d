"""The orchestrator's end of the channel of a step on a cluster."""

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_assets.compute.channel import chunk_uri
from synapse_assets.datastore.storage import Storage
from synapse_assets.errors import StorageError

if TYPE_CHECKING:
    from dagster._core.pipes.context import PipesMessageHandler

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
# Of a step that says nothing for a while, later news will do.
_IDLE_POLL_SECONDS = 1.0
_IDLE_AFTER_POLLS = 60
_MAX_PAUSE_SECONDS = 15.0
# How often the store is asked for the rest of the output after the batch has ended.
_CLOSING_TRIES = 5
_TAIL_LINES = 40
_STREAMS = {"stdout": 1, "stderr": 2}
# A line whose end does not come is written without it, at the second look in vain.
_BEGUN_POLLS = 2
_MAX_LINE_BYTES = 1 << 20


class ChunkReader(dg.PipesMessageReader):
    """Follows the chunks of one batch.

    Output goes to this process's stdout and stderr, messages go to Dagster Pipes. It reads from
    the first chunk on, so that whoever adopts a batch sees the whole of its log.

    Attributes:
        said_last: Set when the step has said that it ended, which the service tells later.
        tail: The last lines of the output.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        """Create the reader of the chunks in a folder; nothing is read yet."""
        self.said_last = threading.Event()
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._storage = storage
        self._folder = folder
        self._begun = dict.fromkeys(_STREAMS, b"")

    @contextlib.contextmanager
    def read_messages(self, handler: "PipesMessageHandler") -> Iterator[dict[str, Any]]:
        """Follow the chunks, from a thread, until the block has ended and all is read."""
        stop = threading.Event()
        thread = threading.Thread(target=self._follow, args=(handler, stop), daemon=True)
        thread.start()
        try:
            # The job file says where the chunks go.
            yield {}
        finally:
            stop.set()
            thread.join()

    def no_messages_debug_text(self) -> str:
        """Return where messages were looked for."""
        return f"Messages were looked for in {self._folder}."

    def _follow(self, handler: "PipesMessageHandler", stop: threading.Event) -> None:
        number, idle, failures = 1, 0, 0
        while True:
            # Asked first: what was written before the end is read after it.
            is_ending = stop.is_set()
            try:
                text = self._storage.read_text(chunk_uri(self._folder, number))
                failures = 0
            except StorageError as e:
                failures += 1
                if is_ending and failures > _CLOSING_TRIES:
                    self._write_begun()
                    logger.warning("The end of the step's output could not be read: %s", e)
                    return
                time.sleep(min(_POLL_SECONDS * 2**failures, _MAX_PAUSE_SECONDS))
                continue
            if text is not None:
                number, idle = number + 1, 0
                if self._handle(json.loads(text), handler):
                    self.said_last.set()
                    return
            elif is_ending:
                self._write_begun()
                return
            else:
                idle += 1
                if idle == _BEGUN_POLLS:
                    self._write_begun()
                stop.wait(_POLL_SECONDS if idle < _IDLE_AFTER_POLLS else _IDLE_POLL_SECONDS)

    def _handle(self, chunk: dict[str, Any], handler: "PipesMessageHandler") -> bool:
        """Pass a chunk on, and return whether it is the last one."""
        for stream in _STREAMS:
            content = self._begun[stream] + chunk[stream].encode("utf-8", "surrogateescape")
            # Whole lines: others write to the same output, between two chunks too.
            end = max(content.rfind(b"\n"), content.rfind(b"\r")) + 1
            if chunk["is_last"] or len(content) - end > _MAX_LINE_BYTES:
                end = len(content)
            self._begun[stream] = content[end:]
            self._write(stream, content[:end])
        if chunk["lost"]:
            note = f"[{chunk['lost']:,} bytes of output were lost: the store could not take them]"
            self._write("stderr", f"{note}\n".encode())
        for message in chunk["messages"]:
            handler.handle_message(message)
        return bool(chunk["is_last"])

    def _write_begun(self) -> None:
        """Write the lines that have no end yet."""
        for stream, content in self._begun.items():
            self._write(stream, content)
            self._begun[stream] = b""

    def _write(self, stream: str, content: bytes) -> None:
        self.tail.extend(content.decode(errors="replace").splitlines())
        while content:
            content = content[os.write(_STREAMS[stream], content) :]
