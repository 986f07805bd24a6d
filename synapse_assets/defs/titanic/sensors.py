"""The sensor: a new arrival becomes a partition, and a run that processes it."""

import hashlib

import dagster as dg

from synapse_assets.datasets.landing import list_arrivals
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.defs.titanic.assets import (
    ARRIVALS,
    ARRIVALS_NAME,
    LANDING_FOLDER,
    landing,
    titanic_pipeline,
)

_INTERVAL_SECONDS = 10
# The tag by which Dagster knows the version of what an external asset holds.
_DATA_VERSION = "dagster/data_version"


@dg.sensor(
    job=titanic_pipeline,
    minimum_interval_seconds=_INTERVAL_SECONDS,
    description="Runs the pipeline for each arrival in landing/titanic that is new or changed.",
)
def new_arrivals(
    context: dg.SensorEvaluationContext, datastore: Datastore
) -> dg.SensorResult | dg.SkipReason:
    """Run the pipeline for each arrival that was not there, or had another content, before."""
    arrivals = list_arrivals(datastore, LANDING_FOLDER)
    new = {
        name: observation
        for name, arrival in arrivals.items()
        if (observation := observe(context.instance, name, arrival)) is not None
    }
    if not new:
        return dg.SkipReason(f"{len(arrivals)} arrivals in {LANDING_FOLDER}, none of them new.")
    known = set(context.instance.get_dynamic_partitions(ARRIVALS_NAME))
    # One result, so that a crash between its parts can neither lose nor double an arrival.
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key=f"{name}:{observation.tags[_DATA_VERSION]}", partition_key=name)
            for name, observation in new.items()
        ],
        dynamic_partitions_requests=[ARRIVALS.build_add_request(sorted(set(new) - known))],
        asset_events=list(new.values()),
    )


def observe(
    instance: dg.DagsterInstance, name: str, arrival: DatasetVersion
) -> dg.AssetObservation | None:
    """Return the observation of an arrival, None if the same was observed before."""
    digest = hashlib.sha256("\0".join(f"{b.name}\0{b.etag}" for b in arrival.files).encode())
    version = digest.hexdigest()[:16]
    latest = instance.fetch_observations(
        dg.AssetRecordsFilter(asset_key=landing.key, asset_partitions=[name]), limit=1
    ).records
    if latest and latest[0].asset_observation is not None:
        tags = latest[0].asset_observation.tags or {}
        if tags.get(_DATA_VERSION) == version:
            return None
    return dg.AssetObservation(
        asset_key=landing.key,
        partition=name,
        metadata={"files": len(arrival.files), "size_bytes": arrival.size},
        tags={_DATA_VERSION: version},
    )
