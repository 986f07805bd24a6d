"""Checks of what runs the Spark steps."""

import os
from pathlib import Path

from synapse_assets.compute.calls import CallError
from synapse_assets.compute.spark import LocalSpark, SparkPool
from synapse_assets.compute.spark.explanations import explain
from synapse_assets.doctor.check import Check, Finding, Subject, failed, ok
from synapse_assets.settings import LIVY, SPARK_POOL, SYNAPSE


def check_spark(subject: Subject) -> Finding:
    """Ask the Spark pool for its batches; of Spark on this machine, look for its jars."""
    spark = subject.spark
    if isinstance(spark, LocalSpark):
        return _look_for_jars(spark)
    if not isinstance(spark, SparkPool):
        return ok(f"Spark steps run on {type(spark).__name__}")
    spark.check(spark.asked())
    try:
        _, count = spark.client().list_batches(0)
    except CallError as e:
        explanation = None if e.status is None else explain(str(e))
        return failed(
            f"{spark.place}: {e}",
            _start_remedy(subject) if explanation is None else str(explanation),
        )
    return ok(f"{spark.place} answers, and lists {count} batches to us")


def _look_for_jars(spark: LocalSpark) -> Finding:
    if spark.datastore.location.kind != "azure":
        return ok("Spark steps run on this machine")
    jars = sorted(Path(spark.abfs_jars or "").glob("*.jar"))
    if spark.abfs_jars and jars:
        return ok(
            f"Spark steps run on this machine, with the driver for Azure storage: {len(jars)} jars "
            f"in {spark.abfs_jars}"
        )
    return failed(
        "Spark on this machine needs the driver for Azure storage, and it is not in "
        f"{spark.abfs_jars}",
        "Fetch it once with `synapse-assets services --fetch`.",
    )


def _start_remedy(subject: Subject) -> str:
    if LIVY in os.environ:
        return f"Look whether Livy runs there, or name another server with {LIVY}."
    if subject.deployment == "emulated":
        return "Start the services in another terminal: `make services`."
    return f"Look at {SYNAPSE} and {SPARK_POOL}, and whether the network lets you through."


CHECKS = (Check("spark", check_spark, needs=("location",), seconds=30),)
