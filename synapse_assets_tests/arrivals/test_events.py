"""Messages of Event Grid in the queue of a real Azurite, and the runs that come of them."""

import json
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg
import pytest

from synapse_assets.arrivals.cursor import MAX_CURSOR_BYTES, Cursor
from synapse_assets.arrivals.events import QueueEvents
from synapse_assets.arrivals.ledger import Entry, Ledger
from synapse_assets.arrivals.listing import Walk, look_at
from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.arrivals.scan import Limits
from synapse_assets.arrivals.sensor import Arrivals, arrival_sensor, evaluate
from synapse_assets.arrivals.tick import Tick, run_tick
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import Emulator
from synapse_assets.datastore.queue import StorageQueue
from synapse_assets.errors import ConfigurationError, StorageError
from synapse_assets.services import Azurite
from synapse_assets_tests.arrivals.daemon import run_key
from synapse_assets_tests.arrivals.event_messages import (
    cloud_event,
    event_grid_event,
    in_base64,
    plain,
)

_CONTAINER = "events"
_PATTERNS = ArrivalPatterns.parse(["in/{arrival}/*.csv"])
_ARRIVALS = Arrivals(
    sensor="new_arrivals",
    patterns=_PATTERNS,
    landing=dg.AssetKey("landing"),
    partitions=dg.DynamicPartitionsDefinition(name="arrivals"),
)
# Blobs that were written a moment ago are settled, unless a test is about just that.
_LIMITS = Limits(settle_seconds=0.0)


@dataclass
class Daemon:
    """Does with a tick what Dagster's daemon does: keeps all that it returned, or nothing.

    Attributes:
        runs: The content of each run that was made, for each arrival.
        text: The cursor as it was kept.
    """

    datastore: Datastore
    events: QueueEvents
    limits: Limits = _LIMITS
    runs: dict[str, list[str]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    # As of a sensor whose last full pass was a moment ago.
    text: str | None = field(default_factory=lambda: Cursor(full_pass=time.time()).to_json())

    def tick(self, *, crashes: bool = False) -> Tick:
        tick = run_tick(
            self.datastore,
            _PATTERNS,
            cursor=Cursor.from_json(self.text),
            ledger=self.ledger(),
            now=time.time(),
            limits=self.limits,
            events=self.events,
        )
        if not crashes:
            self._keep(tick)
        return tick

    def ledger(self) -> Ledger:
        uri = self.datastore.uri("_arrivals/test")
        return Ledger(self.datastore.storage(), uri, recall=self._recall)

    def _keep(self, tick: Tick) -> None:
        for ask in tick.asked:
            if run_key(ask) not in self.keys:
                self.keys.add(run_key(ask))
                self.runs.setdefault(ask.arrival.name, []).append(ask.arrival.content)
        self.text = tick.cursor.to_json()
        assert len(self.text) <= MAX_CURSOR_BYTES

    def _recall(self, arrivals: Collection[str]) -> dict[str, Entry]:
        return {n: Entry(r[-1], len(r) - 1) for n, r in self.runs.items() if r and n in arrivals}


@dataclass
class Bench:
    """A landing folder, its queue, and who sends to it."""

    datastore: Datastore
    queue: StorageQueue

    @property
    def root(self) -> str:
        return self.datastore.location.path.strip("/")

    def land(self, path: str, content: bytes = b"1") -> None:
        self.datastore.storage().write_atomically(self.datastore.uri(path), content)

    def send(self, body: str) -> None:
        self.queue.put(body)

    def say(self, path: str, **event: Any) -> None:
        """Send what Event Grid sends about a blob."""
        self.send(plain([event_grid_event(f"{self.root}/{path}", container=_CONTAINER, **event)]))

    def arrive(self, path: str, content: bytes = b"1") -> None:
        self.land(path, content)
        self.say(path)

    def count(self) -> int:
        """Return how many messages there are, hidden ones too."""
        return int(self.queue._client.get_queue_properties().approximate_message_count or 0)

    def parked(self) -> list[dict[str, Any]]:
        poison = self.queue.sibling(f"{self.queue.name}-poison")
        return [json.loads(m.body) for m in poison.receive(at_most=32, hidden_seconds=1)]

    def daemon(self, **fields: Any) -> Daemon:
        events = QueueEvents(queue=self.queue.name, hidden_seconds=fields.pop("hidden", 60))
        return Daemon(self.datastore, events, **fields)

    def contents(self) -> dict[str, str]:
        """Return what lies there, by a listing of all of it."""
        return {arrival.name: arrival.content for arrival in Walk(self.datastore, _PATTERNS)}


@pytest.fixture
def bench(azurite: Azurite) -> Bench:
    azurite.create_container(_CONTAINER)
    name = uuid.uuid4().hex[:12]
    datastore = Datastore(
        root=f"az://{_CONTAINER}/{name}",
        cloud="emulator",
        credential=Emulator(endpoint=azurite.endpoint, queue_endpoint=azurite.queue_endpoint),
    )
    queue = datastore.storage_queue(f"arrivals-{name}")
    queue.create()
    return Bench(datastore, queue)


pytestmark = pytest.mark.services


def test_a_message_leads_to_a_run_and_is_deleted_in_the_next_tick(bench: Bench) -> None:
    daemon = bench.daemon()
    bench.arrive("in/1/a.csv")
    tick = daemon.tick()
    assert daemon.runs == {name: [content] for name, content in bench.contents().items()}
    assert (tick.said, tick.cursor.names) == (("1 messages, 1 arrival looked at",), ())
    assert bench.count() == 1
    daemon.tick()
    assert bench.count() == 0
    assert len(daemon.runs["1"]) == 1


@pytest.mark.parametrize("schema", [event_grid_event, cloud_event])
@pytest.mark.parametrize("encode", [plain, in_base64])
def test_both_schemas_and_both_encodings_are_understood(
    bench: Bench, schema: Any, encode: Any
) -> None:
    daemon = bench.daemon()
    bench.land("in/ü 1/a b.csv")
    bench.send(encode(schema(f"{bench.root}/in/ü 1/a b.csv", container=_CONTAINER)))
    daemon.tick()
    assert list(daemon.runs) == ["ü 1"]


def test_a_crash_between_receiving_and_the_next_tick_loses_and_doubles_nothing(
    bench: Bench,
) -> None:
    daemon = bench.daemon(hidden=1)
    bench.arrive("in/1/a.csv")
    bench.arrive("in/2/a.csv")
    assert len(daemon.tick(crashes=True).asked) == 2
    assert daemon.runs == {}
    # Until they come again, there is nothing to see.
    assert daemon.tick(crashes=True).asked == ()
    time.sleep(1.2)
    daemon.tick()
    assert {name: len(runs) for name, runs in daemon.runs.items()} == {"1": 1, "2": 1}
    time.sleep(1.2)
    # They were received again before the cursor's receipts could be used: those are void now.
    stray = bench.queue.receive(at_most=2, hidden_seconds=1)
    assert [message.received for message in stray] == [3, 3]
    daemon.tick()
    assert bench.count() == 2
    time.sleep(1.2)
    daemon.tick()
    daemon.tick()
    assert bench.count() == 0
    assert {name: len(runs) for name, runs in daemon.runs.items()} == {"1": 1, "2": 1}


def test_what_dagster_kept_is_not_asked_again_when_only_the_cursor_was_lost(bench: Bench) -> None:
    daemon = bench.daemon(hidden=1)
    bench.arrive("in/1/a.csv")
    daemon.tick()
    daemon.text = None
    time.sleep(1.2)
    daemon.tick()
    daemon.tick()
    assert len(daemon.runs["1"]) == 1
    assert bench.count() == 0


def test_an_arrival_whose_only_message_is_used_up_is_looked_at_until_it_has_settled(
    bench: Bench,
) -> None:
    daemon = bench.daemon(limits=replace(_LIMITS, settle_seconds=2.0))
    bench.arrive("in/1/a.csv")
    assert daemon.tick().cursor.names == ("1",)
    assert daemon.tick().cursor.names == ("1",)
    assert bench.count() == 0
    # A blob of which no message tells is seen all the same.
    bench.land("in/1/b.csv")
    time.sleep(2.2)
    assert daemon.tick(crashes=True).asked[0].arrival.blobs == 2
    tick = daemon.tick()
    assert (tick.said, tick.cursor.names) == (("0 messages, 1 arrival looked at",), ())
    assert daemon.runs["1"] == [bench.contents()["1"]]
    assert daemon.tick().said == ("0 messages, 0 arrivals looked at",)


def test_what_a_bound_leaves_is_looked_at_in_the_next_ticks(bench: Bench) -> None:
    daemon = bench.daemon(limits=replace(_LIMITS, max_runs_per_tick=4))
    for number in range(10):
        bench.arrive(f"in/{number}/a.csv")
    assert [len(daemon.tick().asked) for _ in range(4)] == [4, 4, 2, 0]
    assert sorted(daemon.runs) == [str(number) for number in range(10)]
    assert bench.count() == 0


def test_while_no_run_may_be_asked_for_the_queue_keeps_what_is_new(bench: Bench) -> None:
    daemon = bench.daemon(limits=replace(_LIMITS, max_runs_per_tick=1))
    bench.arrive("in/1/a.csv")
    bench.arrive("in/2/a.csv")
    daemon.tick()
    daemon.limits = replace(_LIMITS, max_runs_per_tick=0)
    bench.arrive("in/3/a.csv")
    tick = daemon.tick()
    assert (tick.said[0], len(tick.cursor.names)) == ("0 messages, 0 arrivals looked at", 1)
    assert bench.count() == 1
    daemon.limits = _LIMITS
    daemon.tick()
    assert sorted(daemon.runs) == ["1", "2", "3"]


def test_duplicates_and_any_order_make_one_run(bench: Bench) -> None:
    daemon = bench.daemon()
    bench.land("in/1/a.csv")
    bench.say("in/1/a.csv", what="BlobDeleted")
    for _ in range(3):
        bench.say("in/1/a.csv")
    daemon.tick()
    bench.say("in/1/a.csv")
    daemon.tick()
    daemon.tick()
    assert daemon.runs["1"] == [bench.contents()["1"]]
    assert bench.count() == 0


def test_a_blob_that_is_gone_asks_nothing_and_its_return_is_seen(bench: Bench) -> None:
    daemon = bench.daemon()
    bench.arrive("in/1/a.csv")
    bench.arrive("in/2/a.csv")
    bench.datastore.storage().remove(bench.datastore.uri("in/1/a.csv"))
    daemon.tick()
    assert list(daemon.runs) == ["2"]
    bench.say("in/1/a.csv", what="BlobDeleted")
    daemon.tick()
    daemon.tick()
    assert (list(daemon.runs), bench.count()) == (["2"], 0)
    bench.arrive("in/1/a.csv")
    daemon.tick()
    assert sorted(daemon.runs) == ["1", "2"]


def test_new_content_and_a_deleted_part_are_further_runs(bench: Bench) -> None:
    daemon = bench.daemon()
    bench.arrive("in/1/a.csv")
    bench.arrive("in/1/b.csv")
    daemon.tick()
    bench.arrive("in/1/b.csv", b"2")
    daemon.tick()
    bench.datastore.storage().remove(bench.datastore.uri("in/1/b.csv"))
    bench.say("in/1/b.csv", what="BlobDeleted")
    daemon.tick()
    assert len(set(daemon.runs["1"])) == len(daemon.runs["1"]) == 3


def test_a_rename_changes_both_arrivals(bench: Bench) -> None:
    daemon = bench.daemon()
    bench.land("in/2/a.csv")
    bench.land("in/1/b.csv")
    bench.say("in/2/a.csv", what="BlobRenamed", source=f"{bench.root}/in/1/a.csv")
    daemon.tick()
    assert sorted(daemon.runs) == ["1", "2"]


def test_a_renamed_folder_is_an_arrival_and_a_folder_above_asks_for_a_full_pass(
    bench: Bench,
) -> None:
    daemon = bench.daemon()
    bench.land("in/1/a.csv")
    bench.say("in/1", what="DirectoryRenamed", source=f"{bench.root}/_in/1")
    passed = daemon.tick().cursor.full_pass
    assert list(daemon.runs) == ["1"]
    bench.land("in/2/a.csv")
    bench.say("in", what="DirectoryRenamed", source=f"{bench.root}/before")
    assert daemon.tick().cursor.full_pass != passed
    assert list(daemon.runs) == ["1", "2"]
    after = daemon.tick().cursor
    assert (after.wants_full_pass, bench.count()) == (False, 0)


def test_other_places_are_counted_and_their_messages_deleted(bench: Bench) -> None:
    daemon = bench.daemon()
    bench.say("out/1/a.csv")
    bench.send(plain(event_grid_event(f"{bench.root}/in/1/a.csv", container="other")))
    tick = daemon.tick()
    assert tick.said == ("2 messages (2 about other places), 0 arrivals looked at",)
    assert (bench.count(), tick.asked) == (0, ())


def test_poison_is_parked_and_does_not_block_what_is_good(bench: Bench) -> None:
    daemon = bench.daemon()
    bench.send("good morning")
    bench.send(in_base64({"eventType": "Microsoft.Storage.BlobCreated"}))
    bench.arrive("in/1/a.csv")
    tick = daemon.tick()
    assert list(daemon.runs) == ["1"]
    assert ["is parked in" in said for said in tick.said] == [False, True, True]
    assert [parked["reason"] for parked in bench.parked()] == [
        "it is neither JSON nor JSON in base64",
        "it is a Microsoft.Storage.BlobCreated that names no blob",
    ]
    assert bench.count() == 1


def test_a_message_whose_tick_crashes_time_and_again_is_parked(bench: Bench) -> None:
    daemon = bench.daemon(hidden=1)
    bench.arrive("in/1/a.csv")
    for _ in range(5):
        assert len(daemon.tick(crashes=True).asked) == 1
        time.sleep(1.1)
    tick = daemon.tick()
    assert "received 6 times" in tick.said[1]
    assert [ask.arrival.name for ask in tick.asked] == ["1"]
    # It goes when the cursor that holds the wish has come back.
    assert bench.count() == 1
    daemon.tick()
    assert bench.count() == 0


def test_a_lost_event_is_found_by_a_full_pass_and_asked_for_once(bench: Bench) -> None:
    daemon = bench.daemon()
    bench.arrive("in/1/a.csv")
    bench.land("in/2/a.csv")
    daemon.tick()
    assert list(daemon.runs) == ["1"]
    daemon.events = replace(daemon.events, full_pass_seconds=0.0)
    assert [ask.arrival.name for ask in daemon.tick().asked] == ["2"]


def test_one_arrival_is_the_same_by_itself_and_in_a_listing_of_all(bench: Bench) -> None:
    for path in ("in/1/a.csv", "in/1/b.csv", "in/10/a.csv", "in/1/c.txt"):
        bench.land(path)
    for name, content in bench.contents().items():
        found = look_at(bench.datastore, _PATTERNS, name)
        assert found is not None
        assert found.content == content


def test_a_queue_that_is_not_there_is_named(bench: Bench) -> None:
    daemon = bench.daemon()
    daemon.events = QueueEvents(queue="nobody-made-it")
    with pytest.raises(StorageError, match="Create the queue 'nobody-made-it'"):
        daemon.tick()


class TestSensor:
    """The sensor itself, with a Dagster instance beside Azurite."""

    def tick(
        self,
        bench: Bench,
        instance: dg.DagsterInstance,
        cursor: str | None,
        *,
        max_blobs: int = 200_000,
        **events: Any,
    ) -> dg.SensorResult:
        return evaluate(
            dg.build_sensor_context(instance=instance, cursor=cursor),
            bench.datastore,
            _ARRIVALS,
            events=QueueEvents(queue=bench.queue.name, **events),
            limits=Limits(settle_seconds=0.0, max_blobs_per_tick=max_blobs),
        )

    def test_what_a_message_and_the_full_pass_find_is_asked_for_once(self, bench: Bench) -> None:
        bench.arrive("in/1/a.csv")
        bench.land("in/2/a.csv")
        with dg.DagsterInstance.ephemeral() as instance:
            result = self.tick(bench, instance, None)
        assert [r.partition_key for r in result.run_requests or []] == ["1", "2"]
        assert len(result.asset_events) == 2

    def test_between_full_passes_a_lost_event_is_not_seen_and_then_it_is(
        self, bench: Bench
    ) -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            first = self.tick(bench, instance, None)
            bench.land("in/1/a.csv")
            between = self.tick(bench, instance, first.cursor)
            assert not between.run_requests
            assert "'0 messages, 0 arrivals looked at.'" in str(between.skip_reason)
            later = self.tick(bench, instance, between.cursor, full_pass_seconds=0.0)
        assert [r.partition_key for r in later.run_requests or []] == ["1"]

    def test_an_arrival_that_no_tick_can_list_is_left_to_the_pass(self, bench: Bench) -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            cursor = self.tick(bench, instance, None).cursor
            for number in range(5):
                bench.arrive(f"in/1/{number}.csv")
            bench.arrive("in/2/a.csv")
            asked: list[str | None] = []
            for _ in range(3):
                result = self.tick(bench, instance, cursor, max_blobs=3)
                asked += [request.partition_key for request in result.run_requests or []]
                cursor = result.cursor
        assert sorted(map(str, asked)) == ["1", "2"]
        # Nothing of it is left, neither in the cursor nor in the queue.
        after = Cursor.from_json(cursor)
        assert (after.position, after.names, after.receipts, bench.count()) == (None, (), (), 0)

    def test_the_reason_to_skip_tells_what_was_parked(self, bench: Bench) -> None:
        bench.send("good morning")
        bench.say("out/1/a.csv")
        with dg.DagsterInstance.ephemeral() as instance:
            reason = str(self.tick(bench, instance, None).skip_reason)
        assert "2 messages (1 about other places, 1 parked)" in reason
        assert f"parked in {bench.queue.name}-poison: it is neither JSON" in reason

    def test_ticks_that_come_too_late_for_hidden_messages_are_refused(self, bench: Bench) -> None:
        events = QueueEvents(queue="arrivals", hidden_seconds=60)
        with pytest.raises(ConfigurationError, match="take more than 60"):
            arrival_sensor(_ARRIVALS, target="*", events=events)
        arrival_sensor(_ARRIVALS, target="*", events=events, minimum_interval_seconds=29)
