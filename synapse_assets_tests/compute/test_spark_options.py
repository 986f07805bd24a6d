import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import Field

from synapse_assets.compute.spark.options import SparkOptions
from synapse_assets.errors import ConfigurationError

# All options that SynapseSparkStep had, each with a value.
EVERYTHING: dict[str, Any] = {
    "driver_memory": "7g",
    "driver_cores": 4,
    "executor_memory": "14336m",
    "executor_cores": 2,
    "num_executors": 3,
    "conf": {"spark.sql.shuffle.partitions": "64"},
    "py_files": ["abfss://c@a.dfs.core.windows.net/lib.zip"],
    "jars": ["abfss://c@a.dfs.core.windows.net/driver.jar"],
    "files": ["abfss://c@a.dfs.core.windows.net/lookup.csv"],
    "archives": ["abfss://c@a.dfs.core.windows.net/model.tar.gz"],
    "arguments": ["--year", "1912"],
}


def test_each_option_is_a_field_of_the_request() -> None:
    assert SparkOptions(**EVERYTHING).to_request() == {
        "driverMemory": "7g",
        "driverCores": 4,
        "executorMemory": "14336m",
        "executorCores": 2,
        "numExecutors": 3,
        "conf": {"spark.sql.shuffle.partitions": "64"},
        "pyFiles": ["abfss://c@a.dfs.core.windows.net/lib.zip"],
        "jars": ["abfss://c@a.dfs.core.windows.net/driver.jar"],
        "files": ["abfss://c@a.dfs.core.windows.net/lookup.csv"],
        "archives": ["abfss://c@a.dfs.core.windows.net/model.tar.gz"],
        "args": ["--year", "1912"],
    }


def test_request_holds_nothing_that_is_not_set() -> None:
    assert SparkOptions().to_request() == {}
    assert SparkOptions(num_executors=0, jars=[]).to_request() == {"numExecutors": 0}


def test_fields_of_the_request_are_those_of_the_sdk() -> None:
    models = pytest.importorskip("azure.synapse.spark.models")
    known = {field["key"] for field in models.SparkBatchJobOptions._attribute_map.values()}
    assert set(SparkOptions(**EVERYTHING).to_request()) <= known


def test_what_the_sender_adds_lies_below_conf_and_before_the_lists() -> None:
    request = SparkOptions(**EVERYTHING).to_request(
        conf={"spark.sql.shuffle.partitions": "8", "spark.sql.session.timeZone": "UTC"},
        py_files=["abfss://c@a.dfs.core.windows.net/bundle.zip"],
        args=["job.json"],
    )
    assert request["conf"] == {
        "spark.sql.shuffle.partitions": "64",
        "spark.sql.session.timeZone": "UTC",
    }
    assert request["pyFiles"] == [
        "abfss://c@a.dfs.core.windows.net/bundle.zip",
        "abfss://c@a.dfs.core.windows.net/lib.zip",
    ]
    assert request["args"] == ["job.json", "--year", "1912"]


def test_options_of_an_asset_go_over_those_of_the_resource() -> None:
    resource = SparkOptions(
        driver_memory="7g",
        num_executors=4,
        jars=["abfs:/a.jar"],
        conf={"spark.a": "resource", "spark.b": "resource"},
    )
    asset = SparkOptions(
        num_executors=0, jars=["abfs:/b.jar"], conf={"spark.b": "asset", "spark.c": "asset"}
    )
    merged = asset.over(resource)
    assert merged == SparkOptions(
        driver_memory="7g",
        num_executors=0,
        jars=["abfs:/b.jar"],
        conf={"spark.a": "resource", "spark.b": "asset", "spark.c": "asset"},
    )
    assert SparkOptions().over(resource) == resource
    assert resource.over(SparkOptions()) == resource


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"driver_memory": "7"}, r"driver_memory is '7'; write a whole number and 'm' or 'g'"),
        ({"executor_memory": "7 GB"}, r"executor_memory is '7 GB'"),
        ({"executor_memory": "0g"}, r"executor_memory is '0g'"),
        ({"driver_cores": 0}, r"driver_cores is 0; it must be at least 1"),
        ({"executor_cores": -1}, r"executor_cores is -1"),
        ({"num_executors": -1}, r"num_executors is -1; it must be at least 0"),
        ({"name": " "}, r"name is empty"),
        ({"jars": ["abfs:/a.jar", ""]}, r"jars has an empty location"),
        ({"conf": {"fs.azure.x": "1"}}, r"is written 'spark\.hadoop\.fs\.azure\.x'"),
        ({"conf": {"spark.executor.memory": "7g"}}, r"set executor_memory in its place"),
        ({"conf": {"spark.executor.instances": "2"}}, r"set num_executors in its place"),
    ],
)
def test_wrong_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SparkOptions(**values).to_request()


@pytest.mark.parametrize(
    "key",
    [
        "spark.hadoop.fs.azure.account.key.a.dfs.core.windows.net",
        "spark.hadoop.fs.azure.account.key",
        "spark.hadoop.fs.azure.sas.container.a.blob.core.windows.net",
        "spark.hadoop.fs.azure.sas.fixed.token.a.dfs.core.windows.net",
        "spark.hadoop.fs.azure.account.oauth2.client.secret.a.dfs.core.windows.net",
        "spark.hadoop.fs.azure.account.oauth2.refresh.token",
        "spark.hadoop.fs.azure.account.oauth2.user.password",
        "spark.hadoop.fs.s3a.access.key",
        "spark.hadoop.fs.s3a.secret.key",
        "spark.ssl.keyStorePassword",
        "spark.app.clientSecret",
    ],
)
def test_secret_in_conf_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigurationError, match="every") as caught:
        SparkOptions(conf={key: "hunter2"}).to_request()
    assert key in str(caught.value)
    assert "identity" in str(caught.value)
    assert "linked service" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"conf": {"spark.x": "AccountKey=hunter2"}},
        {"files": ["https://a.blob.core.windows.net/c/a.txt?sv=2024&sig=hunter2"]},
        {"arguments": ["DefaultEndpointsProtocol=https;AccountKey=hunter2"]},
    ],
)
def test_secret_in_a_value_is_refused_and_not_repeated(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="carries a secret") as caught:
        SparkOptions(**values).to_request()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "spark.storage.synapse.linkedServiceName",
        "spark.hadoop.fs.azure.account.oauth.provider.type",
        "spark.hadoop.fs.azure.sas.token.provider.type.a.dfs.core.windows.net",
        "spark.hadoop.fs.azure.account.keyprovider.a.dfs.core.windows.net",
        "spark.hadoop.hadoop.security.credential.provider.path",
        "spark.authenticate.secretBitLength",
    ],
)
def test_property_that_only_sounds_secret_is_sent(key: str) -> None:
    assert SparkOptions(conf={key: "x"}).to_request() == {"conf": {key: "x"}}


def test_error_of_pydantic_does_not_repeat_what_it_was_given() -> None:
    with pytest.raises(ValueError, match="conf") as caught:
        SparkOptions(conf={"spark.x": ["hunter2"]})  # type: ignore[dict-item]
    assert "hunter2" not in str(caught.value)


def test_wheels_are_local_and_pure_python(tmp_path: Path) -> None:
    wheel = tmp_path / "titles-1.2.0-py3-none-any.whl"
    with pytest.raises(ConfigurationError, match="there is no such file; build it"):
        SparkOptions(environment=[str(wheel)]).to_request()
    wheel.touch()
    options = SparkOptions(environment=[str(wheel)])
    assert list(options.wheels()) == [wheel]
    assert options.to_request() == {}
    compiled = str(tmp_path / "numpy-2.0-cp311-cp311-manylinux_2_17_x86_64.whl")
    with pytest.raises(ConfigurationError, match="no pure-Python wheel"):
        SparkOptions(environment=[compiled]).to_request()


class Pool(dg.ConfigurableResource["Pool"]):
    options: SparkOptions = Field(default=SparkOptions(), description="Options of every batch.")


def test_resource_asset_and_launchpad_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVER_MEMORY", "14g")

    @dg.asset
    def prepared(pool: Pool, config: SparkOptions) -> str:
        asset = SparkOptions(executor_memory="28g", num_executors=2)
        return json.dumps(config.over(asset.over(pool.options)).to_request())

    pool = Pool(
        options=SparkOptions(driver_memory=dg.EnvVar("DRIVER_MEMORY"), conf={"spark.a": "1"})
    )
    launchpad = {"num_executors": 5, "conf": {"spark.b": "2"}}
    result = dg.materialize(
        [prepared],
        resources={"pool": pool},
        run_config={"ops": {"prepared": {"config": launchpad}}},
    )
    assert json.loads(result.output_for_node("prepared")) == {
        "driverMemory": "14g",
        "executorMemory": "28g",
        "numExecutors": 5,
        "conf": {"spark.a": "1", "spark.b": "2"},
    }


def test_every_option_is_described() -> None:
    assert [
        name for name, field in SparkOptions.model_fields.items() if not field.description
    ] == []
