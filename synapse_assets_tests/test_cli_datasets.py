"""`synapse-assets versions`, `restore` and `vacuum`, as they are called."""

import re
from pathlib import Path

import dagster as dg
import pytest

from synapse_assets import pipeline
from synapse_assets.cli import main
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import resolve
from synapse_assets.datastore import Datastore
from synapse_assets_tests.datasets.staging import numbers, put, put_files, stage_table, values_of

TABLE = Slot("sales/table")
PART_A, PART_B = (Slot("parts", "part", partition) for partition in "ab")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster_home"))
    monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", str(tmp_path / "datastore"))
    monkeypatch.delenv("SYNAPSE_ASSETS_DEPLOYMENT", raising=False)
    return tmp_path / "dagster_home"


@pytest.fixture
def datastore(home: Path, tmp_path: Path) -> Datastore:
    return Datastore(root=str(tmp_path / "datastore"))


class TestVersions:
    def test_columns_say_what_each_version_holds(
        self, datastore: Datastore, capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(datastore, PART_A, numbers(1))
        put(datastore, PART_B, numbers(2, 3))
        put_files(datastore, Slot("files"), {"f": b"12345"})
        header, second, first = call(capsys, "versions", "parts").splitlines()
        assert header.split("  ")[0] == "version"
        assert header.endswith("readable  attempt")
        pattern = r"1 +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d +commit +b +3 rows +\d+ B +yes +attempt-\d+"
        assert re.fullmatch(pattern, second)
        assert " 1 row " in first
        _, only = call(capsys, "versions", "files").splitlines()
        assert re.search(r" commit +- +1 file +5 B +yes ", only)

    def test_unknown_dataset_is_one_line_that_names_those_there_are(
        self, datastore: Datastore, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for command in (["versions", "x"], ["restore", "x", "0"], ["vacuum", "x"]):
            error = refused(capsys, *command)
            assert error.startswith(f"There is no dataset 'x' in {datastore.uri()}. There is: none")
        put(datastore, TABLE, numbers(1))
        put(datastore, PART_A, numbers(1))
        error = refused(capsys, "vacuum", "parts", "x")
        assert error.endswith("There is: parts, sales/table.")


class TestRestore:
    def test_old_content_is_back_and_dagster_knows(
        self, datastore: Datastore, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(datastore, TABLE, numbers(1, 2))
        put(datastore, TABLE, numbers(3))
        output = call(capsys, "restore", "sales/table", "0")
        assert "sales/table: version 2 has the content of version 0: 2 rows." in output
        assert values_of(datastore, resolve(datastore, "sales/table")) == [1, 2]
        with pipeline.open_instance(home) as instance:
            event = instance.get_latest_materialization_event(dg.AssetKey(["sales", "table"]))
        assert event is not None
        assert event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        assert (metadata["restored_version"].value, metadata["version"].value) == (0, 2)
        assert metadata["dagster/row_count"].value == 2

    def test_restore_of_what_is_there_already_says_so(
        self, datastore: Datastore, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(datastore, TABLE, numbers(1))
        output = call(capsys, "restore", "sales/table", "0")
        assert output.startswith("sales/table: nothing to do, the newest version, 0, has the cont")
        assert not home.exists()

    def test_version_that_never_was_is_one_line(
        self, datastore: Datastore, capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(datastore, TABLE, numbers(1))
        error = refused(capsys, "restore", "sales/table", "7")
        assert error == "Dataset 'sales/table' never had a version 7. Its newest is 0."

    def test_only_partitions_that_changed_are_told_of(
        self, datastore: Datastore, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(datastore, PART_A, numbers(1))
        put(datastore, PART_B, numbers(2))
        put(datastore, PART_A, numbers(3))
        put(datastore, Slot("parts", "part", "c"), numbers(4))
        output = call(capsys, "restore", "parts", "1")
        assert "Without data in it: c." in output
        with pipeline.open_instance(home) as instance:
            told = instance.get_materialized_partitions(dg.AssetKey("parts"))
        assert told == {"a"}

    def test_what_was_made_from_the_old_content_is_fresh_again(
        self, datastore: Datastore, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        values = iter([1, 2])

        @dg.asset
        def upstream() -> object:
            return numbers(next(values))

        @dg.asset
        def downstream(upstream: object) -> None:
            pass

        resources = {"io_manager": DatasetIOManager(datastore=datastore)}
        with pipeline.open_instance(home) as instance:

            def materialize(*assets: dg.AssetsDefinition) -> dg.ExecuteInProcessResult:
                return dg.materialize(
                    [upstream, downstream],
                    selection=[*assets],
                    instance=instance,
                    resources=resources,
                )

            def data_version() -> str:
                event = instance.get_latest_materialization_event(upstream.key)
                assert event is not None
                return (event.tags or {})["dagster/data_version"]

            materialize(upstream, downstream)
            first = data_version()
            materialize(upstream)
            assert data_version() != first
            call(capsys, "restore", "upstream", "0")
            assert data_version() == first


class TestVacuum:
    def test_all_datasets_are_cleaned_and_each_has_its_row(
        self, datastore: Datastore, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(3):
            put(datastore, TABLE, numbers(number))
        put_files(datastore, Slot("files"), {"f": b"1"})
        stage_table(datastore, PART_A, numbers(1))
        arguments = ("vacuum", "--retention", "0", "--force")
        planned = call(capsys, *arguments, "--dry-run")
        assert re.search(r"^sales/table +2 files, \d+ B +nothing +1 file, ", planned, re.MULTILINE)
        assert re.search(r"^files +nothing +nothing +2 files, ", planned, re.MULTILINE)
        assert "parts" not in planned
        assert re.search(r"Nothing was removed. Without --dry-run it would be 2 files, ", planned)
        assert call(capsys, *arguments, "files").endswith("Removed: nothing.\n")
        assert "Removed: 2 files, " in call(capsys, *arguments)
        states = call(capsys, "versions", "sales/table")
        assert (states.count("vacuumed"), states.count("  yes  ")) == (2, 2)
        error = refused(capsys, "restore", "sales/table", "0")
        assert error.startswith("Version 0 of 'sales/table' was vacuumed: 1 of its 1 files")

    def test_short_retention_is_refused_without_force(
        self, datastore: Datastore, capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(datastore, TABLE, numbers(1))
        error = refused(capsys, "vacuum", "--retention", "24")
        assert error.startswith("A retention of 24 hours is too short: a step that is still writ")

    def test_without_any_dataset_it_is_well(
        self, datastore: Datastore, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert call(capsys, "vacuum").endswith("Removed: nothing.\n")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Call a command that succeeds, and return what it printed."""
    # What Dagster said of the runs before is none of it.
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    printed = capsys.readouterr()
    assert (exit_.value.code, printed.err) == (0, "")
    return printed.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Call a command that fails, and return the one line it prints."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    printed = capsys.readouterr()
    assert (exit_.value.code, printed.out) == (1, "")
    (line,) = printed.err.splitlines()
    return line.removeprefix("synapse-assets: ")
