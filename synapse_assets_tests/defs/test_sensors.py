import os
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from synapse_assets import pipeline
from synapse_assets.datastore import Datastore
from synapse_assets.definitions import defs
from synapse_assets.defs.titanic.sensors import new_arrivals


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    return Datastore(root=str(tmp_path))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def land(datastore: Datastore, name: str, content: str) -> None:
    path = Path(datastore.uri("landing", "titanic", name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    # Written long enough ago.
    os.utime(path, (time.time() - 60,) * 2)


def tick(instance: dg.DagsterInstance, datastore: Datastore) -> dg.SensorResult:
    context = dg.build_sensor_context(instance=instance, resources={"datastore": datastore})
    result = new_arrivals(context)
    assert isinstance(result, dg.SensorResult)
    # What the daemon does with a result.
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    for request in result.dynamic_partitions_requests or []:
        instance.add_dynamic_partitions(request.partitions_def_name, [*request.partition_keys])
    for run_request in result.run_requests or []:
        job = titanic_pipeline_job()
        tags = {**run_request.tags, "dagster/run_key": str(run_request.run_key)}
        instance.create_run_for_job(job, tags=tags)
    return result


def titanic_pipeline_job() -> dg.JobDefinition:
    return defs().resolve_job_def("titanic_pipeline")


def test_arrival_is_requested_once_and_again_with_another_content(
    instance: dg.DagsterInstance, datastore: Datastore
) -> None:
    land(datastore, "one.csv", "a")
    land(datastore, "two/part.csv", "b")
    first = tick(instance, datastore)
    assert [request.partition_key for request in first.run_requests or []] == ["one", "two"]
    assert sorted(instance.get_dynamic_partitions("arrivals")) == ["one", "two"]

    again = tick(instance, datastore)
    assert again.skip_reason is not None
    assert again.skip_reason.skip_message == (
        "2 blobs in 2 arrivals in landing/titanic, none of them new or changed."
    )

    land(datastore, "one.csv", "another content")
    relanded = tick(instance, datastore)
    (request,) = relanded.run_requests or []
    assert request.partition_key == "one"
    assert request.run_key not in {r.run_key for r in first.run_requests or []}


def test_empty_landing_folder_is_no_error(
    instance: dg.DagsterInstance, datastore: Datastore
) -> None:
    result = tick(instance, datastore)
    assert result.skip_reason is not None


def test_arrival_that_the_command_line_takes_is_not_asked_for(
    instance: dg.DagsterInstance, datastore: Datastore, tmp_path: Path
) -> None:
    source = tmp_path / "mine.csv"
    source.write_text("a")
    arrival = pipeline.land_file(datastore, source)
    os.utime(datastore.uri("landing", "titanic", "mine.csv"), (time.time() - 60,) * 2)
    tags = pipeline.observe_arrival(instance, datastore, arrival)
    assert not tick(instance, datastore).run_requests
    instance.create_run_for_job(titanic_pipeline_job(), tags=tags)
    assert not tick(instance, datastore).run_requests
    # Nor when all that is remembered of it is its run.
    Path(datastore.uri("_arrivals", "new_arrivals", "ledger")).unlink()
    assert not tick(instance, datastore).run_requests


def test_arrival_that_the_sensor_asked_for_is_the_same_to_the_command_line(
    instance: dg.DagsterInstance, datastore: Datastore
) -> None:
    land(datastore, "one.csv", "a")
    (request,) = tick(instance, datastore).run_requests or []
    tags = pipeline.observe_arrival(instance, datastore, "one")
    assert tags.items() <= request.tags.items()
    filter_ = dg.AssetRecordsFilter(asset_key=dg.AssetKey("landing"), asset_partitions=["one"])
    assert len(instance.fetch_observations(filter_, limit=9).records) == 1
