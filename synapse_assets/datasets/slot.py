"""Names and places: where a dataset lies, and which part of it a materialization replaces."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import dagster as dg

from synapse_assets.datasets.file_entries import FILES_FOLDER
from synapse_assets.datasets.handlers import Target, folder_name
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ConfigurationError

SchemaChange = Literal["refuse", "evolve"]

# Definition metadata of an asset that says how its dataset is kept.
PARTITION_BY = "partition_by"
SCHEMA_CHANGE = "schema_change"

_DEFAULT_PARTITION_COLUMN = "partition_key"


@dataclass(frozen=True)
class Slot:
    """The place in a dataset that one commit replaces: all of it, or one partition.

    Attributes:
        name: Name of the dataset: the asset key's parts joined by '/'.
        partition_by: Name of the partition column; None in an unpartitioned dataset.
        partition: The partition to replace; None in an unpartitioned dataset.
        schema_change: Whether a commit may change the table's columns.

    Raises:
        ConfigurationError: The partition is the empty text.
    """

    name: str
    partition_by: str | None = None
    partition: str | None = None
    schema_change: SchemaChange = "refuse"

    def __post_init__(self) -> None:
        if self.partition == "":
            raise ConfigurationError(
                f"A partition of '{self.name}' has the empty text as its key, which a Delta table "
                "cannot tell from a missing value. Give the partition a name."
            )

    @classmethod
    def of_asset(
        cls, key: dg.AssetKey, *, partition: str | None, metadata: Mapping[str, Any]
    ) -> "Slot":
        """Return the slot that a materialization of an asset replaces.

        Raises:
            ConfigurationError: The asset's metadata has a value that is not one of those allowed.
        """
        name = "/".join(key.path)
        schema_change = metadata.get(SCHEMA_CHANGE, "refuse")
        if schema_change not in ("refuse", "evolve"):
            raise ConfigurationError(
                f"Asset '{name}' has {SCHEMA_CHANGE}={schema_change!r} in its metadata. "
                "Use 'refuse' or 'evolve'."
            )
        column = metadata.get(PARTITION_BY, _DEFAULT_PARTITION_COLUMN)
        return cls(
            name=name,
            partition_by=None if partition is None else column,
            partition=partition,
            schema_change=schema_change,
        )

    @property
    def partition_columns(self) -> list[str]:
        """The partition columns of the dataset: one, or none."""
        return [] if self.partition_by is None else [self.partition_by]

    @property
    def folder(self) -> str:
        """Folder of the slot below the dataset: '' or, percent-encoded, 'arrival=2026-11-24'."""
        if self.partition_by is None or self.partition is None:
            return ""
        # No reader of ours takes a partition's value from a path.
        return f"{quote(self.partition_by, safe='')}={folder_name(self.partition)}"

    def fresh_target(self, datastore: Datastore, *, attempt: str) -> Target:
        """Return new folders for one try of an attempt to write the slot's next content."""
        fresh = f"{attempt}-{uuid.uuid4().hex[:8]}"
        return Target(
            uri=dataset_uri(datastore, self.name),
            folder=f"{self.folder}/{fresh}" if self.folder else fresh,
            files_folder=f"{FILES_FOLDER}/{fresh}",
            partition_by=self.partition_by,
            partition=self.partition,
        )


def only_partition(key: dg.AssetKey, partitions: Sequence[str]) -> str | None:
    """Return the one partition of an asset that a run writes, None if it has no partitions.

    Raises:
        ConfigurationError: The run covers several partitions of the asset at once.
    """
    if len(partitions) > 1:
        raise ConfigurationError(
            f"A run writes {len(partitions)} partitions of '{key.to_user_string()}' at once. Use a "
            "backfill policy of one run per partition."
        )
    return partitions[0] if partitions else None


def dataset_uri(datastore: Datastore, name: str) -> str:
    """Return where the dataset `name` lies.

    Asset key parts are joined by '.', and everything else that a path could take for more than
    a name is encoded: no name leads out of the datastore, none lies inside another.

    Raises:
        ConfigurationError: A part of the name is empty.
    """
    parts = name.split("/")
    if not all(parts):
        raise ConfigurationError(f"The asset key {parts} has an empty part. Name every part of it.")
    folder = ".".join(_encoded(part) for part in parts)
    return datastore.uri(f"~5F{folder[1:]}" if folder.startswith("_") else folder)


def _encoded(part: str) -> str:
    """Return one part of a name with '~' before the codes: deltalake decodes '%2F' in paths."""
    return quote(part, safe="").replace("~", "%7E").replace(".", "%2E").replace("%", "~")
