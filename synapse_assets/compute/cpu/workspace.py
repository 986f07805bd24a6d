"""A workspace of Azure ML, as far as it is needed to run command jobs on a cluster.

Sources: azure-ai-ml 1.35, and the specification of run history that it carries.
"""

import contextlib
import itertools
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from synapse_assets.compute.calls import CallError, is_refusal, parse_retry_after, translated
from synapse_assets.compute.client import BatchClient, LogTail, RemoteBatch
from synapse_assets.compute.cpu.cluster import Cluster
from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.core import PipelineClient
    from azure.core.credentials import TokenCredential

# The tag by which the workspace's list tells our jobs from those of others.
ATTEMPT_TAG = "synapse_assets_attempt"
# The names of the clouds in azure-ai-ml. A cloud of one's own is named by the environment.
_CLOUDS = {
    "public": "AzureCloud",
    "us-government": "AzureUSGovernment",
    "china": "AzureChinaCloud",
}
_CONNECTION_SECONDS = 10
_READ_SECONDS = 60
_BAD_REQUEST, _GONE = 400, 404
# What a job printed: one log, or one of each node.
_LOG = re.compile(r"(.*/)?std_log(_process_[0-9]+)?\.txt")
# Of its messages about its own preview features, and about links without a tenant.
_CHATTY = "azure.ai.ml"


class MLWorkspace(BatchClient):
    """A workspace, through azure-ai-ml: its jobs, whose names are their ids, and its clusters."""

    names_are_ids = True

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
        self._pipeline: PipelineClient[Any, Any] | None = None
        self._history_url: str | None = None

    def ping(self) -> None:
        """Raise a CallError if the workspace is not there, or is not shown to us."""
        with self._calling() as client:
            client.workspaces.get(self._scope[2])

    def get_cluster(self, name: str) -> Cluster | None:
        """Return a cluster, None if there is none of that name."""
        try:
            with self._calling() as client:
                found: Any = client.compute.get(name)
                idle = getattr(found, "idle_time_before_scale_down", None)
                return Cluster(
                    name=name,
                    vm_size=str(getattr(found, "size", None) or found.type),
                    min_nodes=int(getattr(found, "min_instances", None) or 0),
                    max_nodes=int(getattr(found, "max_instances", None) or 0),
                    idle_seconds=None if idle is None else int(idle),
                    tier=str(getattr(found, "tier", None) or "dedicated"),
                    identities=_identities(getattr(found, "identity", None)),
                    state=_word(found.provisioning_state),
                    problem=found.provisioning_errors,
                )
        except CallError as e:
            if e.status != _GONE:
                raise
            return None

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

    def post_batch(self, request: Mapping[str, Any]) -> RemoteBatch:
        """Ask for a job; of one that is there nothing is changed.

        Args:
            request: Arguments of `azure.ai.ml.command`; of an environment, an identity and a
                distribution, those of `Environment`, `ManagedIdentityConfiguration` and
                `PyTorchDistribution`.
        """
        from azure.ai.ml import PyTorchDistribution, command
        from azure.ai.ml.entities import Environment, ManagedIdentityConfiguration

        makers = {
            "environment": Environment,
            "identity": ManagedIdentityConfiguration,
            "distribution": PyTorchDistribution,
        }
        with self._calling() as client:
            arguments = {
                name: makers[name](**value) if name in makers and isinstance(value, dict) else value
                for name, value in request.items()
            }
            return _batch(client.jobs.create_or_update(command(**arguments)))

    def get_batch(self, batch_id: str) -> RemoteBatch:
        with self._calling() as client:
            return _batch(client.jobs.get(batch_id))

    def list_batches(self, start: int) -> tuple[list[RemoteBatch], int]:
        """Return up to `page_size` of our jobs from number `start` on, and how many are known."""
        with self._calling() as client:
            jobs = client.jobs.list(tag=ATTEMPT_TAG)
            page = list(itertools.islice(jobs, start, start + self.page_size + 1))
        # One more than asked for tells that there are more.
        return [_batch(job) for job in page[: self.page_size] if job], start + len(page)

    def find_batches(self, name: str) -> list[RemoteBatch]:
        """Return the job of a submission, if there is one."""
        try:
            return [self.get_batch(name)]
        except CallError as e:
            if e.status != _GONE:
                raise
            return []

    def delete_batch(self, batch_id: str) -> None:
        """Ask for a job to be ended."""
        with self._calling() as client:
            client.jobs.begin_cancel(batch_id, polling=False)

    def get_batch_logs(self, batch_id: str, *, size: int) -> LogTail:
        """Return all that a job has printed: the service has no pages of it.

        Of several nodes it is the end of each one's log, below the log's name.
        """
        lines: list[str] = []
        with self._calling() as client:
            files = self._details(client, batch_id).get("logFiles") or {}
            logs = sorted(filter(_LOG.fullmatch, files), key=lambda log: (len(log), log))
            share = max(1, size // max(1, len(logs)) - 1)
            for log in logs:
                own = self._get_text(files[log]).splitlines()
                lines += own if len(logs) == 1 else [f"[{log}]", *own[-share:]]
        return LogTail(lines)

    def complete(self, batch: RemoteBatch) -> RemoteBatch:
        """Return a job with its times, and why it failed."""
        with self._calling() as client:
            details = self._details(client, batch.id)
            error = (details.get("error") or {}).get("error") or {}
            return replace(
                batch,
                started=_time(details.get("startTimeUtc")),
                ended=_time(details.get("endTimeUtc")),
                errors=[{"message": error["message"], "source": ""}] if error else [],
            )

    def _details(self, client: "MLClient", name: str) -> dict[str, Any]:
        """Return what run history tells of a job, which MLClient has no public verb for."""
        subscription, group, workspace = self._scope
        if self._history_url is None:
            discovery = client.workspaces.get(workspace).discovery_url
            if not discovery:
                raise ValueError("the workspace has no discovery URL")
            self._history_url = str(self._get(discovery)["history"]).rstrip("/")
        return self._get(
            f"{self._history_url}/history/v1.0/subscriptions/{subscription}/resourceGroups/{group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{workspace}/runs/{name}/details"
        )

    def _get(self, url: str) -> dict[str, Any]:
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy
        from azure.core.rest import HttpRequest

        if self._pipeline is None:
            scope = get_cloud(self._cloud).resource_manager_scope
            self._pipeline = PipelineClient(
                base_url="", policies=[BearerTokenCredentialPolicy(self._credential, scope)]
            )
        response = self._pipeline.send_request(
            HttpRequest("GET", url),
            connection_timeout=_CONNECTION_SECONDS,
            read_timeout=_READ_SECONDS,
        )
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
            status = None if e.response is None else e.response.status_code
            pause = None if e.response is None else e.response.headers.get("Retry-After")
            # Its own text has the address.
            said = e.__class__.__name__ if status is None else f"HTTP {status}"
            error = CallError(said, status=status, retry_after=parse_retry_after(pause))
            if is_refusal(error):
                return f"[the job's log could not be read: {error}]"
            raise error from e
        return answer.content.decode(errors="replace")

    def _open(self) -> "MLClient":
        from azure.ai.ml import MLClient

        with self._lock:
            if self._client is None:
                subscription, group, workspace = self._scope
                settings: dict[str, Any] = {
                    **({"cloud": _CLOUDS[self._cloud]} if self._cloud in _CLOUDS else {}),
                    # The SDK repeats any request by itself otherwise.
                    "retry_total": 0,
                    "connection_timeout": _CONNECTION_SECONDS,
                    "read_timeout": _READ_SECONDS,
                    "enable_telemetry": False,
                    "show_progress": False,
                }
                self._client = MLClient(
                    self._credential, subscription, group, workspace, **settings
                )
            return self._client

    @contextlib.contextmanager
    def _calling(self) -> Iterator["MLClient"]:
        """Yield the SDK's client; its errors become `CallError`."""
        from azure.ai.ml.exceptions import MlException

        with translated(self._scope[2]), warnings.catch_warnings():
            # Its own, about the library that it checks its schemas with.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                client = self._open()
            except MlException as e:
                # It asked for a cloud of one's own, and had no answer.
                raise CallError(str(e).strip(), was_sent=False) from e
            try:
                yield client
            except MlException as e:
                # It found the request wrong, and did not send it.
                raise CallError(str(e).strip(), status=_BAD_REQUEST, was_sent=False) from e


def _import_sdk() -> None:
    """Import azure-ai-ml without what it says of itself, to nobody who could do anything."""
    from azure.core.exceptions import AzureError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import azure.ai.ml  # noqa: F401
    except AzureError as e:
        # It asks for a cloud of one's own while it is imported.
        raise ConfigurationError(
            f"azure-ai-ml could not ask for the cloud that AZUREML_CURRENT_CLOUD names: {e} Look "
            "whether what ARM_CLOUD_METADATA_URL names is there; `make services` starts the "
            "stand-in."
        ) from e
    # It has set the level itself, and writes to stderr.
    logging.getLogger(_CHATTY).setLevel(logging.ERROR)


def _batch(job: Any) -> RemoteBatch:
    links = {"azureml_studio": job.studio_url} if job.studio_url else {}
    return RemoteBatch(id=job.name, state=_word(job.status), name=job.name, links=links)


def _word(value: Any) -> str:
    """Return the text of an enumeration's value."""
    return str(getattr(value, "value", value))


def _identities(identity: Any) -> tuple[str, ...]:
    if identity is None:
        return ()
    own = [found.resource_id for found in identity.user_assigned_identities or ()]
    return (*(["SystemAssigned"] if "system" in str(identity.type).lower() else []), *own)


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    # Python 3.10 reads neither a 'Z' nor other than six digits.
    seconds, _, digits = text.rstrip("Z").partition("+")[0].partition(".")
    return datetime.fromisoformat(f"{seconds}.{digits[:6]:0<6}+00:00")
