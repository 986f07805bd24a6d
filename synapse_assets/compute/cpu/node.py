"""What a node of a cluster runs first: it fetches the step's bundle and hands over to the runner.

Its text goes with the job, so it needs the standard library alone, and the SDK of Azure's storage.

python -c TEXT BUNDLE JOB_FILE
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def main() -> None:
    """Fetch the bundle with the job's own identity, and run what is in it."""
    bundle = sys.argv.pop(1)
    # Where a cluster has an identity that is not its own, Azure ML tells which one it is.
    if "DEFAULT_IDENTITY_CLIENT_ID" in os.environ:
        os.environ.setdefault("AZURE_CLIENT_ID", os.environ["DEFAULT_IDENTITY_CLIENT_ID"])
    spec = json.loads(os.environ["SYNAPSE_ASSETS_STORAGE"])
    secrets = json.loads(os.environ.get("SYNAPSE_ASSETS_SECRETS", "{}")).get("storage", {})
    if spec["store"] == "blob":
        path = Path(tempfile.mkdtemp(), "bundle.zip")
        path.write_bytes(_fetch(bundle, spec, secrets))
        bundle = str(path)
    # Engines start Python workers of their own, which need the step's code too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (bundle, os.environ.get("PYTHONPATH"))))
    sys.path.insert(0, bundle)
    from synapse_assets.compute.runner import main_on_node

    main_on_node()


def _fetch(uri: str, spec: Mapping[str, Any], secrets: Mapping[str, str]) -> bytes:
    from azure.identity import DefaultAzureCredential
    from azure.storage.blob import BlobServiceClient

    if "connection_string" in secrets:
        service = BlobServiceClient.from_connection_string(secrets["connection_string"])
    else:
        host = spec["options"]["account_host"]
        service = BlobServiceClient(f"https://{host}", DefaultAzureCredential())
    name = uri.partition("://")[2].partition("/")[2]
    blob = service.get_blob_client(spec["container"], name)
    return bytes(blob.download_blob().readall())


if __name__ == "__main__":
    main()
