"""Spark on this machine: each step in a subprocess with a driver of its own."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import dagster as dg
from pydantic import Field

from synapse_assets.compute.batch import Batch, Submission
from synapse_assets.compute.java import require_java
from synapse_assets.compute.options import asked
from synapse_assets.compute.process import LocalBatch
from synapse_assets.compute.spark import class_archive
from synapse_assets.compute.spark.options import SparkOptions
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.errors import ConfigurationError


class LocalSpark(ComputeTarget):
    """Runs each step with local Spark, in a subprocess.

    The JVM and its memory belong to the step and end with it: the orchestrator stays small, and
    two steps never share a session.
    """

    engine: ClassVar[Literal["spark", "python"]] = "spark"

    master: str = Field(default="local[*]", description="Spark master, for example 'local[4]'.")
    driver_memory: str = Field(
        default="2g", description="Heap of the driver, which runs the tasks too, as '7g'."
    )
    conf: dict[str, str] = Field(default={}, description="Further Spark properties.")
    abfs_jars: str | None = Field(
        default=None,
        description="Folder with the jars of Hadoop's driver for Azure storage, which pyspark "
        "does not bring; needed with a datastore on Azure only.",
    )

    def asked(self, options: dg.Config | None = None) -> SparkOptions:
        return asked(options, SparkOptions(), of="LocalSpark")

    def check(self, options: SparkOptions) -> None:
        options.check()
        require_java()

    def surroundings(self, options: SparkOptions) -> Mapping[str, Any]:
        """Return the store, the session's properties and the step's command line.

        Raises:
            ConfigurationError: The datastore needs jars that are not there.
        """
        return {
            **super().surroundings(options),
            "spark_conf": self.spark_conf(options),
            "arguments": options.arguments or [],
        }

    def spark_conf(self, options: SparkOptions) -> Mapping[str, str]:
        """Return the session's properties; those of a step go before `conf`, which goes before all.

        Executors have no size here: there are none, the driver runs the tasks.

        Raises:
            ConfigurationError: The datastore needs jars that are not there.
        """
        hadoop = self.datastore.hadoop_configuration().public
        code = [*(options.py_files or []), *map(str, options.wheels())]
        lists = {
            "spark.submit.pyFiles": code,
            "spark.jars": options.jars,
            "spark.files": options.files,
            "spark.archives": options.archives,
        }
        return {
            **{f"spark.hadoop.{name}": value for name, value in hadoop.items()},
            **self._class_path(),
            "spark.master": self.master,
            "spark.driver.memory": options.driver_memory or self.driver_memory,
            # Nothing here listens beyond this machine.
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            # Timestamps are UTC in every dataset.
            "spark.sql.session.timeZone": "UTC",
            # The default of 200 partitions is meant for a cluster.
            "spark.sql.shuffle.partitions": "8",
            **{name: ",".join(values) for name, values in lists.items() if values},
            **self.conf,
            **(options.conf or {}),
        }

    def _class_path(self) -> Mapping[str, str]:
        """Return the properties that put the driver for Azure storage first of all classes."""
        if self.datastore.location.kind != "azure":
            return {}
        if self.abfs_jars is None or not Path(self.abfs_jars).is_dir():
            raise ConfigurationError(
                "Spark on this machine needs the driver for Azure storage, and it is not in "
                f"{self.abfs_jars}. Fetch it once with `synapse-assets services --fetch`."
            )
        jars = os.pathsep.join(str(jar) for jar in sorted(Path(self.abfs_jars).glob("*.jar")))
        return {"spark.driver.extraClassPath": jars}

    def batch(self, submission: Submission, options: SparkOptions) -> Batch:
        java = require_java()
        of_jvm = f"{os.environ.get('SPARK_SUBMIT_OPTS', '')} {class_archive.find_options(java)}"

        def environment(folder: str) -> Mapping[str, str]:
            return {
                "JAVA_HOME": str(java),
                # Spark's workers must be the Python that runs the driver.
                "PYSPARK_PYTHON": sys.executable,
                # The JVM does not look at TMPDIR.
                "SPARK_LOCAL_DIRS": folder,
                "SPARK_SUBMIT_OPTS": f'{of_jvm} "-Djava.io.tmpdir={folder}"'.strip(),
            }

        return LocalBatch(submission, environment=environment)
