"""What a pool sends over the wire, told by a server that takes down what it is sent.

It refuses every batch: what happens to one that is taken is tried elsewhere.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import pytest

from synapse_assets.compute.calls import CallError
from synapse_assets.compute.client import RemoteBatch
from synapse_assets.compute.spark.options import SparkOptions
from synapse_assets.compute.spark.pool import LivySparkPool, SparkPool, SynapseSparkPool
from synapse_assets.compute.step import Step
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datastore import Datastore
from synapse_assets.errors import StepFailedError

STORE = "abfss://c@a.dfs.core.windows.net"
# What every batch gets, whoever asks for what.
CONF = {"spark.sql.session.timeZone": "UTC", "spark.yarn.maxAppAttempts": "1"}
# Each option but 'environment' and 'name', and what the request says then.
OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "driver_memory": ("7g", {"driverMemory": "7g"}),
    "driver_cores": (4, {"driverCores": 4}),
    "executor_memory": ("14336m", {"executorMemory": "14336m"}),
    "executor_cores": (2, {"executorCores": 2}),
    "num_executors": (3, {"numExecutors": 3}),
    "conf": ({"spark.speculation": "true"}, {"conf": {**CONF, "spark.speculation": "true"}}),
    "py_files": ([f"{STORE}/lib.zip"], {"pyFiles": [f"{STORE}/lib.zip"]}),
    "jars": ([f"{STORE}/driver.jar"], {"jars": [f"{STORE}/driver.jar"]}),
    "files": ([f"{STORE}/lookup.csv"], {"files": [f"{STORE}/lookup.csv"]}),
    "archives": ([f"{STORE}/model.tar.gz"], {"archives": [f"{STORE}/model.tar.gz"]}),
    "arguments": (["--year", "1912"], {"args": ["--year", "1912"]}),
}


@dataclass
class Recorder:
    """A service that takes down the bodies it is sent.

    Attributes:
        url: Where it answers.
        bodies: The bodies, each with the path that it was sent to.
        headers: Their headers.
        answer: What it says to a request for a batch.
    """

    url: str = ""
    answer: bytes = b'{"msg": "requirement failed: not today"}'
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    told = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.bodies.append((urlsplit(self.path).path, json.loads(body)))
            told.headers.append(dict(self.headers))
            self._answer(400, told.answer)

        def do_GET(self) -> None:
            self._answer(200, b'{"from": 0, "total": 0, "sessions": []}')

        def log_message(self, *arguments: Any) -> None:
            pass

        def _answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        told.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield told
        server.shutdown()
        thread.join()


@pytest.fixture(params=[LivySparkPool, SynapseSparkPool])
def pool_class(request: pytest.FixtureRequest) -> type[SparkPool]:
    pool_class: type[SparkPool] = request.param
    return pool_class


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    return Datastore(root=str(tmp_path / "datastore"))


def make_pool(
    pool_class: type[SparkPool], recorder: Recorder, datastore: Datastore, options: SparkOptions
) -> SparkPool:
    if pool_class is LivySparkPool:
        return LivySparkPool(datastore=datastore, url=recorder.url, options=options)
    return SynapseSparkPool(
        datastore=datastore,
        workspace=recorder.url,
        pool="spark01",
        cloud="emulator",
        options=options,
    )


def send(
    pool: SparkPool,
    recorder: Recorder,
    *,
    asset: SparkOptions | None = None,
    launchpad: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Materialize an asset on a pool and return the body of the one request that it made.

    Args:
        pool: The pool, with its own options.
        recorder: Its service.
        asset: What the asset's code asks for.
        launchpad: What the user types into the launchpad.
    """

    @dg.asset
    def numbers(
        context: dg.AssetExecutionContext, spark: SparkPool, config: SparkOptions
    ) -> dg.MaterializeResult[StagedDataset]:
        options = config if asset is None else config.over(asset)
        step = Step("synapse_assets_tests.example_steps.plain:make_rows")
        return spark.run(step, context=context, inputs={}, options=options).get_materialize_result()

    with pytest.raises(StepFailedError, match=r"did not take the batch .*not today"):
        dg.materialize(
            [numbers],
            resources={"spark": pool, "io_manager": DatasetIOManager(datastore=pool.datastore)},
            run_config={"ops": {"numbers": {"config": launchpad}}} if launchpad else None,
        )
    ((_, body),) = recorder.bodies
    recorder.bodies.clear()
    return body


def test_every_option_is_in_the_body_of_the_request(
    pool_class: type[SparkPool], recorder: Recorder, datastore: Datastore, tmp_path: Path
) -> None:
    wheel = tmp_path / "extra-1.0-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    given = {name: value for name, (value, _) in OPTIONS.items()}
    given |= {"environment": [str(wheel)], "name": "mine"}
    assert given.keys() == SparkOptions.model_fields.keys()
    pool = make_pool(pool_class, recorder, datastore, SparkOptions(**given))
    body = send(pool, recorder)

    name, file, arguments = body.pop("name"), body.pop("file"), body.pop("args")
    bundle, shipped, *py_files = body.pop("pyFiles")
    tags = body.pop("tags", None)
    expected: dict[str, Any] = {}
    for _, fields in OPTIONS.values():
        expected |= fields
    assert py_files == expected.pop("pyFiles")
    job_file, *others = arguments
    assert others == expected.pop("args")
    assert body == expected

    assert Path(shipped.removeprefix("file://")).read_bytes() == b"a wheel"
    assert shipped.endswith(".zip")
    assert bundle.startswith("file:///")
    assert bundle.endswith(".zip")
    assert Path(file.removeprefix("file://")).read_text().endswith("main_on_cluster()\n")
    attempt = json.loads(Path(job_file).read_text())["attempt"]
    assert name.startswith(f"mine-{attempt}-")
    # A plain Livy refuses a request with a field that it does not know.
    is_livy = pool_class is LivySparkPool
    assert tags == (None if is_livy else {"synapse_assets_attempt": attempt})


def test_nothing_is_sent_that_nobody_asked_for(
    pool_class: type[SparkPool], recorder: Recorder, datastore: Datastore
) -> None:
    body = send(make_pool(pool_class, recorder, datastore, SparkOptions()), recorder)
    own = {"name", "file", "pyFiles", "args", "tags"}
    # Synapse takes no batch without a size.
    size = {
        "driverMemory": "7g",
        "driverCores": 4,
        "executorMemory": "7g",
        "executorCores": 4,
        "numExecutors": 1,
    }
    expected = {"conf": CONF, **(size if pool_class is SynapseSparkPool else {})}
    assert {name: value for name, value in body.items() if name not in own} == expected
    assert len(body["pyFiles"]) == len(body["args"]) == 1


def test_launchpad_goes_before_the_asset_and_the_asset_before_the_resource(
    pool_class: type[SparkPool], recorder: Recorder, datastore: Datastore
) -> None:
    resource = SparkOptions(
        driver_memory="1g",
        executor_memory="1g",
        num_executors=1,
        conf={"spark.a": "resource", "spark.b": "resource", "spark.c": "resource"},
        jars=[f"{STORE}/resource.jar"],
        arguments=["resource"],
    )
    asset = SparkOptions(
        executor_memory="2g",
        num_executors=2,
        conf={"spark.b": "asset", "spark.c": "asset"},
        jars=[f"{STORE}/asset.jar"],
    )
    launchpad = {"num_executors": 3, "conf": {"spark.c": "launchpad"}}
    pool = make_pool(pool_class, recorder, datastore, resource)

    alone = send(pool, recorder)
    assert (alone["driverMemory"], alone["executorMemory"], alone["numExecutors"]) == (
        "1g",
        "1g",
        1,
    )
    assert alone["conf"] == {**CONF, **(resource.conf or {})}
    assert alone["jars"] == [f"{STORE}/resource.jar"]

    body = send(pool, recorder, asset=asset, launchpad=launchpad)
    assert (body["driverMemory"], body["executorMemory"], body["numExecutors"]) == ("1g", "2g", 3)
    own = {"spark.a": "resource", "spark.b": "asset", "spark.c": "launchpad"}
    assert body["conf"] == {**CONF, **own}
    assert body["jars"] == [f"{STORE}/asset.jar"]
    assert body["args"][1:] == ["resource"]


def test_batch_tells_what_it_used_and_what_it_cost(
    recorder: Recorder, datastore: Datastore
) -> None:
    options = SparkOptions(driver_cores=4, executor_cores=4, num_executors=1)
    pool = make_pool(SynapseSparkPool, recorder, datastore, options).model_copy(
        update={"price_per_vcore_hour": 0.25}
    )
    start = datetime(2026, 1, 2, tzinfo=timezone.utc)
    batch = RemoteBatch("7", "success", started=start, ended=start + timedelta(seconds=450))
    told = {name: value.value for name, value in pool.describe(batch, pool.asked()).items()}
    assert told == {"batch": "7", "vcores": 8, "vcore_seconds": 3600.0, "cost": 0.25}
    assert "cost" not in pool.describe(replace(batch, ended=None), pool.asked())


def test_request_goes_to_the_pool_with_a_login(
    pool_class: type[SparkPool], recorder: Recorder, datastore: Datastore
) -> None:
    pool = make_pool(pool_class, recorder, datastore, SparkOptions())
    with pytest.raises(CallError):
        pool.client().post_batch({"name": "n", "file": "f"})
    ((path, _),) = recorder.bodies
    (headers,) = recorder.headers
    if pool_class is LivySparkPool:
        assert path == "/batches"
        # Where its protection against cross-site requests is on, Livy demands it.
        assert headers["X-Requested-By"]
    else:
        versions = "/livyApi/versions/2019-11-01-preview"
        assert path == f"{versions}/sparkPools/spark01/batches"
        assert headers["Authorization"] == "Bearer emulator"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'{"msg": "not today"}', "not today"),
        (b'"not today"', "not today"),
        (b'{"TraceId": "1", "Message": "not today"}', "not today"),
        (b'{"error": {"code": "C", "message": "not today"}}', "not today"),
        (b"<html>not today\n</html>", "<html>not today"),
        (b"\xff not today", "\ufffd not today"),
    ],
)
def test_refusal_tells_the_sentence_of_the_service(
    recorder: Recorder, datastore: Datastore, answer: bytes, said: str
) -> None:
    recorder.answer = answer
    pool = make_pool(SynapseSparkPool, recorder, datastore, SparkOptions())
    with pytest.raises(CallError) as caught:
        pool.client().post_batch({"name": "n", "file": "f"})
    assert str(caught.value) == f"HTTP 400 Bad Request: {said}"
    assert caught.value.status == 400
