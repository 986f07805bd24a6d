import os
import subprocess
import sys
from pathlib import Path

import pyspark
import pytest

from synapse_assets.compute.java import require_java
from synapse_assets.compute.spark import class_archive


@pytest.mark.spark
def test_spark_takes_its_classes_from_the_archive_once_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    java = require_java()
    assert not class_archive.find_options(java)
    path = class_archive.make()
    assert [path] == list(path.parent.iterdir())
    log = tmp_path / "classes.log"
    options = f"{class_archive.find_options(java)} -Xlog:class+load:file={log}"
    environment = {**os.environ, "JAVA_HOME": str(java), "SPARK_SUBMIT_OPTS": options}
    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    subprocess.run([submit, "--version"], env=environment, check=True, capture_output=True)
    lines = [line for line in log.read_text().splitlines() if " org.apache.spark." in line]
    assert any("shared objects file (top)" in line for line in lines)
