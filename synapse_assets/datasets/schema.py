"""What a table's columns may be, how they may change, and which protocol they need."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.version import DatasetKind
from synapse_assets.errors import SchemaChangedError, UnsupportedTableError

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable, Schema

# What Spark 3.4 with Delta 2.4 reads and writes without any table feature.
_MAX_READER_VERSION = 1
_MAX_WRITER_VERSION = 2


def kind_of(table: "DeltaTable") -> DatasetKind:
    """Return the kind of dataset that a table keeps, which its description tells."""
    is_files = table.metadata().description == "FileDataset"
    return "FileDataset" if is_files else "TabularDataset"


def delta_schema(schema: "pa.Schema", slot: Slot) -> "Schema":
    """Return the Delta schema of the files' columns and the partition column.

    Raises:
        UnsupportedTableError: A column has a type that the oldest supported reader lacks.
    """
    import pyarrow as pa
    from deltalake import Schema

    for column in schema:
        for part in _parts(column.type):
            problem = _why_unsupported(part)
            if problem is not None:
                raise UnsupportedTableError(f"Column '{column.name}' of '{slot.name}' {problem}")
    # Parquet's 'required' says nothing of the next version's rows, so every column may be null.
    fields = [pa.field(column.name, column.type, nullable=True) for column in schema]
    if slot.partition_by is not None and slot.partition_by not in schema.names:
        fields.append(pa.field(slot.partition_by, pa.string()))
    try:
        return Schema.from_arrow(pa.schema(fields))
    except Exception as e:
        # deltalake raises the bare class here, with a stack of its own in the text.
        raise UnsupportedTableError(
            f"The columns of '{slot.name}' do not fit a Delta table: {str(e).splitlines()[0]}. "
            "Cast them to types that Delta has."
        ) from e


def _parts(arrow_type: "pa.DataType") -> "Iterator[pa.DataType]":
    """Return a type and the types that it is nested of."""
    yield arrow_type
    for index in range(arrow_type.num_fields):
        yield from _parts(arrow_type.field(index).type)


def _why_unsupported(arrow_type: "pa.DataType") -> str | None:
    """Return what is wrong with a type that Schema.from_arrow takes, None if nothing is."""
    import pyarrow as pa

    if pa.types.is_timestamp(arrow_type) and arrow_type.tz is None:
        return (
            "is a timestamp without a time zone, which Spark before 3.4 and Delta before 2.4 "
            "cannot read. Write it as UTC."
        )
    if pa.types.is_unsigned_integer(arrow_type):
        return f"is a {arrow_type}, and Delta's integers are signed. Cast it to a wider one."
    if pa.types.is_null(arrow_type):
        return "holds nothing but nulls, and so has no type. Cast it to the type it is meant to be."
    return None


def evolve_schema(table: "DeltaTable", new: "Schema", *, kind: DatasetKind, slot: Slot) -> "Schema":
    """Return the table's schema after the commit.

    Raises:
        SchemaChangedError: The columns would change in a way that the slot does not allow.
    """
    from deltalake import Schema

    if kind != kind_of(table) or table.metadata().partition_columns != slot.partition_columns:
        raise SchemaChangedError(
            f"Dataset '{slot.name}' is a {kind_of(table)} partitioned by "
            f"{table.metadata().partition_columns or 'nothing'}; the new version would be a "
            f"{kind} partitioned by {slot.partition_columns or 'nothing'}. Give the asset a "
            "new key, or remove the old dataset."
        )
    old_types = {field.name: str(field.type) for field in table.schema().fields}
    new_types = {field.name: str(field.type) for field in new.fields}
    if old_types == new_types:
        return table.schema()
    changes = [
        *(f"'{c}' is new" for c in new_types if c not in old_types),
        *(f"'{c}' is gone" for c in old_types if c not in new_types),
    ]
    retyped = [c for c in old_types if c in new_types and old_types[c] != new_types[c]]
    changes += [f"'{c}' changes from {old_types[c]} to {new_types[c]}" for c in retyped]
    if slot.schema_change == "refuse":
        raise SchemaChangedError(
            f"The columns of '{slot.name}' would change: {'; '.join(changes)}. If that is meant, "
            'set metadata={"schema_change": "evolve"} on the asset.'
        )
    if slot.partition is None:
        return new
    if retyped:
        raise SchemaChangedError(
            f"The columns of '{slot.name}' would change: {'; '.join(changes)}. Other partitions "
            "hold the old type: give the asset a new key and materialize all of them."
        )
    added = [field for field in new.fields if field.name not in old_types]
    return Schema([*table.schema().fields, *added])


def check_protocol(table: "DeltaTable", uri: str) -> None:
    """Check that a table asks no more of its readers than the oldest supported one offers.

    Raises:
        UnsupportedTableError: It does.
    """
    protocol = table.protocol()
    reader, writer = protocol.min_reader_version, protocol.min_writer_version
    if reader > _MAX_READER_VERSION or writer > _MAX_WRITER_VERSION:
        raise UnsupportedTableError(
            f"The Delta table at {uri} has protocol {reader}/{writer}; this package writes up to "
            f"{_MAX_READER_VERSION}/{_MAX_WRITER_VERSION}, so that Spark 3.4 can read it. "
            "Another program raised it; materialize into a new asset key."
        )
