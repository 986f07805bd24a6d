"""Messages as Event Grid puts them into a queue, in the form of the published examples."""

import base64
import itertools
import json
from typing import Any
from urllib.parse import quote

_ids = itertools.count(1)


def event_grid_event(
    name: str,
    *,
    what: str = "BlobCreated",
    container: str = "landing",
    account: str = "devstoreaccount1",
    source: str | None = None,
) -> dict[str, Any]:
    """Return an event in the Event Grid schema.

    Args:
        name: Name of the blob or folder, of the new one if it was renamed.
        what: Its type, after 'Microsoft.Storage.'.
        container: The container.
        account: The storage account.
        source: The old name, if it was renamed.
    """
    number = next(_ids)
    host = f"https://{account}.blob.core.windows.net/{container}"
    data: dict[str, Any] = {
        "api": "PutBlockList",
        "clientRequestId": f"6d79dbfb-0e37-4fc4-981f-{number:012}",
        "requestId": f"831e1650-001e-001b-66ab-{number:012}",
        "eTag": '"0x8D4BCC2E4835CD0"',
        "contentType": "text/plain",
        "contentLength": 524288,
        "blobType": "BlockBlob",
        "url": f"{host}/{quote(name)}",
        "sequencer": f"{number:032}",
        "storageDiagnostics": {"batchId": "b68529f3-68cd-4744-baa4-3c0498ec19f0"},
    }
    if source is not None:
        del data["url"], data["eTag"], data["contentLength"]
        data |= {
            "api": "RenameFile",
            "destinationUrl": f"{host}/{quote(name)}",
            "sourceUrl": f"{host}/{quote(source)}",
        }
    return {
        "topic": f"/subscriptions/0/resourceGroups/Storage/providers/Microsoft.Storage"
        f"/storageAccounts/{account}",
        "subject": f"/blobServices/default/containers/{container}/blobs/{name}",
        "eventType": f"Microsoft.Storage.{what}",
        "eventTime": "2026-11-24T18:41:00.9584103Z",
        "id": f"831e1650-001e-001b-66ab-{number:012}",
        "data": data,
        "dataVersion": "",
        "metadataVersion": "1",
    }


def cloud_event(name: str, **event: Any) -> dict[str, Any]:
    """Return the same event in the schema of CloudEvents 1.0."""
    renamed = {"topic": "source", "eventType": "type", "eventTime": "time"}
    return {
        **{
            renamed.get(field, field): value
            for field, value in event_grid_event(name, **event).items()
            if field not in ("dataVersion", "metadataVersion")
        },
        "specversion": "1.0",
    }


def plain(event: Any) -> str:
    """Return an event as the text of a message."""
    return json.dumps(event)


def in_base64(event: Any) -> str:
    """Return an event as the text of a message in base64."""
    return base64.b64encode(plain(event).encode()).decode()
