"""The life of a job in a workspace that says what the test wants, by a clock of the test."""

import io
import zipfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from synapse_assets.compute.batch import BatchState, Submission
from synapse_assets.compute.calls import CallError
from synapse_assets.compute.cpu import CpuOptions, azureml, jobs, workspace
from synapse_assets.compute.cpu.jobs import STATES, AzureMLJobs
from synapse_assets.compute.cpu.packages import pinned_packages
from synapse_assets.compute.cpu.workspace import (
    Cluster,
    CommandJob,
    JobDetails,
    JobView,
    Workspace,
)
from synapse_assets.compute.step import Step
from synapse_assets.datastore import Datastore
from synapse_assets.errors import (
    ConfigurationError,
    ServiceUnavailableError,
    StepFailedError,
    StepTimeoutError,
)
from synapse_assets_tests.compute.scripted_livy import Clock

NAME = "numbers-0123456789abcdef-89abcdef"
SUBMISSION = Submission(
    name=NAME,
    attempt="numbers-0123456789abcdef",
    bundle="/store/bundle.zip",
    extras=(),
    job_file="/store/job.json",
    output="/store/output",
)
LOST = CallError("HTTP 504 Gateway Timeout", status=504)
UNREACHABLE = CallError("nobody there", was_sent=False)
NOT_FOUND = CallError("HTTP 404 Not Found", status=404)
REFUSED = CallError("HTTP 400 Bad Request: Only tags of a job can be changed.", status=400)
RUNNING = JobView(NAME, "Running")
ENDED = JobView(NAME, "Completed")
CLUSTER = Cluster("cpucluster", "STANDARD_D2_V2", 0, 4, 1800, state="Succeeded")


class ScriptedWorkspace(Workspace):
    """Answers each verb with what its script says, and with the last of it for ever."""

    def __init__(self, clock: Clock, **scripts: Sequence[Any]) -> None:
        self.calls: list[str] = []
        self._clock = clock
        self._scripts = scripts

    def get_cluster(self, name: str) -> Cluster | None:
        return cast("Cluster | None", self._answer("get_cluster"))

    def put_cluster(self, cluster: Cluster) -> None:
        self._answer("put_cluster")

    def put_job(self, job: CommandJob) -> JobView:
        return cast("JobView", self._answer("put"))

    def get_job(self, name: str) -> JobView:
        return cast("JobView", self._answer("get"))

    def cancel_job(self, name: str) -> None:
        self._answer("cancel")

    def get_details(self, name: str) -> JobDetails:
        return cast("JobDetails", self._answer("details"))

    def _answer(self, verb: str) -> Any:
        script = self._scripts.get(verb, [JobDetails() if verb == "details" else RUNNING])
        answer = script[min(self.calls.count(verb), len(script) - 1)]
        self.calls.append(verb)
        self._clock.now += 0.001
        if isinstance(answer, CallError):
            raise answer
        return answer


Script = Callable[..., tuple[ScriptedWorkspace, AzureMLJobs]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock().install(monkeypatch)
    for module in (jobs, azureml):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def script(clock: Clock, tmp_path: Path) -> Script:
    """Return a function that makes a service with a script."""

    def make(**answers: Any) -> tuple[ScriptedWorkspace, AzureMLJobs]:
        workspace = ScriptedWorkspace(clock, **answers)
        service = AzureMLJobs(
            workspace,
            Datastore(root=str(tmp_path)).storage(),
            make_request=lambda submission: cast("CommandJob", SimpleNamespace()),
            describe=lambda job, details: {"batch": job.name, "started": details.started},
            place="The cluster",
            patience=600.0,
            submit_limit=3600.0,
            cancel_limit=300.0,
        )
        return workspace, service

    return make


# The SDK says while it is imported what it thinks of its own libraries.
@pytest.mark.filterwarnings("ignore")
def test_every_status_of_azure_ml_is_known() -> None:
    from azure.ai.ml._restclient.arm_ml_service.models import JobStatus

    known = {str(status.value) for status in cast("Any", JobStatus)}
    assert known - set(STATES) == set()


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("NotStarted", BatchState.QUEUED),
        ("Preparing", BatchState.STARTING),
        ("Queued", BatchState.QUEUED),
        ("Running", BatchState.RUNNING),
        ("NotResponding", BatchState.RUNNING),
        ("Finalizing", BatchState.ENDING),
        ("CancelRequested", BatchState.ENDING),
        ("Completed", BatchState.ENDED),
        ("Failed", BatchState.ENDED),
        ("Canceled", BatchState.ENDED),
        ("SomethingNew", BatchState.RUNNING),
    ],
)
def test_status_is_a_state(script: Script, status: str, state: BatchState) -> None:
    _, service = script(get=[JobView(NAME, status)])
    assert service.get_state(NAME) is state


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
    ("answers", "puts"),
    [
        ([RUNNING], 1),
        ([LOST, RUNNING], 2),
        ([UNREACHABLE, UNREACHABLE, RUNNING], 3),
        ([CallError("HTTP 429", status=429, retry_after=30.0), RUNNING], 2),
        ([CallError("HTTP 401", status=401), RUNNING], 2),
    ],
)
def test_submission_is_asked_for_until_it_is_there(
    script: Script, answers: list[Any], puts: int
) -> None:
    workspace, service = script(put=answers)
    assert service.submit(SUBMISSION) == NAME
    assert workspace.calls.count("put") == puts


def test_refusal_after_a_lost_answer_is_that_of_a_job_which_is_there(script: Script) -> None:
    workspace, service = script(put=[LOST, REFUSED], get=[RUNNING])
    assert service.submit(SUBMISSION) == NAME
    assert workspace.calls == ["put", "put", "get"]


def test_refused_submission_is_told_at_once(script: Script) -> None:
    workspace, service = script(put=[REFUSED])
    with pytest.raises(StepFailedError, match="Only tags of a job can be changed"):
        service.submit(SUBMISSION)
    assert workspace.calls == ["put"]


def test_workspace_out_of_reach_is_given_up(script: Script, clock: Clock) -> None:
    _, service = script(put=[UNREACHABLE])
    before = clock.now
    with pytest.raises(ServiceUnavailableError, match="within 600 s"):
        service.submit(SUBMISSION)
    assert 550 < clock.now - before < 600


def test_throttled_submission_waits_as_long_as_a_job_may_be_queued(
    script: Script, clock: Clock
) -> None:
    _, service = script(put=[CallError("HTTP 429", status=429)])
    before = clock.now
    with pytest.raises(ServiceUnavailableError, match="within 3600 s"):
        service.submit(SUBMISSION)
    assert 3500 < clock.now - before < 3600


@pytest.mark.parametrize("error", [UNREACHABLE, LOST, CallError("HTTP 429", status=429)])
def test_outage_while_a_job_runs_is_waited_for(script: Script, error: CallError) -> None:
    _, service = script(get=[RUNNING, *[error] * 8, RUNNING, error, ENDED])
    seen = [service.get_state(NAME) for _ in range(12)]
    assert seen == [BatchState.RUNNING] * 11 + [BatchState.ENDED]


def test_outage_that_does_not_end_is_given_up(script: Script, clock: Clock) -> None:
    _, service = script(get=[RUNNING, UNREACHABLE])
    before = clock.now

    def watch() -> None:
        while True:
            service.get_state(NAME)

    with pytest.raises(ServiceUnavailableError, match="out of reach for 600 s"):
        watch()
    assert 550 < clock.now - before < 601


def test_refusal_to_tell_is_a_failure_after_some(script: Script) -> None:
    _, service = script(get=[RUNNING, CallError("HTTP 403 Forbidden", status=403)])
    service.get_state(NAME)
    assert service.get_state(NAME) is BatchState.RUNNING
    service.get_state(NAME)
    with pytest.raises(StepFailedError, match="HTTP 403"):
        service.get_state(NAME)


def test_job_has_vanished_when_it_is_not_found_three_times(script: Script) -> None:
    _, service = script(get=[RUNNING, NOT_FOUND])
    states = [service.get_state(NAME) for _ in range(4)]
    assert states == [BatchState.RUNNING] * 3 + [BatchState.VANISHED]
    assert "knows no job" in service.describe_end(NAME)


def test_job_whose_answer_was_lost_is_found_or_is_not(script: Script) -> None:
    assert script(get=[NOT_FOUND, RUNNING])[1].find(SUBMISSION) == NAME
    workspace, service = script(get=[NOT_FOUND])
    assert service.find(SUBMISSION) is None
    assert workspace.calls == ["get"] * 3


@pytest.mark.parametrize(
    ("cancels", "gets"),
    [
        ([None], [RUNNING, JobView(NAME, "CancelRequested"), JobView(NAME, "Canceled")]),
        ([LOST, None], [RUNNING, JobView(NAME, "Canceled")]),
        # It has ended by itself meanwhile.
        ([REFUSED], [ENDED]),
        ([None], [NOT_FOUND]),
    ],
)
def test_cancel_returns_when_the_job_has_ended(
    script: Script, cancels: list[Any], gets: list[Any]
) -> None:
    _, service = script(cancel=cancels, get=gets)
    service.cancel(NAME)


def test_job_that_does_not_end_is_told(script: Script) -> None:
    _, service = script(cancel=[None], get=[JobView(NAME, "CancelRequested")])
    with pytest.raises(ServiceUnavailableError, match="may still run"):
        service.cancel(NAME)


def test_end_tells_status_reason_and_the_log(script: Script) -> None:
    log = tuple(f"line {number}" for number in range(150))
    details = JobDetails(error="Out of memory.", log=log)
    _, service = script(get=[JobView(NAME, "Failed")], details=[LOST, details])
    service.get_state(NAME)
    text = service.describe_end(NAME)
    assert text.startswith(f"the job {NAME} ended as 'Failed'\n\nOut of memory.\n\n[50 earlier")
    assert text.endswith("line 149")


def test_use_is_told_as_far_as_it_is_known(script: Script) -> None:
    moment = datetime(2026, 1, 2, tzinfo=timezone.utc)
    _, service = script(get=[ENDED], details=[JobDetails(started=moment)])
    assert service.describe_use(NAME) == {"batch": NAME, "started": moment}
    _, service = script(get=[UNREACHABLE])
    assert service.describe_use(NAME) == {"batch": NAME}


class TestCluster:
    """Finding or making the cluster, in a workspace that says what the test wants."""

    @pytest.fixture
    def ensure(
        self, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., ScriptedWorkspace]:
        def ensure(**answers: Any) -> ScriptedWorkspace:
            workspace = ScriptedWorkspace(clock, **answers)
            monkeypatch.setattr(azureml.AzureMLCpu, "client", lambda _: workspace)
            target = azureml.AzureMLCpu(
                datastore=Datastore(root=str(tmp_path)),
                subscription_id="s",
                resource_group="g",
                workspace="w",
                identities=[],
            )
            target.ensure_cluster(say=self.said.append, warn=self.warned.append)
            return workspace

        self.said: list[str] = []
        self.warned: list[str] = []
        return ensure

    def test_is_found(self, ensure: Callable[..., ScriptedWorkspace]) -> None:
        assert ensure(get_cluster=[CLUSTER]).calls == ["get_cluster"]
        assert (self.said, self.warned) == ([], [])

    def test_that_another_run_makes_is_waited_for(
        self, ensure: Callable[..., ScriptedWorkspace]
    ) -> None:
        conflict = CallError("HTTP 409 Conflict", status=409)
        creating = Cluster("cpucluster", "STANDARD_D2_V2", 0, 4, 1800, state="Creating")
        made = ensure(get_cluster=[None, *[creating] * 40, CLUSTER], put_cluster=[conflict])
        assert made.calls.count("put_cluster") == 1
        assert [text for text in self.said if "'Creating' after" in text]

    def test_is_asked_for_again_where_the_answer_was_lost(
        self, ensure: Callable[..., ScriptedWorkspace]
    ) -> None:
        made = ensure(get_cluster=[None, None, CLUSTER], put_cluster=[LOST, None])
        assert made.calls.count("put_cluster") == 2

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
    assert over.to_json() == {
        "memory": "4g",
        "environment_variables": {"A": "1", "B": "2"},
        "packages": ["x"],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CpuOptions(memory="4 GB"), "memory is '4 GB'"),
        (CpuOptions(shm_size="g"), "shm_size is 'g'"),
        (CpuOptions(instance_count=0), "instance_count is 0"),
        (CpuOptions(environment_variables={"A": "https://x?sig=1"}), "carry a secret"),
        (CpuOptions(arguments=["AccountKey=abc"]), "carry a secret"),
    ],
)
def test_options_that_cannot_be_sent_are_named(options: CpuOptions, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        options.check()
