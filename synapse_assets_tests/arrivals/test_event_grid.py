"""What is read out of a message of Event Grid; no service is needed."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_assets.arrivals.event_grid import read_events
from synapse_assets_tests.arrivals.event_messages import (
    cloud_event,
    event_grid_event,
    in_base64,
    plain,
)

_SCHEMAS = [event_grid_event, cloud_event]


@pytest.mark.parametrize("schema", _SCHEMAS)
@pytest.mark.parametrize("encode", [plain, in_base64])
@pytest.mark.parametrize("what", ["BlobCreated", "BlobDeleted"])
def test_an_event_names_its_blob(
    schema: Callable[..., Any], encode: Callable[[Any], str], what: str
) -> None:
    (event,) = read_events(encode(schema("landing/titanic/a.csv", what=what)))
    assert event.kind == "blob"
    assert event.account == "devstoreaccount1"
    assert event.places == {("landing", "landing/titanic/a.csv")}


@pytest.mark.parametrize("schema", _SCHEMAS)
def test_a_rename_names_both_places(schema: Callable[..., Any]) -> None:
    (event,) = read_events(plain(schema("new/a.csv", what="BlobRenamed", source="old/a.csv")))
    assert event.places == {("landing", "new/a.csv"), ("landing", "old/a.csv")}


@pytest.mark.parametrize("schema", _SCHEMAS)
@pytest.mark.parametrize("what", ["DirectoryRenamed", "DirectoryDeleted"])
def test_a_folder_is_told_from_a_blob(schema: Callable[..., Any], what: str) -> None:
    (event,) = read_events(plain(schema("landing/day", what=what)))
    assert event.kind == "folder"


@pytest.mark.parametrize(
    "what", ["DirectoryCreated", "BlobTierChanged", "AsyncOperationInitiated", "Newer"]
)
def test_what_changes_no_blob_is_of_another_kind(what: str) -> None:
    (event,) = read_events(plain(event_grid_event("a", what=what)))
    assert event.kind == "other"


def test_a_message_may_hold_several_events() -> None:
    events = read_events(plain([event_grid_event("a.csv"), cloud_event("b.csv")]))
    assert [event.places for event in events] == [
        {("landing", "a.csv")},
        {("landing", "b.csv")},
    ]


@pytest.mark.parametrize("name", ["día 1.csv", "a?b.csv", "a#b.csv", "a+b.csv", "a%41.csv"])
def test_a_name_is_found_however_it_is_spelled(name: str) -> None:
    (event,) = read_events(plain(event_grid_event(name)))
    assert event.places == {("landing", name)}


def test_a_subject_without_its_first_slash_is_read() -> None:
    # As in the example on the page about CloudEvents.
    event = cloud_event("a.csv")
    event["subject"] = event["subject"].lstrip("/")
    del event["data"]
    assert read_events(plain(event))[0].places == {("landing", "a.csv")}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "no valid JSON"),
        ("good morning", "neither JSON"),
        ("{", "no valid JSON"),
        (base64.b64encode(b"\xff\xfe").decode(), "neither JSON"),
        (base64.b64encode(b"morning").decode(), "no valid JSON"),
        ("[" * 60_000, "no valid JSON"),
        ("[]", "an empty list"),
        ("[1]", "without an event"),
        (base64.b64encode(b"7").decode(), "without an event"),
        ("{}", "no type"),
        ('{"type": "Microsoft.Storage.BlobCreated"}', "no type"),
        ('{"eventType": ["Microsoft.Storage.BlobCreated"]}', "no type"),
        ('{"eventType": "Microsoft.Storage.BlobCreated"}', "names no blob"),
        ('{"eventType": "Microsoft.Storage.BlobCreated", "data": 3, "subject": 4}', "no blob"),
        (
            plain({"eventType": "Microsoft.Storage.BlobCreated", "subject": "/blobServices"}),
            "no blob",
        ),
    ],
)
def test_what_cannot_be_understood_is_refused_with_the_reason(body: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_events(body)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["eventType", "type", "specversion", "subject", "data", "url", "topic"])
            | st.text(),
            inner | st.sampled_from(["Microsoft.Storage.BlobCreated", "https://a/b/c", "/"]),
        )
    ),
)


@given(st.text() | _JSON.map(json.dumps))
def test_any_body_is_read_or_refused(body: str) -> None:
    try:
        events = read_events(body)
    except ValueError:
        return
    assert events


def test_a_name_that_may_be_encoded_is_read_in_both_ways() -> None:
    event = event_grid_event("a%41.csv")
    del event["data"]
    (found,) = read_events(plain(event))
    assert found.places == {("landing", "a%41.csv"), ("landing", "aA.csv")}
