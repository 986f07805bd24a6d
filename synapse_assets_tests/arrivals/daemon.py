"""Dagster's daemon, by hand: ticks of a sensor on a real instance, and what becomes of them."""

import os
import time
from pathlib import Path

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventType

from synapse_assets.arrivals import (
    ArrivalPatterns,
    Arrivals,
    Limits,
    RetryPolicy,
    arrival_sensor,
    runs,
    take_arrival,
)
from synapse_assets.arrivals.scan import Ask
from synapse_assets.datastore import Datastore

PARTITIONS = dg.DynamicPartitionsDefinition(name="files")
ARRIVALS = Arrivals(
    sensor="new_files",
    patterns=ArrivalPatterns.parse(["in/{arrival}/*.csv", "in/{arrival}.csv"]),
    landing=dg.AssetKey("files_in"),
    partitions=PARTITIONS,
)
LIMITS = Limits(settle_seconds=30.0, retries=RetryPolicy(max_attempts=3, delay_seconds=0.0))


@dg.asset(partitions_def=PARTITIONS)
def taken(context: dg.AssetExecutionContext, datastore: Datastore) -> dg.MaterializeResult[None]:
    found = take_arrival(context, datastore, ARRIVALS.patterns)
    return dg.MaterializeResult(metadata={"files": len(found.files)})


JOB = dg.define_asset_job("take", selection=[taken])


class Daemon:
    """Does with a result what Dagster's daemon does; runs wait until somebody ends them."""

    def __init__(self, instance: dg.DagsterInstance, datastore: Datastore) -> None:
        self.instance = instance
        self.datastore = datastore
        self.cursor: str | None = None
        self.definitions = dg.Definitions(
            assets=[taken], jobs=[JOB], resources={"datastore": datastore}
        )

    def evaluate(self, limits: Limits = LIMITS) -> dg.SensorResult:
        sensor = arrival_sensor(ARRIVALS, job=JOB, limits=limits)
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources={"datastore": self.datastore},
        )
        result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        return result

    def keep(self, result: dg.SensorResult) -> list[dg.DagsterRun]:
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(
                request.partitions_def_name, list(request.partition_keys)
            )
        self.cursor = result.cursor
        return [self.launch(request) for request in result.run_requests or []]

    def launch(self, request: dg.RunRequest) -> dg.DagsterRun:
        key = {"dagster/run_key": str(request.run_key)}
        assert not self.instance.get_runs(dg.RunsFilter(tags=key))
        return self.instance.create_run_for_job(
            self.definitions.resolve_job_def("take"),
            tags={**request.tags, **key, "dagster/partition": str(request.partition_key)},
            status=dg.DagsterRunStatus.NOT_STARTED,
        )

    def tick(self, limits: Limits = LIMITS) -> list[str]:
        return [run.tags["dagster/run_key"] for run in self.keep(self.evaluate(limits))]

    def end(self, key: str, event: DagsterEventType) -> None:
        (run,) = self.instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": key}))
        if event is DagsterEventType.RUN_FAILURE:
            self.instance.report_run_failed(run)
        else:
            self.instance.report_dagster_event(DagsterEvent(event.value, run.job_name), run.run_id)

    def fail(self, key: str) -> None:
        self.end(key, DagsterEventType.RUN_FAILURE)


def run_key(ask: Ask) -> str:
    return str(runs.request("sensor", ask.arrival.name, ask.entry).run_key)


def land(datastore: Datastore, name: str, content: str = "x", *, age: float = 100.0) -> None:
    path = Path(datastore.uri("in", name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (time.time() - age,) * 2)
