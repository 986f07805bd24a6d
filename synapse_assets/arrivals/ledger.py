"""The ledger: which content of each arrival was handed over to Dagster last."""

import hashlib
import json
import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from synapse_assets.datastore.storage import Storage

_VERSION = 1
# Entries in the file that is read and written in each tick; about 60 bytes each.
_MAX_RECENT = 4_096
# Dagster goes on with an interrupted tick for a day. Until then a run may still come of it.
_DOUBT_SECONDS = 25 * 3_600.0


@dataclass(frozen=True)
class Entry:
    """What was handed over of one arrival.

    Attributes:
        content: `Arrival.content` that a run was asked for last.
        change: How many times a run was asked for another content before.
    """

    content: str
    change: int


# Returns what Dagster's runs tell of some arrivals, without those that never had a run.
Recall = Callable[[Collection[str]], Mapping[str, Entry]]


class Ledger:
    """What was handed over, in two small files of the datastore; it is a memory, not the authority.

    Dagster's own runs are the authority: each carries the arrival and the content that it is for.
    The ledger spares asking for them. Before a run is asked for, the arrival's entry is put in
    doubt, and that is written. Whatever happens then, the entry is only believed again when the
    runs have been looked at. So a crash, at any place, can neither lose nor double an arrival; and
    a ledger that is lost or damaged is made again from the runs.

    The file `ledger` holds the entries that changed lately. When there are many, they go to a file
    of 20 bytes for each arrival, whose name is the hash of its content and which `ledger` names: so
    both change at once. A process reads that file once.
    """

    def __init__(self, storage: Storage, uri: str, *, recall: Recall) -> None:
        """Read the ledger.

        Args:
            storage: The store that holds it.
            uri: A folder for it alone.
            recall: Tells what Dagster's runs know.

        Raises:
            StorageError: The store refused to read it, or could not be reached.
        """
        self._storage = storage
        self._uri = uri
        self._recall = recall
        self._base = _EMPTY
        self._recent: dict[str, _Record] = {}
        self._is_changed = False
        # Whether there was one that could not be understood.
        self.was_damaged = False
        self._read()

    def get(self, arrival: str) -> Entry | None:
        """Return what was handed over last; None if nothing is known, or not for sure."""
        record = self._recent.get(arrival)
        if record is None:
            return self._base.get(arrival)
        return record.entry if record.doubted is None else None

    def confirm(self, arrivals: Collection[str]) -> dict[str, Entry | None]:
        """Look at Dagster's runs for what was handed over last, remember and return it."""
        told = self._recall(arrivals) if arrivals else {}
        return {name: self._confirm(name, told.get(name)) for name in arrivals}

    def _confirm(self, arrival: str, told: Entry | None) -> Entry | None:
        record = self._recent.get(arrival)
        known = self._base.get(arrival) if record is None else record.entry
        if told is None or (known is not None and known.change > told.change):
            # It may still come of a request that Dagster has kept.
            return known
        if record is not None and record.doubted is not None and told == record.entry:
            return known
        if told != known or record is not None:
            self._set(arrival, _Record(told, doubted=None))
        return told

    def doubt(self, arrivals: Sequence[str], *, now: float) -> None:
        """Put entries in doubt, before a run is asked for; `save` has to follow.

        Args:
            arrivals: The arrivals.
            now: Seconds since 1970.
        """
        for arrival in arrivals:
            record = self._recent.get(arrival)
            entry = self._base.get(arrival) if record is None else record.entry
            self._set(arrival, _Record(entry, doubted=now))

    def settle(self, now: float) -> None:
        """Look at Dagster's runs for every entry that was put in doubt before `now`.

        Args:
            now: Seconds since 1970.
        """
        doubted = {
            name: record
            for name, record in self._recent.items()
            if record.doubted is not None and record.doubted < now
        }
        self.confirm(doubted)
        for arrival, record in doubted.items():
            is_old = record.doubted is not None and now - record.doubted > _DOUBT_SECONDS
            if is_old and self._recent.get(arrival) == record:
                # Nothing came of it.
                if record.entry is None:
                    del self._recent[arrival]
                    self._is_changed = True
                else:
                    self._set(arrival, _Record(record.entry, doubted=None))

    def put(self, arrival: str, entry: Entry) -> None:
        """Take an entry for true, whatever Dagster's runs tell; `save` has to follow."""
        self._set(arrival, _Record(entry, doubted=None))

    def save(self) -> None:
        """Write what changed, atomically.

        Raises:
            StorageError: The store refused it, or could not be reached.
        """
        if not self._is_changed:
            return
        sure = {n: r.entry for n, r in self._recent.items() if r.doubted is None and r.entry}
        former = self._base
        if len(sure) > _MAX_RECENT:
            self._base = former.merged(sure)
            self._recent = {n: r for n, r in self._recent.items() if n not in sure}
            self._storage.write_once(f"{self._uri}/{self._base.name}", self._base.to_bytes())
        self._storage.write_atomically(f"{self._uri}/ledger", self._dump())
        if self._base is not former:
            _known_bases[self._uri] = self._base
            if former.name is not None:
                self._storage.remove(f"{self._uri}/{former.name}")
        self._is_changed = False

    def _set(self, arrival: str, record: "_Record") -> None:
        if self._recent.get(arrival) != record:
            self._recent[arrival] = record
            self._is_changed = True

    def _dump(self) -> bytes:
        body = json.dumps(
            {
                "version": _VERSION,
                "base": self._base.name,
                "recent": {
                    name: [r.entry and [r.entry.content, r.entry.change], r.doubted]
                    for name, r in self._recent.items()
                },
            },
            separators=(",", ":"),
        ).encode()
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    def _read(self) -> None:
        content = self._storage.read_bytes(f"{self._uri}/ledger")
        if content is None:
            return
        checksum, _, body = content.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            self.was_damaged = True
            return
        value = json.loads(body)
        if value["version"] != _VERSION:
            self.was_damaged = True
            return
        if value["base"] is not None:
            base = self._read_base(value["base"])
            if base is None:
                # The recent entries alone would do, but all or nothing is simpler to reason about.
                self.was_damaged = True
                return
            self._base = base
        self._recent = {
            name: _Record(entry and Entry(*entry), doubted)
            for name, (entry, doubted) in value["recent"].items()
        }

    def _read_base(self, name: str) -> "_Base | None":
        known = _known_bases.get(self._uri)
        if known is not None and known.name == name:
            return known
        content = self._storage.read_bytes(f"{self._uri}/{name}")
        if content is None or _name_of(content) != name:
            return None
        base = _Base.parse(content, name=name)
        _known_bases[self._uri] = base
        return base


@dataclass(frozen=True)
class _Record:
    entry: Entry | None
    # When it was put in doubt, in seconds since 1970; None if it is sure.
    doubted: float | None


class _Base:
    """Many entries, sorted by a hash of the arrival's name: 20 bytes each."""

    def __init__(
        self,
        keys: "array[int]",
        contents: "array[int]",
        changes: "array[int]",
        *,
        name: str | None = None,
    ) -> None:
        self._keys = keys
        self._contents = contents
        self._changes = changes
        self.name = _name_of(self.to_bytes()) if keys and name is None else name

    def to_bytes(self) -> bytes:
        return b"".join(_bytes(part) for part in (self._keys, self._contents, self._changes))

    @classmethod
    def parse(cls, content: bytes, *, name: str) -> "_Base":
        count = len(content) // 20
        ends = (8 * count, 16 * count)
        return cls(
            _array("Q", content[: ends[0]]),
            _array("Q", content[ends[0] : ends[1]]),
            _array("I", content[ends[1] :]),
            name=name,
        )

    def get(self, arrival: str) -> Entry | None:
        key = _key(arrival)
        i = bisect_left(self._keys, key)
        if i == len(self._keys) or self._keys[i] != key:
            return None
        return Entry(f"{self._contents[i]:016x}", self._changes[i])

    def merged(self, entries: Mapping[str, Entry]) -> "_Base":
        """Return the same with other entries in it, which take the place of those for their key."""
        keys, contents, changes = array("Q"), array("Q"), array("I")
        at = 0
        for key, entry in sorted(((_key(n), e) for n, e in entries.items()), key=itemgetter(0)):
            to = bisect_left(self._keys, key, at)
            keys += self._keys[at:to]
            contents += self._contents[at:to]
            changes += self._changes[at:to]
            keys.append(key)
            contents.append(int(entry.content, 16))
            changes.append(entry.change)
            at = to + (to < len(self._keys) and self._keys[to] == key)
        return _Base(
            keys + self._keys[at:], contents + self._contents[at:], changes + self._changes[at:]
        )


_EMPTY = _Base(array("Q"), array("Q"), array("I"))
# The large file of each ledger, which a process reads once.
_known_bases: dict[str, _Base] = {}


def _key(arrival: str) -> int:
    text = arrival.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _name_of(content: bytes) -> str:
    return f"ledger-{hashlib.sha256(content).hexdigest()[:16]}"


def _bytes(values: "array[int]") -> bytes:
    return _little_endian(values).tobytes()


def _array(typecode: str, content: bytes) -> "array[int]":
    values = array(typecode)
    values.frombytes(content)
    return _little_endian(values)


def _little_endian(values: "array[int]") -> "array[int]":
    """Return numbers in the order of bytes that the file has, or from that in this machine's."""
    if sys.byteorder == "little":
        return values
    swapped = values[:]
    swapped.byteswap()
    return swapped
