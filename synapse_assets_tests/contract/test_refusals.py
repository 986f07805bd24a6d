"""What a commit refuses; the version before stays the newest, complete and readable."""

import datetime as dt
from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import commit, resolve
from synapse_assets.datastore import Datastore
from synapse_assets.errors import (
    DatasetError,
    DatasetNotFoundError,
    SchemaChangedError,
    StagedFilesError,
    UnsupportedTableError,
)
from synapse_assets_tests.datasets.staging import (
    numbers,
    put,
    put_files,
    rows_of,
    stage_files,
    stage_table,
    values_of,
)

WHOLE = Slot("whole")
EVOLVING = Slot("whole", schema_change="evolve")
TEXTS = pa.table({"x": ["one"]})

Refuse = Callable[..., None]


@pytest.fixture
def refuse(datastore: Datastore) -> Refuse:
    def refuse(
        staged: StagedDataset, slot: Slot, error: type[DatasetError], *, match: str = ""
    ) -> None:
        try:
            before = resolve(datastore, slot.name)
        except DatasetNotFoundError:
            with pytest.raises(error, match=match):
                commit(datastore, staged, slot=slot)
            with pytest.raises(DatasetNotFoundError):
                resolve(datastore, slot.name)
        else:
            with pytest.raises(error, match=match):
                commit(datastore, staged, slot=slot)
            assert resolve(datastore, slot.name) == before

    return refuse


class TestStagedFiles:
    @pytest.fixture(params=["new", "there"], ids=["new_table", "table_is_there"])
    def staged(self, request: pytest.FixtureRequest, datastore: Datastore) -> StagedDataset:
        if request.param == "there":
            put(datastore, WHOLE, numbers(1))
        return stage_table(datastore, WHOLE, numbers(1, 2), numbers(3))

    def test_missing_file(
        self, datastore: Datastore, staged: StagedDataset, refuse: Refuse
    ) -> None:
        datastore.storage().remove(f"{datastore.uri('whole')}/{staged.files[1].path}")
        refuse(staged, WHOLE, StagedFilesError, match="part-1-.* is missing. Run the step again")

    def test_truncated_file(
        self, datastore: Datastore, staged: StagedDataset, refuse: Refuse
    ) -> None:
        path = f"{datastore.uri('whole')}/{staged.files[1].path}"
        content = datastore.filesystem().cat_file(path)
        datastore.filesystem().pipe_file(path, content[:-1])
        refuse(staged, WHOLE, StagedFilesError, match="bytes instead of")

    @pytest.mark.parametrize("content", [b"not Parquet", b""])
    def test_file_that_is_not_parquet(
        self, datastore: Datastore, staged: StagedDataset, refuse: Refuse, content: bytes
    ) -> None:
        file = replace(staged.files[0], size=len(content))
        datastore.filesystem().pipe_file(f"{datastore.uri('whole')}/{file.path}", content)
        damaged = replace(staged, files=(file, staged.files[1]))
        refuse(damaged, WHOLE, StagedFilesError, match="Cannot read the Parquet footer of")

    def test_altered_file_of_the_same_size(
        self, datastore: Datastore, staged: StagedDataset, refuse: Refuse
    ) -> None:
        path = f"{datastore.uri('whole')}/{staged.files[0].path}"
        content = datastore.filesystem().cat_file(path)
        datastore.filesystem().pipe_file(path, content[:-4] + b"ABCD")
        refuse(staged, WHOLE, StagedFilesError, match="Cannot read the Parquet footer of")

    def test_other_number_of_rows_in_a_file(self, staged: StagedDataset, refuse: Refuse) -> None:
        file = replace(staged.files[0], rows=7)
        other = replace(staged, files=(file, staged.files[1]))
        refuse(other, WHOLE, StagedFilesError, match="holds 2 rows, its manifest says 7")

    def test_other_number_of_rows_in_all(self, staged: StagedDataset, refuse: Refuse) -> None:
        other = replace(staged, rows=4)
        refuse(other, WHOLE, StagedFilesError, match="hold 3 rows of 'whole', its manifest says 4")

    def test_file_outside_of_the_attempt(
        self, datastore: Datastore, staged: StagedDataset, refuse: Refuse
    ) -> None:
        stranger = stage_table(datastore, WHOLE, numbers(3))
        other = replace(staged, files=(*staged.files, *stranger.files), rows=None)
        refuse(other, WHOLE, StagedFilesError, match="is missing")

    def test_no_file_at_all(self, staged: StagedDataset, refuse: Refuse) -> None:
        nothing = replace(staged, files=(), rows=None)
        refuse(nothing, WHOLE, StagedFilesError, match="return an empty frame instead of nothing")

    def test_files_with_different_columns(self, datastore: Datastore, refuse: Refuse) -> None:
        staged = stage_table(datastore, WHOLE, numbers(1), TEXTS)
        refuse(staged, WHOLE, StagedFilesError, match="have different columns")

    def test_missing_file_of_the_users_own(self, datastore: Datastore, refuse: Refuse) -> None:
        files = Slot("files")
        put_files(datastore, files, {"a": b"1"})
        staged = stage_files(datastore, files, {"a": b"12", "b": b""})
        datastore.filesystem().pipe_file(f"{datastore.uri('files')}/{staged.files[0].path}", b"1")
        refuse(staged, files, StagedFilesError, match="has 1 bytes instead of 2")
        datastore.storage().remove(f"{datastore.uri('files')}/{staged.files[0].path}")
        refuse(staged, files, StagedFilesError, match="is missing")


class TestSchema:
    def test_change_is_refused_and_its_columns_named(
        self, datastore: Datastore, refuse: Refuse
    ) -> None:
        put(datastore, WHOLE, pa.table({"x": [1], "old": ["o"]}))
        staged = stage_table(datastore, WHOLE, pa.table({"x": ["one"], "new": [1]}))
        refuse(
            staged,
            WHOLE,
            SchemaChangedError,
            match="'new' is new; 'old' is gone; 'x' changes from .*long.* to .*string.*evolve",
        )

    def test_other_order_of_the_columns_is_no_change(self, datastore: Datastore) -> None:
        put(datastore, WHOLE, pa.table({"x": [1], "y": [2]}))
        version = put(datastore, WHOLE, pa.table({"y": [3], "x": [4]}))
        assert rows_of(datastore, version) == [{"x": 4, "y": 3}]

    def test_whole_table_evolves_in_any_way(self, datastore: Datastore) -> None:
        put(datastore, EVOLVING, pa.table({"x": [1], "old": ["o"]}))
        version = put(datastore, EVOLVING, pa.table({"x": ["one"], "new": [1]}))
        assert rows_of(datastore, version) == [{"x": "one", "new": 1}]
        assert rows_of(datastore, resolve(datastore, "whole", version=0)) == [{"x": 1, "old": "o"}]
        assert resolve(datastore, "whole").schema == version.schema

    def test_partition_adds_columns_and_keeps_the_others(self, datastore: Datastore) -> None:
        a, b = (Slot("parts", "part", key, "evolve") for key in "ab")
        put(datastore, a, pa.table({"x": [1], "old": ["o"]}))
        version = put(datastore, b, pa.table({"x": [2], "new": [3]}))
        table = DeltaTable(version.uri, storage_options=datastore.delta_storage_options())
        rows = table.to_pyarrow_table().sort_by("x").to_pylist()
        assert rows == [
            {"x": 1, "old": "o", "part": "a", "new": None},
            {"x": 2, "old": None, "part": "b", "new": 3},
        ]
        assert (table.metadata().name, table.metadata().partition_columns) == ("parts", ["part"])

    def test_partition_cannot_change_a_type(self, datastore: Datastore, refuse: Refuse) -> None:
        a, b = (Slot("parts", "part", key, "evolve") for key in "ab")
        put(datastore, a, numbers(1))
        staged = stage_table(datastore, b, TEXTS)
        refuse(staged, b, SchemaChangedError, match="'x' changes.*Other partitions hold the old")

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (Slot("d"), Slot("d", "part", "a")),
            (Slot("d", "part", "a"), Slot("d")),
            (Slot("d", "part", "a"), Slot("d", "other", "a")),
        ],
    )
    @pytest.mark.parametrize("schema_change", ["refuse", "evolve"])
    def test_other_partition_column(
        self, datastore: Datastore, refuse: Refuse, first: Slot, second: Slot, schema_change: str
    ) -> None:
        put(datastore, first, numbers(1))
        second = replace(second, schema_change=schema_change)  # type: ignore[arg-type]
        staged = stage_table(datastore, second, numbers(1))
        refuse(staged, second, SchemaChangedError, match="partitioned by.*would be.*new key")

    def test_other_kind(self, datastore: Datastore, refuse: Refuse) -> None:
        put(datastore, Slot("table"), numbers(1))
        put_files(datastore, Slot("files"), {"a": b"1"})
        files = stage_files(datastore, Slot("table"), {"a": b"1"})
        table = stage_table(datastore, Slot("files"), numbers(1))
        refuse(files, Slot("table"), SchemaChangedError, match="is a TabularDataset.*FileDataset")
        refuse(table, Slot("files"), SchemaChangedError, match="is a FileDataset.*TabularDataset")


class TestTypes:
    def test_table_of_a_newer_protocol(self, datastore: Datastore, refuse: Refuse) -> None:
        DeltaTable.create(
            datastore.uri("whole"),
            schema=pa.schema([("x", pa.timestamp("us"))]),
            storage_options=datastore.delta_storage_options(),
        )
        staged = stage_table(datastore, WHOLE, numbers(1))
        refuse(staged, WHOLE, UnsupportedTableError, match="has protocol 3/7.*up to 1/2")

    @pytest.mark.parametrize(
        ("column", "match"),
        [
            (pa.array([0], pa.timestamp("us")), "without a time zone"),
            (pa.array([[0]], pa.list_(pa.timestamp("us"))), "time zone"),
            (pa.array([1], pa.uint8()), "'x' of 'whole' is a uint8, .* signed"),
            (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.uint64())), "is a uint64"),
            (pa.nulls(1), "holds nothing but nulls"),
            (pa.array([dt.time(1)]), "do not fit a Delta table: .*Time64.* Cast them"),
            (pa.array([dt.timedelta(1)]), "Duration"),
        ],
    )
    def test_column_that_not_every_reader_has(
        self, datastore: Datastore, refuse: Refuse, column: pa.Array, match: str
    ) -> None:
        table = pa.table({"x": column})
        refuse(stage_table(datastore, WHOLE, table), WHOLE, UnsupportedTableError, match=match)

    def test_names_that_differ_in_case_only(self, datastore: Datastore, refuse: Refuse) -> None:
        staged = stage_table(datastore, WHOLE, pa.table({"x": [1], "X": [2]}))
        refuse(staged, WHOLE, UnsupportedTableError, match="Duplicate field name")

    def test_table_without_columns(self, datastore: Datastore, refuse: Refuse) -> None:
        refuse(
            stage_table(datastore, WHOLE, pa.table({})),
            WHOLE,
            UnsupportedTableError,
            match="has no columns",
        )

    @pytest.mark.parametrize("unit", ["ms", "us"])
    def test_timestamps_in_utc_are_taken(self, datastore: Datastore, unit: str) -> None:
        at = dt.datetime(2026, 11, 24, 6, tzinfo=dt.timezone.utc)
        column = pa.array([at, None], pa.timestamp(unit, "UTC"))
        version = put(datastore, WHOLE, pa.table({"x": column}))
        assert [row["x"] for row in rows_of(datastore, version)] == [at, None]


def test_commit_after_a_refused_one_works(datastore: Datastore) -> None:
    put(datastore, WHOLE, numbers(1))
    staged = stage_table(datastore, WHOLE, TEXTS, attempt="a")
    with pytest.raises(SchemaChangedError):
        commit(datastore, staged, slot=WHOLE)
    better = stage_table(datastore, WHOLE, numbers(2), attempt="a")
    assert values_of(datastore, commit(datastore, better, slot=WHOLE)) == [2]
