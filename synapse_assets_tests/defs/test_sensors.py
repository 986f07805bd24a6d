from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from synapse_assets.datastore import Datastore
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


def tick(instance: dg.DagsterInstance, datastore: Datastore) -> dg.SensorResult | dg.SkipReason:
    context = dg.build_sensor_context(instance=instance, resources={"datastore": datastore})
    result = new_arrivals(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    if isinstance(result, dg.SensorResult):
        # What the daemon does with a result.
        for event in result.asset_events:
            instance.report_runless_asset_event(event)
        for request in result.dynamic_partitions_requests or []:
            instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
    return result


def test_arrival_is_requested_once_and_again_with_another_content(
    instance: dg.DagsterInstance, datastore: Datastore
) -> None:
    land(datastore, "one.csv", "a")
    land(datastore, "two/part.csv", "b")
    first = tick(instance, datastore)
    assert isinstance(first, dg.SensorResult)
    assert [request.partition_key for request in first.run_requests or []] == ["one", "two"]
    assert sorted(instance.get_dynamic_partitions("arrivals")) == ["one", "two"]

    again = tick(instance, datastore)
    assert isinstance(again, dg.SkipReason)
    assert again.skip_message == "2 arrivals in landing/titanic, none of them new."

    land(datastore, "one.csv", "another content")
    relanded = tick(instance, datastore)
    assert isinstance(relanded, dg.SensorResult)
    (request,) = relanded.run_requests or []
    assert request.partition_key == "one"
    assert request.run_key not in {r.run_key for r in first.run_requests or []}


def test_empty_landing_folder_is_no_error(
    instance: dg.DagsterInstance, datastore: Datastore
) -> None:
    result = tick(instance, datastore)
    assert isinstance(result, dg.SkipReason)
