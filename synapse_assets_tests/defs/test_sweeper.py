from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

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
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    # Nothing listens on the discard port.
    pool = LivySparkPool(datastore=Datastore(root=str(tmp_path)), url="http://127.0.0.1:9")
    with dg.build_sensor_context(
        instance=instance, cursor="40", resources={"spark": pool}
    ) as context:
        result = orphaned_batches(context)
    assert isinstance(result, dg.SkipReason)
    message = str(result.skip_message)
    assert message.startswith("Livy at http://127.0.0.1:9 could not be swept: ")
    assert "Connection refused" in message
    assert context.cursor == "40"


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
