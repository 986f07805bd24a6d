"""The engine: what is new, what is settled, and where it stops."""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from synapse_assets.arrivals.cursor import Cursor
from synapse_assets.arrivals.ledger import Entry, Ledger
from synapse_assets.arrivals.listing import Arrival
from synapse_assets.arrivals.scan import Limits, Names, Outcome, scan
from synapse_assets.datastore.storage import LocalStorage
from synapse_assets_tests.arrivals.daemon import run_key

NOW = 1_000.0
LIMITS = Limits(settle_seconds=30.0, max_runs_per_tick=3, max_seconds_per_tick=10.0)


class Scanner:
    """Scans with a ledger, whose runs begin as soon as they were asked for."""

    def __init__(self, folder: Path) -> None:
        self.runs: dict[str, Entry] = {}
        self.ledger = Ledger(LocalStorage(), str(folder), recall=self.recall)
        self.cursor = Cursor()

    def recall(self, arrivals: Collection[str]) -> dict[str, Entry]:
        return {name: self.runs[name] for name in arrivals if name in self.runs}

    def scan(self, *arrivals: Arrival, now: float = NOW) -> Outcome:
        found = [replace(arrival, begun=now) for arrival in arrivals]
        waiting = self.cursor.waiting
        outcome = scan(found, waiting=waiting, ledger=self.ledger, now=now, limits=LIMITS)
        self.runs.update({ask.arrival.name: ask.entry for ask in outcome.asked})
        self.cursor = Cursor.from_json(Cursor(waiting=outcome.waiting).to_json())
        return outcome

    def keys(self, *arrivals: Arrival, now: float = NOW) -> list[str]:
        return [run_key(ask) for ask in self.scan(*arrivals, now=now).asked]


@pytest.fixture
def scanner(tmp_path: Path) -> Scanner:
    return Scanner(tmp_path)


def arrival(name: str = "a", *, digest: int = 1, modified: float = 0.0) -> Arrival:
    return Arrival(name, digest=digest, blobs=1, size=1, newest_modified=modified, begun=NOW)


def test_content_is_asked_for_once_and_again_when_it_comes_back_after_another(
    scanner: Scanner,
) -> None:
    one, two = arrival(digest=1), arrival(digest=2)
    keys = [scanner.keys(found, now=NOW + i) for i, found in enumerate((one, one, two, two, one))]
    assert keys == [
        [f"a:{one.content}:0"],
        [],
        [f"a:{two.content}:1"],
        [],
        [f"a:{one.content}:2"],
    ]


def test_arrival_that_was_gone_and_is_back_is_not_asked_for(scanner: Scanner) -> None:
    assert len(scanner.keys(arrival())) == 1
    assert scanner.keys(now=NOW + 1) == []
    assert scanner.keys(arrival(), now=NOW + 2) == []


def test_arrival_is_settled_when_its_newest_blob_is_old_enough(scanner: Scanner) -> None:
    young = arrival(modified=NOW - 29)
    outcome = scanner.scan(young)
    assert (outcome.asked, outcome.settling) == ((), Names(1, ["a"]))
    assert len(scanner.keys(young, now=NOW + 1)) == 1


def test_arrival_from_the_future_settles_when_it_stays_the_same(scanner: Scanner) -> None:
    ahead = arrival(modified=NOW + 1e9)
    assert scanner.keys(ahead) == []
    assert scanner.keys(replace(ahead, digest=2), now=NOW + 20) == []
    assert scanner.keys(replace(ahead, digest=2), now=NOW + 49) == []
    assert len(scanner.keys(replace(ahead, digest=2), now=NOW + 50)) == 1
    assert scanner.cursor.waiting == {}


def test_arrival_that_was_read_in_parts_is_settled_from_when_it_was_begun(
    scanner: Scanner,
) -> None:
    parts = replace(arrival(modified=NOW - 40), begun=NOW - 20)
    outcome = scan([parts], waiting={}, ledger=scanner.ledger, now=NOW, limits=LIMITS)
    assert outcome.settling == Names(1, ["a"])


def test_scan_stops_at_its_most_runs_and_takes_no_more(scanner: Scanner) -> None:
    found = iter([arrival(name) for name in "abcde"])
    outcome = scan(found, waiting={}, ledger=scanner.ledger, now=NOW, limits=LIMITS)
    assert [ask.arrival.name for ask in outcome.asked] == ["a", "b", "c"]
    assert "3 runs are the most" in outcome.bound
    assert [rest.name for rest in found] == ["d", "e"]


def test_scan_stops_when_its_time_is_over(scanner: Scanner) -> None:
    def endless() -> Iterator[Arrival]:
        for number in itertools.count():
            yield arrival(f"{number}", modified=NOW)

    clock = itertools.count(step=4)
    outcome = scan(
        endless(),
        waiting={},
        ledger=scanner.ledger,
        now=NOW,
        limits=LIMITS,
        clock=lambda: float(next(clock)),
    )
    assert outcome.settling.count == 2
    assert "10 seconds" in outcome.bound


def test_name_that_is_no_partition_is_told_and_not_asked_for(scanner: Scanner) -> None:
    outcome = scanner.scan(arrival("a...b"), arrival("c"))
    assert outcome.refused == Names(1, ["'a...b'"])
    assert [ask.arrival.name for ask in outcome.asked] == ["c"]


def test_lost_ledger_asks_for_nothing_that_dagster_knows(tmp_path: Path) -> None:
    scanner = Scanner(tmp_path / "one")
    for digest in (1, 2):
        scanner.scan(arrival(digest=digest), now=NOW + digest)
    scanner.ledger = Ledger(LocalStorage(), str(tmp_path / "two"), recall=scanner.recall)
    assert scanner.keys(arrival(digest=2), now=NOW + 3) == []
    (key,) = scanner.keys(arrival(digest=1), now=NOW + 4)
    assert key.endswith(":2")


def test_ledger_is_written_before_anything_is_asked_for(tmp_path: Path) -> None:
    scanner = Scanner(tmp_path)
    scan([arrival()], waiting={}, ledger=scanner.ledger, now=NOW, limits=LIMITS)
    # Another process: it knows that a run of the arrival may be there.
    asked: list[str] = []

    def recall(names: Collection[str]) -> dict[str, Entry]:
        asked.extend(names)
        return {}

    again = Ledger(LocalStorage(), str(tmp_path), recall=recall)
    again.settle(NOW + 1)
    assert asked == ["a"]


def test_names_that_are_told_do_not_grow(scanner: Scanner) -> None:
    outcome = scanner.scan(*(arrival(f"{i}", modified=NOW + 1e9) for i in range(3_000)))
    assert outcome.settling.count == 3_000
    assert len(outcome.settling.first) == 100
    assert str(outcome.settling) == "0, 1, 2, 3, 4 and 2,995 more"
    assert len(scanner.cursor.waiting) <= 1_000
