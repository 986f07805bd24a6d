"""Type handlers: every type is stored and loaded, through Dagster as a user would do it."""

import datetime as dt
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from synapse_assets.datasets import handlers
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.handlers import Access, TypeHandler
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import column_bounds, commit, resolve
from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import LocalStorage
from synapse_assets.errors import ConfigurationError, PartitionNotFoundError
from synapse_assets_tests.datasets.staging import numbers, put_files, rows_of

UTC = dt.timezone.utc
AT = dt.datetime(2026, 11, 24, 6, 0, 0, 123_456, UTC)
TABLE = pa.table(
    {
        "i": [1, None],
        "f": [0.5, None],
        "s": ["ü", None],
        "t": pa.array([AT, None], pa.timestamp("us", "UTC")),
        "d": [AT.date(), None],
        "b": [True, None],
    }
)


def no_spark() -> Any:
    raise AssertionError("no handler but Spark's may start Spark")


ACCESS = Access(storage=LocalStorage(), spark=no_spark)

MAKE: dict[str, Callable[[pa.Table], Any]] = {
    "table": lambda table: table,
    "dataset": ds.dataset,
    "reader": lambda table: table.to_reader(),
    "pandas": lambda table: table.to_pandas(types_mapper=pd.ArrowDtype),
    "polars": pl.from_arrow,
    "lazy": lambda table: pl.DataFrame(table).lazy(),
}
TYPES: dict[str, Any] = {
    "table": pa.Table,
    "dataset": ds.Dataset,
    "reader": pa.RecordBatchReader,
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "lazy": pl.LazyFrame,
}


def rows(value: Any) -> list[dict[str, Any]]:
    """Return the rows of a value of any of the types."""
    if isinstance(value, pl.LazyFrame):
        value = value.collect()
    if isinstance(value, pl.DataFrame):
        found: list[dict[str, Any]] = value.to_dicts()
        return found
    if isinstance(value, pd.DataFrame):
        value = pa.Table.from_pandas(value, preserve_index=False)
    elif isinstance(value, ds.Dataset):
        value = value.to_table()
    elif isinstance(value, pa.RecordBatchReader):
        value = value.read_all()
    return value.to_pylist()  # type: ignore[no-any-return]


def handler_of(annotation: Any) -> TypeHandler:
    handler = handlers.handler_for(annotation)
    assert handler is not None
    return handler


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


Materialize = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def materialize(datastore: Datastore, instance: dg.DagsterInstance) -> Materialize:
    def materialize(*assets: Any, **options: Any) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            assets,
            instance=instance,
            resources={"io_manager": DatasetIOManager(datastore=datastore)},
            **options,
        )

    return materialize


def source(name: str, make: Callable[[], Any], **options: Any) -> dg.AssetsDefinition:
    def made() -> Any:
        return make()

    asset: dg.AssetsDefinition = dg.asset(name=name, **options)(made)
    return asset


def sink(
    upstream: str, annotation: Any, loaded: dict[str, Any], *, name: str, **options: Any
) -> dg.AssetsDefinition:
    """Return an asset that loads `upstream` as `annotation` and keeps what it got."""

    def take(value: Any) -> None:
        loaded[name] = value

    take.__annotations__["value"] = annotation
    mapping = options.pop("partition_mapping", None)
    ins = {"value": dg.AssetIn(upstream, partition_mapping=mapping)}
    asset: dg.AssetsDefinition = dg.asset(name=name, ins=ins, **options)(take)
    return asset


class TestThroughDagster:
    def test_every_type_round_trips(self, materialize: Materialize) -> None:
        loaded: dict[str, Any] = {}
        sources = [source(f"s_{name}", partial(make, TABLE)) for name, make in MAKE.items()]
        sinks = [sink(f"s_{name}", TYPES[name], loaded, name=name) for name in MAKE]
        materialize(*sources, *sinks)
        for name, value in loaded.items():
            assert isinstance(value, TYPES[name])
            found = sorted(rows(value), key=lambda row: row["i"] is None)
            assert found == TABLE.to_pylist(), name
        assert set(loaded) == set(MAKE)

    @pytest.mark.parametrize("annotation", [Any, DatasetVersion])
    def test_reference_is_what_comes_without_a_data_type(
        self, materialize: Materialize, datastore: Datastore, annotation: Any
    ) -> None:
        loaded: dict[str, Any] = {}
        materialize(source("up", lambda: TABLE), sink("up", annotation, loaded, name="down"))
        assert loaded["down"] == resolve(datastore, "up")

    def test_files_round_trip(
        self, materialize: Materialize, datastore: Datastore, tmp_path: Path
    ) -> None:
        contents = {"a.csv": b"1", "sub/b 100%.bin": b"", "[x]*.csv": b"2"}
        for name, content in contents.items():
            path = tmp_path / "given" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        loaded: dict[str, Any] = {}
        materialize(
            source("up", lambda: tmp_path / "given"),
            source("one", lambda: tmp_path / "given" / "a.csv"),
            sink("up", Path, loaded, name="folder"),
            sink("up", list[Path], loaded, name="paths"),
            sink("up", list[str], loaded, name="uris"),
            sink("one", Path, loaded, name="one_file"),
        )
        folder = loaded["folder"]
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        assert {name: (folder / name).read_bytes() for name in names} == contents
        assert sorted(path.read_bytes() for path in loaded["paths"]) == [b"", b"1", b"2"]
        assert loaded["uris"] == [str(path) for path in loaded["paths"]]
        assert [path.name for path in loaded["one_file"].iterdir()] == ["a.csv"]
        entry = resolve(datastore, "one").files[0]
        assert (entry.name, entry.size) == ("a.csv", 1)
        assert entry.sha256 is not None
        assert entry.sha256.startswith("6b86b273ff34fce1")

    def test_partitions_flow_one_by_one_all_together_and_in_a_range(
        self,
        materialize: Materialize,
        datastore: Datastore,
        instance: dg.DagsterInstance,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        daily = dg.DailyPartitionsDefinition("2026-11-01", end_date="2026-11-05")
        loaded: dict[str, Any] = {}

        @dg.asset(partitions_def=daily, metadata={"partition_by": "day"})
        def up(context: dg.AssetExecutionContext) -> pa.Table:
            return pa.table({"key": [context.partition_key], "x": [1]})

        same = sink("up", pl.DataFrame, loaded, name="same", partitions_def=daily)
        days = ("2026-11-01", "2026-11-02", "2026-11-04")
        for day in days:
            materialize(up, same, partition_key=day)
            assert rows(loaded["same"]) == [{"key": day, "x": 1, "day": day}]
        two_days = sink(
            "up",
            pa.Table,
            loaded,
            name="two_days",
            partitions_def=daily,
            partition_mapping=dg.TimeWindowPartitionMapping(start_offset=-1),
        )
        for day, expected in {
            "2026-11-02": ["2026-11-01", "2026-11-02"],
            "2026-11-04": ["2026-11-04"],
        }.items():
            materialize(up, two_days, selection=[two_days], partition_key=day)
            assert sorted(row["day"] for row in rows(loaded["two_days"])) == expected
        assert "'up' has no data yet for: 2026-11-03" in capsys.readouterr().err
        whole = sink("up", pa.Table, loaded, name="whole")
        materialize(up, whole, selection=[whole])
        assert sorted(row["key"] for row in rows(loaded["whole"])) == list(days)
        with pytest.raises(PartitionNotFoundError, match="2026-11-03"):
            materialize(up, same, selection=[same], partition_key="2026-11-03")
        event = instance.fetch_materializations(dg.AssetKey("up"), limit=1).records[0]
        metadata = event.asset_materialization.metadata  # type: ignore[union-attr]
        assert metadata["dagster/row_count"].value == 3
        assert metadata["dagster/partition_row_count"].value == 1
        assert "| 2026-11-04 | 1 |" in str(metadata["preview"].value)

    def test_rows_of_another_partition_are_refused(
        self, materialize: Materialize, datastore: Datastore
    ) -> None:
        wrong = source(
            "up",
            lambda: pa.table({"part": ["a", "b"], "x": [1, 2]}),
            partitions_def=dg.StaticPartitionsDefinition(["a", "b"]),
            metadata={"partition_by": "part"},
        )
        with pytest.raises(ValueError, match=r"partition 'b' in column 'part' .* for .* 'a'"):
            materialize(wrong, partition_key="a")
        assert not Path(datastore.uri("up", "_delta_log")).exists()

    def test_unknown_annotation_names_the_known_ones(self, materialize: Materialize) -> None:
        loaded: dict[str, Any] = {}
        for annotation in (dict, list[int]):
            down = sink("up", annotation, loaded, name="down")
            with pytest.raises(ConfigurationError, match=r"No type handler loads .* pandas.Data"):
                materialize(source("up", lambda: TABLE), down)

    def test_unknown_value_names_the_known_types(self, materialize: Materialize) -> None:
        with pytest.raises(ConfigurationError, match=r"stores a dict, which 'up' .* pandas.Data"):
            materialize(source("up", lambda: {"a": 1}))

    @pytest.mark.parametrize("annotation", [Path, list[Path], list[str]])
    def test_table_is_no_folder(self, materialize: Materialize, annotation: Any) -> None:
        down = sink("up", annotation, {}, name="down")
        with pytest.raises(TypeError, match=r"'up' is a TabularDataset, .* needs a FileDataset"):
            materialize(source("up", lambda: TABLE), down)

    @pytest.mark.parametrize("annotation", [pa.Table, pl.LazyFrame, pd.DataFrame])
    def test_folder_is_no_table(
        self, materialize: Materialize, tmp_path: Path, annotation: Any
    ) -> None:
        (tmp_path / "given").mkdir()
        down = sink("up", annotation, {}, name="down")
        with pytest.raises(TypeError, match=r"'up' is a FileDataset, .* needs a TabularDataset"):
            materialize(source("up", lambda: tmp_path / "given"), down)

    def test_missing_path_is_refused(self, materialize: Materialize, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"There is nothing at .*gone"):
            materialize(source("up", lambda: tmp_path / "gone"))

    def test_nothing_returned_is_nothing_committed(
        self, materialize: Materialize, datastore: Datastore
    ) -> None:
        materialize(source("up", lambda: None))
        assert not Path(datastore.uri("up")).exists()

    def test_each_run_is_a_version(self, materialize: Materialize, datastore: Datastore) -> None:
        for number in range(3):
            materialize(source("up", partial(numbers, number)))
        assert resolve(datastore, "up").version == 2

    def test_preview_survives_values_that_python_has_not(self, materialize: Materialize) -> None:
        column = pa.array([2**62, None], pa.timestamp("us", "UTC"))
        result = materialize(
            source("up", lambda: pa.table({"t": column, "a|b": ["x\ny", "z" * 99]}))
        )
        (event,) = result.asset_materializations_for_node("up")
        preview = str(event.metadata["preview"].value)
        assert "a timestamp[us, tz=UTC] beyond what Pyt…" in preview
        assert "a\\|b" in preview
        assert "x y" in preview


def store(
    datastore: Datastore, slot: Slot, value: Any, *, access: Access = ACCESS
) -> DatasetVersion:
    """Write a value with its handler and commit it, without Dagster."""
    target = slot.fresh_target(datastore, attempt="attempt")
    files = handler_of(type(value)).write(value, target, access)
    staged = StagedDataset(
        attempt=target.folder.rpartition("/")[2],
        kind="TabularDataset",
        folder=target.folder,
        files=tuple(DataFile(**file) for file in files),
    )
    return commit(datastore, staged, slot=slot)


class TestOfArrow:
    @pytest.mark.parametrize("stored", list(MAKE))
    def test_what_one_type_stored_every_other_loads(
        self, datastore: Datastore, stored: str
    ) -> None:
        slot = Slot("t", "part", "a/ü")
        version = store(datastore, slot, MAKE[stored](TABLE))
        expected = [{**row, "part": "a/ü"} for row in TABLE.to_pylist()]
        for loaded in MAKE:
            value = handler_of(TYPES[loaded]).load(version.to_json(), ACCESS)
            if loaded != "pandas":
                assert sorted(rows(value), key=lambda row: row["i"] is None) == expected
            else:
                assert list(value["part"]) == ["a/ü"] * 2

    @pytest.mark.parametrize("made", list(MAKE))
    def test_frame_without_rows_keeps_its_columns(self, datastore: Datastore, made: str) -> None:
        version = store(datastore, Slot("t", "part", "a"), MAKE[made](TABLE.slice(0, 0)))
        assert version.rows == 0
        table = handler_of(pa.Table).load(version.to_json(), ACCESS)
        assert table.schema.names == [*TABLE.schema.names, "part"]
        assert table.schema.field("t").type == pa.timestamp("us", "UTC")

    @pytest.mark.parametrize("made", list(MAKE))
    def test_partition_column_of_the_frame_is_checked_and_left_out(
        self, datastore: Datastore, made: str
    ) -> None:
        slot = Slot("t", "part", "a")
        good = pa.table({"part": ["a", "a"], "x": [1, 2]})
        version = store(datastore, slot, MAKE[made](good))
        assert rows_of(datastore, version) == [{"x": 1, "part": "a"}, {"x": 2, "part": "a"}]
        for column in (["a", "b"], ["a", None]):
            bad = MAKE[made](pa.table({"part": column, "x": [1, 2]}))
            with pytest.raises(ValueError, match="Filter the frame to its partition"):
                store(datastore, slot, bad)

    @pytest.mark.parametrize(
        ("column", "expected"),
        [
            (pa.array([255], pa.uint8()), pa.int16()),
            (pa.array([2**16 - 1], pa.uint16()), pa.int32()),
            (pa.array([2**32 - 1], pa.uint32()), pa.int64()),
            (pa.array([2**63 - 1], pa.uint64()), pa.int64()),
            (pa.array(["a"], pa.large_string()), pa.string()),
            (pa.array(["a"]).dictionary_encode(), pa.string()),
            (pa.array([AT], pa.timestamp("us", "Europe/Paris")), pa.timestamp("us", "UTC")),
            (pa.array([AT], pa.timestamp("ns", "UTC")), pa.timestamp("us", "UTC")),
        ],
    )
    def test_values_keep_their_meaning_in_deltas_types(
        self, datastore: Datastore, column: pa.Array, expected: pa.DataType
    ) -> None:
        version = store(datastore, Slot("t"), pa.table({"x": column}))
        table = handler_of(pa.Table).load(version.to_json(), ACCESS)
        assert table.schema.field("x").type == expected
        assert table["x"].to_pylist() == column.to_pylist()

    @pytest.mark.parametrize(
        "column", [pa.array([2**64 - 1], pa.uint64()), pa.array([1], pa.timestamp("ns", "UTC"))]
    )
    def test_value_that_would_change_is_an_error(
        self, datastore: Datastore, column: pa.Array
    ) -> None:
        with pytest.raises(pa.ArrowInvalid):
            store(datastore, Slot("t"), pa.table({"x": column}))

    def test_files_of_many_partitions_lie_in_folders_of_their_own(
        self, datastore: Datastore
    ) -> None:
        for key in ("..", ".", "a/b", "x" * 1_000, "x" * 999 + "y"):
            put_files(datastore, Slot("f", "part", key), {"same": key.encode()})
        version = resolve(datastore, "f")
        folder = handler_of(Path).load(version.to_json(), ACCESS)
        found = [path.read_text() for path in folder.rglob("same")]
        assert sorted(found) == sorted(version.partitions)


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "1")
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.fixture(scope="module")
def access(spark: Any) -> Access:
    return Access(storage=LocalStorage(), spark=lambda: spark, hadoop_paths=True)


@pytest.mark.spark
class TestOfSpark:
    def test_frame_flows_through_dagster(
        self, spark: Any, materialize: Materialize, datastore: Datastore
    ) -> None:
        from pyspark.sql import DataFrame

        loaded: dict[str, Any] = {}
        parts = dg.StaticPartitionsDefinition(["a b/%2F", "*"])
        options = {"partitions_def": parts, "metadata": {"partition_by": "part"}}
        up = source("up", lambda: spark.range(3).selectExpr("id AS x"), **options)
        again = sink("up", DataFrame, loaded, name="again", partitions_def=parts)
        materialize(up, partition_key="*")
        materialize(up, again, partition_key="a b/%2F")
        found = sorted((row.x, row.part) for row in loaded["again"].collect())
        assert found == [(x, "a b/%2F") for x in range(3)]
        whole = sink("up", DataFrame, loaded, name="whole")
        arrow = sink("up", pa.Table, loaded, name="arrow")
        materialize(up, whole, arrow, selection=[whole, arrow])
        expected = sorted((x, key) for key in parts.get_partition_keys() for x in range(3))
        assert sorted((row.x, row.part) for row in loaded["whole"].collect()) == expected
        assert sorted((r["x"], r["part"]) for r in rows(loaded["arrow"])) == expected
        assert resolve(datastore, "up").rows == 6

    def test_spark_reads_what_arrow_stored(
        self, spark: Any, access: Access, datastore: Datastore
    ) -> None:
        from pyspark.sql import DataFrame

        table = TABLE.append_column("u", pa.array([2**32 - 1, None], pa.uint32()))
        for key in ("*[a]{b}", "it's", "x" * 1_000):
            store(datastore, Slot("t", "part", key), table)
        whole = resolve(datastore, "t")
        frame = handler_of(DataFrame).load(whole.to_json(), access)
        assert frame.count() == 6
        assert frame.columns == [*table.schema.names, "part"]
        row = frame.where('part = "it\'s" AND i = 1').collect()[0]
        assert (row.f, row.s, row.d, row.b, row.u) == (0.5, "ü", AT.date(), True, 2**32 - 1)
        assert frame.where(f"t = timestamp'{AT:%Y-%m-%d %H:%M:%S.%f}'").count() == 3
        empty = resolve(datastore, "t", partitions=[])
        assert handler_of(DataFrame).load(empty.to_json(), access).count() == 0

    def test_arrow_reads_what_spark_stored(
        self, spark: Any, access: Access, datastore: Datastore
    ) -> None:
        frame = spark.sql(
            "SELECT 1 AS i, 'ü' AS s, double('NaN') AS nan, 0.5D AS f, date'2026-11-24' AS d, "
            f"timestamp'{AT:%Y-%m-%d %H:%M:%S.%f}' AS t, array(1) AS l"
        )
        version = store(datastore, Slot("t"), frame, access=access)
        (row,) = handler_of(pa.Table).load(version.to_json(), access).to_pylist()
        assert math.isnan(row.pop("nan"))
        assert row == {"i": 1, "s": "ü", "f": 0.5, "d": AT.date(), "t": AT, "l": [1]}
        bounds = column_bounds(datastore, version)
        # Spark's files tell a NaN from none, so the others keep their upper bound.
        assert (bounds["f"].lower, bounds["f"].upper) == (0.5, 0.5)
        assert (bounds["nan"].lower, bounds["nan"].upper) == (None, None)
        assert bounds["t"].lower <= AT <= bounds["t"].upper

    def test_frame_without_rows_is_stored(
        self, spark: Any, access: Access, datastore: Datastore
    ) -> None:
        version = store(datastore, Slot("t"), spark.range(0), access=access)
        assert (version.rows, len(version.files)) == (0, 1)
        empty = spark.createDataFrame([], "x long")
        assert store(datastore, Slot("u"), empty, access=access).rows == 0

    def test_rows_of_another_partition_are_refused(
        self, spark: Any, access: Access, datastore: Datastore
    ) -> None:
        slot = Slot("t", "part", "a")
        for other in ("'b'", "NULL"):
            frame = spark.sql(f"SELECT 1 AS x, 'a' AS part UNION ALL SELECT 2, {other}")
            with pytest.raises(ValueError, match="Filter the frame to its partition"):
                store(datastore, slot, frame, access=access)
        good = spark.sql("SELECT 1 AS x, 'a' AS part")
        version = store(datastore, slot, good, access=access)
        assert rows_of(datastore, version) == [{"x": 1, "part": "a"}]

    def test_uris_are_escaped_for_hadoop(
        self, spark: Any, access: Access, datastore: Datastore
    ) -> None:
        names = ["[x]*.csv", "{y}?.csv", "z 100%25.csv"]
        version = put_files(datastore, Slot("f"), dict.fromkeys(names, b"1\n"))
        uris = handler_of(list[str]).load(version.to_json(), access)
        assert spark.read.text(uris).count() == 3

    def test_files_are_no_frame(self, access: Access, datastore: Datastore) -> None:
        from pyspark.sql import DataFrame

        version = put_files(datastore, Slot("f"), {"a": b""})
        with pytest.raises(TypeError, match="'f' is a FileDataset"):
            handler_of(DataFrame).load(version.to_json(), access)


def test_every_handled_type_is_found_by_its_name_and_no_other() -> None:
    from pyspark.sql import DataFrame

    annotations = [*TYPES.values(), DataFrame, Path, list[Path], list[str]]
    found = {id(handlers.handler_for(annotation)) for annotation in annotations}
    assert len(found) == len(handlers.handled_types()) == len(annotations)
    for annotation in (None, Any, int, list, list[int], list[int | str], dict[str, Path], "Path"):
        assert handlers.handler_for(annotation) is None
