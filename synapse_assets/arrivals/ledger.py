"""The ledger: which content of each arrival was handed over to Dagster last."""

import hashlib
import json
import sys
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from synapse_assets.datastore.storage import Storage

# The folder of the datastore that holds the ledgers.
FOLDER = "_arrivals"

# One that was written elsewhere, with the bytes of a number in another order, is made anew.
_VERSION = {"little": 1, "big": -1}[sys.byteorder]
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

    @classmethod
    def after(cls, last: "Entry | None", content: str) -> "Entry":
        """Return the entry for other content than was handed over last, or the same once more."""
        return cls(content, 0 if last is None else last.change + 1)

    def __str__(self) -> str:
        return f"{self.content}:{self.change}"


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
        # What differs from that.
        self._recent: dict[str, _Record] = {}
        self._is_changed = False
        # Whether there was one that could not be understood.
        self.was_damaged = False
        self._read()

    def get(self, arrival: str) -> Entry | None:
        """Return what was handed over last; None if nothing is known, or not for sure."""
        record = self._record(arrival)
        return record.entry if record.doubted is None else None

    def confirm(self, arrivals: Collection[str]) -> dict[str, Entry | None]:
        """Look at Dagster's runs for what was handed over last, remember and return it."""
        told = self._recall(arrivals) if arrivals else {}
        return {name: self._confirm(name, told.get(name)) for name in arrivals}

    def _confirm(self, arrival: str, told: Entry | None) -> Entry | None:
        known = self._record(arrival).entry
        if told is None or told == known or (known is not None and known.change > told.change):
            # What is in doubt stays so: it may still come of a request that Dagster has kept.
            return known
        self._set(arrival, _Record(told))
        return told

    def doubt(self, arrivals: Sequence[str], *, now: float) -> None:
        """Put entries in doubt, before a run is asked for; `save` has to follow.

        The time is in seconds since 1970, here and in `settle`.
        """
        for arrival in arrivals:
            self._set(arrival, _Record(self._record(arrival).entry, doubted=now))

    def settle(self, now: float) -> None:
        """Look at Dagster's runs for every entry that was put in doubt before `now`."""
        doubted = {
            name: record.doubted
            for name, record in self._recent.items()
            if record.doubted is not None and record.doubted < now
        }
        self.confirm(doubted)
        for arrival, since in doubted.items():
            record = self._record(arrival)
            if record.doubted == since and now - since > _DOUBT_SECONDS:
                # Nothing came of it.
                self._set(arrival, _Record(record.entry))

    def put(self, arrival: str, entry: Entry) -> None:
        """Take an entry for true, whatever Dagster's runs tell; `save` has to follow."""
        self._set(arrival, _Record(entry))

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
            self._storage.write_once(f"{self._uri}/{self._base.name}", self._base.content)
        recent = {
            name: [r.entry and [r.entry.content, r.entry.change], r.doubted]
            for name, r in self._recent.items()
        }
        value = {"version": _VERSION, "base": self._base.name, "recent": recent}
        body = json.dumps(value, separators=(",", ":")).encode()
        content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        self._storage.write_atomically(f"{self._uri}/ledger", content)
        if self._base is not former:
            _known_bases[self._uri] = self._base
            if former.content:
                self._storage.remove(f"{self._uri}/{former.name}")
        self._is_changed = False

    def _record(self, arrival: str) -> "_Record":
        return self._recent.get(arrival) or _Record(self._base.get(arrival))

    def _set(self, arrival: str, record: "_Record") -> None:
        former = self._recent.pop(arrival, None)
        if record != self._record(arrival):
            self._recent[arrival] = record
        self._is_changed |= self._recent.get(arrival) != former

    def _read(self) -> None:
        content = self._storage.read_bytes(f"{self._uri}/ledger")
        if content is None:
            return
        checksum, _, body = content.partition(b"\n")
        is_whole = hashlib.sha256(body).hexdigest().encode() == checksum
        value = json.loads(body) if is_whole else {}
        base = self._read_base(value["base"]) if value.get("version") == _VERSION else None
        if base is None:
            # The recent entries alone would do, but all or nothing is simpler to reason about.
            self.was_damaged = True
            return
        self._base = base
        self._recent = {
            name: _Record(entry and Entry(*entry), doubted)
            for name, (entry, doubted) in value["recent"].items()
        }

    def _read_base(self, name: str | None) -> "_Base | None":
        for known in (_EMPTY, _known_bases.get(self._uri)):
            if known is not None and known.name == name:
                return known
        content = self._storage.read_bytes(f"{self._uri}/{name}")
        base = _Base(content or b"")
        if base.name != name:
            return None
        _known_bases[self._uri] = base
        return base


@dataclass(frozen=True)
class _Record:
    entry: Entry | None
    # When it was put in doubt, in seconds since 1970; None if it is sure.
    doubted: float | None = None


class _Base:
    """Many entries, sorted by a hash of the arrival's name: 20 bytes each.

    All hashes come first, then all contents, then all numbers of changes.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        name = f"ledger-{hashlib.sha256(content).hexdigest()[:16]}"
        self.name = name if content else None
        count = len(content) // 20
        view = memoryview(content)
        self._columns = (
            view[: 8 * count].cast("Q"),
            view[8 * count : 16 * count].cast("Q"),
            view[16 * count : 20 * count].cast("I"),
        )

    def get(self, arrival: str) -> Entry | None:
        key, (keys, contents, changes) = _key(arrival), self._columns
        i = bisect_left(keys, key)
        if i == len(keys) or keys[i] != key:
            return None
        return Entry(f"{contents[i]:016x}", changes[i])

    def merged(self, entries: Mapping[str, Entry]) -> "_Base":
        """Return the same with other entries in it, which take the place of those for their key."""
        new = sorted((_key(n), int(e.content, 16), e.change) for n, e in entries.items())
        parts: tuple[list[bytes | memoryview[int]], ...] = ([], [], [])
        keys, at = self._columns[0], 0
        for row in new:
            to = bisect_left(keys, row[0], at)
            for column, former, value in zip(parts, self._columns, row, strict=True):
                column.append(former[at:to])
                column.append(value.to_bytes(former.itemsize, sys.byteorder))
            at = to + (to < len(keys) and keys[to] == row[0])
        for column, former in zip(parts, self._columns, strict=True):
            column.append(former[at:])
        return _Base(b"".join(part for column in parts for part in column))


_EMPTY = _Base(b"")
# The large file of each ledger, which a process reads once.
_known_bases: dict[str, _Base] = {}


def _key(arrival: str) -> int:
    text = arrival.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
