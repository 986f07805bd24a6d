"""A workspace of Azure ML, as far as it is needed to run command jobs on a cluster.

Sources: azure-ai-ml 1.35, and the specification of run history that it carries.
"""

import base64
import contextlib
import json
import logging
import shlex
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_assets.compute.calls import CallError, parse_retry_after
from synapse_assets.compute.cpu import node
from synapse_assets.datastore.clouds import get_cloud

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.core import PipelineClient
    from azure.core.credentials import TokenCredential
    from azure.core.exceptions import HttpResponseError

# The names of the clouds in azure-ai-ml. A cloud of one's own is named by the environment.
_CLOUDS = {
    "public": "AzureCloud",
    "us-government": "AzureUSGovernment",
    "china": "AzureChinaCloud",
}
_CONNECTION_SECONDS = 10
_READ_SECONDS = 60
_UNAUTHORIZED, _BAD_REQUEST = 401, 400
# A text of several lines does not survive everywhere on its way to a container.
_START = "import base64,os;exec(base64.b64decode(os.environ['SYNAPSE_ASSETS_NODE']))"
# Of its messages about its own preview features, and about links without a tenant.
_CHATTY = "azure.ai.ml"


@dataclass(frozen=True)
class Cluster:
    """An AmlCompute cluster: as it is wanted, or as it is.

    Attributes:
        name: Its name.
        vm_size: Size of its nodes.
        min_nodes: How many it keeps.
        max_nodes: The most that it may have.
        idle_seconds: After how long an idle node goes; None if nobody has said it.
        tier: 'dedicated' or 'low_priority'.
        identities: 'SystemAssigned', or the resource ids of its identities.
        state: The provisioning state; None for one that is wanted.
        problem: Why it could not be made.
    """

    name: str
    vm_size: str
    min_nodes: int
    max_nodes: int
    idle_seconds: int | None = None
    tier: str = "dedicated"
    identities: tuple[str, ...] = ()
    state: str | None = None
    problem: str | None = None

    def differences(self, wanted: "Cluster") -> list[str]:
        """Return in what this one is another one than that which is wanted."""
        names = {
            "vm_size": "its nodes are",
            "min_nodes": "its least number of nodes is",
            "max_nodes": "its greatest number of nodes is",
            "idle_seconds": "the seconds after which an idle node goes are",
            "tier": "its tier is",
            "identities": "its identity is",
        }
        found = []
        for name, text in names.items():
            is_value, wanted_value = (_comparable(getattr(c, name)) for c in (self, wanted))
            if is_value != wanted_value and getattr(wanted, name) is not None:
                found.append(f"{text} {_shown(self, name)} and not {_shown(wanted, name)}")
        return found


@dataclass(frozen=True)
class CommandJob:
    """A job as it is asked for.

    Attributes:
        name: Its name, which no other job of the workspace has.
        display_name: What Studio calls it.
        experiment: The experiment that Studio shows it in.
        cluster: Name of the cluster.
        bundle: Location of the step's bundle.
        job_file: Location of the job file.
        variables: Environment variables.
        image: Image of its container, or a registered environment ('azureml:name:version').
        python: Version of Python; not used with a registered environment.
        packages: Requirements for pip; not used with a registered environment.
        instance_count: How many nodes it holds.
        docker_args: Arguments of 'docker run'.
        shm_size: Shared memory of the container.
        timeout_seconds: After how long the service ends it.
        identity: Whether it runs with the cluster's identity.
        tags: Its tags.
    """

    name: str
    display_name: str
    experiment: str
    cluster: str
    bundle: str
    job_file: str
    variables: Mapping[str, str]
    image: str
    python: str
    packages: Sequence[str]
    instance_count: int
    docker_args: str | None
    shm_size: str | None
    timeout_seconds: int
    identity: bool
    tags: Mapping[str, str]


@dataclass(frozen=True)
class JobView:
    """A job as the service tells of it.

    Attributes:
        name: Its name, which is its id, too.
        status: Azure ML's status.
        studio_url: The page about it.
    """

    name: str
    status: str
    studio_url: str | None = None


@dataclass(frozen=True)
class JobDetails:
    """What run history tells of a job.

    Attributes:
        started: When it got its nodes, None if it never did.
        ended: When it ended, None if it has not.
        error: Why it failed, in the service's words.
        log: The last lines of what it printed.
    """

    started: datetime | None = None
    ended: datetime | None = None
    error: str | None = None
    log: Sequence[str] = field(default=())


class Workspace(ABC):
    """The verbs. Each sends its requests once; whoever calls decides what to do about errors.

    Every verb raises a `CallError` if a request did not succeed.
    """

    @abstractmethod
    def get_cluster(self, name: str) -> Cluster | None:
        """Return a cluster, None if there is none of that name."""

    @abstractmethod
    def put_cluster(self, cluster: Cluster) -> None:
        """Ask for a cluster to be made."""

    @abstractmethod
    def put_job(self, job: CommandJob) -> JobView:
        """Ask for a job; of one that is there nothing is changed."""

    @abstractmethod
    def get_job(self, name: str) -> JobView:
        """Return a job."""

    @abstractmethod
    def cancel_job(self, name: str) -> None:
        """Ask for a job to be ended."""

    @abstractmethod
    def get_details(self, name: str) -> JobDetails:
        """Return what run history tells of a job."""


class MLWorkspace(Workspace):
    """A workspace, through azure-ai-ml."""

    def __init__(
        self,
        *,
        subscription_id: str,
        resource_group: str,
        workspace: str,
        cloud: str,
        credential: "TokenCredential",
    ) -> None:
        """Create the client; nothing is contacted.

        Args:
            subscription_id: Subscription of the workspace.
            resource_group: Resource group of the workspace.
            workspace: Its name.
            cloud: Name of the cloud; 'emulator' for the one that ARM_CLOUD_METADATA_URL and
                AZUREML_CURRENT_CLOUD name in the environment.
            credential: Gives the tokens.
        """
        _import_sdk()
        self._scope = (subscription_id, resource_group, workspace)
        self._cloud = cloud
        self._credential = credential
        self._lock = threading.Lock()
        self._client: MLClient | None = None
        self._history: PipelineClient[Any, Any] | None = None

    def get_cluster(self, name: str) -> Cluster | None:
        """Return a cluster, None if there is none of that name."""
        from azure.core.exceptions import ResourceNotFoundError

        with self._calling() as client:
            try:
                found: Any = client.compute.get(name)
            except ResourceNotFoundError:
                return None
            identity = getattr(found, "identity", None)
            return Cluster(
                name=name,
                vm_size=str(getattr(found, "size", None) or found.type),
                min_nodes=int(getattr(found, "min_instances", None) or 0),
                max_nodes=int(getattr(found, "max_instances", None) or 0),
                idle_seconds=_whole(getattr(found, "idle_time_before_scale_down", None)),
                tier=str(getattr(found, "tier", None) or "dedicated"),
                identities=_identities(identity),
                state=_word(found.provisioning_state),
                problem=found.provisioning_errors,
            )

    def put_cluster(self, cluster: Cluster) -> None:
        """Ask for a cluster to be made."""
        from azure.ai.ml.entities import (
            AmlCompute,
            IdentityConfiguration,
            ManagedIdentityConfiguration,
        )

        identity = None
        if cluster.identities == ("SystemAssigned",):
            identity = IdentityConfiguration(type="system_assigned")
        elif cluster.identities:
            own = [ManagedIdentityConfiguration(resource_id=name) for name in cluster.identities]
            identity = IdentityConfiguration(type="user_assigned", user_assigned_identities=own)
        with self._calling() as client:
            client.compute.begin_create_or_update(
                AmlCompute(
                    name=cluster.name,
                    size=cluster.vm_size,
                    min_instances=cluster.min_nodes,
                    max_instances=cluster.max_nodes,
                    idle_time_before_scale_down=cluster.idle_seconds,
                    tier=cluster.tier,
                    identity=identity,
                )
            )

    def put_job(self, job: CommandJob) -> JobView:
        """Ask for a job; of one that is there nothing is changed."""
        from azure.ai.ml import command
        from azure.ai.ml.entities import Environment, ManagedIdentityConfiguration

        with self._calling() as client:
            environment: Any = job.image
            if not job.image.startswith("azureml:"):
                dependencies = [f"python={job.python}", "pip", {"pip": list(job.packages)}]
                environment = Environment(
                    image=job.image, conda_file={"name": "step", "dependencies": dependencies}
                )
            text = Path(node.__file__).read_bytes()
            step = command(
                name=job.name,
                display_name=job.display_name,
                experiment_name=job.experiment,
                compute=job.cluster,
                command=shlex.join(["python", "-c", _START, job.bundle, job.job_file]),
                environment=environment,
                environment_variables={
                    **job.variables,
                    "SYNAPSE_ASSETS_NODE": base64.b64encode(text).decode(),
                },
                instance_count=job.instance_count,
                docker_args=job.docker_args,
                shm_size=job.shm_size,
                timeout=job.timeout_seconds,
                identity=ManagedIdentityConfiguration() if job.identity else None,
                tags=dict(job.tags),
            )
            return _view(client.jobs.create_or_update(step))

    def get_job(self, name: str) -> JobView:
        """Return a job."""
        with self._calling() as client:
            return _view(client.jobs.get(name))

    def cancel_job(self, name: str) -> None:
        """Ask for a job to be ended."""
        with self._calling() as client:
            client.jobs.begin_cancel(name, polling=False)

    def get_details(self, name: str) -> JobDetails:
        """Return what run history tells of a job, which MLClient has no public verb for."""
        subscription, group, workspace = self._scope
        path = (
            f"/history/v1.0/subscriptions/{subscription}/resourceGroups/{group}/providers"
            f"/Microsoft.MachineLearningServices/workspaces/{workspace}/runs/{name}/details"
        )
        with self._calling() as client:
            answer = self._get(self._history_url(client) + path)
            lines: list[str] = []
            for log, url in sorted((answer.get("logFiles") or {}).items()):
                if log.endswith("std_log.txt"):
                    lines += self._get_text(url).splitlines()
        error = (answer.get("error") or {}).get("error") or {}
        return JobDetails(
            started=_time(answer.get("startTimeUtc")),
            ended=_time(answer.get("endTimeUtc")),
            error=error.get("message"),
            log=lines,
        )

    def _history_url(self, client: "MLClient") -> str:
        discovery = client.workspaces.get(self._scope[2]).discovery_url
        if not discovery:
            raise ValueError("the workspace has no discovery URL")
        return str(self._get(discovery)["history"]).rstrip("/")

    def _get(self, url: str) -> dict[str, Any]:
        from azure.core.rest import HttpRequest

        response = self._pipeline().send_request(HttpRequest("GET", url))
        response.raise_for_status()
        answer = response.json()
        if not isinstance(answer, dict):
            raise TypeError(f"{url} answered {type(answer).__name__}")
        return answer

    def _get_text(self, url: str) -> str:
        """Return a log. Its address is its own login, so no token goes along."""
        import requests

        try:
            answer = requests.get(url, timeout=(_CONNECTION_SECONDS, _READ_SECONDS))
            answer.raise_for_status()
        except requests.RequestException as e:
            return f"[the job's log could not be read: {e.__class__.__name__}]"
        return answer.content.decode(errors="replace")

    def _pipeline(self) -> "PipelineClient[Any, Any]":
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy

        if self._history is None:
            scope = get_cloud(self._cloud).resource_manager_scope
            self._history = PipelineClient(
                base_url="", policies=[BearerTokenCredentialPolicy(self._credential, scope)]
            )
        return self._history

    def _open(self) -> "MLClient":
        from azure.ai.ml import MLClient

        with self._lock:
            if self._client is None:
                subscription, group, workspace = self._scope
                settings: dict[str, Any] = {
                    # The SDK repeats any request by itself otherwise.
                    "retry_total": 0,
                    "connection_timeout": _CONNECTION_SECONDS,
                    "read_timeout": _READ_SECONDS,
                }
                if self._cloud in _CLOUDS:
                    settings["cloud"] = _CLOUDS[self._cloud]
                self._client = MLClient(
                    self._credential,
                    subscription,
                    group,
                    workspace,
                    enable_telemetry=False,
                    show_progress=False,
                    **settings,
                )
            return self._client

    @contextlib.contextmanager
    def _calling(self) -> Iterator["MLClient"]:
        """Yield the SDK's client; its errors become `CallError`."""
        from azure.ai.ml.exceptions import MlException
        from azure.core.exceptions import (
            AzureError,
            ClientAuthenticationError,
            HttpResponseError,
            ServiceRequestError,
        )

        try:
            with warnings.catch_warnings():
                # Its own, about the library that it checks its schemas with.
                warnings.simplefilter("ignore", DeprecationWarning)
                yield self._open()
        except MlException as e:
            # It found the request wrong, and did not send it.
            raise CallError(str(e).strip(), status=_BAD_REQUEST, was_sent=False) from e
        except HttpResponseError as e:
            if e.response is None:
                is_refused = isinstance(e, ClientAuthenticationError)
                raise CallError(
                    f"{self._scope[2]} could not be asked: {e.message}",
                    status=_UNAUTHORIZED if is_refused else None,
                    was_sent=not is_refused,
                ) from e
            headers: Mapping[str, str] = getattr(e.response, "headers", None) or {}
            raise CallError(
                f"HTTP {e.status_code} {e.reason}: {_said(e)}",
                status=e.status_code,
                retry_after=parse_retry_after(headers.get("Retry-After")),
            ) from e
        except AzureError as e:
            raise CallError(
                f"{self._scope[2]} could not be asked: {e}",
                was_sent=not isinstance(e, ServiceRequestError),
            ) from e
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise CallError(f"{self._scope[2]} answered what is not Azure ML's: {e!r}") from e


def _import_sdk() -> None:
    """Import azure-ai-ml without what it says of itself, to nobody who could do anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import azure.ai.ml  # noqa: F401
    # It has set the level itself, and writes to stderr.
    logging.getLogger(_CHATTY).setLevel(logging.ERROR)


def _view(job: Any) -> JobView:
    return JobView(name=job.name, status=_word(job.status), studio_url=job.studio_url)


def _word(value: Any) -> str:
    """Return the text of an enumeration's value."""
    return str(getattr(value, "value", value))


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _identities(identity: Any) -> tuple[str, ...]:
    if identity is None:
        return ()
    own = [found.resource_id for found in identity.user_assigned_identities or ()]
    return (*(["SystemAssigned"] if "system" in str(identity.type).lower() else []), *own)


def _comparable(value: Any) -> Any:
    if isinstance(value, tuple):
        return sorted(map(_comparable, value))
    return value.lower().replace("_", "") if isinstance(value, str) else value


def _shown(cluster: Cluster, name: str) -> str:
    value = getattr(cluster, name)
    return (", ".join(value) or "none") if isinstance(value, tuple) else str(value)


def _said(error: "HttpResponseError") -> str:
    """Return the service's own sentence."""
    try:
        answer = json.loads(error.response.text())  # type: ignore[union-attr]
        return str(answer["error"]["message"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return error.message.partition("\n")[0]


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    # Python 3.10 reads neither a 'Z' nor other than six digits.
    seconds, _, digits = text.rstrip("Z").partition("+")[0].partition(".")
    return datetime.fromisoformat(f"{seconds}.{digits[:6]:0<6}+00:00")
