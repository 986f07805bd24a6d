"""Where Spark steps run."""

from synapse_assets.compute.spark.local import LocalSpark
from synapse_assets.compute.spark.options import SparkOptions
from synapse_assets.compute.spark.pool import LivySparkPool, SparkPool, SynapseSparkPool

__all__ = ["LivySparkPool", "LocalSpark", "SparkOptions", "SparkPool", "SynapseSparkPool"]
