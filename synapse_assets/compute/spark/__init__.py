"""Compute targets that run steps on Apache Spark."""

from synapse_assets.compute.spark.local import LocalSpark

__all__ = ["LocalSpark"]
