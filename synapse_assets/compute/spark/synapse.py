"""An Apache Spark pool of Azure Synapse, through azure-synapse-spark.

Sources: azure-synapse-spark 0.7.0, Livy API version 2019-11-01-preview
(https://learn.microsoft.com/rest/api/synapse/data-plane/spark-batch).
"""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from synapse_assets.compute.calls import CallError, parse_retry_after
from synapse_assets.compute.spark.livy import LivyBatch, LivyClient, LogPage

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential
    from azure.core.exceptions import HttpResponseError
    from azure.synapse.spark import SparkClient

_TIMEOUTS = {"connection_timeout": 10, "read_timeout": 60}
_TIMES = {
    "not_started_at": "notStartedAt",
    "starting_at": "startingAt",
    "running_at": "runningAt",
    "dead_at": "deadAt",
    "success_at": "successAt",
    "terminated_at": "killedAt",
    "recovering_at": "recoveringAt",
}
_UNAUTHORIZED = 401


class _Login:
    """A credential whose errors are told from those of the service, which was not asked then."""

    def __init__(self, credential: "TokenCredential") -> None:
        self._credential = credential

    def get_token(self, *scopes: str, **options: Any) -> "AccessToken":
        from azure.core.exceptions import AzureError, ClientAuthenticationError

        try:
            return self._credential.get_token(*scopes, **options)
        except AzureError as e:
            is_refused = isinstance(e, ClientAuthenticationError)
            raise CallError(
                f"There is no token for the service: {e}",
                status=_UNAUTHORIZED if is_refused else None,
                was_sent=False,
            ) from e


class SynapseClient(LivyClient):
    """One Spark pool of a Synapse workspace."""

    # The most that the service gives at once.
    page_size = 20
    # A cancelled batch ends later, and stays in the list.
    forgets_deleted = False

    def __init__(
        self, endpoint: str, pool: str, *, credential: "TokenCredential", scope: str
    ) -> None:
        """Create the client; nothing is contacted.

        Args:
            endpoint: The workspace's development endpoint, 'https://<name>.dev.azuresynapse.net'.
            pool: Name of the Spark pool.
            credential: Gives the tokens.
            scope: Scope of a token for the endpoint.
        """
        self._endpoint = endpoint.rstrip("/")
        self._pool = pool
        self._login = _Login(credential)
        self._scope = scope
        self._lock = threading.Lock()
        self._client: SparkClient | None = None

    def post_batch(self, request: Mapping[str, Any]) -> LivyBatch:
        """Ask for a batch."""
        from azure.synapse.spark.models import SparkBatchJobOptions

        options: Any = SparkBatchJobOptions.from_dict(dict(request))  # type: ignore[no-untyped-call]
        with self._calling() as (client, arguments):
            job = client.spark_batch.create_spark_batch_job(options, detailed=True, **arguments)
            return _batch(job)

    def get_batch(self, batch_id: str) -> LivyBatch:
        """Return a batch."""
        with self._calling() as (client, arguments):
            job = client.spark_batch.get_spark_batch_job(int(batch_id), detailed=True, **arguments)
            return _batch(job)

    def list_batches(self, start: int) -> tuple[list[LivyBatch], int]:
        """Return up to `page_size` batches from number `start` on, and how many there are."""
        with self._calling() as (client, arguments):
            page = client.spark_batch.get_spark_batch_jobs(
                from_parameter=start, size=self.page_size, detailed=True, **arguments
            )
            return [_batch(job) for job in page.sessions or ()], int(page.total or 0)

    def delete_batch(self, batch_id: str) -> None:
        """Cancel a batch."""
        with self._calling() as (client, arguments):
            client.spark_batch.cancel_spark_batch_job(int(batch_id), **arguments)

    def get_batch_logs(self, batch_id: str, *, start: int, size: int) -> LogPage:
        """Return the end of the log; the service has no pages of it."""
        return LogPage(self.get_batch(batch_id).log[-size:])

    @contextlib.contextmanager
    def _calling(self) -> Iterator[tuple["SparkClient", dict[str, Any]]]:
        """Yield the SDK's client and arguments for each call; errors become `CallError`."""
        from azure.core.exceptions import AzureError, HttpResponseError, ServiceRequestError
        from msrest.exceptions import ClientException

        try:
            # The SDK repeats any request on 500, 503 and 504, the one that starts a batch too.
            yield self._open(), {"retry_total": 0, **_TIMEOUTS, **self._transport()}
        except HttpResponseError as e:
            if e.response is None:
                # The answer broke off.
                raise CallError(f"{self._endpoint} could not be asked: {e.message}") from e
            if e.status_code == _UNAUTHORIZED:
                # Its token is in the client: the next call asks for a new one.
                with self._lock:
                    self._client = None
            headers: Mapping[str, str] = getattr(e.response, "headers", None) or {}
            raise CallError(
                f"HTTP {e.status_code} {e.reason}: {_said(e)}",
                status=e.status_code,
                retry_after=parse_retry_after(headers.get("Retry-After")),
            ) from e
        except (AzureError, ClientException) as e:
            raise CallError(
                f"{self._endpoint} could not be asked: {e}",
                was_sent=not isinstance(e, ServiceRequestError),
            ) from e
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise CallError(f"{self._endpoint} answered what is not Synapse's: {e!r}") from e

    def _open(self) -> "SparkClient":
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy
        from azure.synapse.spark import SparkClient

        with self._lock:
            if self._client is None:
                self._client = SparkClient(
                    self._login,
                    self._endpoint,
                    self._pool,
                    authentication_policy=BearerTokenCredentialPolicy(self._login, self._scope),
                )
            return self._client

    def _transport(self) -> dict[str, Any]:
        """Return what lets a token go to an emulator on this machine, which has no https."""
        return {"enforce_https": False} if self._endpoint.startswith("http://127.") else {}


def _said(error: "HttpResponseError") -> str:
    """Return the service's own sentence."""
    response: Any = error.response
    text = response.body().decode(errors="replace").strip()
    try:
        answer = json.loads(text)
    except ValueError:
        return text.partition("\n")[0] or error.message
    if not isinstance(answer, dict):
        return str(answer)
    inner = answer["error"] if isinstance(answer.get("error"), dict) else answer
    return str(inner.get("message") or inner.get("Message") or inner.get("msg") or answer)


def _batch(job: Any) -> LivyBatch:
    if job.id is None or job.state is None:
        raise ValueError(f"the answer names no batch: {job.as_dict()}")
    info = job.livy_info
    return LivyBatch(
        id=str(job.id),
        state=job.state,
        name=job.name,
        result=job.result,
        application_id=job.app_id,
        links={name: url for name, url in (job.app_info or {}).items() if url},
        log=job.log_lines or (),
        errors=[
            {"message": e.message or "", "errorCode": e.error_code or "", "source": e.source or ""}
            for e in job.errors or ()
        ],
        times={
            name: getattr(info, attribute)
            for attribute, name in _TIMES.items()
            if info is not None and getattr(info, attribute) is not None
        },
    )
