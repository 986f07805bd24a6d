"""An Apache Spark pool of Azure Synapse, through azure-synapse-spark.

Sources: azure-synapse-spark 0.7.0, Livy API version 2019-11-01-preview
(https://learn.microsoft.com/rest/api/synapse/data-plane/spark-batch).
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from synapse_assets.compute.calls import CallError, translated
from synapse_assets.compute.client import BatchClient, LogTail, RemoteBatch
from synapse_assets.compute.spark.livy import links_of

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

# The SDK repeats any request on 500, 503 and 504, the one that starts a batch too.
_ARGUMENTS = {"retry_total": 0, "connection_timeout": 10, "read_timeout": 60}
_UNAUTHORIZED = 401


class SynapseClient(BatchClient):
    """One Spark pool of a Synapse workspace."""

    # The most that the service gives at once.
    page_size = 20

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
        self._credential = credential
        self._scope = scope
        # A token may go to an emulator on this machine, which has no https.
        is_local = self._endpoint.startswith("http://127.")
        self._arguments = {**_ARGUMENTS, **({"enforce_https": False} if is_local else {})}

    def post_batch(self, request: Mapping[str, Any]) -> RemoteBatch:
        from azure.synapse.spark.models import SparkBatchJobOptions

        options: Any = SparkBatchJobOptions.from_dict(dict(request))  # type: ignore[no-untyped-call]
        with self._calling() as (batches, arguments):
            return _batch(batches.create_spark_batch_job(options, detailed=True, **arguments))

    def get_batch(self, batch_id: str) -> RemoteBatch:
        with self._calling() as (batches, arguments):
            return _batch(batches.get_spark_batch_job(int(batch_id), detailed=True, **arguments))

    def list_batches(self, start: int) -> tuple[list[RemoteBatch], int]:
        with self._calling() as (batches, arguments):
            page = batches.get_spark_batch_jobs(
                from_parameter=start, size=self.page_size, detailed=True, **arguments
            )
            return [_batch(job) for job in page.sessions or ()], int(page.total or 0)

    def delete_batch(self, batch_id: str) -> None:
        """Cancel a batch, which ends later and stays in the list."""
        with self._calling() as (batches, arguments):
            batches.cancel_spark_batch_job(int(batch_id), **arguments)

    def get_batch_logs(self, batch_id: str, *, size: int) -> LogTail:
        """Return the end of the log, as it comes with the batch."""
        return LogTail(self.get_batch(batch_id).log)

    @contextlib.contextmanager
    def _calling(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield the SDK's operations and arguments for each call; errors become `CallError`."""
        try:
            with translated(self._endpoint):
                yield self._operations, self._arguments
        except CallError as e:
            if e.status == _UNAUTHORIZED:
                # Its token is in the client: the next call makes another one.
                vars(self).pop("_operations", None)
            raise

    @functools.cached_property
    def _operations(self) -> Any:
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy
        from azure.synapse.spark import SparkClient

        policy = BearerTokenCredentialPolicy(self._credential, self._scope)
        client = SparkClient(
            self._credential, self._endpoint, self._pool, authentication_policy=policy
        )
        return client.spark_batch


def _batch(job: Any) -> RemoteBatch:
    if job.id is None or job.state is None:
        raise ValueError(f"the answer names no batch: {job.as_dict()}")
    info = job.livy_info
    ends = [getattr(info, name, None) for name in ("success_at", "dead_at", "terminated_at")]
    return RemoteBatch(
        id=str(job.id),
        state=job.state,
        name=job.name,
        result=job.result,
        application_id=job.app_id,
        links=links_of(job.app_info),
        log=job.log_lines or (),
        errors=[
            {"message": e.message or "", "errorCode": e.error_code or "", "source": e.source or ""}
            for e in job.errors or ()
        ],
        started=getattr(info, "starting_at", None) or getattr(info, "running_at", None),
        ended=max(filter(None, ends), default=None),
    )
