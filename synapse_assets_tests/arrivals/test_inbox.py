"""Which arrivals a message is about, and what the cursor keeps; no service is needed."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from synapse_assets.arrivals.cursor import MAX_EVENTS_BYTES
from synapse_assets.arrivals.event_grid import read_events
from synapse_assets.arrivals.inbox import EventState, Inbox, Place
from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.location import Location
from synapse_assets.datastore.queue import Message, Receipt, StorageQueue
from synapse_assets_tests.arrivals.event_messages import cloud_event, event_grid_event, plain


def place(*patterns: str, root: str = "lake") -> Place:
    location = Location.parse(f"az://landing/{root}", account=None, cloud=get_cloud("emulator"))
    return Place(location, ArrivalPatterns.parse(patterns or ["in/{arrival}/*.csv"]))


def about(place: Place, event: dict[str, Any]) -> tuple[set[str], bool]:
    (found,) = read_events(plain(event))
    return place.arrivals_of(found)


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
    assert about(place(), event_grid_event(name)) == (arrivals, False)


def test_without_a_folder_the_root_is_the_container() -> None:
    assert about(place(root=""), event_grid_event("in/1/a.csv")) == ({"1"}, False)


def test_other_containers_and_accounts_are_elsewhere() -> None:
    name = "lake/in/1/a.csv"
    assert about(place(), event_grid_event(name, container="landing2")) == (set(), False)
    assert about(place(), cloud_event(name, account="other")) == (set(), False)


def test_a_rename_is_about_both_arrivals() -> None:
    event = event_grid_event("lake/in/2/a.csv", what="BlobRenamed", source="lake/in/1/a.csv")
    assert about(place(), event) == ({"1", "2"}, False)


@pytest.mark.parametrize(
    ("pattern", "folder", "expected"),
    [
        ("in/{arrival}/*.csv", "lake/in/1", ({"1"}, False)),
        ("in/{arrival}/**", "lake/in/1/deep", ({"1"}, False)),
        ("in/day-{arrival}/*.csv", "lake/in/day-1", ({"1"}, False)),
        ("in/{arrival}/*.csv", "lake/in", (set(), True)),
        ("in/day-{arrival}/*.csv", "lake/in", (set(), True)),
        ("in/{arrival}/*.csv", "lake", (set(), True)),
        ("in/{arrival}/*.csv", "lake/inbox", (set(), False)),
        ("in/{arrival}/*.csv", "elsewhere", (set(), False)),
        # No file of a folder can be an arrival, and looking there costs little.
        ("in/{arrival}.csv", "lake/in/1", ({"1"}, False)),
        # Where the arrival's name ends cannot be told from the folder alone.
        ("in/{arrival}-parts/*.csv", "lake/in/1-parts", (set(), True)),
        ("in/{arrival}**", "lake/in/1", (set(), True)),
    ],
)
def test_a_folder_is_an_arrival_or_may_hold_any(
    pattern: str, folder: str, expected: tuple[set[str], bool]
) -> None:
    event = event_grid_event(folder, what="DirectoryRenamed")
    assert about(place(pattern), event) == expected


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
    inbox = Inbox(queue, place(), kept=kept)
    inbox.receive(at_most=at_most, hidden_seconds=60, until=1.0, clock=lambda: 0.0)
    return inbox


def blob(arrival: str, number: int = 0) -> str:
    return plain(event_grid_event(f"lake/in/{arrival}/{number}.csv"))


def test_a_message_waits_until_its_arrival_is_done_or_kept() -> None:
    queue = ScriptedQueue([blob("1"), blob("2")])
    inbox = receive(queue)
    assert queue.deleted == set()
    state = inbox.state({"1"}, wants_full_pass=False)
    assert state.names == ("2",)
    assert len(state.receipts) == 2


def test_many_blobs_of_an_arrival_that_the_cursor_has_leave_the_queue_at_once() -> None:
    queue = ScriptedQueue(blob("1", number) for number in range(700))
    first = receive(queue)
    assert first.counts.received == 128
    state = first.state(set(), wants_full_pass=False)
    assert state.names == ("1",)
    second = receive(queue, kept=state.names)
    assert second.counts.received == 572
    assert len(queue.deleted) == 572
    assert second.state(set(), wants_full_pass=False).receipts == ()


def test_messages_of_no_concern_leave_the_queue_and_are_counted() -> None:
    queue = ScriptedQueue(
        [
            plain(event_grid_event("other/a.csv")),
            plain(event_grid_event("lake/in/1/a.csv", what="BlobTierChanged")),
        ]
    )
    inbox = receive(queue)
    assert len(queue.deleted) == 2
    assert str(inbox.counts) == "2 messages (1 about other places, 1 about other things)"
    assert inbox.state(set(), wants_full_pass=False) == EventState()


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
    state = inbox.state(set(), wants_full_pass=False)
    assert state.wants_full_pass
    assert receive(queue := ScriptedQueue([blob("1")], received=5)).parked == []


@pytest.mark.parametrize("length", [1, 60, 900])
def test_the_cursor_never_holds_more_than_its_part(length: int) -> None:
    queue = ScriptedQueue(blob(f"{n:04}".rjust(length, "\u20ac")) for n in range(3000))
    kept: tuple[str, ...] = ()
    for _ in range(40):
        inbox = receive(queue, kept=kept)
        state = inbox.state(set(), wants_full_pass=True)
        assert len(json.dumps(state.write())) <= MAX_EVENTS_BYTES
        assert EventState.read(json.loads(json.dumps(state.write()))) == state
        # What an earlier cursor had is never forgotten, and what found no room is not deleted.
        assert state.names[: len(kept)] == kept
        kept = state.names
    assert kept
    assert queue.messages


def test_no_more_is_received_than_asked_for() -> None:
    inbox = receive(ScriptedQueue(blob(str(n)) for n in range(100)), at_most=40)
    assert inbox.counts.received == 40


def test_a_message_about_an_arrival_that_found_no_room_comes_again() -> None:
    queue = ScriptedQueue(blob(f"{n:04}".rjust(900, "\u20ac")) for n in range(3))
    state = receive(queue).state(set(), wants_full_pass=False)
    assert (len(state.names), len(state.receipts)) == (1, 1)
    assert queue.deleted == set()
