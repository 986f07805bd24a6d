"""The key of an attempt, and the files it leaves before they become a version."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from synapse_assets.datasets.version import DataFile, DatasetKind


def attempt_key(*, root_run_id: str, step_key: str, partition: str | None) -> str:
    """Return the key of an attempt: one try of one step for one partition.

    A re-execution of a run keeps its root run id, so it finds what the first try left.
    """
    digest = hashlib.sha256("\0".join((root_run_id, step_key, partition or "")).encode())
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", step_key)[:60]
    return f"{readable}-{digest.hexdigest()[:16]}"


@dataclass(frozen=True)
class StagedDataset:
    """Files that a finished attempt wrote for one dataset; no reader sees them yet.

    Attributes:
        attempt: Key of the attempt.
        kind: 'TabularDataset' or 'FileDataset'.
        folder: The attempt's fresh folder, relative to the dataset's URI.
        files: What the manifest lists, paths relative to the dataset's URI.
        rows: Number of rows that the step counted; None if it did not, or for a FileDataset.
        provenance: What is to be said of the attempt itself, as Dagster metadata: how long it
            took, what it read, what it ran on.
    """

    attempt: str
    kind: DatasetKind
    folder: str
    files: tuple[DataFile, ...]
    rows: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
