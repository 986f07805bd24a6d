"""The sensor that cancels what a killed orchestrator left running on the Spark pool."""

import dagster as dg

from synapse_assets.compute.spark import SparkPool
from synapse_assets.compute.sweeper import sweep
from synapse_assets.defs.resources import resources_of
from synapse_assets.settings import deployment

_INTERVAL_SECONDS = 60


@dg.sensor(
    minimum_interval_seconds=_INTERVAL_SECONDS,
    # A batch that nobody waits for costs money, and nothing else ends it.
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Cancels batches on the Spark pool whose run has ended without them.",
)
def orphaned_batches(context: dg.SensorEvaluationContext, spark: SparkPool) -> dg.SkipReason:
    """Sweep the pool; the tick's message tells what was cancelled, and what was left alone."""
    swept = sweep(spark, context.instance, start=int(context.cursor or 0))
    for line in swept.cancelled:
        context.log.warning(line)
    context.update_cursor(str(swept.start))
    return dg.SkipReason(str(swept))


@dg.definitions
def sweeper() -> dg.Definitions:
    """Return the sensor, where the deployment has a pool: on this machine nothing outlives a run.

    Raises:
        ConfigurationError: The deployment is unknown, or not there yet.
    """
    has_pool = isinstance(resources_of(deployment())["spark"], SparkPool)
    return dg.Definitions(sensors=[orphaned_batches] if has_pool else [])
