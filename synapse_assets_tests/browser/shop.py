"""A code location of somebody who watches a container of their own."""

import os

import dagster as dg

from synapse_assets.arrivals import (
    ArrivalPatterns,
    Arrivals,
    Limits,
    arrival_sensor,
    take_arrival,
)
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import Emulator

# Environment variable that says where Azurite answers.
ENDPOINT = "SYNAPSE_ASSETS_TEST_SHOP"
CONTAINER = "shop"

PATTERNS = ArrivalPatterns.parse(["incoming/{arrival}.csv"])
ARRIVALS = dg.DynamicPartitionsDefinition(name="orders")

incoming = dg.AssetSpec(
    "incoming", partitions_def=ARRIVALS, kinds={"csv"}, description="Files of orders as they come."
)


@dg.asset(partitions_def=ARRIVALS, deps=[incoming], kinds={"python"})
def orders(context: dg.AssetExecutionContext, datastore: Datastore) -> dg.MaterializeResult[object]:
    """The orders of one file."""
    arrival = take_arrival(context, datastore, PATTERNS)
    storage = datastore.storage()
    texts = [storage.read_text(arrival.file(str(file.name))) or "" for file in arrival.files]
    rows = sum(text.count("\n") - 1 for text in texts)
    return dg.MaterializeResult(metadata={"dagster/partition_row_count": rows})


new_orders = arrival_sensor(
    Arrivals("new_orders", patterns=PATTERNS, landing=incoming.key, partitions=ARRIVALS),
    target=[orders],
    limits=Limits(settle_seconds=1.0),
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
)


@dg.definitions
def definitions() -> dg.Definitions:
    """Return the assets and the sensor, on Azurite."""
    datastore = Datastore(
        root=f"az://{CONTAINER}/",
        cloud="emulator",
        credential=Emulator(endpoint=os.environ[ENDPOINT]),
    )
    return dg.Definitions(
        assets=[incoming, orders],
        sensors=[new_orders],
        executor=dg.in_process_executor,
        resources={"datastore": datastore},
    )
