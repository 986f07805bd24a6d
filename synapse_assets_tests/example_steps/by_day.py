"""Steps on Spark that write and read partitions."""

from pyspark.sql import DataFrame, SparkSession


def make_ids(spark: SparkSession, count: int) -> dict[str, DataFrame]:
    """Return the numbers below `count`, in several files."""
    return {"ids": spark.range(count).repartition(2)}


def count_by_day(ids: DataFrame) -> dict[str, DataFrame]:
    """Return how many ids each day has."""
    return {"counts": ids.groupBy("day").count().withColumnRenamed("count", "ids")}
