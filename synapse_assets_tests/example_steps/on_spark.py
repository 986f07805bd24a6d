"""Steps that run on Spark."""

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f


def split(spark: SparkSession, numbers: DataFrame, parts: int = 1) -> dict[str, DataFrame]:
    """Return even and odd numbers as two tables."""
    return {
        "even": numbers.where("n % 2 = 0").repartition(parts),
        "odd": numbers.where("n % 2 = 1").withColumn("at", f.lit("2026-11-24").cast("timestamp")),
    }


def make_parts(spark: SparkSession, rows: int, parts: int) -> dict[str, DataFrame]:
    """Return a table of numbers in many parts."""
    return {"numbers": spark.range(0, rows, 1, parts)}
