"""What holds for all tests."""

import os
import subprocess
import sys
from typing import Any

import pyspark.java_gateway

# Spark's workers must be the Python that runs the tests, and not the first one on the PATH.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)

pytest_plugins = ["synapse_assets_tests.real.services"]


def _start_jvm(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start Spark's JVM without Python code between fork and exec.

    pyspark has the new process ignore SIGINT in such code. It waits for ever if another thread held
    a lock at the fork, and here the stores' clients have many threads. A session of its own keeps
    Ctrl-C away as well.
    """
    del options["preexec_fn"]
    return subprocess.Popen(command, start_new_session=True, **options)


setattr(pyspark.java_gateway, "Popen", _start_jvm)  # noqa: B010 (mypy knows it as a class)
