"""The cursor: what a tick remembers, within Dagster's bounds whatever lies in the store."""

from dataclasses import replace

import pytest

from synapse_assets.arrivals.cursor import (
    MAX_CURSOR_BYTES,
    MAX_EVENTS_BYTES,
    Counts,
    Cursor,
)
from synapse_assets.arrivals.listing import Arrival, Position

OPEN = Arrival("ü🚢 \udcff", digest=2**127, blobs=3, size=4, newest_modified=1.5, begun=2.5)


def test_cursor_comes_back_as_it_was() -> None:
    cursor = Cursor(
        position=Position("a/b.csv", (OPEN,)),
        pass_started=1.0,
        pass_counts=Counts(blobs=1, arrivals=2, settling=3, asked=4, refused=5),
        full_pass=6.0,
        waiting={"x": ("0" * 16, 7.0)},
        retries_from=8.0,
        events={"receipts": [["a", "b"]]},
    )
    assert Cursor.from_json(cursor.to_json()) == cursor


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "null", "12", "no JSON", '{"version": 1}'])
def test_cursor_that_is_not_understood_is_a_new_one(text: str | None) -> None:
    assert Cursor.from_json(text) == Cursor()


def test_cursor_stays_small_and_keeps_what_waits_longest() -> None:
    full = Cursor(
        position=Position("🚢" * 300, (replace(OPEN, name="🚢" * 250),) * 3),
        waiting={f"{i}🚢" * 9: ("0" * 16, float(i)) for i in range(10_000)},
        events={"names": "x" * (MAX_EVENTS_BYTES - 100)},
    )
    text = full.to_json()
    assert len(text.encode()) <= MAX_CURSOR_BYTES
    kept = Cursor.from_json(text)
    assert kept.position == full.position
    assert 100 < len(kept.waiting) < 10_000
    assert sorted(since for _, since in kept.waiting.values()) == list(range(len(kept.waiting)))


def test_position_that_does_not_fit_begins_the_pass_anew() -> None:
    endless = Cursor(
        position=Position("x", (replace(OPEN, name="x" * 1_000),) * 30),
        pass_started=1.0,
        pass_counts=Counts(blobs=1),
    )
    assert Cursor.from_json(endless.to_json()) == Cursor()


def test_events_that_do_not_fit_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="more than"):
        Cursor(events={"names": "x" * MAX_EVENTS_BYTES}).to_json()
