"""Checks of what runs the steps."""

import os
from http import HTTPStatus
from pathlib import Path

from synapse_assets.compute.calls import CallError
from synapse_assets.compute.cpu import AzureMLCpu
from synapse_assets.compute.cpu.cluster import check_size
from synapse_assets.compute.explanations import explain
from synapse_assets.compute.spark import LocalSpark, SparkPool
from synapse_assets.doctor.check import Finding, Subject, failed, ok, warning
from synapse_assets.settings import (
    LIVY,
    ML_WORKSPACE,
    RESOURCE_GROUP,
    SPARK_POOL,
    SUBSCRIPTION,
    SYNAPSE,
)


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


def check_cpu(subject: Subject) -> Finding:
    """Ask the Azure ML workspace for its cluster, and compare it with the one that is wanted."""
    cpu = subject.cpu
    if not isinstance(cpu, AzureMLCpu):
        return ok("steps without Spark run on this machine")
    cpu.check(cpu.asked())
    client = cpu.client()
    try:
        client.ping()
        found = client.get_cluster(cpu.cluster)
    except CallError as e:
        return failed(f"{cpu.place}: {e}", _workspace_remedy(subject, e.status))
    check_size(found or cpu.wanted_cluster(), cpu.asked().nodes, place=cpu.place)
    if found is None:
        return ok(
            f"{cpu.place} is not there yet: the first run makes it, of {cpu.min_nodes} to "
            f"{cpu.max_nodes} nodes of {cpu.vm_size}"
        )
    if found.is_broken:
        return failed(
            f"{cpu.place} could not be made: {found.problem or found.state}",
            "Remove it in Studio: the next run makes it again.",
        )
    differences = found.differences(cpu.wanted_cluster())
    if differences:
        return warning(
            f"{cpu.place} is another one than configured, and stays as it is: "
            f"{'; '.join(differences)}",
            "Change the cluster in Studio, or the resource in resources.py.",
        )
    return ok(f"{cpu.place} is '{found.state}', and as it is configured")


def _workspace_remedy(subject: Subject, status: int | None) -> str:
    names = f"{SUBSCRIPTION}, {RESOURCE_GROUP} and {ML_WORKSPACE}"
    if status == HTTPStatus.UNAUTHORIZED:
        return "Log in again (`az login`), to the tenant of the subscription."
    if status == HTTPStatus.FORBIDDEN:
        return (
            "Give the identity the roles 'AzureML Data Scientist' and 'AzureML Compute Operator' "
            "on the workspace, or open the workspace's network to this machine."
        )
    if status == HTTPStatus.NOT_FOUND:
        return f"Look at {names}: there is no such workspace, or it is hidden from this identity."
    if subject.is_emulated:
        return "Start it with `make services`, and take over what it says in this terminal."
    return f"Look at {names}, and whether the network and its proxy let you through."


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
    if subject.is_emulated:
        return "Start the services in another terminal: `make services`."
    return f"Look at {SYNAPSE} and {SPARK_POOL}, and whether the network lets you through."
