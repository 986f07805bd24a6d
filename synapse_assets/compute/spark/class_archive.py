"""Spark's classes, read and checked once: a JVM that maps their archive takes a quarter less work.

Java calls it a dynamic class data archive. It lies in the virtual environment that has pyspark,
and is of use to the very Spark and Java that it was made by: to others the JVM starts as ever.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from synapse_assets.compute.java import require_java

_TIMEOUT_SECONDS = 300
# An archive that does not fit is left alone without a word.
_QUIET = "-Xlog:cds=off -Xlog:cds+dynamic=off"


def find_options(java: Path) -> str:
    """Return the JVM's options for the archive, none if it was not made."""
    path = _path(java)
    return f'"-XX:SharedArchiveFile={path}" {_QUIET}' if path.exists() else ""


def make() -> Path:
    """Make the archive, unless it is there, and return where it lies. It takes half a minute.

    Raises:
        ConfigurationError: There is no Java, or it is too old.
        subprocess.SubprocessError: Spark failed.
    """
    java = require_java()
    path = _path(java)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    environment = {
        **os.environ,
        "JAVA_HOME": str(java),
        "SPARK_SUBMIT_OPTS": f'"-XX:ArchiveClassesAtExit={part}" {_QUIET}',
    }
    command = [sys.executable, "-c", f"from {__name__} import _work; _work()"]
    try:
        subprocess.run(
            command, env=environment, check=True, capture_output=True, timeout=_TIMEOUT_SECONDS
        )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _path(java: Path) -> Path:
    release = java / "release"
    told = release.read_text(encoding="utf-8") if release.exists() else ""
    key = hashlib.sha256(f"{java}\0{told}".encode()).hexdigest()[:12]
    return Path(sys.prefix, "share", "synapse_assets", f"spark-{version('pyspark')}-{key}.jsa")


def _work() -> None:
    """Have Spark load the classes that steps need, and wait for the JVM to write them down."""
    from pyspark.sql import SparkSession, Window
    from pyspark.sql import functions as f

    with tempfile.TemporaryDirectory() as folder:
        spark = (
            SparkSession.builder.master("local[2]")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.shuffle.partitions", "2")
            .config("spark.sql.warehouse.dir", folder)
            .getOrCreate()
        )
        source, table = Path(folder, "rows.csv"), str(Path(folder, "table"))
        source.write_text("n,text\n" + "".join(f'{n},"a, {n % 9}"\n' for n in range(1000)))
        spark.read.text(str(source)).filter("value LIKE '%,%'").groupBy().max().collect()
        rows = spark.read.csv(str(source), header=True, schema="n INT, text STRING").persist()
        counts = rows.groupBy("text").agg(f.count("n").alias("count"), f.avg("n").alias("mean"))
        place = f.row_number().over(Window.partitionBy("text").orderBy("n"))
        ranked = rows.join(counts, "text").withColumn("place", place)
        ranked.selectExpr("*", "regexp_extract(text, '([0-9])', 1) AS digit").write.parquet(table)
        spark.read.parquet(table).filter("place > 1").limit(1).collect()
        gateway: Any = spark.sparkContext._gateway
        spark.stop()
        gateway.shutdown()
        # It ends when its standard input does.
        gateway.proc.stdin.close()
        gateway.proc.wait()
