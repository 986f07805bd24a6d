"""What a message of Event Grid says about blobs.

Two schemas, as the subscription chooses, in the forms that Microsoft publishes:

- https://learn.microsoft.com/azure/event-grid/event-schema-blob-storage: the events of a storage
  account in both schemas, with those of Data Lake Storage Gen2 and SFTP.
- https://learn.microsoft.com/azure/event-grid/event-schema: the Event Grid schema.
- https://learn.microsoft.com/azure/event-grid/cloud-event-schema: CloudEvents 1.0.

A message is a hint where to look: what lies there, the listing says. So nothing here trusts the
order of messages, an etag or a size; https://learn.microsoft.com/azure/storage/blobs/storage-blob-event-overview
warns that messages come late, twice and out of order.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

# A folder stands for any number of blobs, which get no events of their own. A new one is empty.
_KINDS: dict[str, Literal["blob", "folder"]] = {
    "Microsoft.Storage.BlobCreated": "blob",
    "Microsoft.Storage.BlobDeleted": "blob",
    "Microsoft.Storage.BlobRenamed": "blob",
    "Microsoft.Storage.DirectoryDeleted": "folder",
    "Microsoft.Storage.DirectoryRenamed": "folder",
}
_SUBJECT = re.compile(
    r"/?blobServices/default/containers/(?P<container>[^/]+)/blobs/(?P<name>.+)", re.DOTALL
)
_ACCOUNT = re.compile(r"/storageAccounts/(?P<account>[^/]+)", re.IGNORECASE)
# Of the data: where a blob is, and where it was.
_URLS = ("url", "destinationUrl", "sourceUrl")


@dataclass(frozen=True)
class BlobEvent:
    """One event.

    Attributes:
        kind: Whether it is about a blob, about a folder with all that was in it, or about
            something that does not change what lies in a container.
        account: The storage account, in lower case; empty if the event does not say.
        places: Container and name of each blob or folder that it names. Where it is not clear
            whether a name is percent-encoded, it is there in both spellings.
    """

    kind: Literal["blob", "folder", "other"]
    account: str = ""
    places: frozenset[tuple[str, str]] = frozenset()


def read_events(body: str) -> list[BlobEvent]:
    """Return the events in a message, which may be JSON as it stands or in base64.

    Raises:
        ValueError: It is no event; the text says why, in a few words.
    """
    text = body.strip().removeprefix("\ufeff")
    if not text.startswith(("{", "[")):
        try:
            text = base64.b64decode(text, validate=True).decode("utf-8-sig")
        except (binascii.Error, ValueError):
            raise ValueError("it is neither JSON nor JSON in base64") from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is no valid JSON") from None
    events = document if isinstance(document, list) else [document]
    if not events:
        raise ValueError("it is an empty list")
    return [_read(event) for event in events]


def _read(event: Any) -> BlobEvent:
    if not isinstance(event, dict):
        raise ValueError("it is JSON without an event in it")
    # CloudEvents says 'type', and always the version of its specification beside.
    name = event.get("eventType") or ("specversion" in event and event.get("type"))
    if not isinstance(name, str):
        raise ValueError("it has no type of the Event Grid schema or of CloudEvents")
    if name not in _KINDS:
        return BlobEvent(kind="other")
    data = event.get("data")
    places = frozenset(_places(event.get("subject"), data if isinstance(data, dict) else {}))
    if not places:
        raise ValueError(f"it is a {name} that names no blob")
    # The resource that the event comes from.
    source = event.get("topic") or event.get("source")
    found = _ACCOUNT.search(source) if isinstance(source, str) else None
    account = found["account"].lower() if found else ""
    return BlobEvent(_KINDS[name], account=account, places=places)


def _places(subject: Any, data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield container and name of all that an event names.

    The pages do not say which characters are encoded, and where. Usually the URL of the subject
    tells; otherwise every name is read in both ways.
    """
    urls = [split for field in _URLS if (split := _split_url(data.get(field))) is not None]
    found = _SUBJECT.fullmatch(subject) if isinstance(subject, str) else None
    named = [] if found is None else [(found["container"], found["name"])]
    decoded = [(container, unquote(name)) for container, name in urls]
    yield from decoded
    yield from named
    if not set(named) & set(decoded):
        yield from urls
        yield from ((container, unquote(name)) for container, name in named)


def _split_url(url: Any) -> tuple[str, str] | None:
    """Return container and name as they stand in the URL of a blob."""
    if not isinstance(url, str):
        return None
    # Not by urlsplit: a name that is not encoded may have '?' and '#' in it.
    _, _, path = url.partition("://")[2].partition("/")
    container, _, name = path.partition("/")
    return (container, name) if container and name else None
