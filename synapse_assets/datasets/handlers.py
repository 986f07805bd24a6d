"""Type handlers: how each Python type is loaded from a dataset version, and written as a new one.

One set serves both ends: the IO manager in the orchestrator, and the runner where a step runs.
For the runner's sake this module and what it imports need the standard library alone. It loads an
engine only when a handler of it is used, and takes references as the JSON that
`DatasetVersion.to_json` makes.
"""

import atexit
import base64
import hashlib
import itertools
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin
from urllib.parse import quote

from synapse_assets.datasets.downloads import download_all
from synapse_assets.datastore.storage import LocalStorage, Storage, for_each_file, sha256_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset
    from pyspark.sql import DataFrame, SparkSession

Reference = Mapping[str, Any]
FileRecord = dict[str, Any]

# 255 bytes is the limit of a path component on most file systems and on HDFS; of a longer name
# the rest is replaced by a hash.
_MAX_FOLDER_NAME = 180


@dataclass(frozen=True)
class Access:
    """What a handler needs of the place it runs in.

    Attributes:
        storage: The store that datasets lie in.
        spark: Returns the Spark session; called only by handlers of Spark.
        hadoop_paths: Whether locations are handed to Hadoop, which expands glob patterns.
    """

    storage: Storage
    spark: Callable[[], "SparkSession"]
    hadoop_paths: bool = False


@dataclass(frozen=True)
class Target:
    """Where a handler writes, and which partition the data belongs to.

    Attributes:
        uri: Location of the dataset.
        folder: The attempt's fresh folder for Parquet files, relative to `uri`.
        files_folder: The same for the user's own files.
        partition_by: Name of the partition column; None in an unpartitioned dataset.
        partition: The partition that all rows belong to.
    """

    uri: str
    folder: str
    files_folder: str
    partition_by: str | None = None
    partition: str | None = None


@dataclass(frozen=True)
class TypeHandler:
    """Loads one Python type from a dataset version, and writes it as Parquet or as files.

    Attributes:
        load: Returns the data of a dataset version.
        write: Writes a value and returns the files, as fields of `DataFile`, with paths relative
            to the URI. It raises ValueError if the value holds rows of another partition.
        kind: The kind of dataset.
    """

    load: Callable[[Reference, Access], Any]
    write: Callable[[Any, Target, Access], list[FileRecord]]
    kind: str = "TabularDataset"


def handler_for(annotation: Any) -> TypeHandler | None:
    """Return the handler for a type or an annotation, None if there is none."""
    if get_origin(annotation) is list and len(get_args(annotation)) == 1:
        item = get_args(annotation)[0]
        return _HANDLERS.get(f"list[{getattr(item, '__name__', item)}]")
    for cls in getattr(annotation, "__mro__", ()):
        # The public name: 'polars.dataframe.frame.DataFrame' is 'polars.DataFrame' to its users.
        handler = _HANDLERS.get(f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}")
        if handler is not None:
            return handler
    return None


def is_inside(path: str) -> bool:
    """Tell whether a path is relative to the dataset, and not of a file elsewhere."""
    return not path.startswith("/") and "://" not in path


def handled_types() -> list[str]:
    """Return the names of the types that have a handler, for error messages."""
    return sorted(_HANDLERS)


def folder_name(value: str) -> str:
    """Return `value` as the name of one folder: percent-encoded, and cut if it is too long."""
    name = quote(value, safe="")
    if not name.strip("."):
        # '.' and '..' lead elsewhere.
        name = name.replace(".", "%2E")
    if len(name) > _MAX_FOLDER_NAME:
        name = f"{name[:100]}~{hashlib.sha256(value.encode()).hexdigest()}"
    return name


# --- Arrow, and what converts to and from Arrow -------------------------------------------------


def arrow_dataset(reference: Reference, storage: Storage) -> "pyarrow.dataset.Dataset":
    """Return a table's version as an Arrow dataset, which reads when it is scanned.

    Raises:
        TypeError: The reference is to a FileDataset, which has no rows.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds

    _require_kind(reference, "TabularDataset")
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(reference["arrow_schema"])))
    column = reference["partition_by"]
    form = ds.ParquetFileFormat()
    filesystem = storage.arrow_filesystem()
    fragments = [
        form.make_fragment(
            storage.arrow_path(f"{reference['uri']}/{file['path']}"),
            filesystem,
            # The partition's value is in Delta's log, and not in the file.
            None if column is None else ds.field(column) == file["partition"],
        )
        for file in reference["files"]
    ]
    return ds.FileSystemDataset(fragments, schema, form, filesystem)


def _write_batches(
    batches: Iterable["pa.RecordBatch"], schema: "pa.Schema", target: Target, storage: Storage
) -> list[FileRecord]:
    """Write record batches as one Parquet file, in constant memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = target.partition_by
    if column in schema.names:
        schema = schema.remove(schema.get_field_index(column))
    schema = pa.schema([field.with_type(_delta_type(field.type)) for field in schema])
    path = f"{target.folder}/part-00000-{target.folder.rpartition('/')[2]}.parquet"
    uri = f"{target.uri}/{path}"
    rows = 0
    # Delta keeps microseconds; a finer value is an error rather than a silent loss.
    with (
        storage.arrow_output(uri) as (place, filesystem),
        pq.ParquetWriter(place, schema, coerce_timestamps="us", filesystem=filesystem) as writer,
    ):
        for batch in batches:
            table = pa.Table.from_batches([batch])
            if column in table.column_names:
                _require_partition(set(table[column].unique().to_pylist()), target)
                table = table.drop_columns([column])
            writer.write_table(table.cast(schema))
            rows += table.num_rows
    return [{"path": path, "size": storage.written(uri).size, "rows": rows}]


def _delta_type(arrow_type: "pa.DataType") -> "pa.DataType":
    """Return the type in which Delta keeps every value of an Arrow type, itself if it can."""
    import pyarrow as pa

    if pa.types.is_timestamp(arrow_type) and arrow_type.tz is not None:
        # The same instant: Delta knows of no other zone.
        return pa.timestamp(arrow_type.unit, "UTC")
    # Delta's integers are signed. Above 2**63 a value is an error rather than another number.
    signed = {
        pa.uint8(): pa.int16(),
        pa.uint16(): pa.int32(),
        pa.uint32(): pa.int64(),
        pa.uint64(): pa.int64(),
    }
    return signed.get(arrow_type, arrow_type)


def _through_arrow(
    load: "Callable[[pyarrow.dataset.Dataset], Any]",
    batches: "Callable[[Any], tuple[Iterable[pa.RecordBatch], pa.Schema]]",
) -> TypeHandler:
    """Return the handler of a type that is made of an Arrow dataset, and read in batches."""

    def write(value: Any, target: Target, access: Access) -> list[FileRecord]:
        return _write_batches(*batches(value), target, access.storage)

    return TypeHandler(
        lambda reference, access: load(arrow_dataset(reference, access.storage)), write
    )


def _from_table(table: Any) -> Any:
    return table.to_batches(), table.schema


def _from_scanner(scanner: Any) -> Any:
    return scanner.to_batches(), scanner.projected_schema


def _from_pandas(frame: Any) -> Any:
    import pyarrow as pa

    return _from_table(pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata())


def _to_polars(dataset: Any) -> Any:
    import polars as pl

    return pl.from_arrow(dataset.to_table())


def _to_polars_lazy(dataset: Any) -> Any:
    import polars as pl

    return pl.scan_pyarrow_dataset(dataset)


def _from_polars(frame: Any) -> Any:
    import polars as pl

    # Arrow's large and view types are one type with the plain ones in Delta.
    return _from_table(frame.to_arrow(compat_level=pl.CompatLevel.oldest()))


def _from_polars_lazy(frame: Any) -> Any:
    parts = (_from_polars(part)[0] for part in frame.collect_batches())
    _, schema = _from_polars(frame.collect_schema().to_frame())
    return itertools.chain.from_iterable(parts), schema


# --- Spark --------------------------------------------------------------------------------------


def _write_spark(value: Any, target: Target, access: Access) -> list[FileRecord]:
    from pyspark.sql import functions as f

    column = target.partition_by
    if column is not None and column in value.columns:
        other = value.select(column).where(~f.col(column).eqNullSafe(f.lit(target.partition)))
        _require_partition({row[0] for row in other.limit(1).collect()}, target)
        value = value.drop(column)
    # Spark's default, INT96, has no place in Delta.
    value.sparkSession.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
    folder = f"{target.uri}/{target.folder}"
    value.write.mode("error").parquet(folder)
    # How many rows a file holds is in its footer, which the commit reads anyway: to count them
    # here would cost a job per output.
    return [
        {"path": f"{target.folder}/{file.path}", "size": file.size}
        for file in access.storage.list_files(folder)
        if file.path.startswith("part-")
    ]


def spark_frame(reference: Reference, spark: "SparkSession") -> "DataFrame":
    """Return a table's version as a Spark DataFrame, which reads when an action runs.

    Raises:
        TypeError: The reference is to a FileDataset, which has no rows.
    """
    import json

    from pyspark.sql import functions as f
    from pyspark.sql.types import StructType

    _require_kind(reference, "TabularDataset")
    # Delta's schema JSON is Spark's.
    schema = StructType.fromJson(json.loads(reference["schema"]))
    column = reference["partition_by"]
    files = reference["files"]
    if not files:
        return spark.createDataFrame([], schema)
    in_files = StructType([field for field in schema if field.name != column])
    paths = [spark_path(f"{reference['uri']}/{file['path']}") for file in files]
    frame = spark.read.schema(in_files).parquet(*paths)
    if column is None:
        return frame
    partitions = {file["partition"] for file in files}
    if len(partitions) == 1:
        return frame.withColumn(column, f.lit(partitions.pop())).select(*schema.names)
    # The value of the partition column is in Delta's log. File names are unique in a dataset,
    # so a small broadcast table brings it to the rows, at any number of partitions.
    names = [(file["path"].rpartition("/")[2], file["partition"]) for file in files]
    values = spark.createDataFrame(names, f"_file string, `{column}` string")
    return (
        frame.withColumn("_file", f.col("_metadata.file_name"))
        .join(f.broadcast(values), "_file")
        .select(*schema.names)
    )


def set_hadoop_secrets(session: "SparkSession", secrets: Mapping[str, str]) -> None:
    """Set properties of Hadoop that no argument may hold.

    Properties of a session are arguments of the JVM, which every user of the machine can list.
    """
    hadoop = session.sparkContext._jsc.hadoopConfiguration()
    for name, value in secrets.items():
        hadoop.set(name, value)


def spark_path(path: str) -> str:
    """Return `path` with the characters escaped that Hadoop takes for a glob pattern."""
    return re.sub(r"([\\*?\[\]{}])", r"\\\1", path)


# --- Files --------------------------------------------------------------------------------------


def _load_folder(reference: Reference, access: Access) -> Path:
    """Return a folder with the files under their names."""
    local_paths = _load_paths(reference, access)
    folder = Path(tempfile.mkdtemp(prefix=f"{reference['name'].replace('/', '.')}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    many = len({file["partition"] for file in reference["files"]}) > 1
    for file, local_path in zip(reference["files"], local_paths, strict=True):
        partition = folder_name(file["partition"]) if many else ""
        path = folder / partition / file["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(local_path)
    return folder


def _load_paths(reference: Reference, access: Access) -> list[Path]:
    """Return a local path of each file: itself where it is stored here, else a copy."""
    uris = _uris(reference)
    if isinstance(access.storage, LocalStorage):
        return [Path(uri) for uri in uris]
    return download_all(zip(uris, reference["files"], strict=True), access.storage)


def _load_uris(reference: Reference, access: Access) -> list[str]:
    """Return locations that the engine opens itself."""
    uris = _uris(reference)
    return [spark_path(uri) for uri in uris] if access.hadoop_paths else uris


def _uris(reference: Reference) -> list[str]:
    _require_kind(reference, "FileDataset")
    paths = (str(file["path"]) for file in reference["files"])
    return [f"{reference['uri']}/{path}" if is_inside(path) else path for path in paths]


def _write_files(value: Any, target: Target, access: Access) -> list[FileRecord]:
    """Store a folder with files under their names, or one file."""
    source = Path(value)
    if not source.exists():
        raise FileNotFoundError(
            f"There is nothing at {source}, which was given as the content of a FileDataset. "
            "Return the path of a file or folder that exists."
        )
    names = {
        path: path.relative_to(source).as_posix()
        for path in sorted(source.rglob("*"))
        if path.is_file()
    }
    if source.is_file():
        names = {source: source.name}
    return for_each_file(
        lambda item: _store(item[0], name=item[1], target=target, storage=access.storage),
        names.items(),
    )


def output_folder(target: Target, storage: Storage) -> Path:
    """Return a new local folder for a step to fill: where it is stored, if that is local."""
    if isinstance(storage, LocalStorage):
        folder = Path(target.uri, target.files_folder)
        folder.mkdir(parents=True)
        return folder
    return Path(tempfile.mkdtemp(prefix="output-"))


def _store(path: Path, *, name: str, target: Target, storage: Storage) -> FileRecord:
    relative = f"{target.files_folder}/{name}"
    # Hashed meanwhile: that of a large file takes as long as to send it.
    with ThreadPoolExecutor(1) as pool:
        sha256 = pool.submit(sha256_of, path)
        stored = storage.upload(path, f"{target.uri}/{relative}")
        return {
            "path": relative,
            "size": stored.size,
            "name": name,
            "etag": stored.etag,
            "sha256": sha256.result(),
        }


def _require_kind(reference: Reference, kind: str) -> None:
    if reference["kind"] != kind:
        other = "pathlib.Path" if kind == "TabularDataset" else "pyarrow.Table"
        raise TypeError(
            f"'{reference['name']}' is a {reference['kind']}, and the type asked for needs a "
            f"{kind}. Annotate the parameter with {other}, for example."
        )


def _require_partition(found: set[Any], target: Target) -> None:
    others = found - {target.partition}
    if others:
        raise ValueError(
            f"Rows of the partition {others.pop()!r} in column '{target.partition_by}' were "
            f"written for the partition {target.partition!r}. Filter the frame to its partition."
        )


_HANDLERS = {
    "pyarrow.Table": _through_arrow(lambda dataset: dataset.to_table(), _from_table),
    "pyarrow.Dataset": _through_arrow(
        lambda dataset: dataset, lambda d: _from_scanner(d.scanner())
    ),
    "pyarrow.RecordBatchReader": _through_arrow(
        lambda dataset: dataset.scanner().to_reader(), lambda reader: (reader, reader.schema)
    ),
    "pandas.DataFrame": _through_arrow(
        lambda dataset: dataset.to_table().to_pandas(), _from_pandas
    ),
    "polars.DataFrame": _through_arrow(_to_polars, _from_polars),
    "polars.LazyFrame": _through_arrow(_to_polars_lazy, _from_polars_lazy),
    "pyspark.DataFrame": TypeHandler(
        lambda reference, access: spark_frame(reference, access.spark()), _write_spark
    ),
    "pathlib.Path": TypeHandler(_load_folder, _write_files, "FileDataset"),
    "list[Path]": TypeHandler(_load_paths, _write_files, "FileDataset"),
    "list[str]": TypeHandler(_load_uris, _write_files, "FileDataset"),
}
