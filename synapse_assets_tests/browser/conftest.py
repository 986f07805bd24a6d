"""A real Dagster UI on an empty project, and a real Chromium in front of it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

T = TypeVar("T")

_IMAGES = Path(__file__).parents[2] / "docs" / "images"
_START_SECONDS = 150
_STOP_SECONDS = 30
_PAGE_MILLISECONDS = 60_000
_CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class Ui:
    """A running `dagster dev`.

    Attributes:
        url: Where it listens.
        folder: Keeps all that it writes.
    """

    url: str
    folder: Path

    @property
    def home(self) -> Path:
        """Its DAGSTER_HOME, by which its processes are known."""
        return self.folder / "dagster_home"

    @property
    def datastore(self) -> Path:
        """The root of the datastore, where that is a folder."""
        return self.folder / "datastore"

    def query(self, query: str) -> dict[str, Any]:
        """Return the answer to a GraphQL query."""
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            data: dict[str, Any] = json.load(response)["data"]
        return data

    def runs(self) -> dict[str, str]:
        """Return the status of each run, by its id, the latest run first."""
        data = self.query("{ runsOrError { ... on Runs { results { runId status } } } }")
        return {run["runId"]: run["status"] for run in data["runsOrError"]["results"]}

    def latest_run(self) -> str:
        """Return the id of the run that was made last."""
        return next(iter(self.runs()))

    def run_that_made(self, asset: str) -> str | None:
        """Return the id of the run that materialized an asset last, None if none did."""
        query = f'{{ assetNodes(assetKeys: [{{path: ["{asset}"]}}]) {{ assetMaterializations'
        (node,) = self.query(f"{query}(limit: 1) {{ runId }} }} }}")["assetNodes"]
        return next((made["runId"] for made in node["assetMaterializations"]), None)

    def wait_for_new_run(self, *, known: dict[str, str]) -> str:
        """Return the id of the run that was not among the known ones."""
        return poll(lambda: next(iter(self.runs().keys() - known.keys()), None), seconds=60)

    def wait_for_end(self, run_id: str, *, seconds: float) -> str:
        """Return the status with which a run ended."""
        ends = {"SUCCESS", "FAILURE", "CANCELED"}
        return poll(lambda: s if (s := self.runs()[run_id]) in ends else None, seconds=seconds)

    def processes(self) -> list[psutil.Process]:
        """Return every process of this UI, also those that lost their parent."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DAGSTER_HOME") == str(self.home):
                    found.append(process)
            except psutil.Error:  # another user's process, or one that just ended
                continue
        return found


def poll(probe: Callable[[], T | None], *, seconds: float) -> T:
    """Return the first answer of a probe that is not None."""
    deadline = time.monotonic() + seconds
    while (answer := probe()) is None:
        assert time.monotonic() < deadline, f"nothing came within {seconds} s"
        time.sleep(0.5)
    return answer


@pytest.fixture(scope="module")
def chromium() -> str:
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("SYNAPSE_ASSETS_REQUIRE_SERVICES") == "1":
            pytest.fail("There is no `chromium` on the PATH, and this run requires it.")
        pytest.skip("There is no `chromium` on the PATH (on Debian: apt install chromium).")
    return path


@pytest.fixture(scope="module")
def ui(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """A UI that nobody has used yet."""
    folder = tmp_path_factory.mktemp("ui")
    main = "from synapse_assets.cli import main; main()"
    variables = {"SYNAPSE_ASSETS_DATASTORE": str(folder / "datastore")}
    with open_ui([sys.executable, "-c", main, "ui"], folder=folder, variables=variables) as running:
        yield running


@contextmanager
def open_ui(command: list[str], *, folder: Path, variables: Mapping[str, str]) -> Iterator[Ui]:
    """Run a command that is a UI, on a free port; nothing of it is left in the end.

    Args:
        command: The command, which takes `--port`.
        folder: Keeps all that it writes.
        variables: Environment variables, beside DAGSTER_HOME.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = Ui(f"http://127.0.0.1:{port}", folder)
    environment = {**os.environ, **variables, "DAGSTER_HOME": str(running.home)}
    log = folder / "ui.log"
    with log.open("ab") as output:
        server = subprocess.Popen(
            [*command, "--port", str(port)], env=environment, stdout=output, stderr=output
        )
    try:
        poll(lambda: _answers(running, server, log), seconds=_START_SECONDS)
        yield running
    finally:
        _stop(running, server)
    assert running.processes() == []


def _answers(running: Ui, server: "subprocess.Popen[bytes]", log: Path) -> bool | None:
    assert server.poll() is None, log.read_text()
    try:
        with urllib.request.urlopen(f"{running.url}/server_info", timeout=10):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return None


def _stop(running: Ui, server: "subprocess.Popen[bytes]") -> None:
    """Stop the UI as Ctrl-C does, and kill what does not end by that."""
    processes = running.processes()
    server.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(processes, timeout=_STOP_SECONDS)
    for process in {*alive, *running.processes()}:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    server.wait(timeout=_STOP_SECONDS)
    psutil.wait_procs(alive, timeout=_STOP_SECONDS)


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1600, "height": 900})
    context.set_default_timeout(_PAGE_MILLISECONDS)
    # Dagster invites each new visitor to its community, in a dialog above everything.
    context.add_init_script("localStorage.setItem('communityNux', '\"1\"')")
    yield context.new_page()
    context.close()


def image(name: str, folder: Path) -> Path:
    """Return where a screenshot goes: into the documentation only when that is asked for."""
    if os.environ.get("SYNAPSE_ASSETS_WRITE_SCREENSHOTS") != "1":
        return folder / name
    _IMAGES.mkdir(parents=True, exist_ok=True)
    return _IMAGES / name
