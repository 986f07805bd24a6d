from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from synapse_assets.compute.calls import CallError
from synapse_assets.compute.cpu import AzureMLCpu, LocalCpu
from synapse_assets.compute.spark import LivySparkPool
from synapse_assets.datastore import Datastore
from synapse_assets.definitions import defs
from synapse_assets.defs.sweeper import orphaned_batches
from synapse_assets.settings import DEPLOYMENT, LIVY


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_service_that_is_down_is_why_a_tick_is_skipped(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Down:
        def list_batches(self, start: int) -> None:
            raise CallError("the workspace is closed")

    monkeypatch.setattr(AzureMLCpu, "client", lambda _: Down())
    datastore = Datastore(root=str(tmp_path))
    # Nothing listens on the discard port.
    pool = LivySparkPool(datastore=datastore, url="http://127.0.0.1:9")
    cluster = AzureMLCpu(
        datastore=datastore, subscription_id="s", resource_group="g", workspace="w"
    )
    with dg.build_sensor_context(
        instance=instance, cursor='{"spark": 40}', resources={"spark": pool, "cpu": cluster}
    ) as context:
        result = orphaned_batches(context)
    assert isinstance(result, dg.SkipReason)
    of_pool, of_cluster = str(result.skip_message).splitlines()
    assert "Livy at http://127.0.0.1:9 could not be swept: " in of_pool
    assert "Connection refused" in of_pool
    assert "workspace w could not be swept: the workspace is closed" in of_cluster
    assert context.cursor == '{"spark": 40, "cpu": 0}'


@pytest.mark.parametrize("cursor", [None, "40"])
def test_only_what_outlives_a_run_is_swept(
    instance: dg.DagsterInstance, tmp_path: Path, cursor: str | None
) -> None:
    datastore = Datastore(root=str(tmp_path))
    pool = LivySparkPool(datastore=datastore, url="http://127.0.0.1:9")
    with dg.build_sensor_context(
        instance=instance,
        cursor=cursor,
        resources={"spark": pool, "cpu": LocalCpu(datastore=datastore)},
    ) as context:
        orphaned_batches(context)
    assert context.cursor == '{"spark": 0}'


def test_sensor_is_there_and_runs_where_the_deployment_has_a_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(DEPLOYMENT, raising=False)
    monkeypatch.delenv(LIVY, raising=False)
    assert "orphaned_batches" not in {sensor.name for sensor in defs().sensors or ()}
    monkeypatch.setenv(LIVY, "http://127.0.0.1:9")
    (sensor,) = (s for s in defs().sensors or () if s.name == "orphaned_batches")
    assert isinstance(sensor, dg.SensorDefinition)
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 60
