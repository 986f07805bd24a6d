"""What holds for all tests."""

import os
import sys

# Spark's workers must be the Python that runs the tests, and not the first one on the PATH.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)

pytest_plugins = ["synapse_assets_tests.real.services"]
