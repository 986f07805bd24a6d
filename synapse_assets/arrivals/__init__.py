"""Arrivals: new data in a landing folder leads to runs, for each content exactly one."""

from synapse_assets.arrivals.events import QueueEvents
from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.arrivals.runs import RetryPolicy, take_arrival
from synapse_assets.arrivals.scan import Limits
from synapse_assets.arrivals.sensor import Arrivals, arrival_sensor

__all__ = [
    "ArrivalPatterns",
    "Arrivals",
    "Limits",
    "QueueEvents",
    "RetryPolicy",
    "arrival_sensor",
    "take_arrival",
]
