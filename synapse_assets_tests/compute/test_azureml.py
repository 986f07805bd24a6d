"""What is Azure ML's own: jobs whose names are their ids, its cluster, packages and options."""

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import dagster as dg
import pytest

from synapse_assets.compute.batch import BatchState, Submission
from synapse_assets.compute.batches import ServiceBatch
from synapse_assets.compute.calls import CallError
from synapse_assets.compute.client import RemoteBatch
from synapse_assets.compute.cpu import AzureMLCpu, CpuOptions, cluster, workspace
from synapse_assets.compute.cpu.cluster import Cluster
from synapse_assets.compute.cpu.packages import pinned_packages
from synapse_assets.compute.step import Step
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ConfigurationError, StepFailedError, StepTimeoutError
from synapse_assets_tests.compute.scripted import Clock, ScriptedClient

NAME = "numbers-0123456789abcdef-89abcdef"
LOST = CallError("HTTP 504 Gateway Timeout", status=504)
UNREACHABLE = CallError("nobody there", was_sent=False)
NOT_FOUND = CallError("HTTP 404 Not Found", status=404)
REFUSED = CallError("HTTP 400 Bad Request: Only tags of a job can be changed.", status=400)
RUNNING = RemoteBatch(NAME, "Running", name=NAME)
ENDED = RemoteBatch(NAME, "Completed", name=NAME)
CLUSTER = Cluster("cpucluster", "STANDARD_D2_V2", 0, 4, 1800, state="Succeeded")


class ScriptedWorkspace(ScriptedClient):
    """A workspace that says what it is told to."""

    names_are_ids = True
    forgets_deleted = False
    get_clusters: Sequence[Cluster | CallError | None] = ()
    put_clusters: Sequence[CallError | None] = (None,)

    def get_cluster(self, name: str) -> Cluster | None:
        return cast("Cluster | None", self._answer("get_cluster", self.get_clusters))

    def put_cluster(self, cluster: Cluster) -> None:
        self._answer("put_cluster", self.put_clusters)

    def find_batches(self, name: str) -> list[RemoteBatch]:
        try:
            return [self.get_batch(name)]
        except CallError as e:
            if e.status != NOT_FOUND.status:
                raise
            return []


Script = Callable[..., tuple[ScriptedWorkspace, ServiceBatch]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock().install(monkeypatch)
    monkeypatch.setattr(cluster, "time", clock)
    return clock


@pytest.fixture
def target(tmp_path: Path) -> AzureMLCpu:
    return AzureMLCpu(
        datastore=Datastore(root=str(tmp_path)),
        subscription_id="s",
        resource_group="g",
        workspace="w",
        identities=[],
        price_per_node_hour=0.2,
        image="azureml:image:1",
    )


@pytest.fixture
def script(clock: Clock, target: AzureMLCpu, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Return a function that makes a service with a script."""

    def make(**answers: Any) -> tuple[ScriptedWorkspace, ServiceBatch]:
        answers = {"get": [RUNNING], "post": [RUNNING], **answers}
        client = ScriptedWorkspace(clock, **answers)
        monkeypatch.setattr(AzureMLCpu, "client", lambda _: client)
        submission = Submission(
            target.datastore,
            attempt=NAME[:-9],
            name=NAME,
            fingerprint="f",
            bundle="/store/bundle.zip",
            extras=(),
            run_id="run",
            batch_id=NAME,
        )
        return client, ServiceBatch(target, submission, target.asked())

    return make


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("Preparing", BatchState.STARTING),
        ("NotResponding", BatchState.RUNNING),
        ("CancelRequested", BatchState.ENDING),
        ("Completed", BatchState.ENDED),
        ("SomethingNew", BatchState.RUNNING),
    ],
)
def test_status_is_a_state(script: Script, status: str, state: BatchState) -> None:
    _, service = script(get=[replace(RUNNING, state=status)])
    assert service.get_state() is state


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "own", "names"),
    [
        ("system_assigned", [], ("SystemAssigned",)),
        ("user_assigned", ["/a", "/b"], ("/a", "/b")),
        ("none", [], ()),
    ],
)
def test_identity_of_a_cluster_is_read(kind: str, own: list[str], names: tuple[str, ...]) -> None:
    from azure.ai.ml.entities import IdentityConfiguration, ManagedIdentityConfiguration

    found = [ManagedIdentityConfiguration(resource_id=name) for name in own]
    identity = IdentityConfiguration(type=kind, user_assigned_identities=found)
    assert workspace._identities(identity) == names
    assert workspace._identities(None) == ()


@pytest.mark.parametrize(
    ("answers", "posts"),
    [
        ([LOST, RUNNING], 2),
        ([UNREACHABLE, UNREACHABLE, RUNNING], 3),
        ([CallError("HTTP 429", status=429, retry_after=30.0), RUNNING], 2),
    ],
)
def test_request_for_the_same_name_is_sent_again_without_a_look(
    script: Script, answers: list[Any], posts: int
) -> None:
    client, service = script(post=answers)
    assert service.submit() == NAME
    assert [verb for verb, _ in client.calls] == ["post"] * posts


def test_refusal_after_a_lost_answer_is_that_of_a_job_which_is_there(script: Script) -> None:
    client, service = script(post=[LOST, REFUSED])
    assert service.submit() == NAME
    assert [verb for verb, _ in client.calls] == ["post", "post", "get"]


def test_refused_submission_is_told_at_once(script: Script) -> None:
    client, service = script(post=[REFUSED])
    with pytest.raises(StepFailedError, match=r"did not take the job .*Only tags of a job"):
        service.submit()
    assert client.count("post") == 1


def test_job_whose_answer_was_lost_is_found_or_is_not(script: Script) -> None:
    assert script(get=[NOT_FOUND, RUNNING])[1].find() == NAME
    client, service = script(get=[NOT_FOUND])
    assert service.find() is None
    assert client.count("get") == 4


def test_cancel_returns_when_the_job_has_ended(script: Script) -> None:
    ending = [
        RUNNING,
        replace(RUNNING, state="CancelRequested"),
        replace(RUNNING, state="Canceled"),
    ]
    client, service = script(delete=[LOST, None], get=ending)
    service.cancel()
    assert (client.count("delete"), client.count("get")) == (2, 3)


def test_end_tells_status_reason_and_the_log(script: Script) -> None:
    failed = RemoteBatch(NAME, "Failed", errors=[{"message": "Out of memory.", "source": ""}])
    log = [f"line {number}" for number in range(150)]
    _, service = script(get=[replace(failed, errors=())], completed=[LOST, failed], log=log)
    service.get_state()
    text = service.describe_end()
    assert text.startswith(f"the job {NAME} ended as 'Failed'\nOut of memory.\n\n[50 earlier")
    assert text.endswith("line 149")


def test_use_is_told_as_far_as_it_is_known(script: Script, target: AzureMLCpu) -> None:
    start = datetime(2026, 1, 2, tzinfo=timezone.utc)
    done = replace(ENDED, started=start, ended=start + timedelta(hours=2), links={"l": "https://l"})
    _, service = script(get=[ENDED], completed=[done])
    assert service.describe_use() == {
        "batch": dg.MetadataValue.text(NAME),
        "nodes": dg.MetadataValue.int(1),
        "l": dg.MetadataValue.url("https://l"),
        "node_seconds": dg.MetadataValue.float(7200.0),
        "cost": dg.MetadataValue.float(0.4),
    }
    of_three = target.describe(done, CpuOptions(instance_count=3))
    assert [of_three[name].value for name in ("nodes", "node_seconds", "cost")] == [3, 21600.0, 1.2]
    _, service = script(get=[UNREACHABLE])
    assert service.describe_use() == {"batch": NAME}


def test_instance_count_is_set_for_an_asset_and_in_the_launchpad(
    target: AzureMLCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ScriptedWorkspace(Clock(), post=[REFUSED])
    client.get_clusters = [CLUSTER]
    monkeypatch.setattr(AzureMLCpu, "client", lambda _: client)

    def make(name: str, nodes: int | None = None) -> dg.AssetsDefinition:
        @dg.asset(name=name)
        def numbers(
            context: dg.AssetExecutionContext, cpu: AzureMLCpu, config: CpuOptions
        ) -> dg.MaterializeResult[StagedDataset]:
            step = Step("synapse_assets_tests.example_steps.plain:make_rows")
            options = config.over(CpuOptions(instance_count=nodes))
            done = cpu.run(step, context=context, inputs={}, options=options)
            return done.get_materialize_result()

        return numbers

    dg.materialize(
        [
            make("unset"),
            make("one", 1),
            make("two", 2),
            make("three"),
        ],
        resources={
            "cpu": AzureMLCpu(
                datastore=target.datastore,
                subscription_id="s",
                resource_group="g",
                workspace="w",
                cloud="emulator",
                image="azureml:image:1",
            ),
            "io_manager": DatasetIOManager(datastore=target.datastore),
        },
        run_config={"ops": {"three": {"config": {"instance_count": 3}}}},
        raise_on_error=False,
    )
    each = {"process_count_per_instance": 1}
    assert {
        request["name"].partition("-")[0]: (request["instance_count"], request["distribution"])
        for request in client.requests
    } == {"unset": (None, None), "one": (1, None), "two": (2, each), "three": (3, each)}


def test_job_of_other_nodes_is_other_work(target: AzureMLCpu) -> None:
    works = [target.surroundings(CpuOptions(instance_count=nodes)) for nodes in (1, 2)]
    assert works[0] != works[1]


def test_datastore_that_no_node_can_open_is_refused(
    target: AzureMLCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=r"Azure storage alone.* or run the step with Loc"):
        target.check(target.asked())
    for cloud in ("public", "emulator"):
        on_hdfs = AzureMLCpu(
            datastore=Datastore(root="hdfs://namenode:8020/data"),
            subscription_id="s",
            resource_group="g",
            workspace="w",
            cloud=cloud,
        )
        with pytest.raises(ConfigurationError, match="the datastore is hdfs://namenode:8020/data"):
            on_hdfs.check(on_hdfs.asked())


class TestCluster:
    """Finding or making the cluster, in a workspace that says what the test wants."""

    @pytest.fixture
    def ensure(self, script: Script, target: AzureMLCpu) -> Callable[..., ScriptedWorkspace]:
        def ensure(
            *, get_cluster: Sequence[Any], put_cluster: Sequence[Any] = (None,), nodes: int = 1
        ) -> ScriptedWorkspace:
            workspace, _ = script()
            workspace.get_clusters, workspace.put_clusters = get_cluster, put_cluster
            self.calls = workspace.calls
            target.ensure_cluster(nodes=nodes, say=self.said.append, warn=self.warned.append)
            return workspace

        self.said: list[str] = []
        self.warned: list[str] = []
        return ensure

    def test_is_found(self, ensure: Callable[..., ScriptedWorkspace]) -> None:
        assert ensure(get_cluster=[CLUSTER]).count("get_cluster") == 1
        assert (self.said, self.warned) == ([], [])

    def test_that_another_run_makes_is_waited_for(
        self, ensure: Callable[..., ScriptedWorkspace]
    ) -> None:
        conflict = CallError("HTTP 409 Conflict", status=409)
        creating = Cluster("cpucluster", "STANDARD_D2_V2", 0, 4, 1800, state="Creating")
        made = ensure(get_cluster=[None, *[creating] * 40, CLUSTER], put_cluster=[conflict])
        assert made.count("put_cluster") == 1
        assert [text for text in self.said if "'Creating' after" in text]

    def test_is_asked_for_again_where_the_answer_was_lost(
        self, ensure: Callable[..., ScriptedWorkspace]
    ) -> None:
        made = ensure(get_cluster=[None, None, CLUSTER], put_cluster=[LOST, None])
        assert made.count("put_cluster") == 2

    def test_that_cannot_be_made_is_told(self, ensure: Callable[..., ScriptedWorkspace]) -> None:
        broken = Cluster("cpucluster", "X", 0, 4, state="Failed", problem="QuotaExceeded")
        with pytest.raises(StepFailedError, match="could not be made: QuotaExceeded"):
            ensure(get_cluster=[None, broken], put_cluster=[None])
        refused = CallError("HTTP 403 Forbidden: no right to write computes", status=403)
        with pytest.raises(StepFailedError, match="no right to write computes"):
            ensure(get_cluster=[None], put_cluster=[refused])

    def test_that_is_never_there_is_given_up(
        self, ensure: Callable[..., ScriptedWorkspace]
    ) -> None:
        creating = Cluster("cpucluster", "STANDARD_D2_V2", 0, 4, state="Creating")
        with pytest.raises(StepTimeoutError, match="within its limit of 3600 s"):
            ensure(get_cluster=[creating])

    @pytest.mark.parametrize(("found", "nodes"), [(replace(CLUSTER, max_nodes=2), 3), (None, 5)])
    def test_that_never_has_as_many_nodes_is_refused(
        self, ensure: Callable[..., ScriptedWorkspace], found: Cluster | None, nodes: int
    ) -> None:
        with pytest.raises(ConfigurationError, match=f"at most, and instance_count is {nodes}:"):
            ensure(get_cluster=[found], nodes=nodes)
        assert [verb for verb, _ in self.calls] == ["get_cluster"]

    def test_has_as_many_nodes_as_it_has_whatever_is_configured(
        self, ensure: Callable[..., ScriptedWorkspace]
    ) -> None:
        ensure(get_cluster=[replace(CLUSTER, max_nodes=8)], nodes=8)
        # Of a compute that is no AmlCompute it is not known.
        ensure(get_cluster=[replace(CLUSTER, max_nodes=0)], nodes=8)

    def test_differs(self, ensure: Callable[..., ScriptedWorkspace]) -> None:
        other = Cluster("cpucluster", "standard_d2_v2", 0, 2, 120, state="Succeeded")
        ensure(get_cluster=[other])
        (text,) = self.warned
        assert "its greatest number of nodes is 2 and not 4" in text
        assert "nodes are" not in text


def test_packages_are_what_the_step_imports_in_the_versions_of_here() -> None:
    bundle = Step("synapse_assets.steps.train:train").bundle().content
    packages = pinned_packages(bundle, ["Scikit_Learn>=1.5", "lightgbm==4.5.0"])
    assert "lightgbm==4.5.0" in packages
    assert "Scikit_Learn>=1.5" in packages
    pins = dict(package.split("==") for package in packages if "==" in package)
    assert {"adlfs", "azure-identity", "azure-storage-blob", "pyarrow", "skops"} <= set(pins)
    assert pins["skops"] == metadata.version("skops")
    assert not {"pyspark", "polars", "dagster", "hdfs-native"} & set(pins)


def test_packages_leave_out_what_is_shipped_and_what_python_has() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("own/step.py", "import os, own.other, pandas.io as p\nfrom yaml import *")
    pins = dict(package.split("==") for package in pinned_packages(buffer.getvalue()))
    assert {"pandas", "pyyaml"} <= set(pins)
    assert not {"os", "own"} & set(pins)


def test_options_go_before_those_of_the_resource() -> None:
    base = CpuOptions(memory="2g", environment_variables={"A": "1", "B": "1"}, packages=["x"])
    over = CpuOptions(memory="4g", environment_variables={"B": "2"}).over(base)
    assert over.set_values() == {
        "memory": "4g",
        "environment_variables": {"A": "1", "B": "2"},
        "packages": ["x"],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CpuOptions(memory="4 GB"), "memory is '4 GB'"),
        (CpuOptions(shm_size="g"), "shm_size is 'g'"),
        (CpuOptions(instance_count=0), "instance_count is 0; it must be at least 1"),
        (CpuOptions(instance_count=-2), "instance_count is -2"),
        (CpuOptions(environment_variables={"A": "https://x?sig=1"}), "carry a secret"),
        (CpuOptions(arguments=["AccountKey=abc"]), "carry a secret"),
    ],
)
def test_options_that_cannot_be_sent_are_named(options: CpuOptions, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        options.check()
