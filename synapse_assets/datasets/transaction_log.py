"""What the entries of a dataset's transaction log say: who changed what, and when.

`deltalake` tells of a version what it holds. Which files a commit took out, and so how long they
were needed, is in the log's own entries, one JSON file per version. They are read here, and are
only ever written by `deltalake`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from synapse_assets.datastore.storage import Storage, StoredFile, for_each_file
from synapse_assets.errors import DatasetError

LOG_FOLDER = "_delta_log"

# The name of an entry, which is its version.
ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(rf"{LOG_FOLDER}/(\d{{20}})\.checkpoint\..*parquet")


@dataclass(frozen=True)
class LoggedFile:
    """A Parquet file as the log adds it.

    Attributes:
        size: Size in bytes.
        rows: Number of rows; None if its writer did not say.
        partition_values: Value of each partition column.
    """

    size: int
    rows: int | None
    partition_values: Mapping[str, str | None]


@dataclass(frozen=True)
class LogEntry:
    """What one commit did.

    Attributes:
        version: The version that it made.
        committed: When, in seconds since 1970; never before the entry ahead of it, although the
            writers' clocks may differ.
        info: What the writer said of it.
        added: The Parquet files that it added, by path relative to the dataset.
        removed: Paths of the Parquet files that it took out.
    """

    version: int
    committed: float
    info: Mapping[str, Any]
    added: Mapping[str, LoggedFile]
    removed: tuple[str, ...]


def read_entries(storage: Storage, uri: str, listed: Sequence[StoredFile]) -> list[LogEntry]:
    """Return the log's entries, oldest first.

    Args:
        storage: The store.
        uri: Location of the dataset.
        listed: All files of the dataset. An entry that came after they were listed is not read.

    Raises:
        DatasetError: An entry is not JSON.
    """
    found = [
        (int(match[1]), file)
        for file in listed
        if (match := ENTRY.fullmatch(file.path.removeprefix(f"{LOG_FOLDER}/")))
    ]
    contents = for_each_file(lambda item: storage.read_bytes(f"{uri}/{item[1].path}"), found)
    entries = []
    latest = 0.0
    for (version, file), content in zip(found, contents, strict=True):
        if content is None:
            # The clean-up of old entries, which deltalake does after a commit, came between.
            continue
        try:
            actions = [json.loads(line) for line in content.splitlines() if line.strip()]
        except ValueError as e:
            raise DatasetError(
                f"{uri}/{file.path} is not a whole entry of a Delta log ({e}). Nothing was "
                "changed. Mend the log, or materialize the asset under a new key."
            ) from e
        infos = [action["commitInfo"] for action in actions if action.get("commitInfo")]
        info = infos[0] if infos else {}
        # Not every writer says when it was.
        latest = max(latest, info.get("timestamp", file.modified * 1000) / 1000)
        entries.append(
            LogEntry(
                version=version,
                committed=latest,
                info=info,
                added={
                    unquote(action["add"]["path"]): _logged_file(action["add"])
                    for action in actions
                    if action.get("add")
                },
                removed=tuple(unquote(a["remove"]["path"]) for a in actions if a.get("remove")),
            )
        )
    return entries


def oldest_checkpoint(listed: Sequence[StoredFile]) -> int | None:
    """Return the oldest version that a checkpoint of the log holds, None if there is none.

    Where the first entries are gone, older versions cannot be opened.
    """
    matches = (_CHECKPOINT.fullmatch(file.path) for file in listed)
    return min((int(match[1]) for match in matches if match), default=None)


def _logged_file(add: Mapping[str, Any]) -> LoggedFile:
    return LoggedFile(
        size=add["size"],
        rows=json.loads(add.get("stats") or "{}").get("numRecords"),
        partition_values=add.get("partitionValues") or {},
    )
