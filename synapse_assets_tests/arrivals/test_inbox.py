"""Which arrivals a message is about, and what the cursor keeps; no service is needed."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from synapse_assets.arrivals.cursor import MAX_NAMES_BYTES, MAX_RECEIPTS_BYTES, Cursor
from synapse_assets.arrivals.event_grid import read_events
from synapse_assets.arrivals.events import Inbox, QueueEvents, arrivals_of
from synapse_assets.arrivals.pattern import ANY_ARRIVAL, ArrivalPatterns
from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.location import Location
from synapse_assets.datastore.queue import Message, Receipt, StorageQueue
from synapse_assets_tests.arrivals.event_messages import cloud_event, event_grid_event, plain


def location(root: str = "lake") -> Location:
    return Location.parse(f"az://landing/{root}", account=None, cloud=get_cloud("emulator"))


def about(
    event: dict[str, Any], *, pattern: str = "in/{arrival}/*.csv", root: str = "lake"
) -> set[str]:
    (found,) = read_events(plain(event))
    return arrivals_of(found, location(root), ArrivalPatterns.parse([pattern]))


@pytest.mark.parametrize(
    ("name", "arrivals"),
    [
        ("lake/in/2026-11-24/a.csv", {"2026-11-24"}),
        ("lake/in/día 1%/a+b.csv", {"día 1%"}),
        ("lake/in/2026-11-24/a.txt", set()),
        ("lake/in/2026-11-24/_a.csv", set()),
        ("lake/other/2026-11-24/a.csv", set()),
        ("in/2026-11-24/a.csv", set()),
        ("lakes/in/2026-11-24/a.csv", set()),
    ],
)
def test_a_blob_belongs_to_an_arrival_or_to_none(name: str, arrivals: set[str]) -> None:
    assert about(event_grid_event(name)) == arrivals


def test_without_a_folder_the_root_is_the_container() -> None:
    assert about(event_grid_event("in/1/a.csv"), root="") == {"1"}


def test_other_containers_and_accounts_are_elsewhere() -> None:
    name = "lake/in/1/a.csv"
    assert about(event_grid_event(name, container="landing2")) == set()
    assert about(cloud_event(name, account="other")) == set()


def test_a_rename_is_about_both_arrivals() -> None:
    event = event_grid_event("lake/in/2/a.csv", what="BlobRenamed", source="lake/in/1/a.csv")
    assert about(event) == {"1", "2"}


@pytest.mark.parametrize(
    ("pattern", "folder", "expected"),
    [
        ("in/{arrival}/*.csv", "lake/in/1", {"1"}),
        ("in/{arrival}/**", "lake/in/1/deep", {"1"}),
        ("in/day-{arrival}/*.csv", "lake/in/day-1", {"1"}),
        ("in/{arrival}/*.csv", "lake/in", {ANY_ARRIVAL}),
        ("in/day-{arrival}/*.csv", "lake/in", {ANY_ARRIVAL}),
        ("in/{arrival}/*.csv", "lake", {ANY_ARRIVAL}),
        ("in/{arrival}/*.csv", "lake/inbox", set()),
        ("in/{arrival}/*.csv", "elsewhere", set()),
        # No file of a folder can be an arrival, and looking there costs little.
        ("in/{arrival}.csv", "lake/in/1", {"1"}),
        # Where the arrival's name ends cannot be told from the folder alone.
        ("in/{arrival}-parts/*.csv", "lake/in/1-parts", {ANY_ARRIVAL}),
        ("in/{arrival}**", "lake/in/1", {ANY_ARRIVAL}),
    ],
)
def test_a_folder_is_an_arrival_or_may_hold_any(
    pattern: str, folder: str, expected: set[str]
) -> None:
    event = event_grid_event(folder, what="DirectoryRenamed")
    assert about(event, pattern=pattern) == expected


class ScriptedQueue(StorageQueue):
    """A queue in memory whose messages are there once."""

    def __init__(self, bodies: Iterable[str], *, received: int = 1, name: str = "arrivals") -> None:
        super().__init__(url="http://nowhere", name=name, credential=None)
        self.messages = [
            Message(Receipt(f"{number:036}", "p" * 28), body, received)
            for number, body in enumerate(bodies)
        ]
        self.deleted: set[str] = set()
        self.parked: list[dict[str, Any]] = []

    def receive(self, *, at_most: int, hidden_seconds: int) -> list[Message]:
        assert at_most <= 32
        page, self.messages = self.messages[:at_most], self.messages[at_most:]
        return page

    def delete(self, receipts: Iterable[Receipt]) -> None:
        self.deleted |= {receipt.id for receipt in receipts}

    def sibling(self, name: str) -> StorageQueue:
        assert name == "arrivals-poison"
        return self

    def put(self, body: str) -> None:
        assert len(body.encode()) < 64 << 10
        self.parked.append(json.loads(body))


def receive(queue: ScriptedQueue, *, kept: Sequence[str] = (), at_most: int = 1000) -> Inbox:
    patterns = ArrivalPatterns.parse(["in/{arrival}/*.csv"])
    inbox = Inbox(location(), patterns, dict.fromkeys(kept))
    events = QueueEvents(queue=queue.name, max_messages=at_most)
    inbox.receive(queue, events, until=math.inf)
    return inbox


def blob(arrival: str, number: int = 0) -> str:
    return plain(event_grid_event(f"lake/in/{arrival}/{number}.csv"))


def test_a_message_waits_until_its_arrival_is_done_or_kept() -> None:
    queue = ScriptedQueue([blob("1"), blob("2")])
    inbox = receive(queue)
    assert queue.deleted == set()
    names, receipts = inbox.left({"1"})
    assert names == ("2",)
    assert len(receipts) == 2


def test_many_blobs_of_an_arrival_that_the_cursor_has_leave_the_queue_at_once() -> None:
    queue = ScriptedQueue(blob("1", number) for number in range(700))
    first = receive(queue)
    assert first.received == 128
    names, _ = first.left(set())
    assert names == ("1",)
    second = receive(queue, kept=names)
    assert second.received == 572
    assert len(queue.deleted) == 572
    assert second.left(set()) == (names, ())


def test_messages_of_no_concern_leave_the_queue_and_are_counted() -> None:
    queue = ScriptedQueue(
        [
            plain(event_grid_event("other/a.csv")),
            plain(event_grid_event("lake/in/1/a.csv", what="BlobTierChanged")),
        ]
    )
    inbox = receive(queue)
    assert len(queue.deleted) == 2
    assert str(inbox) == "2 messages (1 about other places, 1 about other things)"
    assert (inbox.left(set()), inbox.wants_full_pass) == (((), ()), False)


def test_what_cannot_be_understood_is_parked_with_the_reason() -> None:
    inbox = receive(queue := ScriptedQueue(["good morning", "\u20ac" * 30_000, blob("1")]))
    assert [parked["reason"] for parked in queue.parked] == [
        "it is neither JSON nor JSON in base64"
    ] * 2
    assert queue.parked[0] | {"reason": ""} == {
        "reason": "",
        "id": f"{0:036}",
        "received": 1,
        "is_whole": True,
        "body": "good morning",
    }
    assert not queue.parked[1]["is_whole"]
    assert set(queue.parked[1]["body"]) == {"\u20ac"}
    assert len(queue.deleted) == 2
    assert len(inbox.parked) == 2
    assert list(inbox.names) == ["1"]


def test_what_was_received_too_often_is_parked_and_found_by_a_full_pass() -> None:
    inbox = receive(queue := ScriptedQueue([blob("1")], received=6))
    assert "received 6 times" in queue.parked[0]["reason"]
    assert json.loads(queue.parked[0]["body"])["data"]
    names, receipts = inbox.left(set())
    assert (names, len(receipts), inbox.wants_full_pass) == ((), 1, True)
    assert receive(queue := ScriptedQueue([blob("1")], received=5)).parked == []


@pytest.mark.parametrize("length", [1, 60, 900])
def test_the_cursor_never_holds_more_than_its_part(length: int) -> None:
    queue = ScriptedQueue(blob(f"{n:04}".rjust(length, "\u20ac")) for n in range(3000))
    kept: tuple[str, ...] = ()
    for _ in range(40):
        inbox = receive(queue, kept=kept)
        names, receipts = inbox.left(set())
        cursor = Cursor(names=names, receipts=receipts)
        assert len(cursor.to_json()) <= MAX_NAMES_BYTES + MAX_RECEIPTS_BYTES + 200
        assert Cursor.from_json(cursor.to_json()) == cursor
        # What an earlier cursor had is never forgotten, and what found no room is not deleted.
        assert names[: len(kept)] == kept
        kept = names
    assert kept
    assert queue.messages


def test_no_more_is_received_than_asked_for() -> None:
    inbox = receive(ScriptedQueue(blob(str(n)) for n in range(100)), at_most=40)
    assert inbox.received == 40


def test_a_message_about_an_arrival_that_found_no_room_comes_again() -> None:
    queue = ScriptedQueue(blob(f"{n:04}".rjust(900, "\u20ac")) for n in range(3))
    names, receipts = receive(queue).left(set())
    assert (len(names), len(receipts)) == (1, 1)
    assert queue.deleted == set()
