"""A cluster of Azure ML (AmlCompute): each step a command job of its own."""

import base64
import contextlib
import functools
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import dagster as dg
from pydantic import Field

from synapse_assets.compute.batch import Submission
from synapse_assets.compute.client import RemoteBatch
from synapse_assets.compute.cpu import node
from synapse_assets.compute.cpu.cluster import Cluster, ensure_cluster
from synapse_assets.compute.cpu.options import CpuOptions
from synapse_assets.compute.cpu.packages import pinned_packages, python_version
from synapse_assets.compute.cpu.workspace import ATTEMPT_TAG, MLWorkspace
from synapse_assets.compute.login import login_to
from synapse_assets.compute.options import asked
from synapse_assets.compute.remote import RemoteTarget, describe_batch
from synapse_assets.compute.runner import STORAGE
from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.credentials import Credential, DefaultChain
from synapse_assets.errors import ConfigurationError

_HOUR = 60 * 60
# A text of several lines does not survive everywhere on its way to a container.
_NODE = "SYNAPSE_ASSETS_NODE"
_START = f"import base64,os;exec(base64.b64decode(os.environ['{_NODE}']))"


class AzureMLCpu(RemoteTarget):
    """A cluster of an Azure ML workspace, which is made if it is not there.

    A job runs as the cluster's managed identity, which needs the role 'Storage Blob Data
    Contributor' on the datastore's account. `credential` is who submits it: 'AzureML Data
    Scientist' on the workspace, and 'AzureML Compute Operator' to make the cluster.
    """

    engine: ClassVar[Literal["spark", "python"]] = "python"
    unit: ClassVar[str] = "job"

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
    starting_timeout_seconds: float = Field(
        default=60 * 60.0,
        gt=0,
        description="How long a cluster or a job's environment may take to make, in seconds.",
    )
    ending_timeout_seconds: float = Field(
        default=10 * 60.0, gt=0, description="How long a job may take to end, in seconds."
    )

    @property
    def place(self) -> str:
        return f"The cluster {self.cluster} of the Azure ML workspace {self.workspace}"

    def client(self) -> MLWorkspace:
        cloud = get_cloud(self.cloud)
        login = login_to(self.place, credential=self.credential, cloud=cloud)
        return _workspace(
            self.subscription_id, self.resource_group, self.workspace, cloud.name, login
        )

    def surroundings(self, options: CpuOptions) -> Mapping[str, Any]:
        """Return what the job asks of the cluster: with other options it is other work."""
        return {
            **super().surroundings(options),
            "request": {**options.set_values(), "image": self.image},
            "arguments": options.arguments,
        }

    def asked(self, options: dg.Config | None = None) -> CpuOptions:
        return asked(options, self.options, of="AzureMLCpu")

    def check(self, options: CpuOptions) -> None:
        options.check()
        store = self.datastore.storage_spec()["store"]
        if store != "blob" and not (store == "local" and self.cloud == "emulator"):
            raise ConfigurationError(
                f"{self.place} reads and writes Azure storage alone, and the datastore is "
                f"{self.datastore.uri()}: put it on Azure ('abfss://…'), or run the step with "
                "LocalCpu."
            )

    @contextlib.contextmanager
    def capacity(self, context: dg.AssetExecutionContext, options: CpuOptions) -> Iterator[None]:
        """Have the cluster there."""
        say, warn = context.log.info, context.log.warning
        self.ensure_cluster(nodes=options.nodes, say=say, warn=warn)
        yield

    def wanted_cluster(self) -> Cluster:
        """Return the cluster as it is made if it is not there."""
        return Cluster(
            name=self.cluster,
            vm_size=self.vm_size,
            min_nodes=self.min_nodes,
            max_nodes=self.max_nodes,
            idle_seconds=self.idle_seconds,
            tier=self.tier,
            identities=tuple(self.identities),
        )

    def ensure_cluster(
        self, *, nodes: int = 1, say: Callable[[str], None], warn: Callable[[str], None]
    ) -> None:
        """Find the cluster, or make it, and return when it is there.

        One that is there is never changed: a difference to what is wanted is told.

        Args:
            nodes: How many nodes a job will ask of it.
            say: Takes a line of progress.
            warn: Takes a line about a difference.

        Raises:
            ConfigurationError: It never has as many nodes.
            ComputeError: It could not be had, as `cluster.ensure_cluster` says.
        """
        differences = ensure_cluster(self, self.wanted_cluster(), nodes=nodes, say=say)
        if differences:
            warn(
                f"{self.place} is another one than configured, and stays as it is: "
                f"{'; '.join(differences)}. Change the cluster or the resource."
            )

    def request(self, submission: Submission, options: CpuOptions) -> Mapping[str, Any]:
        """Return the request of a job, in azure-ai-ml's words."""
        environment: Any = self.image
        if not self.image.startswith("azureml:"):
            bundle = self.datastore.storage().read_bytes(submission.bundle)
            assert bundle is not None
            packages = {"pip": pinned_packages(bundle, options.packages or ())}
            dependencies = [f"python={python_version()}", "pip", packages]
            conda = {"name": "step", "dependencies": dependencies}
            environment = {"image": self.image, "conda_file": conda}
        memory = [] if options.memory is None else [f"--memory={options.memory}"]
        text = base64.b64encode(Path(node.__file__).read_bytes()).decode()
        return {
            "name": submission.name,
            "display_name": options.name or submission.attempt,
            "experiment_name": self.experiment,
            "compute": self.cluster,
            "command": shlex.join(["python", "-c", _START, submission.bundle, submission.job_file]),
            "environment": environment,
            "environment_variables": {
                "PYTHONUNBUFFERED": "1",
                **(options.environment_variables or {}),
                STORAGE: json.dumps(self.datastore.storage_spec()),
                _NODE: text,
            },
            "docker_args": " ".join([*memory, *filter(None, [options.docker_args])]) or None,
            "shm_size": options.shm_size,
            "instance_count": options.instance_count,
            # Azure ML starts the command once on each node, and tells each its place.
            "distribution": {"process_count_per_instance": 1} if options.nodes > 1 else None,
            # Should nobody be there to cancel it.
            "timeout": int(self.timeout_seconds) + _HOUR,
            "identity": {} if self.identities else None,
            "tags": {ATTEMPT_TAG: submission.attempt},
        }

    def describe(self, batch: RemoteBatch, options: CpuOptions) -> Mapping[str, Any]:
        return describe_batch(batch, {"nodes": options.nodes}, price=self.price_per_node_hour)


# One client for all steps of a process: it keeps its connections, and its tokens.
@functools.lru_cache(maxsize=16)
def _workspace(
    subscription_id: str, resource_group: str, workspace: str, cloud: str, credential: Any
) -> MLWorkspace:
    return MLWorkspace(
        subscription_id=subscription_id,
        resource_group=resource_group,
        workspace=workspace,
        cloud=cloud,
        credential=credential,
    )
