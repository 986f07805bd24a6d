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
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field, replace

from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import PAGE_FILES, StoredFile
from synapse_assets.errors import ArrivalVanishedError, PartitionNotFoundError

_DIGEST_BYTES = 16
_MODULUS = 1 << (8 * _DIGEST_BYTES)
_NAMES_TOLD = 5
# Between two looks at the clock.
_BLOBS_AT_A_TIME = 1_000


class TooLargeError(Exception):
    """Raised when an arrival takes more to list than it may."""


@dataclass(frozen=True)
class Arrival:
    """The blobs of one partition, as a listing shows them; the blobs themselves are not kept.

    Attributes:
        name: Name of the arrival, which is its partition key.
        begun: When the listing of it began, by this machine's clock, in seconds since 1970.
        digest: Sum over the names and etags of its blobs, whatever their order; see `content`.
        blobs: Number of blobs.
        size: Size of all of them, in bytes.
        newest_modified: When the newest was written, by the store's clock, in seconds since 1970.
    """

    name: str
    begun: float
    digest: int = 0
    blobs: int = 0
    size: int = 0
    newest_modified: float = -math.inf

    def plus(self, name: str, blob: StoredFile) -> "Arrival":
        """Return the arrival with one more blob, which has this name in the datastore."""
        # A local name may hold bytes that are no text.
        text = f"{name}\0{blob.etag}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()
        return Arrival(
            self.name,
            self.begun,
            digest=(self.digest + int.from_bytes(digest, "big")) % _MODULUS,
            blobs=self.blobs + 1,
            size=self.size + blob.size,
            newest_modified=max(self.newest_modified, blob.modified),
        )

    @property
    def content(self) -> str:
        """The content in 16 hexadecimal digits: other blobs or other etags are another content."""
        return hashlib.sha256(f"{self.blobs}:{self.digest:x}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Position:
    """Where a pass over the whole listing goes on.

    Attributes:
        begun: When it began, in seconds since 1970.
        page: The store's mark of the next page, None for the first.
        open: Arrivals of which blobs were read already.
        blobs: Number of blobs before this place.
        arrivals: Number of arrivals that were complete before it.
    """

    begun: float
    page: str | None = None
    open: tuple[Arrival, ...] = ()
    blobs: int = 0
    arrivals: int = 0


@dataclass
class Walk:
    """Yields the arrivals of a landing folder, each once it is complete.

    Whoever iterates may stop at any time: `position` then tells where the next walk goes on, and
    no arrival that was not yielded is missed. Some are yielded again.

    Attributes:
        datastore: Where the blobs lie.
        patterns: Which of them form an arrival.
        position: Where the pass goes on; at its end, what there was in all of it.
        max_blobs: No further page is asked for once so many blobs were listed.
        max_seconds: Nor after this time since the walk was made.
        page_size: Number of blobs that are asked for at a time.
        clock: Tells the time in seconds since 1970.
        is_complete: Whether the walk came to the end.
    """

    datastore: Datastore
    patterns: ArrivalPatterns
    _: KW_ONLY
    position: Position = field(default_factory=lambda: Position(begun=time.time()))
    max_blobs: float = math.inf
    max_seconds: float = math.inf
    page_size: int = PAGE_FILES
    clock: Callable[[], float] = time.time
    is_complete: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Note when the walk was made; nothing is listed yet."""
        self._started = self.clock()

    def __iter__(self) -> Iterator[Arrival]:
        """Yield arrivals.

        Raises:
            StorageError: The store refused to list them, or could not be reached.
        """
        patterns, folder, first = self.patterns, self.patterns.folder, self.position
        opened = {arrival.name: arrival for arrival in first.open}
        carried = frozenset(opened)
        # The first name of a walk that begins in the middle.
        middle: str | None = None
        blobs, arrivals = first.blobs, first.arrivals

        def close(name: str | None) -> Iterator[Arrival]:
            """Yield the arrivals that a blob of this name, or the end, shows to be complete."""
            nonlocal arrivals
            for arrival in list(opened.values()):
                beginning = patterns.beginning(arrival.name)
                if name is not None and name.startswith(beginning):
                    continue
                whole: Arrival | None = opened.pop(arrival.name)
                # Blobs of it may lie before this walk, or have come there since the former one.
                if arrival.name in carried or (middle and middle.startswith(beginning)):
                    whole = self._look_again(arrival)
                if whole is not None:
                    arrivals += 1
                    yield whole

        pages = self.datastore.storage().list_pages(
            self.datastore.uri(folder),
            prefix=patterns.head[len(folder) :].lstrip("/"),
            start=first.page,
            size=self.page_size,
        )
        now = self.clock()
        for page in pages:
            for blob in page.files:
                name = f"{folder}/{blob.path}" if folder else blob.path
                if middle is None and first.page is not None:
                    middle = name
                if opened:
                    yield from close(name)
                if (found := patterns.match(name)) is not None:
                    former = opened.get(found) or Arrival(found, begun=now)
                    opened[found] = former.plus(name, blob)
            blobs += len(page.files)
            if page.following is None:
                break
            self.position = Position(
                first.begun, page.following, tuple(opened.values()), blobs, arrivals
            )
            now = self.clock()
            if blobs - first.blobs >= self.max_blobs or now - self._started >= self.max_seconds:
                return
        yield from close(None)
        self.position = Position(first.begun, blobs=blobs, arrivals=arrivals)
        self.is_complete = True

    def _look_again(self, parts: Arrival) -> Arrival | None:
        """Return an arrival as it lies there now; its parts, if it is too large for that."""
        if parts.blobs > self.max_blobs:
            return parts
        try:
            return look_at(
                self.datastore,
                self.patterns,
                parts.name,
                max_blobs=self.max_blobs,
                max_seconds=self.max_seconds,
                clock=self.clock,
            )
        except TooLargeError:
            return parts


def look_at(
    datastore: Datastore,
    patterns: ArrivalPatterns,
    arrival: str,
    *,
    max_blobs: float = math.inf,
    max_seconds: float = math.inf,
    clock: Callable[[], float] = time.time,
) -> Arrival | None:
    """Return one arrival as it lies there now, None if there is no blob of it.

    Raises:
        TooLargeError: It has more blobs, or takes more time, than that.
        StorageError: The store refused to list it, or could not be reached.
    """
    found = Arrival(arrival, begun=clock())
    for name, blob in _blobs_of(datastore, patterns, arrival):
        found = found.plus(name, blob)
        is_late = found.blobs % _BLOBS_AT_A_TIME == 0 and clock() - found.begun > max_seconds
        if is_late or found.blobs > max_blobs:
            raise TooLargeError(arrival)
    return found if found.blobs else None


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
    found = Arrival(arrival, begun=0.0)
    files = []
    for name, blob in _blobs_of(datastore, patterns, arrival):
        found = found.plus(name, blob)
        files.append(DataFile(path=blob.path, size=blob.size, name=blob.path, etag=blob.etag))
    if content is not None and found.content != content:
        raise ArrivalVanishedError(
            f"The arrival '{arrival}' in {uri} is {'another one' if files else 'gone'} since this "
            "run was asked for. New content has a run of its own; to process what is there now, "
            "materialize the partition."
        )
    if not files:
        raise not_there(datastore, patterns, arrival)
    return DatasetVersion(
        name=patterns.folder,
        uri=uri,
        kind="FileDataset",
        version=0,
        files=tuple(sorted(files, key=lambda file: file.path)),
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


def _blobs_of(
    datastore: Datastore, patterns: ArrivalPatterns, arrival: str
) -> Iterator[tuple[str, StoredFile]]:
    """Yield the blobs of one arrival with their names in the datastore, each once."""
    storage = datastore.storage()
    folder = f"{patterns.folder}/" if patterns.folder else ""
    begun: list[str] = []
    # Exact names last, and the shorter beginnings first: they take in the longer ones.
    for rest in sorted(patterns.rests, key=lambda rest: ("*" not in rest, rest.find("*"))):
        tail, wildcard, _ = rest.partition("*")
        beginning = f"{patterns.head}{arrival}{tail}"
        path = beginning.removeprefix(folder)
        if beginning.startswith(tuple(begun)):
            continue
        if not wildcard:
            blob = storage.stat(datastore.uri(beginning))
            found = iter([] if blob is None else [replace(blob, path=path)])
        else:
            begun.append(beginning)
            pages = storage.list_pages(datastore.uri(patterns.folder), prefix=path)
            found = (blob for page in pages for blob in page.files)
        for blob in found:
            if patterns.match(folder + blob.path) == arrival:
                yield folder + blob.path, blob
