import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from synapse_assets.arrivals import RetryPolicy
from synapse_assets.arrivals.ledger import Entry
from synapse_assets.arrivals.listing import look_at
from synapse_assets.arrivals.runs import find_retries, tags_of
from synapse_assets.compute.attempt import FINAL
from synapse_assets.compute.cpu import LocalCpu
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datasets.table import resolve
from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.defs.titanic.assets import (
    ARRIVALS_NAME,
    LANDING_FOLDER,
    PATTERNS,
    check_files,
    survival_model,
    titanic_input,
)
from synapse_assets.steps.titanic_schema import COLUMNS

GOOD = f"{','.join(COLUMNS)}\n".encode()


class RecordingCpu:
    """Stands in for a compute target, to see what an asset asks of it."""

    def __init__(self) -> None:
        self.inputs: dict[str, DatasetVersion] = {}

    def run(
        self, _step: Any, *, context: Any, inputs: dict[str, DatasetVersion], **_options: Any
    ) -> "RecordingCpu":
        del context
        self.inputs = inputs
        return self

    def get_materialize_result(self) -> dg.MaterializeResult[Any]:
        return dg.MaterializeResult()


@pytest.mark.parametrize(
    ("there", "trained_on"),
    [
        (["sample"], ("sample",)),
        (["sample", "a"], ("a",)),
        (["a", "b"], ("a", "b")),
    ],
)
def test_generated_sample_is_trained_on_only_while_it_is_alone(
    there: list[str], trained_on: tuple[str, ...]
) -> None:
    files = tuple(DataFile(path=name, size=1, rows=1, partition=name) for name in there)
    table = DatasetVersion("titanic_prepared", "/nowhere", "TabularDataset", 0, files)
    cpu = RecordingCpu()
    survival_model(dg.build_asset_context(), cpu=cpu, titanic_prepared=table)
    assert cpu.inputs["titanic_prepared"].partitions == trained_on


class Arrivals:
    """A datastore with a landing folder, and an instance to take its arrivals in."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.datastore = Datastore(root=str(folder))
        self.instance = instance

    def land(self, name: str, content: bytes) -> None:
        path = Path(self.datastore.uri(LANDING_FOLDER, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def take_in(self, arrival: str, **tags: str) -> dg.ExecuteInProcessResult:
        self.instance.add_dynamic_partitions(ARRIVALS_NAME, [arrival])
        return dg.materialize(
            [titanic_input],
            partition_key=arrival,
            instance=self.instance,
            tags=tags,
            resources={
                "datastore": self.datastore,
                "cpu": LocalCpu(datastore=self.datastore),
                "io_manager": DatasetIOManager(datastore=self.datastore),
            },
            raise_on_error=False,
        )

    def files(self, dataset: str, arrival: str) -> dict[str, DataFile]:
        version = resolve(self.datastore, dataset, partitions=[arrival])
        return {file.name or "": file for file in version.files}


@pytest.fixture
def arrivals(tmp_path: Path) -> Iterator[Arrivals]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Arrivals(tmp_path, instance)


def only_check(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation


def test_unreadable_files_are_set_aside_and_the_others_go_on(arrivals: Arrivals) -> None:
    gzip = b"\x1f\x8b\x08\x00"
    arrivals.land("one/good.csv", GOOD)
    arrivals.land("one/bad.csv", gzip)
    arrivals.land("two.csv", GOOD)
    result = arrivals.take_in("one")
    assert result.success
    assert list(arrivals.files("titanic_input", "one")) == ["good.csv"]
    ((name, file),) = arrivals.files("titanic_quarantined_files", "one").items()
    assert name == "bad.csv"
    assert file.properties == {"reason": "bad.csv is a gzip file, not CSV: unpack it first."}
    quarantine = resolve(arrivals.datastore, "titanic_quarantined_files", partitions=["one"])
    assert Path(quarantine.file("bad.csv")).read_bytes() == gzip
    check = only_check(result)
    assert (check.passed, check.blocking) == (False, True)
    assert check.severity is dg.AssetCheckSeverity.WARN
    assert check.description == (
        "1 of 2 files unreadable: bad.csv is a gzip file, not CSV: unpack it first."
    )

    result = arrivals.take_in("two")
    assert result.success
    assert only_check(result).passed
    assert only_check(result).description == "1 file"
    assert arrivals.files("titanic_quarantined_files", "two") == {}
    assert list(arrivals.files("titanic_quarantined_files", "one")) == ["bad.csv"]


def test_arrival_without_a_readable_file_fails_for_good_and_keeps_what_was_there(
    arrivals: Arrivals,
) -> None:
    arrivals.land("one.csv", GOOD)
    assert arrivals.take_in("one").success
    arrivals.land("one.csv", b"")
    result = arrivals.take_in("one")
    assert not result.success
    failure = result.failure_data_for_node("titanic_input")
    assert failure is not None
    assert failure.error is not None
    assert failure.error.message.strip().endswith(
        "Failure: No file of the arrival 'one' can be read: "
        "one.csv is empty (0 bytes): land a CSV file with a header."
    )
    assert failure.user_failure_data is not None
    assert failure.user_failure_data.metadata == FINAL
    check = only_check(result)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert arrivals.files("titanic_input", "one")["one.csv"].size == len(GOOD)
    assert list(arrivals.files("titanic_quarantined_files", "one")) == ["one.csv"]
    # Mended, it runs again, and nothing is left in quarantine.
    arrivals.land("one.csv", GOOD)
    assert arrivals.take_in("one").success
    assert arrivals.files("titanic_quarantined_files", "one") == {}


def test_sensor_asks_again_for_what_failed_but_not_for_what_is_unreadable(
    arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find() -> list[str]:
        retries, _ = find_retries(
            arrivals.instance,
            "new_arrivals",
            since=0.0,
            now=time.time() + 10,
            policy=RetryPolicy(delay_seconds=0.0),
            limit=10,
        )
        return [str(retry.partition_key) for retry in retries]

    def tags(arrival: str) -> dict[str, str]:
        seen = look_at(arrivals.datastore, PATTERNS, arrival)
        assert seen is not None
        return tags_of("new_arrivals", arrival, Entry(seen.content, 1))

    arrivals.land("bad.csv", b"")
    arrivals.land("good.csv", GOOD)
    assert not arrivals.take_in("bad", **tags("bad")).success
    assert find() == []
    monkeypatch.setattr(LocalCpu, "batch", None)
    assert not arrivals.take_in("good", **tags("good")).success
    assert find() == ["good"]


def test_same_content_again_has_the_same_data_version(arrivals: Arrivals) -> None:
    versions = []
    for number in range(2):
        arrivals.land("one.csv", GOOD)
        Path(arrivals.datastore.uri(LANDING_FOLDER, "one.csv")).touch()
        result = arrivals.take_in("one")
        (event,) = (
            e
            for e in result.asset_materializations_for_node("titanic_input")
            if e.asset_key == dg.AssetKey("titanic_input")
        )
        versions.append((event.tags or {})["dagster/data_version"])
        assert event.metadata["version"].value == number
    assert versions[0] == versions[1]


def test_many_reasons_are_told_in_part() -> None:
    reasons = {f"{number}.csv": f"{number}.csv is empty." for number in range(8)}
    result = check_files(2, reasons)
    assert result.description == (
        "8 of 10 files unreadable: 0.csv is empty. 1.csv is empty. 2.csv is empty. "
        "3.csv is empty. 4.csv is empty. And 3 more, in titanic_quarantined_files."
    )
    assert result.severity is dg.AssetCheckSeverity.WARN
