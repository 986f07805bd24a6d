"""The sensor: a new arrival becomes a partition, and a run that processes it."""

from synapse_assets.arrivals import Arrivals, Limits, arrival_sensor
from synapse_assets.defs.titanic.assets import ARRIVALS, PATTERNS, landing, titanic_arrival

TITANIC_ARRIVALS = Arrivals(
    sensor="new_arrivals", patterns=PATTERNS, landing=landing.key, partitions=ARRIVALS
)

LIMITS = Limits(settle_seconds=5.0)

new_arrivals = arrival_sensor(
    TITANIC_ARRIVALS,
    job=titanic_arrival,
    # So that who drops a file sees soon what comes of it.
    minimum_interval_seconds=10,
    limits=LIMITS,
    description="Takes in each arrival in landing/titanic that is new or changed.",
)
