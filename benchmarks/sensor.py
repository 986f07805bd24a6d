"""Measure ticks of the arrival sensor over any number of blobs, beside what others do there.

No service is asked: a listing client makes the SDK's own pages and blobs out of numbers, and the
queue is a list. So the figures are of the work of a tick itself, and of Dagster's database, which
is SQLite in a folder. Nothing here fails because something was slow.
"""

import argparse
import datetime as dt
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import dagster as dg
import psutil
from azure.core.paging import ItemPaged
from azure.storage.blob import BlobProperties

from benchmarks.sensor_report import VARIANTS, Case, Outcome, format_page
from synapse_assets.arrivals import ArrivalPatterns, Arrivals, Limits, QueueEvents
from synapse_assets.arrivals.cursor import Cursor
from synapse_assets.arrivals.ledger import FOLDER, Entry
from synapse_assets.arrivals.listing import Walk
from synapse_assets.arrivals.sensor import evaluate
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.blob import BlobStorage
from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.location import Location
from synapse_assets.datastore.queue import Message, Receipt, StorageQueue
from synapse_assets.datastore.storage import LocalStorage

_PAGE = Path("docs/performance-sensor.md")
_BLOBS = (1_000, 100_000, 1_000_000)
_NEW = (0, 10, 1_000)
_REPEATS = 3
# What takes longer is measured once.
_LONG_SECONDS = 5.0
_PACKAGES = ("dagster", "azure-storage-blob")
_ARRIVALS = Arrivals(
    sensor="bench",
    patterns=ArrivalPatterns.parse(["in/{arrival}/*.csv"]),
    landing=dg.AssetKey("landing"),
    partitions=dg.DynamicPartitionsDefinition(name="arrivals"),
)
_EVENTS = QueueEvents(queue="arrivals")
_WRITTEN = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
_SAMPLE_SECONDS = 0.01
_STARTED = dg.DagsterRunStatus.STARTED
_ARRIVED = dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)


class Names(Sequence[str]):
    """Names of blobs in the order of a listing, none of which is in memory.

    Each is an arrival of its own. The new ones lie evenly between the others.
    """

    def __init__(self, blobs: int, new: int) -> None:
        self._total = blobs + new
        # In each block the second is new, which has the number of the first.
        self._block = blobs // new + 1 if new else 0

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._total:
            raise IndexError(index)
        number = index
        if self._block:
            block, place = divmod(index, self._block)
            number = block * (self._block - 1) + max(0, place - 1)
        return f"in/{number:07d}{'n' if self.is_new(index) else ''}/data.csv"

    def is_new(self, index: int) -> bool:
        return self._block > 0 and index % self._block == 1

    def new(self) -> Iterator[str]:
        return (name for index, name in enumerate(self) if self.is_new(index))

    def old(self) -> Iterator[str]:
        return (name for index, name in enumerate(self) if not self.is_new(index))


class Container:
    """The container client of the SDK, as far as a listing needs it."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def list_blobs(
        self, name_starts_with: str = "", *, results_per_page: int = 5_000, **_: Any
    ) -> ItemPaged[BlobProperties]:
        names = self._names
        begin = bisect_left(names, name_starts_with)
        end = bisect_left(names, name_starts_with + "\U0010ffff")

        def get_next(marker: str | None) -> tuple[int, int]:
            first = int(marker) if marker else begin
            return first, min(first + results_per_page, end)

        def extract(page: tuple[int, int]) -> tuple[str | None, Iterable[BlobProperties]]:
            following = str(page[1]) if page[1] < end else None
            return following, [self._blob(index) for index in range(*page)]

        return ItemPaged(get_next, extract)

    def _blob(self, index: int) -> BlobProperties:
        blob = BlobProperties(
            **{
                "Content-Length": 1_000,
                "ETag": f'"0x8D{self._names[index][3:11]}"',
                "Last-Modified": _ARRIVED if self._names.is_new(index) else _WRITTEN,
            }
        )
        blob.name = self._names[index]
        return blob


class Store(BlobStorage):
    """The container for the landing folder, and a local folder for the ledger."""

    def __init__(self, names: Names) -> None:
        super().__init__(container="lake", options={})
        self.__dict__["container_client"] = Container(names)
        local = LocalStorage()
        self.read_bytes = local.read_bytes  # type: ignore[method-assign]
        self.write_atomically = local.write_atomically  # type: ignore[method-assign]
        self.write_once = local.write_once  # type: ignore[method-assign]
        self.remove = local.remove  # type: ignore[method-assign]


class Queue(StorageQueue):
    """A queue that is a list."""

    def __init__(self, bodies: Iterable[str]) -> None:
        super().__init__(url="http://nowhere", name="arrivals", credential=None)
        self._bodies = list(bodies)
        self._received = 0

    def receive(self, *, at_most: int, hidden_seconds: int) -> list[Message]:
        first, self._received = self._received, min(len(self._bodies), self._received + at_most)
        return [
            Message(Receipt(f"{number:036d}", f"{number:044d}"), self._bodies[number], 1)
            for number in range(first, self._received)
        ]

    def delete(self, receipts: Iterable[Receipt]) -> None:
        pass


class Place:
    """What a tick asks of a datastore."""

    def __init__(self, folder: Path, names: Names) -> None:
        self._folder = folder
        self._store = Store(names)
        self._queue = Queue(map(_event, names.new()))
        self.location = Location.parse("az://lake", account=None, cloud=get_cloud("emulator"))

    def uri(self, *parts: str) -> str:
        if parts[0].startswith(FOLDER):
            return str(self._folder.joinpath(*parts))
        return "/".join(("az://lake", *parts))

    def storage(self) -> Store:
        return self._store

    def storage_queue(self, name: str, *, account: str | None) -> Queue:
        return self._queue


def _event(name: str) -> str:
    """Return a message about a blob, as Event Grid sends it."""
    return json.dumps(
        {
            "topic": "/subscriptions/s/resourceGroups/r/providers/Microsoft.Storage"
            "/storageAccounts/devstoreaccount1",
            "subject": f"/blobServices/default/containers/lake/blobs/{name}",
            "eventType": "Microsoft.Storage.BlobCreated",
            "id": "831e1650-001e-001b-66ab-eeb76e069631",
            "data": {
                "api": "PutBlob",
                "url": f"https://devstoreaccount1.blob.core.windows.net/lake/{name}",
            },
            "dataVersion": "",
            "metadataVersion": "1",
            "eventTime": "2026-01-02T00:00:00.0000000Z",
        }
    )


# --- Variants -----------------------------------------------------------------------------------


class Sensor:
    """Our own sensor, and a Dagster that keeps what its ticks return."""

    def __init__(self, folder: Path, names: Names, *, events: QueueEvents | None) -> None:
        (folder / "dagster").mkdir()
        self._instance = dg.DagsterInstance.local_temp(str(folder / "dagster"))
        self._place = Place(folder, names)
        # The process has ticked before.
        _ARRIVALS.open_ledger(cast("Datastore", self._place), self._instance)
        self._events = events
        self._runs: list[dg.DagsterRun] = []
        self.cursor: str | None = Cursor(full_pass=time.time(), retries_from=time.time()).to_json()

    def tick(self) -> int:
        """Evaluate the sensor once and return how many runs it asks for."""
        context = dg.build_sensor_context(instance=self._instance, cursor=self.cursor)
        place = cast("Datastore", self._place)
        result = evaluate(context, place, _ARRIVALS, events=self._events, limits=Limits())
        self.cursor = result.cursor
        self._runs = [
            dg.DagsterRun(job_name="bench", tags=dict(request.tags), status=_STARTED)
            for request in result.run_requests or []
        ]
        return len(self._runs)

    def launch(self) -> None:
        """Have the runs that the last tick asked for begin."""
        for run in self._runs:
            self._instance.add_run(run)

    def is_done(self) -> bool:
        """Tell whether the pass is complete, or nothing is left of the messages."""
        cursor = Cursor.from_json(self.cursor)
        return cursor.position is None and not (cursor.names or cursor.receipts)

    def close(self) -> None:
        """Close the instance."""
        self._instance.dispose()


class Naive:
    """The sensor that everybody writes: list all, and compare with what the cursor has."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self.cursor: str | None = json.dumps(list(names.old()))

    def tick(self) -> int:
        """Evaluate the sensor once and return how many runs it asks for."""
        seen = set(json.loads(self.cursor or "[]"))
        keys = [blob.name for blob in Container(self._names).list_blobs("in/")]
        requests = [dg.RunRequest(run_key=key) for key in keys if key not in seen]
        self.cursor = json.dumps(keys)
        return len(requests)


class LatestKey:
    """The logic of dagster-aws's `get_s3_keys`: list all, sort by time, take those after a key."""

    def __init__(self, names: Names) -> None:
        self._names = names
        # The latest of those that were there before: the sort keeps the order of equal times.
        self.cursor: str | None = list(names.old())[-1]

    def tick(self) -> int:
        """Evaluate the sensor once and return how many runs it asks for."""
        blobs = list(Container(self._names).list_blobs("in/"))
        keys = [blob.name for blob in sorted(blobs, key=lambda blob: blob.last_modified)]
        new = keys[keys.index(self.cursor) + 1 :] if self.cursor in keys else keys
        requests = [dg.RunRequest(run_key=key) for key in new]
        self.cursor = keys[-1]
        return len(requests)


# --- One case, in a process of its own ----------------------------------------------------------


def make_ledger(folder: Path, blobs: int) -> None:
    """Make a ledger that knows all blobs but the new ones."""
    place = cast("Datastore", Place(folder, Names(blobs, 0)))
    with dg.DagsterInstance.ephemeral() as instance:
        ledger = _ARRIVALS.open_ledger(place, instance)
    for arrival in Walk(place, _ARRIVALS.patterns):
        ledger.put(arrival.name, Entry(arrival.content, 0))
    ledger.save()


def run_case(case: Case, ledger: Path) -> Outcome:
    """Tick until there is nothing left to do, several times if that is quick."""
    names = Names(case.blobs, case.new)
    process = psutil.Process()
    seconds: list[list[float]] = []
    asked = cursor = grown = 0
    while len(seconds) < _REPEATS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            variant: Any
            if case.variant in ("listing", "events"):
                shutil.copytree(ledger, folder, dirs_exist_ok=True)
                events = _EVENTS if case.variant == "events" else None
                variant = Sensor(folder, names, events=events)
            else:
                variant = Naive(names) if case.variant == "naive" else LatestKey(names)
            before = process.memory_info().rss
            with Peak(process) as peak:
                ticks, asked = [], 0
                while True:
                    begun = time.perf_counter()
                    asked += variant.tick()
                    ticks.append(time.perf_counter() - begun)
                    cursor = max(cursor, len(variant.cursor or ""))
                    if not isinstance(variant, Sensor):
                        break
                    variant.launch()
                    if variant.is_done():
                        variant.close()
                        break
            # Later ones find the memory of the first.
            grown = max(grown, peak.highest - before)
        seconds.append(ticks)
        if sum(ticks) > _LONG_SECONDS:
            break
    return Outcome(case, seconds, asked=asked, cursor=cursor, grown=grown)


class Peak:
    """The highest resident memory of this process while the block runs."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample)
        self.highest = 0

    def __enter__(self) -> "Peak":
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()

    def _sample(self) -> None:
        while True:
            self.highest = max(self.highest, self._process.memory_info().rss)
            if self._ended.wait(_SAMPLE_SECONDS):
                return


# --- All of them --------------------------------------------------------------------------------


def main() -> None:
    """Measure every case in a process of its own, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blobs", type=int, nargs="+", default=_BLOBS)
    parser.add_argument("--new", type=int, nargs="+", default=_NEW)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--ledger", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(asdict(run_case(Case(**json.loads(options.case)), options.ledger))))
        return
    if options.ledger is not None:
        make_ledger(options.ledger, options.blobs[0])
        return
    outcomes = []
    for blobs in options.blobs:
        with tempfile.TemporaryDirectory() as folder:
            _run("--ledger", folder, "--blobs", str(blobs))
            for variant, new in itertools.product(options.variants, options.new):
                case = Case(variant, blobs, new)
                said = _run("--ledger", folder, "--case", json.dumps(asdict(case)))
                outcomes.append(Outcome.parse(json.loads(said)))
                print(outcomes[-1], flush=True)
    is_whole = [options.blobs, options.new, options.variants] == [_BLOBS, _NEW, VARIANTS]
    if is_whole:
        _PAGE.write_text(format_page(outcomes, _machine()))
        print(f"Written to {_PAGE}.")


def _run(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.sensor", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _machine() -> dict[str, str]:
    memory = psutil.virtual_memory().total / 2**30
    return {
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "Python": platform.python_version(),
        **{package: metadata.version(package) for package in _PACKAGES},
    }


if __name__ == "__main__":
    main()
