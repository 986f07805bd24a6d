"""The cursor: what a tick remembers, within Dagster's bounds whatever lies in the store."""

from dataclasses import replace

import pytest

from synapse_assets.arrivals.cursor import (
    MAX_CURSOR_BYTES,
    MAX_NAMES_BYTES,
    MAX_RECEIPTS_BYTES,
    Cursor,
    fitting,
)
from synapse_assets.arrivals.listing import Arrival, Position
from synapse_assets.datastore.queue import Receipt

OPEN = Arrival("ü🚢 \udcff", digest=2**127, blobs=3, size=4, newest_modified=1.5, begun=2.5)


def test_cursor_comes_back_as_it_was() -> None:
    cursor = Cursor(
        position=Position(1.0, "a/b.csv", (OPEN,), blobs=2, arrivals=3),
        full_pass=6.0,
        wants_full_pass=True,
        waiting={"x": ("0" * 16, 7.0)},
        retries_from=8.0,
        names=("y", "ü"),
        receipts=(Receipt("a", "b"),),
    )
    assert Cursor.from_json(cursor.to_json()) == cursor


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "null", "12", "no JSON", '{"version": 2}'])
def test_cursor_that_is_not_understood_is_a_new_one(text: str | None) -> None:
    assert Cursor.from_json(text) == Cursor()


def test_cursor_stays_small_and_keeps_what_waits_longest() -> None:
    full = Cursor(
        position=Position(1.0, "🚢" * 300, (replace(OPEN, name="🚢" * 250),) * 3),
        waiting={f"{i}🚢" * 9: ("0" * 16, float(i)) for i in range(10_000)},
        names=fitting((f"{i}🚢" * 9 for i in range(10_000)), MAX_NAMES_BYTES),
        receipts=fitting((Receipt(f"{i:036}", "p" * 28) for i in range(999)), MAX_RECEIPTS_BYTES),
    )
    text = full.to_json()
    assert len(text.encode()) <= MAX_CURSOR_BYTES
    kept = Cursor.from_json(text)
    assert (kept.position, kept.names) == (full.position, full.names)
    assert kept.receipts == full.receipts
    assert 100 < len(kept.waiting) < 10_000
    assert sorted(since for _, since in kept.waiting.values()) == list(range(len(kept.waiting)))


def test_position_that_does_not_fit_begins_the_pass_anew() -> None:
    endless = Cursor(position=Position(1.0, "x", (replace(OPEN, name="x" * 1_000),) * 30))
    assert Cursor.from_json(endless.to_json()) == Cursor()
