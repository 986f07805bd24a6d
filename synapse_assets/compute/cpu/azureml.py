"""A cluster of Azure ML (AmlCompute): each step a command job of its own."""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import dagster as dg
from pydantic import ConfigDict, Field

from synapse_assets.compute.batch import BatchService, BatchState, Submission
from synapse_assets.compute.calls import CallError, Patience, is_refusal
from synapse_assets.compute.cpu.jobs import AzureMLJobs
from synapse_assets.compute.cpu.options import CpuOptions
from synapse_assets.compute.cpu.packages import pinned_packages, python_version
from synapse_assets.compute.cpu.workspace import (
    Cluster,
    CommandJob,
    JobDetails,
    JobView,
    MLWorkspace,
    Workspace,
)
from synapse_assets.compute.login import login_to
from synapse_assets.compute.runner import STORAGE
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.credentials import Credential, DefaultChain
from synapse_assets.errors import (
    ConfigurationError,
    ServiceUnavailableError,
    StepFailedError,
    StepTimeoutError,
)

_DAY = 24 * 60 * 60.0
_HOUR = 60 * 60
_CONFLICT = 409
_CLUSTER_POLL_SECONDS = 2.0
_SAY_SECONDS = 30.0
_READY = "Succeeded"
_BROKEN = ("Failed", "Canceled")


class AzureMLCpu(ComputeTarget):
    """A cluster of an Azure ML workspace, which is made if it is not there.

    A job runs as the cluster's managed identity, which needs the role 'Storage Blob Data
    Contributor' on the datastore's account. `credential` is who submits it: 'AzureML Data
    Scientist' on the workspace, and 'AzureML Compute Operator' to make the cluster.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    engine: ClassVar[Literal["spark", "python"]] = "python"

    subscription_id: str = Field(description="Subscription of the workspace.")
    resource_group: str = Field(description="Resource group of the workspace.")
    workspace: str = Field(description="Name of the Azure ML workspace.")
    cluster: str = Field(default="cpucluster", description="Name of the AmlCompute cluster.")
    experiment: str = Field(
        default="synapse_assets", description="Name of the experiment that Studio shows jobs in."
    )
    cloud: str = Field(
        default="public",
        description="Cloud of the workspace: 'public', 'us-government', 'china' or 'emulator'.",
    )
    credential: Credential = Field(
        default=DefaultChain(), discriminator="kind", description="How to log in to the workspace."
    )

    vm_size: str = Field(default="STANDARD_D2_V2", description="Size of a new cluster's nodes.")
    min_nodes: int = Field(default=0, ge=0, description="Nodes that a new cluster keeps.")
    max_nodes: int = Field(default=4, ge=1, description="The most nodes of a new cluster.")
    idle_seconds: int = Field(
        default=1800, gt=0, description="After how long a new cluster's idle node goes, in seconds."
    )
    tier: Literal["dedicated", "low_priority"] = Field(
        default="dedicated", description="Whether Azure may take back the nodes of a new cluster."
    )
    identities: list[str] = Field(
        default=["SystemAssigned"],
        description="Identity of a new cluster: 'SystemAssigned', or resource ids of managed "
        "identities; none to leave it without one.",
    )
    options: CpuOptions = Field(
        default=CpuOptions(),
        description="What every job asks of the cluster; a step's own options go before these.",
    )
    image: str = Field(
        default="mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04",
        description="Image that the packages of a step are installed on, or an environment of the "
        "workspace that has all of them ('azureml:name:version').",
    )
    price_per_node_hour: float | None = Field(
        default=None, ge=0, description="What a node costs in an hour, in any currency."
    )
    queued_timeout_seconds: float = Field(
        default=_DAY, gt=0, description="How long a job may wait for its nodes, in seconds."
    )
    starting_timeout_seconds: float = Field(
        default=60 * 60.0,
        gt=0,
        description="How long a cluster or a job's environment may take to make, in seconds.",
    )
    ending_timeout_seconds: float = Field(
        default=10 * 60.0, gt=0, description="How long a job may take to end, in seconds."
    )
    unreachable_timeout_seconds: float = Field(
        default=10 * 60.0,
        gt=0,
        description="How long the service may be out of reach while a job runs, in seconds.",
    )

    @property
    def place(self) -> str:
        """What messages call the cluster."""
        return f"The cluster {self.cluster} of the Azure ML workspace {self.workspace}"

    def client(self) -> Workspace:
        """Return the client of the workspace.

        Raises:
            ConfigurationError: The credential is no identity.
        """
        cloud = get_cloud(self.cloud)
        login = login_to(self.place, credential=self.credential, cloud=cloud)
        return _workspace(
            self.subscription_id, self.resource_group, self.workspace, cloud.name, login
        )

    def limits(self) -> dict[BatchState, float]:
        """Return how long a job may be in each of its states, in seconds."""
        return {
            BatchState.QUEUED: self.queued_timeout_seconds,
            BatchState.STARTING: self.starting_timeout_seconds,
            BatchState.RUNNING: self.timeout_seconds,
            BatchState.ENDING: self.ending_timeout_seconds,
        }

    def surroundings(self, options: dg.Config | None) -> Mapping[str, Any]:
        """Return what the job asks of the cluster: with other options it is other work."""
        asked = self.asked(options)
        return {
            "storage": self.datastore.storage_spec(),
            "request": {**asked.to_json(), "image": self.image},
            "arguments": asked.arguments,
        }

    def batch_service(self, options: dg.Config | None) -> BatchService:
        """Return the cluster's verbs.

        Raises:
            ConfigurationError: The cluster cannot run a job of these options.
        """
        asked = self.asked(options)
        asked.check()
        store = self.datastore.storage_spec()["store"]
        if store != "blob" and not (store == "local" and self.cloud == "emulator"):
            raise ConfigurationError(
                f"{self.place} reads and writes Azure storage alone, and the datastore is "
                f"{self.datastore.uri()}."
            )
        if (asked.instance_count or 1) > self.max_nodes:
            raise ConfigurationError(
                f"instance_count is {asked.instance_count}, and {self.place} has at most "
                f"{self.max_nodes} nodes (max_nodes)."
            )
        return AzureMLJobs(
            self.client(),
            self.datastore.storage(),
            make_request=functools.partial(self._request, options=asked),
            describe=functools.partial(self._describe, options=asked),
            place=self.place,
            patience=self.unreachable_timeout_seconds,
            submit_limit=self.queued_timeout_seconds,
            cancel_limit=self.ending_timeout_seconds,
        )

    @contextlib.contextmanager
    def capacity(
        self, context: dg.AssetExecutionContext, options: dg.Config | None
    ) -> Iterator[None]:
        """Have the cluster there."""
        self.ensure_cluster(say=context.log.info, warn=context.log.warning)
        yield

    def asked(self, options: dg.Config | None = None) -> CpuOptions:
        """Return what a job asks of the cluster in all.

        Raises:
            ConfigurationError: The options are not those of a job.
        """
        if options is None:
            return self.options
        if not isinstance(options, CpuOptions):
            raise ConfigurationError(
                f"AzureMLCpu takes CpuOptions, and a step gives it {type(options).__name__}."
            )
        return options.over(self.options)

    def ensure_cluster(self, *, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Find the cluster, or make it, and return when it is there.

        One that is there is never changed: a difference to what is wanted is told.

        Args:
            say: Takes a line of progress.
            warn: Takes a line about a difference.

        Raises:
            StepFailedError: The service refuses to make it, or could not make it.
            StepTimeoutError: It is not there within `starting_timeout_seconds`.
            ServiceUnavailableError: The service was out of reach for too long.
        """
        client = self.client()
        wanted = Cluster(
            name=self.cluster,
            vm_size=self.vm_size,
            min_nodes=self.min_nodes,
            max_nodes=self.max_nodes,
            idle_seconds=self.idle_seconds,
            tier=self.tier,
            identities=tuple(self.identities),
        )
        started = said = time.monotonic()
        deadline = started + self.starting_timeout_seconds
        is_asked = False
        reach = Patience(self.unreachable_timeout_seconds)
        while True:
            error, found = None, None
            try:
                found = client.get_cluster(self.cluster)
                if found is None and not is_asked:
                    say(f"{self.place} is not there: it is made, of {self.vm_size}.")
                    client.put_cluster(wanted)
                    is_asked = True
                reach = Patience(self.unreachable_timeout_seconds)
            except CallError as e:
                error = e
            if error is not None and is_refusal(error) and error.status != _CONFLICT:
                raise StepFailedError(f"{self.place} could not be had. {error}") from error
            if error is not None and error.status != _CONFLICT and not reach.wait(error):
                raise ServiceUnavailableError(
                    f"{self.place} was out of reach for {reach.limit:g} s: {error}"
                ) from error
            if found is not None and found.state == _READY:
                break
            if found is not None and found.state in _BROKEN:
                raise StepFailedError(
                    f"{self.place} could not be made: {found.problem or found.state}. Look at it "
                    "in Studio, remove it there and run this again."
                )
            now = time.monotonic()
            if now > deadline:
                raise StepTimeoutError(
                    f"{self.place} was not there within its limit of "
                    f"{self.starting_timeout_seconds:g} s. Look at the workspace, or raise "
                    "starting_timeout_seconds of the compute target."
                )
            if now - said > _SAY_SECONDS:
                state = "asked for" if found is None else found.state
                say(f"{self.place} is '{state}' after {now - started:.0f} s.")
                said = now
            time.sleep(_CLUSTER_POLL_SECONDS)
        differences = found.differences(wanted)
        if differences:
            warn(
                f"{self.place} is another one than configured, and stays as it is: "
                f"{'; '.join(differences)}. Change the cluster or the resource."
            )

    def _request(self, submission: Submission, *, options: CpuOptions) -> CommandJob:
        """Return the request of a job."""
        packages: list[str] = []
        if not self.image.startswith("azureml:"):
            bundle = self.datastore.storage().read_bytes(submission.bundle)
            assert bundle is not None
            packages = pinned_packages(bundle, options.packages or ())
        memory = [] if options.memory is None else [f"--memory={options.memory}"]
        docker_args = " ".join([*memory, *filter(None, [options.docker_args])])
        return CommandJob(
            name=submission.name,
            display_name=options.name or submission.attempt,
            experiment=self.experiment,
            cluster=self.cluster,
            bundle=submission.bundle,
            job_file=submission.job_file,
            variables={
                "PYTHONUNBUFFERED": "1",
                **(options.environment_variables or {}),
                STORAGE: json.dumps(self.datastore.storage_spec()),
            },
            image=self.image,
            python=python_version(),
            packages=packages,
            instance_count=options.instance_count or 1,
            docker_args=docker_args or None,
            shm_size=options.shm_size,
            # Should nobody be there to cancel it.
            timeout_seconds=int(self.timeout_seconds) + _HOUR,
            identity=bool(self.identities),
            tags={"synapse_assets_attempt": submission.attempt},
        )

    def _describe(
        self, job: JobView, details: JobDetails, *, options: CpuOptions
    ) -> dict[str, Any]:
        nodes = options.instance_count or 1
        metadata: dict[str, Any] = {
            "batch": dg.MetadataValue.text(job.name),
            "nodes": dg.MetadataValue.int(nodes),
        }
        if job.studio_url:
            metadata["azureml_studio"] = dg.MetadataValue.url(job.studio_url)
        if details.started is not None and details.ended is not None:
            used = nodes * (details.ended - details.started).total_seconds()
            metadata["node_seconds"] = dg.MetadataValue.float(round(used, 1))
            if self.price_per_node_hour is not None:
                price = used * self.price_per_node_hour / _HOUR
                metadata["cost"] = dg.MetadataValue.float(round(price, 6))
        return metadata


# One client for all steps of a process: it keeps its connections, and its tokens.
@functools.lru_cache(maxsize=16)
def _workspace(
    subscription_id: str, resource_group: str, workspace: str, cloud: str, credential: Any
) -> Workspace:
    return MLWorkspace(
        subscription_id=subscription_id,
        resource_group=resource_group,
        workspace=workspace,
        cloud=cloud,
        credential=credential,
    )
