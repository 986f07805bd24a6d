"""What Parquet footers tell: schema, rows, and the statistics that Delta keeps of a file."""

import datetime as dt
import decimal
import json
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synapse_assets.errors import StagedFilesError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Footers are small and far away: reading many at once hides the latency of an object store.
_READERS = 16
# The prefix of a string that is kept as its lower bound, as Delta's own writers do.
_MAX_STRING = 32
_LAST_CHARACTER = "\U0010ffff"
# The writer of Spark. A file of it with a NaN has no bounds at all; other writers leave NaN out
# of the maximum, though Delta's readers take it for more than any number.
_COUNTS_NAN = "parquet-mr"
# Upper bounds of a file's floats that may hide a NaN, by Parquet type. No bound would be plainer,
# but deltalake's Arrow dataset compares with a missing bound, and so finds no row at all.
LARGEST_FLOATS = {"FLOAT": 3.4028234663852886e38, "DOUBLE": sys.float_info.max}


@dataclass(frozen=True)
class Footer:
    """What one Parquet file says of itself.

    Attributes:
        schema: The columns, without metadata.
        rows: Number of rows.
        stats: Delta's per-file statistics as JSON (numRecords, minValues, maxValues, nullCount).
    """

    schema: "pa.Schema"
    rows: int
    stats: str


def read_footers(
    paths: Sequence[str], *, root: str, open_file: "Callable[[str], pa.NativeFile] | None" = None
) -> list[Footer]:
    """Return the footers of Parquet files, in order.

    Args:
        paths: Paths relative to `root`.
        root: A folder of this machine, or what a message puts before the paths.
        open_file: Opens a path where that takes a request: several are read at a time then.

    Raises:
        StagedFilesError: A file is missing, or is not Parquet.
    """
    # Loaded here: defining assets must not cost the time to import pyarrow.
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read(path: str) -> Footer:
        try:
            with open_file(path) if open_file else pa.OSFile(f"{root}/{path}") as file:
                metadata = pq.ParquetFile(file).metadata
        except (OSError, pa.ArrowInvalid) as e:
            problem = str(e).strip().partition("\n")[0].rstrip(".")
            raise StagedFilesError(
                f"Cannot read the Parquet footer of {root}/{path}: {problem}. Run the step again: "
                "its files were removed or damaged after it wrote them."
            ) from e
        return Footer(
            schema=metadata.schema.to_arrow_schema().remove_metadata(),
            rows=metadata.num_rows,
            stats=json.dumps(_delta_stats(metadata)),
        )

    if open_file is None:
        return [read(path) for path in paths]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, paths))


def _delta_stats(metadata: "pq.FileMetaData") -> dict[str, Any]:
    """Return Delta's statistics of a file, for its top-level columns."""
    lower: dict[str, Any] = {}
    upper: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    counts_nan = (metadata.created_by or "").startswith(_COUNTS_NAN)
    for index in range(metadata.num_columns):
        name = metadata.schema.column(index).path
        if "." in name:
            continue
        chunks = [
            metadata.row_group(group).column(index).statistics
            for group in range(metadata.num_row_groups)
        ]
        if not chunks or any(chunk is None for chunk in chunks):
            continue
        if all(chunk.has_null_count for chunk in chunks):
            nulls[name] = sum(chunk.null_count for chunk in chunks)
        bounds = [chunk for chunk in chunks if chunk.has_min_max]
        # A row group without bounds holds only nulls, or values its writer could not order.
        # Then there is no bound, unless the nulls alone explain it.
        if not bounds or any(not c.has_min_max and c.num_values > 0 for c in chunks):
            continue
        try:
            low = _lower_bound(min(chunk.min for chunk in bounds))
            high = _upper_bound(max(chunk.max for chunk in bounds))
        except OverflowError:
            # A time or date that Python cannot tell, as of the year 10000.
            continue
        if isinstance(high, float) and not counts_nan:
            # A decimal is a float here too, and knows no NaN.
            high = LARGEST_FLOATS.get(metadata.schema.column(index).physical_type, high)
        if low is not None:
            lower[name] = low
        if high is not None:
            upper[name] = high
    return {
        "numRecords": metadata.num_rows,
        "minValues": lower,
        "maxValues": upper,
        "nullCount": nulls,
    }


def _lower_bound(value: Any) -> Any:
    """Return a JSON value that is not above `value`, None where Delta keeps none."""
    return value[:_MAX_STRING] if isinstance(value, str) else bound(value)


def _upper_bound(value: Any) -> Any:
    """Return a JSON value that is not below `value`, None where Delta keeps none."""
    if isinstance(value, str):
        # A cut string would lie below the value, but for the last of all characters at its end.
        cut = value if len(value) <= _MAX_STRING else f"{value[:_MAX_STRING]}{_LAST_CHARACTER}"
        return cut if cut >= value else None
    if isinstance(value, dt.datetime):
        # Bounds are kept in milliseconds.
        past = dt.timedelta(microseconds=-value.microsecond % 1000)
        if past > dt.datetime.max.replace(tzinfo=value.tzinfo) - value:
            return None
        value += past
    return bound(value)


def bound(value: Any) -> Any:
    """Return a bound that is no string as JSON, None where Delta keeps none of its kind."""
    if isinstance(value, int):
        return value
    if isinstance(value, decimal.Decimal):
        # JSON has floats only; a rounded one could be on the wrong side of the value.
        number = float(value)
        return number if decimal.Decimal(repr(number)) == value else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dt.datetime):
        utc = value if value.tzinfo is None else value.astimezone(dt.timezone.utc)
        return utc.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
    if isinstance(value, dt.date):
        return value.isoformat()
    return None
