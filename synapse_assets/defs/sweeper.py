"""The sensor that cancels what a killed orchestrator left running on a service."""

import json
from concurrent.futures import ThreadPoolExecutor

import dagster as dg

from synapse_assets.compute.remote import RemoteTarget
from synapse_assets.compute.sweeper import Sweep, sweep
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.defs.resources import resources_of
from synapse_assets.settings import deployment

_INTERVAL_SECONDS = 60


@dg.sensor(
    minimum_interval_seconds=_INTERVAL_SECONDS,
    # A batch that nobody waits for costs money, and nothing else ends it.
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Cancels batches on the Spark pool, and jobs of Azure ML, whose run has ended "
    "without them.",
)
def orphaned_batches(
    context: dg.SensorEvaluationContext, spark: ComputeTarget, cpu: ComputeTarget
) -> dg.SkipReason:
    """Sweep both; the tick's message tells what was cancelled, and what was left alone."""
    starts = json.loads(context.cursor or "{}")
    if not isinstance(starts, dict):
        # The cursor of an earlier release.
        starts = {}

    def look(name: str, target: RemoteTarget) -> tuple[str, Sweep]:
        return name, sweep(target, context.instance, start=starts.get(name, 0))

    targets = {"spark": spark, "cpu": cpu}
    remote = {name: t for name, t in targets.items() if isinstance(t, RemoteTarget)}
    # At once: Dagster gives both a minute.
    with ThreadPoolExecutor(len(targets)) as pool:
        swept = dict(pool.map(look, remote, remote.values()))
    for line in [line for found in swept.values() for line in found.cancelled]:
        context.log.warning(line)
    context.update_cursor(json.dumps({name: found.start for name, found in swept.items()}))
    said = [f"{remote[name].place}: {found}" for name, found in swept.items()]
    return dg.SkipReason("\n".join(said))


@dg.definitions
def sweeper() -> dg.Definitions:
    """Return the sensor, where the deployment has a service: here nothing outlives a run.

    Raises:
        ConfigurationError: The deployment is unknown, or not there yet.
    """
    resources = resources_of(deployment())
    is_needed = any(isinstance(resources[name], RemoteTarget) for name in ("spark", "cpu"))
    return dg.Definitions(sensors=[orphaned_batches] if is_needed else [])
