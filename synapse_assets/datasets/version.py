"""The reference that flows between assets: one version of one dataset."""

import base64
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from synapse_assets.errors import DatasetNotFoundError

DatasetKind = Literal["TabularDataset", "FileDataset"]


@dataclass(frozen=True)
class DataFile:
    """One file of a version: a Parquet file of a table, or one of the user's own files.

    Attributes:
        path: Location relative to the dataset's URI, or absolute for files outside of it.
        size: Size in bytes.
        rows: Number of rows; None for the user's own files.
        partition: Partition the file belongs to; None in an unpartitioned dataset.
        name: Name by which a FileDataset knows the file ('plots/roc.png'); None in a table.
        etag: The store's own tag of the content, None where there is none.
        sha256: Hash of the content in hexadecimal; None in a table.
        properties: What the step that wrote the file said about it.
    """

    path: str
    size: int
    rows: int | None = None
    partition: str | None = None
    name: str | None = None
    etag: str | None = None
    sha256: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetVersion:
    """A reference to one version of a dataset; holding it reads no data.

    Attributes:
        name: Name of the dataset: the asset key's parts joined by '/'.
        uri: Location of the dataset.
        kind: 'TabularDataset' (a Delta table) or 'FileDataset' (any files).
        version: Number of the Delta version, from 0.
        files: The files the reference stands for: all of the version's, or those of the
            partitions that were asked for.
        schema: The table's columns as Delta's (and Spark's) schema JSON; None for a FileDataset.
        partition_by: Name of the partition column; None in an unpartitioned dataset.
    """

    name: str
    uri: str
    kind: DatasetKind
    version: int
    files: tuple[DataFile, ...]
    schema: str | None = None
    partition_by: str | None = None

    @property
    def rows(self) -> int:
        """Number of rows in all files of the reference; 0 for a FileDataset."""
        return sum(file.rows or 0 for file in self.files)

    @property
    def size(self) -> int:
        """Size of all files of the reference, in bytes."""
        return sum(file.size for file in self.files)

    @property
    def partitions(self) -> tuple[str, ...]:
        """The partitions that the files belong to, each once, sorted."""
        return tuple(sorted({f.partition for f in self.files if f.partition is not None}))

    def select(self, partitions: Collection[str]) -> "DatasetVersion":
        """Return the reference restricted to some of its partitions."""
        files = tuple(file for file in self.files if file.partition in partitions)
        return replace(self, files=files)

    def file(self, name: str) -> str:
        """Return the location of one of the user's own files by its name.

        Raises:
            DatasetNotFoundError: The version has no such file.
        """
        for file in self.files:
            if file.name == name:
                return f"{self.uri}/{file.path}"
        raise DatasetNotFoundError(
            f"Version {self.version} of '{self.name}' has no file '{name}'. "
            f"It has: {', '.join(sorted(f.name or '' for f in self.files)[:10])}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the reference as JSON values, as it travels to where a step runs.

        Beside the fields it carries `arrow_schema`, the columns as an Arrow IPC message in
        base64, so that the other side needs no Delta library to know them.
        """
        return {**asdict(self), "arrow_schema": _arrow_schema(self.schema)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "DatasetVersion":
        """Return the reference that `to_json` described."""
        fields = {name: value[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "files": tuple(DataFile(**file) for file in value["files"])})


def _arrow_schema(schema: str | None) -> str | None:
    if schema is None:
        return None
    import pyarrow as pa
    from deltalake import Schema

    serialized = pa.schema(Schema.from_json(schema).to_arrow()).serialize()
    return base64.b64encode(serialized.to_pybytes()).decode()
