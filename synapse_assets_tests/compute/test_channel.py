"""The channel from a driver to its orchestrator, both ends in one process."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from synapse_assets.compute import channel as channel_module
from synapse_assets.compute import chunk_reader
from synapse_assets.compute.channel import Channel, SilentChannel, beat_uri, chunk_uri, stop_uri
from synapse_assets.compute.chunk_reader import ChunkReader
from synapse_assets.datastore.storage import LocalStorage
from synapse_assets.errors import StorageError


class Store(LocalStorage):
    """A folder that refuses writes and reads for as long as it is told to.

    Attributes:
        is_down: Whether it does.
        refused: How many it has refused.
    """

    def __init__(self) -> None:
        self.is_down = False
        self.refused = 0

    def write_atomically(self, uri: str, content: bytes) -> None:
        self._check()
        super().write_atomically(uri, content)

    def read_text(self, uri: str) -> str | None:
        self._check()
        return super().read_text(uri)

    def _check(self) -> None:
        if self.is_down:
            self.refused += 1
            raise StorageError("the store is down")


class Handler:
    """Takes the messages in the place of Dagster Pipes."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def handle_message(self, message: Any) -> None:
        self.messages.append(message)


class Orchestrator:
    """The reader's end, whose output goes to files of its own.

    Attributes:
        reader: The reader.
        messages: The messages that have come.
    """

    def __init__(self, store: Store, folder: Path, chunks: Path) -> None:
        self.reader = ChunkReader(store, str(chunks))
        self.handler = Handler()
        self._folder = folder

    @property
    def messages(self) -> list[Any]:
        return self.handler.messages

    def output(self, stream: str) -> bytes:
        return (self._folder / stream).read_bytes()

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self.reader.read_messages(cast("Any", self.handler)):
            yield


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def chunks(tmp_path: Path) -> Path:
    return tmp_path / "chunks"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what the ends wait for, in the same proportions."""
    monkeypatch.setattr(channel_module, "_GATHER_SECONDS", 0.02)
    monkeypatch.setattr(channel_module, "_CHILDREN_SECONDS", 0.3)
    monkeypatch.setattr(chunk_reader, "_POLL_SECONDS", 0.02)


@pytest.fixture
def orchestrator(
    store: Store, chunks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Orchestrator]:
    with (tmp_path / "stdout").open("wb") as out, (tmp_path / "stderr").open("wb") as err:
        # What it writes to this process's own output would come to the channel again.
        streams = {"stdout": out.fileno(), "stderr": err.fileno()}
        monkeypatch.setattr(chunk_reader, "_STREAMS", streams)
        yield Orchestrator(store, tmp_path, chunks)


def say(text: str | bytes, *, descriptor: int = 1) -> None:
    content = text.encode() if isinstance(text, str) else text
    while content:
        content = content[os.write(descriptor, content) :]


def written(chunks: Path) -> list[dict[str, Any]]:
    """Return all chunks in the order of their numbers, of which none is left out."""
    count = len(list(chunks.iterdir()))
    return [json.loads(Path(chunk_uri(str(chunks), n)).read_text()) for n in range(1, count + 1)]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_output_and_messages_come_in_order_apart_and_while_it_runs(
    store: Store, chunks: Path, orchestrator: Orchestrator
) -> None:
    said_last = orchestrator.reader.said_last
    with orchestrator.reading():
        with Channel(store, str(chunks)).opened() as channel:
            for number in range(200):
                say(f"out {number}\n")
                say(f"err {number}\n", descriptor=2)
                channel.write_message({"number": number})
            wait_for(lambda: len(orchestrator.messages) == 200)
            wait_for(lambda: b"out 199\n" in orchestrator.output("stdout"))
            assert not said_last.is_set()
            say("the last one, without an end")
        assert said_last.wait(5.0)
    assert orchestrator.messages == [{"number": number} for number in range(200)]
    lines = [f"out {number}" for number in range(200)]
    assert orchestrator.output("stdout").decode().splitlines() == [
        *lines,
        "the last one, without an end",
    ]
    assert orchestrator.output("stderr").decode().splitlines() == [
        f"err {number}" for number in range(200)
    ]
    assert [chunk["is_last"] for chunk in written(chunks)][:-1] == [False] * (
        len(written(chunks)) - 1
    )
    assert written(chunks)[-1]["is_last"]
    assert {chunk["lost"] for chunk in written(chunks)} == {0}
    assert orchestrator.reader.tail[-1] == "the last one, without an end"


def test_silent_step_says_that_it_ends(
    store: Store, chunks: Path, orchestrator: Orchestrator
) -> None:
    with Channel(store, str(chunks)).opened():
        pass
    (chunk,) = written(chunks)
    assert chunk == {"stdout": "", "stderr": "", "messages": [], "lost": 0, "is_last": True}
    with orchestrator.reading():
        assert orchestrator.reader.said_last.wait(5.0)


def test_step_gives_signs_of_life_and_ends_when_it_is_asked_to(
    store: Store, chunks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "BEAT_SECONDS", 0.02)
    beat, stopped = Path(beat_uri(str(chunks))), threading.Event()
    with Channel(store, str(chunks), stop=stopped.set).opened():
        wait_for(beat.exists)
        first = beat.read_text()
        wait_for(lambda: beat.read_text() != first)
        # What the store does not take ends no step.
        store.is_down = True
        wait_for(lambda: store.refused > 1)
        store.is_down = False
        assert not stopped.is_set()
        Path(stop_uri(str(chunks))).touch()
        assert stopped.wait(5.0)
    # It has said nothing meanwhile, and so no chunk was written but the last.
    assert [chunk["is_last"] for chunk in written(chunks)] == [True]


def test_other_nodes_store_nothing_and_end_when_they_are_asked_to(
    store: Store, chunks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "BEAT_SECONDS", 0.02)
    stopped = threading.Event()
    with SilentChannel(store, str(chunks), stop=stopped.set).opened() as channel:
        channel.write_message(
            {"method": "log", "params": {"message": "half done", "level": "INFO"}}
        )
        channel.write_message({"method": "report_asset_check", "params": {}})
        store.is_down = True
        wait_for(lambda: store.refused > 1)
        store.is_down = False
        Path(stop_uri(str(chunks))).touch()
        assert stopped.wait(5.0)
    assert capsys.readouterr().err == "half done\n"
    assert not chunks.exists()
    assert not Path(beat_uri(str(chunks))).exists()


def test_output_goes_where_it_went_before_too(
    store: Store, chunks: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The cluster's own log of the driver stays complete."""
    with Channel(store, str(chunks)).opened():
        say("for both\n")
        subprocess.run(["sh", "-c", "echo from a child; echo its trouble >&2"], check=True)
    say("after the end\n")
    captured = capfd.readouterr()
    assert captured.out == "for both\nfrom a child\nafter the end\n"
    assert captured.err == "its trouble\n"
    assert "".join(chunk["stdout"] for chunk in written(chunks)) == "for both\nfrom a child\n"


def test_reader_that_comes_late_sees_all_of_it(
    store: Store, chunks: Path, orchestrator: Orchestrator
) -> None:
    """As one that adopts a batch does."""
    with Channel(store, str(chunks)).opened() as channel:
        say("first\n")
        channel.write_message({"number": 1})
        wait_for(lambda: chunks.exists() and list(chunks.iterdir()))
        time.sleep(0.1)
        say("second\n")
    assert len(written(chunks)) >= 2
    with orchestrator.reading():
        pass
    assert orchestrator.output("stdout") == b"first\nsecond\n"
    assert orchestrator.messages == [{"number": 1}]


def test_reader_takes_what_a_killed_driver_left_and_waits_no_longer(
    store: Store, chunks: Path, orchestrator: Orchestrator
) -> None:
    channel = Channel(store, str(chunks))
    with channel.opened():
        say("half of it\n")
        wait_for(lambda: chunks.exists() and list(chunks.iterdir()))
    *_, last = sorted(chunks.iterdir())
    last.unlink()
    with orchestrator.reading():
        pass
    assert orchestrator.output("stdout") == b"half of it\n"
    assert not orchestrator.reader.said_last.is_set()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("".join(f"Ä日🙂 {n}\n" for n in range(200_000)).encode(), id="lines"),
        pytest.param(("Ä日🙂" * 350_000).encode(), id="one line"),
        pytest.param(bytes(range(256)) * 12_000, id="no text at all"),
    ],
)
def test_large_output_comes_byte_by_byte_the_same(
    store: Store, chunks: Path, orchestrator: Orchestrator, content: bytes
) -> None:
    with Channel(store, str(chunks)).opened():
        say(content)
    assert len(content) > 3 << 20 or len(content) > 3_000_000
    assert len(written(chunks)) >= 3
    for chunk in written(chunks):
        assert len(chunk["stdout"].encode("utf-8", "surrogateescape")) <= 1 << 20
    with orchestrator.reading():
        pass
    assert orchestrator.output("stdout") == content


def test_no_character_of_a_line_is_cut_in_two(store: Store, chunks: Path) -> None:
    with Channel(store, str(chunks)).opened():
        say("Ä日🙂\n" * 300_000)
    texts = [chunk["stdout"] for chunk in written(chunks)]
    for text in texts:
        # Only what is cut, or was no text, has bytes that stand for themselves.
        text.encode("utf-8")
    assert "".join(texts) == "Ä日🙂\n" * 300_000


def test_line_is_written_as_a_whole_or_when_its_end_does_not_come(
    store: Store, chunks: Path, orchestrator: Orchestrator
) -> None:
    """Dagster writes to the same output, and what a message says must not cut a line in two."""
    chunks.mkdir()
    seen: list[bytes] = []

    def write(number: int, stdout: str, *, is_last: bool = False) -> None:
        chunk = {"stdout": stdout, "stderr": "", "messages": [{"number": number}], "lost": 0}
        store.write_atomically(
            chunk_uri(str(chunks), number), json.dumps({**chunk, "is_last": is_last}).encode()
        )

    def handle(message: Any) -> None:
        seen.append(orchestrator.output("stdout"))

    orchestrator.handler.handle_message = handle  # type: ignore[method-assign]
    for number, text in enumerate(["whole\nha", "lf\nthe ", "prompt> "], start=1):
        write(number, text)
    with orchestrator.reading():
        wait_for(lambda: orchestrator.output("stdout") == b"whole\nhalf\nthe prompt> ")
        write(4, "answer", is_last=True)
    assert seen == [
        b"whole\n",
        b"whole\nhalf\n",
        b"whole\nhalf\n",
        b"whole\nhalf\nthe prompt> answer",
    ]
    assert list(orchestrator.reader.tail) == ["whole", "half", "the prompt> ", "answer"]


def test_step_outlives_a_rest_of_the_store(
    store: Store, chunks: Path, orchestrator: Orchestrator
) -> None:
    with Channel(store, str(chunks)).opened() as channel:
        store.is_down = True
        say("said while it is down\n")
        channel.write_message({"number": 1})
        wait_for(lambda: store.refused >= 2)
        store.is_down = False
        say("said later\n")
    with orchestrator.reading():
        pass
    assert orchestrator.output("stdout") == b"said while it is down\nsaid later\n"
    assert orchestrator.messages == [{"number": 1}]
    told = orchestrator.output("stderr").decode()
    assert "The output could not be stored, trying again: the store is down" in told
    assert "lost" not in told


def test_output_that_a_store_cannot_take_is_counted(
    store: Store, chunks: Path, orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is not held up for ever by its log, nor does it take all memory."""
    monkeypatch.setattr(channel_module, "_MAX_BUFFER_BYTES", 100_000)
    line = b"x" * 99 + b"\n"
    with Channel(store, str(chunks)).opened() as channel:
        store.is_down = True
        say(line)
        wait_for(lambda: store.refused >= 1)
        for _ in range(10_000):
            say(line)
        channel.write_message({"number": 1})
        store.is_down = False
    with orchestrator.reading():
        pass
    lost = sum(chunk["lost"] for chunk in written(chunks))
    told = orchestrator.output("stderr").decode()
    complaints = [text for text in told.splitlines(keepends=True) if text.startswith("The output")]
    assert lost > 500_000
    assert f"[{lost:,} bytes of output were lost: the store could not take them]" in told
    kept = len(orchestrator.output("stdout")) + sum(map(len, complaints))
    assert kept + lost >= 10_001 * len(line)
    assert len(orchestrator.output("stdout")) <= 100_000 + (1 << 16) + len(line)
    assert orchestrator.messages == [{"number": 1}]


def test_reader_outlives_a_rest_of_the_store(
    store: Store, chunks: Path, orchestrator: Orchestrator
) -> None:
    with Channel(store, str(chunks)).opened():
        say("all of it\n")
    store.is_down = True
    with orchestrator.reading():
        wait_for(lambda: store.refused >= 2)
        store.is_down = False
    assert orchestrator.output("stdout") == b"all of it\n"


def test_reader_gives_up_on_a_store_that_stays_down(
    store: Store,
    chunks: Path,
    orchestrator: Orchestrator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(chunk_reader, "_MAX_PAUSE_SECONDS", 0.05)
    store.is_down = True
    with orchestrator.reading():
        pass
    assert "The end of the step's output could not be read: the store is down" in caplog.text


def test_child_that_holds_the_output_open_holds_up_nobody(
    store: Store, chunks: Path, orchestrator: Orchestrator
) -> None:
    started = time.monotonic()
    with Channel(store, str(chunks)).opened():
        child = subprocess.Popen(["sh", "-c", "echo the child is there; exec sleep 60"])
        wait_for(lambda: chunks.exists() and list(chunks.iterdir()))
    try:
        assert time.monotonic() - started < 10.0
        assert written(chunks)[-1]["is_last"]
        with orchestrator.reading():
            pass
        assert orchestrator.output("stdout") == b"the child is there\n"
    finally:
        child.kill()
        child.wait()
