"""The emulator of Synapse's Spark pools: real batches, through Microsoft's own client."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
)
from azure.core.pipeline.policies import BearerTokenCredentialPolicy
from azure.synapse.spark import SparkClient
from azure.synapse.spark.models import SparkBatchJob, SparkBatchJobOptions

from synapse_assets.compute.login import EMULATOR_TOKEN
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.credentials import Emulator
from synapse_assets.services import SYNAPSE_POOL, Azurite, Livy, SynapseEmulator
from synapse_assets_tests.real.spark_cluster import SparkCluster

pytestmark = [pytest.mark.services, pytest.mark.spark, pytest.mark.timeout(300)]

_BATCH_SECONDS = 120.0
_SIZES = {
    "driver_memory": "1g",
    "driver_cores": 1,
    "executor_memory": "512m",
    "executor_cores": 1,
    "executor_count": 2,
}


class Token:
    """A credential that has one token, which never expires."""

    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3600)


class Pool:
    """The pool of a workspace, by Microsoft's client, over plain http."""

    def __init__(
        self, emulator: SynapseEmulator, *, name: str = SYNAPSE_POOL, token: str = EMULATOR_TOKEN
    ) -> None:
        policy = BearerTokenCredentialPolicy(Token(token), "emulator/.default")
        self.client = SparkClient(
            Token(token),
            emulator.endpoint,
            name,
            authentication_policy=policy,
            retry_total=0,
        )

    def submit(self, file: Path, *arguments: str, **options: Any) -> SparkBatchJob:
        job = SparkBatchJobOptions(
            name=file.stem,
            file=str(file),
            arguments=list(arguments),
            **{**_SIZES, **options},
        )
        return self.client.spark_batch.create_spark_batch_job(
            job, detailed=True, enforce_https=False
        )

    def get(self, number: int) -> SparkBatchJob:
        return self.client.spark_batch.get_spark_batch_job(
            number, detailed=True, enforce_https=False
        )

    def cancel(self, number: int) -> None:
        self.client.spark_batch.cancel_spark_batch_job(number, enforce_https=False)

    def page(self, start: int | None = None, size: int | None = None) -> tuple[int, list[int]]:
        found = self.client.spark_batch.get_spark_batch_jobs(start, size, enforce_https=False)
        assert found.from_property == (start or 0)
        return found.total, [job.id for job in found.sessions or []]

    def wait(self, number: int) -> SparkBatchJob:
        wait_for(lambda: self.get(number).result != "Uncertain", seconds=_BATCH_SECONDS)
        return self.get(number)


@pytest.fixture
def pool(synapse_emulator: SynapseEmulator) -> Pool:
    return Pool(synapse_emulator)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """Write what a batch runs, after it has made its session."""

    def write(text: str) -> Path:
        path = tmp_path / "batch.py"
        start = "from pyspark.sql import SparkSession\n"
        path.write_text(f"{start}spark = SparkSession.builder.getOrCreate()\n{text}\n")
        return path

    return write


def wait_for(condition: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not after {seconds:.0f} s"
        time.sleep(0.1)


def processes_running(file: Path) -> list[psutil.Process]:
    """Return the processes with a file in their command line, and not those that are over."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if any(str(file) in part for part in command) and process.info["status"] != "zombie":
            found.append(process)
    return found


def group_of(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def log_of(livy: Livy, number: int) -> str:
    with urllib.request.urlopen(f"{livy.url}/batches/{number}/log?size=-1") as answer:
        return "\n".join(json.load(answer)["log"])


def test_a_batch_runs_on_real_spark_and_writes_to_azurite(
    pool: Pool, livy: Livy, script: Callable[[str], Path], azurite: Azurite
) -> None:
    azurite.create_container("emulator")
    datastore = Datastore(
        root="az://emulator", cloud="emulator", credential=Emulator(endpoint=azurite.endpoint)
    )
    uri = datastore.uri("some", "rows")
    program = script("import sys; spark.range(20).write.parquet(sys.argv[1]); print('written')")
    started = pool.submit(
        program, uri, tags={"attempt": "one"}, artifact_id="an id", configuration={"spark.a": "b"}
    )
    assert started.result == "Uncertain"
    assert started.errors == []
    job = pool.wait(started.id)
    assert (job.result, job.state) == ("Succeeded", "success"), log_of(livy, job.id)
    assert job.errors == []
    assert (job.name, job.tags, job.artifact_id) == ("batch", {"attempt": "one"}, "an id")
    assert (job.spark_pool_name, job.job_type) == (SYNAPSE_POOL, "SparkBatch")
    assert job.livy_info is not None
    queued, done = job.livy_info.not_started_at, job.livy_info.success_at
    running = job.livy_info.running_at
    assert queued is not None
    assert running is not None
    assert done is not None
    assert queued < running < done
    request = job.livy_info.job_creation_request
    assert request is not None
    assert request.arguments == [uri]
    assert request.configuration == {"spark.a": "b"}
    assert job.scheduler is not None
    assert job.scheduler.current_state == "Ended"
    assert "written" in log_of(livy, job.id)
    written = [blob.name for blob in datastore.container_client().list_blobs("some/rows/")]
    assert any(name.endswith(".parquet") for name in written)
    pool.cancel(job.id)  # changes nothing any more
    assert pool.get(job.id).result == "Succeeded"


def test_a_batch_that_raises_is_dead_and_says_why(
    pool: Pool, script: Callable[[str], Path]
) -> None:
    job = pool.wait(pool.submit(script("raise ValueError('no such column')")).id)
    assert (job.result, job.state) == ("Failed", "dead")
    assert job.livy_info is not None
    assert job.livy_info.dead_at is not None
    assert job.errors is not None
    (error,) = job.errors
    assert (error.message, error.source) == ("ValueError: no such column", "User")


def test_a_cancelled_batch_ends_its_processes_and_stays_visible(
    pool: Pool, livy: Livy, script: Callable[[str], Path]
) -> None:
    program = script("import time; print('here', flush=True); time.sleep(600)")
    number = pool.submit(program).id
    wait_for(lambda: "\nhere" in log_of(livy, number), seconds=_BATCH_SECONDS)
    assert len(processes_running(program)) >= 2  # spark-submit's Java, and Python
    pool.cancel(number)
    wait_for(lambda: pool.get(number).state == "killed", seconds=15)
    wait_for(lambda: not processes_running(program), seconds=5)
    job = pool.get(number)
    assert job.result == "Cancelled"
    assert job.scheduler is not None
    assert job.scheduler.cancellation_requested_at is not None
    assert job.livy_info is not None
    assert job.livy_info.terminated_at is not None
    pool.cancel(number)
    assert pool.get(number).result == "Cancelled"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        log_of(livy, number)


def test_batches_of_a_pool_are_listed_page_by_page(livy: Livy, tmp_path: Path) -> None:
    program = tmp_path / "batch.py"
    program.write_text("")
    with SynapseEmulator(livy_url=livy.url, pools=("one", "two")) as emulator:
        pool, other = Pool(emulator, name="one"), Pool(emulator, name="two")
        assert pool.page() == (0, [])
        # One name for all of them: each request is a batch.
        numbers = [pool.submit(program).id for _ in range(3)]
        assert pool.page() == (3, numbers)
        assert pool.page(size=2) == (3, numbers[:2])
        assert pool.page(2, size=20) == (3, numbers[2:])
        assert pool.page(7) == (3, [])
        assert other.page() == (0, [])
        with pytest.raises(ResourceNotFoundError):
            other.get(numbers[0])
        assert {pool.wait(number).result for number in numbers} == {"Succeeded"}


def test_what_a_workspace_refuses_is_refused(
    synapse_emulator: SynapseEmulator, pool: Pool, tmp_path: Path
) -> None:
    with pytest.raises(ClientAuthenticationError) as refused:
        Pool(synapse_emulator, token="another").page()
    assert refused.value.status_code == 401
    with pytest.raises(ResourceNotFoundError, match="no Spark pool 'nowhere'"):
        Pool(synapse_emulator, name="nowhere").page()
    for call in (pool.get, pool.cancel):
        with pytest.raises(ResourceNotFoundError, match="has no batch 4711"):
            call(4711)
    with pytest.raises(HttpResponseError, match="The request lacks executorMemory, numExecutors"):
        pool.submit(tmp_path / "batch.py", executor_memory=None, executor_count=None)
    with pytest.raises(HttpResponseError, match="cannot be added to user sessions") as elsewhere:
        pool.submit(Path("/elsewhere/batch.py"))
    assert elsewhere.value.status_code == 400
    path = f"livyApi/versions/2019-11-01-preview/sparkPools/{SYNAPSE_POOL}/batches"
    with pytest.raises(urllib.error.HTTPError, match="401") as anonymous:
        urllib.request.urlopen(f"{synapse_emulator.endpoint}/{path}")
    assert anonymous.value.headers["WWW-Authenticate"].startswith("Bearer")
    anonymous.value.close()


def test_a_batch_runs_on_the_workers_of_a_cluster(
    tmp_path: Path, script: Callable[[str], Path]
) -> None:
    program = script(
        "def parents(_):\n"
        "    import psutil\n"
        "    yield [' '.join(p.cmdline()) for p in psutil.Process().parents()]\n"
        "numbers = spark.sparkContext.parallelize(range(2), 2)\n"
        "for found in numbers.mapPartitions(parents).collect():\n"
        "    executor = any('CoarseGrainedExecutorBackend' in line for line in found)\n"
        "    print('by the worker', executor)\n"
        "print('executors', spark.sparkContext._jsc.sc().getExecutorMemoryStatus().size() - 1)"
    )
    conf = {"spark.scheduler.minRegisteredResourcesRatio": "1.0"}
    with (
        SparkCluster() as cluster,
        Livy(master=cluster.url, spark_conf=conf, local_folders=[tmp_path]) as livy,
        SynapseEmulator(livy_url=livy.url) as emulator,
    ):
        pool = Pool(emulator)
        job = pool.wait(pool.submit(program).id)
        log = log_of(livy, job.id)
        folders = [livy.folder, emulator.folder, cluster.folder]
        servers = [*livy.servers, *emulator.servers, *cluster.servers]
        groups = [server.process_group for server in servers]
    assert job.result == "Succeeded", log
    assert log.count("by the worker True") == 2
    assert "executors 2" in log
    assert not any(folder.exists() for folder in folders)
    left = [process for process in psutil.process_iter(["status"]) if group_of(process) in groups]
    assert [process for process in left if process.info["status"] != "zombie"] == []


def test_batches_outlive_a_crash_of_livy_and_end_when_it_is_stopped(
    tmp_path: Path, script: Callable[[str], Path]
) -> None:
    program = script("import time; print('here', flush=True); time.sleep(600)")
    with (
        Livy(local_folders=[tmp_path]) as livy,
        SynapseEmulator(livy_url=livy.url) as emulator,
    ):
        pool = Pool(emulator)
        number = pool.submit(program).id
        wait_for(lambda: "\nhere" in log_of(livy, number), seconds=_BATCH_SECONDS)
        assert (livy.folder / "spark-conf" / "spark-defaults.conf").stat().st_mode & 0o77 == 0
        livy.kill()
        with pytest.raises(HttpResponseError, match="Livy does not answer"):
            pool.get(number)
        assert processes_running(program)
        livy.start()
        assert not processes_running(program)
        with pytest.raises(ResourceNotFoundError):
            pool.get(number)
        again = pool.submit(program).id
        wait_for(lambda: "\nhere" in log_of(livy, again), seconds=_BATCH_SECONDS)
    assert not processes_running(program)
