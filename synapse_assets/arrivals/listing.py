"""From blobs to arrivals: one walk over a listing, in constant memory, that can stop anywhere.

Every store lists names in an order in which those with a common beginning follow each other. The
names of an arrival's blobs have one (`ArrivalPatterns.beginning`), so an arrival is complete as
soon as a name without it comes. Until then a sum is kept of it: how many blobs, how large, how new,
and a digest that does not depend on their order. Arrivals are open at the same time only where the
name of one begins with that of the other ('2026' and '2026-11'), which are few.

A walk that is out of time stops at the end of a page and goes on there in the next tick. An arrival
that may lie on both sides of that place is listed by itself at the end, so that what is said of it
was true at one time. Only of one that is larger than a whole tick the parts are taken as they were,
with the time at which it was begun: it is settled if nothing of it was written since.
"""

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import PAGE_FILES, StoredFile
from synapse_assets.errors import ArrivalVanishedError, PartitionNotFoundError

_DIGEST_BYTES = 16
_MODULUS = 1 << (8 * _DIGEST_BYTES)
_NAMES_TOLD = 5


class TooLargeError(Exception):
    """Raised when an arrival takes more to list than it may."""


@dataclass(frozen=True)
class Arrival:
    """The blobs of one partition, as a listing shows them; the blobs themselves are not kept.

    Attributes:
        name: Name of the arrival, which is its partition key.
        digest: Sum over the names and etags of its blobs, whatever their order; see `content`.
        blobs: Number of blobs.
        size: Size of all of them, in bytes.
        newest_modified: When the newest was written, by the store's clock, in seconds since 1970.
        begun: When the listing of it began, by this machine's clock, in seconds since 1970.
    """

    name: str
    digest: int
    blobs: int
    size: int
    newest_modified: float
    begun: float

    @property
    def content(self) -> str:
        """The content in 16 hexadecimal digits: other blobs or other etags are another content."""
        return hashlib.sha256(f"{self.blobs}:{self.digest:x}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Position:
    """Where a walk goes on.

    Attributes:
        page: The store's mark of the next page, None for the first.
        open: Arrivals of which blobs were read already.
    """

    page: str | None = None
    open: tuple[Arrival, ...] = ()


class Walk:
    """Yields the arrivals of a landing folder, each once it is complete.

    Whoever iterates may stop at any time: `position` then tells where the next walk goes on, and
    no arrival that was not yielded is missed. Some are yielded again.
    """

    def __init__(
        self,
        datastore: Datastore,
        patterns: ArrivalPatterns,
        *,
        position: Position | None = None,
        max_blobs: int | None = None,
        max_seconds: float | None = None,
        page_size: int = PAGE_FILES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Create the walk; nothing is listed yet.

        Args:
            datastore: Where the blobs lie.
            patterns: Which of them form an arrival.
            position: Where to go on; at the beginning by default.
            max_blobs: No further page is asked for once so many blobs were listed.
            max_seconds: No further page is asked for after this time.
            page_size: Number of blobs that are asked for at a time.
            clock: Tells the time in seconds since 1970.
        """
        self._datastore = datastore
        self._patterns = patterns
        self._max_blobs = max_blobs
        self._max_seconds = max_seconds
        self._page_size = page_size
        self._clock = clock
        self._open: dict[str, _Open] = {}
        self._carried = {a.name for a in position.open} if position is not None else set()
        # The first name of a walk that begins in the middle.
        self._middle: str | None = None
        self._now = clock()
        # What they were at the beginning of the page at hand.
        self._position = position or Position()
        self._blobs = self._arrivals = 0
        self._is_complete = False

    @property
    def position(self) -> Position | None:
        """Where the next walk goes on; None if this one came to the end."""
        return None if self._is_complete else self._position

    @property
    def blobs(self) -> int:
        """Number of blobs before `position` that this walk listed."""
        return self._blobs

    @property
    def arrivals(self) -> int:
        """Number of arrivals before `position` that this walk yielded."""
        return self._arrivals

    def __iter__(self) -> Iterator[Arrival]:
        """Yield arrivals.

        Raises:
            StorageError: The store refused to list them, or could not be reached.
        """
        begun = self._clock()
        first = self._position
        self._open = {arrival.name: _Open(arrival) for arrival in first.open}
        folder = self._patterns.folder
        pages = self._datastore.storage().list_pages(
            self._datastore.uri(folder),
            prefix=self._patterns.head[len(folder) :].lstrip("/"),
            start=first.page,
            size=self._page_size,
        )
        yielded = 0
        while True:
            self._now = self._clock()
            page = next(pages, None)
            for blob in () if page is None else page.files:
                name = f"{folder}/{blob.path}" if folder else blob.path
                if self._middle is None and first.page is not None:
                    self._middle = name
                for arrival in self._close(name):
                    yielded += 1
                    yield arrival
                self._add(blob, name=name)
            following = None if page is None else page.following
            if following is None:
                for arrival in self._close(None):
                    yielded += 1
                    yield arrival
                self._is_complete = True
            self._blobs += 0 if page is None else len(page.files)
            self._arrivals = yielded
            if following is None:
                return
            self._position = Position(
                following, tuple(arrival.closed() for arrival in self._open.values())
            )
            if self._is_spent(begun):
                return

    def _close(self, name: str | None) -> Iterator[Arrival]:
        """Yield the arrivals that a blob of this name, or the end, shows to be complete."""
        if not self._open:
            return
        for name_of_arrival in list(self._open):
            if name is None or not name.startswith(self._patterns.beginning(name_of_arrival)):
                arrival = self._open.pop(name_of_arrival).closed()
                whole = self._look_again(arrival) if self._may_be_cut(arrival.name) else arrival
                if whole is not None:
                    yield whole

    def _may_be_cut(self, arrival: str) -> bool:
        """Tell whether blobs of an arrival may lie before the place where the walk began."""
        if arrival in self._carried:
            return True
        # They may have come after the former walk was there.
        beginning = self._patterns.beginning(arrival)
        return self._middle is not None and self._middle.startswith(beginning)

    def _look_again(self, parts: Arrival) -> Arrival | None:
        """Return an arrival as it lies there now; its parts, if it is too large for that."""
        if self._max_blobs is not None and parts.blobs > self._max_blobs:
            return parts
        try:
            return look_at(
                self._datastore,
                self._patterns,
                parts.name,
                max_blobs=self._max_blobs,
                max_seconds=self._max_seconds,
                clock=self._clock,
            )
        except TooLargeError:
            return parts

    def _add(self, blob: StoredFile, *, name: str) -> None:
        arrival = self._patterns.match(name)
        if arrival is None:
            return
        if arrival not in self._open:
            self._open[arrival] = _Open(_begin(arrival, blob, now=self._now))
        self._open[arrival].add(blob, name=name)

    def _is_spent(self, begun: float) -> bool:
        if self._max_blobs is not None and self._blobs >= self._max_blobs:
            return True
        return self._max_seconds is not None and self._clock() - begun >= self._max_seconds


def look_at(
    datastore: Datastore,
    patterns: ArrivalPatterns,
    arrival: str,
    *,
    max_blobs: int | None = None,
    max_seconds: float | None = None,
    clock: Callable[[], float] = time.time,
) -> Arrival | None:
    """Return one arrival as it lies there now, None if there is no blob of it.

    Raises:
        TooLargeError: It has more blobs, or takes more time, than that.
        StorageError: The store refused to list it, or could not be reached.
    """
    now = clock()
    blobs = _blobs_of(datastore, patterns, arrival)

    def bounded() -> Iterator[tuple[str, StoredFile]]:
        for number, blob in enumerate(blobs, 1):
            is_late = (
                number % 1_000 == 0 and max_seconds is not None and clock() - now > max_seconds
            )
            if is_late or (max_blobs is not None and number > max_blobs):
                raise TooLargeError(arrival)
            yield blob

    return _sum_up(arrival, bounded(), now=now)


def find_arrival(
    datastore: Datastore,
    patterns: ArrivalPatterns,
    arrival: str,
    *,
    content: str | None = None,
) -> DatasetVersion:
    """Return a reference to the blobs of one arrival, as they lie there now.

    Args:
        datastore: Where the blobs lie.
        patterns: Which of them form an arrival.
        arrival: Name of the arrival.
        content: `Arrival.content` that a run was asked for; any will do by default.

    Raises:
        PartitionNotFoundError: No blob of the arrival is there.
        ArrivalVanishedError: The content is not there any more.
    """
    uri = datastore.uri(patterns.folder)
    blobs = sorted(_blobs_of(datastore, patterns, arrival), key=lambda named: named[0])
    if content is not None:
        found = _sum_up(arrival, blobs, now=0.0)
        if found is None or found.content != content:
            raise ArrivalVanishedError(
                f"The arrival '{arrival}' in {uri} is "
                f"{'gone' if found is None else 'another one'} since this run was asked for. New "
                "content has a run of its own; to process what is there now, materialize the "
                "partition."
            )
    if not blobs:
        raise not_there(datastore, patterns, arrival)
    return DatasetVersion(
        name=patterns.folder,
        uri=uri,
        kind="FileDataset",
        version=0,
        files=tuple(
            DataFile(path=blob.path, size=blob.size, name=blob.path, etag=blob.etag)
            for _, blob in blobs
        ),
    )


def not_there(
    datastore: Datastore, patterns: ArrivalPatterns, arrival: str
) -> PartitionNotFoundError:
    """Return the error that says that no blob of an arrival is there, and what is there."""
    found = itertools.islice(Walk(datastore, patterns), _NAMES_TOLD)
    names = ", ".join(sorted(arrival.name for arrival in found)) or "nothing"
    return PartitionNotFoundError(
        f"No blob of the arrival '{arrival}' is in {datastore.uri(patterns.folder)}; there is "
        f"{names}. Land it again, or delete the partition."
    )


class _Open:
    """An arrival to which blobs are added."""

    __slots__ = ("_begun", "_blobs", "_digest", "_name", "_newest", "_size")

    def __init__(self, arrival: Arrival) -> None:
        self._name = arrival.name
        self._digest = arrival.digest
        self._blobs = arrival.blobs
        self._size = arrival.size
        self._newest = arrival.newest_modified
        self._begun = arrival.begun

    def add(self, blob: StoredFile, *, name: str) -> None:
        self._digest = (self._digest + _digest(name, blob.etag)) % _MODULUS
        self._blobs += 1
        self._size += blob.size
        self._newest = max(self._newest, blob.modified)

    def closed(self) -> Arrival:
        return Arrival(
            name=self._name,
            digest=self._digest,
            blobs=self._blobs,
            size=self._size,
            newest_modified=self._newest,
            begun=self._begun,
        )


def _blobs_of(
    datastore: Datastore, patterns: ArrivalPatterns, arrival: str
) -> Iterator[tuple[str, StoredFile]]:
    """Yield the blobs of one arrival with their names in the datastore, each once."""
    storage = datastore.storage()
    folder = f"{patterns.folder}/" if patterns.folder else ""
    begun: list[str] = []
    # The shorter beginnings first: they take in the longer ones.
    for pattern in sorted(patterns.patterns, key=lambda p: (p.is_exact, len(p.tail))):
        beginning = f"{patterns.head}{arrival}{pattern.tail}"
        if beginning.startswith(tuple(begun)):
            continue
        if pattern.is_exact:
            blob = storage.stat(datastore.uri(beginning))
            path = beginning.removeprefix(folder)
            found: Iterable[StoredFile] = [] if blob is None else [replace(blob, path=path)]
        else:
            begun.append(beginning)
            pages = storage.list_pages(
                datastore.uri(patterns.folder), prefix=beginning.removeprefix(folder)
            )
            found = (blob for page in pages for blob in page.files)
        for blob in found:
            if patterns.match(folder + blob.path) == arrival:
                yield folder + blob.path, blob


def _sum_up(arrival: str, blobs: Iterable[tuple[str, StoredFile]], *, now: float) -> Arrival | None:
    found: _Open | None = None
    for name, blob in blobs:
        if found is None:
            found = _Open(_begin(arrival, blob, now=now))
        found.add(blob, name=name)
    return None if found is None else found.closed()


def _begin(arrival: str, blob: StoredFile, *, now: float) -> Arrival:
    return Arrival(arrival, 0, 0, 0, newest_modified=blob.modified, begun=now)


def _digest(name: str, etag: str) -> int:
    # A local name may hold bytes that are no text.
    text = f"{name}\0{etag}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest(), "big")
