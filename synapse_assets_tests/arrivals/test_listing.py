"""Walks over a listing: complete arrivals, in constant memory, from wherever the last one ended."""

import itertools
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from synapse_assets.arrivals.cursor import Cursor
from synapse_assets.arrivals.listing import Arrival, Position, Walk, find_arrival, look_at
from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import Page, StoredFile
from synapse_assets.defs.titanic.assets import PATTERNS
from synapse_assets.errors import ArrivalVanishedError, PartitionNotFoundError
from synapse_assets_tests.contract.conftest import open_store

FOLDER = "landing/titanic"
NAMES = [
    blob.format(arrival)
    for arrival in ("a", "a a", "a-b", "a.b", "aa", "b")
    for blob in ("{}.csv", "{}/1.csv", "{}/deep/2.csv")
]


def land(datastore: Datastore, name: str, content: str = "x") -> None:
    path = Path(datastore.uri(FOLDER, name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def names(datastore: Datastore) -> dict[str, int]:
    return {arrival.name: arrival.blobs for arrival in Walk(datastore, PATTERNS)}


def content(datastore: Datastore, arrival: str) -> str:
    found = look_at(datastore, PATTERNS, arrival)
    assert found is not None
    return found.content


def test_arrival_is_a_folder_or_the_stem_of_a_file(datastore: Datastore) -> None:
    for name in ("Titanic.csv", "2026-11-24/a.csv", "2026-11-24/deep/b.csv", "no suffix"):
        land(datastore, name)
    assert names(datastore) == {"2026-11-24": 2, "Titanic": 1, "no suffix": 1}


def test_hidden_and_unfinished_blobs_are_ignored(datastore: Datastore) -> None:
    for name in (".hidden", "_SUCCESS", "a.csv.tmp", "_tmp/a.csv", "b/.c/a.csv", "b/_d", "b/e.tmp"):
        land(datastore, name)
    assert names(datastore) == {}


def test_folder_that_is_not_there_holds_nothing(datastore: Datastore) -> None:
    walk = Walk(datastore, PATTERNS)
    assert list(walk) == []
    assert walk.is_complete


def test_odd_names_are_kept_as_they_are(datastore: Datastore) -> None:
    for name in ("a b%20.csv", "ü🚢/#?.csv", "*[x]/{y}.csv"):
        land(datastore, name)
    assert sorted(names(datastore)) == ["*[x]", "a b%20", "ü🚢"]
    blob = find_arrival(datastore, PATTERNS, "ü🚢").files[0]
    assert Path(datastore.uri(FOLDER), blob.path).read_text() == "x"


def test_reference_tells_sizes_and_a_changed_blob_has_another_etag(datastore: Datastore) -> None:
    land(datastore, "a.csv", "one")
    land(datastore, "a/b.csv")
    before = find_arrival(datastore, PATTERNS, "a")
    land(datastore, "a.csv", "three")
    after = find_arrival(datastore, PATTERNS, "a")
    assert (before.size, after.size) == (4, 6)
    assert [file.name for file in after.files] == ["a.csv", "a/b.csv"]
    assert before.files[0].etag != after.files[0].etag
    assert find_arrival(datastore, PATTERNS, "a") == after
    assert (after.kind, after.name, after.uri) == ("FileDataset", FOLDER, datastore.uri(FOLDER))


def test_empty_blob_arrives_too(datastore: Datastore) -> None:
    land(datastore, "a.csv", "")
    assert find_arrival(datastore, PATTERNS, "a").size == 0


def test_missing_arrival_is_told_with_those_that_are_there(datastore: Datastore) -> None:
    with pytest.raises(PartitionNotFoundError, match=r"arrival 'z' is in .*; there is nothing"):
        find_arrival(datastore, PATTERNS, "z")
    land(datastore, "a.csv")
    with pytest.raises(PartitionNotFoundError, match=r"there is a. Land it again, or delete"):
        find_arrival(datastore, PATTERNS, "z")


def test_content_that_a_run_was_asked_for_must_still_be_there(datastore: Datastore) -> None:
    land(datastore, "a/1.csv")
    asked = content(datastore, "a")
    assert find_arrival(datastore, PATTERNS, "a", content=asked).size == 1
    land(datastore, "a/2.csv")
    with pytest.raises(ArrivalVanishedError, match=r"'a' in .* is another one since"):
        find_arrival(datastore, PATTERNS, "a", content=asked)
    for name in ("a/1.csv", "a/2.csv"):
        Path(datastore.uri(FOLDER, name)).unlink()
    with pytest.raises(ArrivalVanishedError, match=r"'a' in .* is gone since"):
        find_arrival(datastore, PATTERNS, "a", content=asked)


def test_content_depends_on_names_and_etags_and_on_nothing_else(datastore: Datastore) -> None:
    def blob(path: str, etag: str) -> StoredFile:
        return StoredFile(path, 1, etag, 0.0)

    def digest(*blobs: StoredFile) -> str:
        listing = Listing([Page(tuple(blobs), None)])
        (arrival,) = Walk(StubDatastore(listing), PATTERNS)  # type: ignore[arg-type]
        return arrival.content

    one, two = blob("a/1", "x"), blob("a/2", "y")
    assert digest(one, two) == digest(two, one)
    others = [
        digest(one, two),
        digest(one),
        digest(two),
        digest(blob("a/1", "y"), blob("a/2", "x")),
        digest(blob("a/1", "xa"), blob("a/2", "y")),
        digest(one, one),
        digest(one, one, two),
    ]
    assert len(set(others)) == len(others)
    assert all(len(other) == 16 for other in others)


def test_landing_folder_below_a_root_with_dots_is_found(tmp_path: Path) -> None:
    datastore = Datastore(root=f"{tmp_path}/elsewhere/../datastore/")
    land(datastore, "a.csv")
    assert list(names(datastore)) == ["a"]


@pytest.mark.parametrize(
    "name",
    [
        "local",
        pytest.param("azurite", marks=pytest.mark.services),
        pytest.param("hdfs", marks=pytest.mark.services),
    ],
)
def test_walk_in_pieces_finds_what_one_walk_finds(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    """Whatever the size of pages and ticks, and whether the consumer stops by itself."""
    datastore = open_store(request, name, folder=tmp_path).open()
    few = NAMES if name != "hdfs" else NAMES[::2]
    for blob in few:
        datastore.storage().write_atomically(datastore.uri(FOLDER, blob), b"x")
    whole = {arrival.name: arrival.content for arrival in Walk(datastore, PATTERNS)}
    assert set(whole) == {"a", "a a", "a-b", "a.b", "aa", "b"}
    assert whole == {arrival: content(datastore, arrival) for arrival in whole}
    for page_size, max_blobs, at_most in [
        (1, 1, 99),
        (2, 1, 99),
        (5, 3, 99),
        (3, 6, 1),
        (99, 1, 1),
    ]:
        found: dict[str, str] = {}
        position = Position(0.0)
        for _ in range(100):
            walk = Walk(
                datastore, PATTERNS, position=position, max_blobs=max_blobs, page_size=page_size
            )
            new = [a for a in walk if a.name not in found][:at_most] if at_most > 1 else []
            if at_most == 1:
                new = list(itertools.islice((a for a in walk if a.name not in found), 1))
            found.update({arrival.name: arrival.content for arrival in new})
            if walk.is_complete:
                break
            kept = Cursor.from_json(Cursor(position=walk.position).to_json()).position
            assert kept is not None
            position = kept
        assert found == whole


def test_arrival_larger_than_a_tick_is_complete_in_the_end(datastore: Datastore) -> None:
    for i in range(10):
        land(datastore, f"a/{i}.csv")
    land(datastore, "b.csv")
    position = Position(0.0)
    found: list[Arrival] = []
    for ticks in range(1, 20):
        walk = Walk(
            datastore,
            PATTERNS,
            position=position,
            max_blobs=4,
            page_size=2,
            clock=lambda at=float(ticks): at,  # type: ignore[misc]
        )
        found += walk
        position = walk.position
        if walk.is_complete:
            break
    assert [(arrival.name, arrival.blobs) for arrival in found] == [("a", 10), ("b", 1)]
    assert found[0].content == content(datastore, "a")
    # What was written since then is not settled, however old the listing's end says it is.
    assert found[0].begun == 1.0


def test_arrival_that_changes_before_the_place_of_the_walk_is_seen_as_it_is(
    datastore: Datastore,
) -> None:
    """Blobs come where the walk has been, of an arrival whose other blobs it has yet to see."""
    for name in ("a a/1.csv", "a a/2.csv", "a.csv"):
        land(datastore, name)
    walk = Walk(datastore, PATTERNS, max_blobs=1, page_size=1)
    assert list(walk) == []
    assert not walk.is_complete
    land(datastore, "a/0.csv")
    found = {a.name: a for a in Walk(datastore, PATTERNS, position=walk.position)}
    assert found["a"].content == content(datastore, "a")


@dataclass
class Listing:
    """A store that lists pages as it is told, and counts them."""

    pages: Any
    listed: int = field(default=0)

    def list_pages(self, uri: str, *, prefix: str, start: str | None, size: int) -> Iterator[Page]:
        for page in self.pages:
            self.listed += 1
            yield page


@dataclass
class StubDatastore:
    store: Listing

    def storage(self) -> Listing:
        return self.store

    def uri(self, *parts: str) -> str:
        return "/".join(parts)


def test_memory_does_not_grow_with_the_number_of_blobs() -> None:
    patterns = ArrivalPatterns.parse(["in/{arrival}/*"])

    def peak(arrivals: int, blobs: int) -> int:
        files = (
            StoredFile(f"{i:06}/{j:06}.csv", 1, f"{i}-{j}", 0.0)
            for i in range(arrivals)
            for j in range(blobs)
        )
        pages = (
            Page(tuple(itertools.islice(files, 100)), "more")
            for _ in range(arrivals * blobs // 100)
        )
        walk = Walk(StubDatastore(Listing(pages)), patterns)  # type: ignore[arg-type]
        tracemalloc.start()
        assert sum(a.blobs for a in walk) == arrivals * blobs
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few = peak(10, 100)
    assert peak(300, 100) < few + 50_000
    assert peak(2, 15_000) < few + 50_000


def test_walk_out_of_time_asks_for_no_further_page() -> None:
    pages = [Page((StoredFile(f"{i}/a", 1, "x", 0.0),), f"{i}") for i in range(10)]
    listing = Listing(pages)
    clock = itertools.count()
    walk = Walk(
        StubDatastore(listing),  # type: ignore[arg-type]
        PATTERNS,
        max_seconds=6,
        clock=lambda: float(next(clock)),
    )
    assert len(list(walk)) < 5
    assert not walk.is_complete
    assert listing.listed < 6


def test_hundred_thousand_blobs_take_a_few_seconds() -> None:
    pages = [
        Page(tuple(StoredFile(f"{p:03}-{i:04}/a.csv", 1, "x", 0.0) for i in range(5_000)), "more")
        for p in range(20)
    ]
    begun = time.monotonic()
    walk = Walk(StubDatastore(Listing(pages)), PATTERNS)  # type: ignore[arg-type]
    assert sum(1 for _ in walk) == 100_000
    assert time.monotonic() - begun < 30
