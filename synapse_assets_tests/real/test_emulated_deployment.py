"""The whole pipeline from the command line, with every byte on a real service."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from synapse_assets.sample import write_sample
from synapse_assets.services import (
    CONTAINER,
    ML_RESOURCE_GROUP,
    ML_SUBSCRIPTION,
    ML_WORKSPACE,
    SYNAPSE_POOL,
    AzureMLStandIn,
    Azurite,
    Hdfs,
    SynapseEmulator,
)

pytestmark = [pytest.mark.services, pytest.mark.spark, pytest.mark.timeout(600)]

ASSETS = (
    "titanic_input",
    "titanic_quarantined_files",
    "titanic_prepared",
    "titanic_quarantined",
    "survival_model",
)


@pytest.fixture(params=["azurite", "hdfs", "azure"])
def environment(
    request: pytest.FixtureRequest, tmp_path: Path, synapse_emulator: SynapseEmulator
) -> Mapping[str, str]:
    is_azure = request.param == "azure"
    service: Azurite | Hdfs = request.getfixturevalue("azurite" if is_azure else request.param)
    environment = {
        **os.environ,
        "SYNAPSE_ASSETS_DEPLOYMENT": "emulated",
        "SYNAPSE_ASSETS_SYNAPSE": synapse_emulator.endpoint,
        "SYNAPSE_ASSETS_CACHE": str(tmp_path / "cache"),
        "DAGSTER_HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path),
    }
    if is_azure:
        # What runs on Azure, with each of its services on this machine.
        azureml: AzureMLStandIn = request.getfixturevalue("azureml")
        environment |= {
            **azureml.client_variables,
            "SYNAPSE_ASSETS_DEPLOYMENT": "azure",
            "SYNAPSE_ASSETS_CLOUD": "emulator",
            "SYNAPSE_ASSETS_DATASTORE": f"az://{CONTAINER}/{tmp_path.name}",
            "SYNAPSE_ASSETS_SPARK_POOL": SYNAPSE_POOL,
            "SYNAPSE_ASSETS_SUBSCRIPTION": ML_SUBSCRIPTION,
            "SYNAPSE_ASSETS_RESOURCE_GROUP": ML_RESOURCE_GROUP,
            "SYNAPSE_ASSETS_ML_WORKSPACE": ML_WORKSPACE,
        }
    if isinstance(service, Azurite):
        service.create_container(CONTAINER)
        return {**environment, "SYNAPSE_ASSETS_AZURITE": service.endpoint}
    return {**environment, "SYNAPSE_ASSETS_DATASTORE": f"{service.url}/{tmp_path.name}"}


def call(*arguments: str, environment: Mapping[str, str]) -> str:
    command = [sys.executable, "-c", "from synapse_assets.cli import main; main()", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


def test_pipeline_runs_on_the_service_and_is_kept_there(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "arrival one.csv"
    write_sample(source, rows=600, seed=1)
    first = call("run", "--input", str(source), environment=environment)
    assert "check rows_are_conserved passed: 600 rows in = " in first
    scheme = "hdfs" if "hdfs:" in environment.get("SYNAPSE_ASSETS_DATASTORE", "") else "abfs"
    for asset in ASSETS:
        assert re.search(rf"^{asset} +0 .* {scheme}://\S+/{asset}$", first, re.MULTILINE)
    assert re.search(r"Cross-validated accuracy: 0\.[6-9]\d\d", first)

    second = call("run", "--input", str(source), environment=environment)
    assert second.count("up to date") == len(ASSETS)

    versions = call("versions", "titanic_prepared", environment=environment)
    assert "600" in versions
    doctor = json.loads(call("doctor", "--json", environment=environment))
    assert doctor["counts"]["failed"] == 0
    # Nothing of the data lies on this machine, beside Dagster's records and the copies.
    kept = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.parquet")}
    assert kept == set()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("synapse-assets-")]
