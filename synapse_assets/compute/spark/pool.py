"""Spark pools: a Synapse Spark pool, or any cluster behind Apache Livy."""

import functools
import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal
from urllib.parse import quote, urlencode

import dagster as dg
from pydantic import ConfigDict, Field

from synapse_assets.compute.batch import BatchService, BatchState, Submission
from synapse_assets.compute.bundle import LAUNCHER, upload_once
from synapse_assets.compute.login import login_to
from synapse_assets.compute.spark.batches import LivyBatches
from synapse_assets.compute.spark.livy import HttpLivyClient, LivyBatch, LivyClient
from synapse_assets.compute.spark.options import SparkOptions
from synapse_assets.compute.spark.sizing import (
    check_size,
    cost,
    count_vcores,
    vcore_seconds,
)
from synapse_assets.compute.spark.synapse import SynapseClient
from synapse_assets.compute.spark.vcores import holding_vcores
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.credentials import Credential, DefaultChain
from synapse_assets.errors import ConfigurationError

# What the datasets need of every session.
_CONF = {
    "spark.sql.session.timeZone": "UTC",
    # A second driver would find the claim of the first, and do its work again.
    "spark.yarn.maxAppAttempts": "1",
}
_DAY = 24 * 60 * 60.0


class SparkPool(ComputeTarget):
    """What all pools have in common: sizes, limits, and the life of a batch."""

    engine: ClassVar[Literal["spark", "python"]] = "spark"

    # What a batch asks for where nobody says anything.
    default_options: ClassVar[SparkOptions] = SparkOptions()

    options: SparkOptions = Field(
        default=SparkOptions(),
        description="What every batch asks of the pool; a step's own options go before these.",
    )
    price_per_vcore_hour: float | None = Field(
        default=None, ge=0, description="What a vCore costs in an hour, in any currency."
    )
    vcore_limit: int | None = Field(
        default=None,
        ge=1,
        description="How many vCores all batches of this Dagster instance may hold at once; others "
        "wait.",
    )
    queued_timeout_seconds: float = Field(
        default=_DAY, gt=0, description="How long a batch may wait for its turn, in seconds."
    )
    starting_timeout_seconds: float = Field(
        default=30 * 60.0, gt=0, description="How long a batch may take to start, in seconds."
    )
    ending_timeout_seconds: float = Field(
        default=5 * 60.0, gt=0, description="How long a batch may take to end, in seconds."
    )
    unreachable_timeout_seconds: float = Field(
        default=10 * 60.0,
        gt=0,
        description="How long the service may be out of reach while a batch runs, in seconds.",
    )
    orphaned_timeout_seconds: float = Field(
        default=15 * 60.0,
        ge=0,
        description="How long a batch may go on without a run before the sweeper cancels it, in "
        "seconds: so long a re-execution can adopt it.",
    )

    @abstractmethod
    def client(self) -> LivyClient:
        """Return the client of the service."""

    @property
    @abstractmethod
    def place(self) -> str:
        """What messages call the pool."""

    def links(self, batch: LivyBatch) -> Mapping[str, str]:
        """Return pages about a batch, by the name of the metadata that shows them."""
        names = {"sparkUiUrl": "spark_ui", "driverLogUrl": "driver_log"}
        return {names[name]: url for name, url in batch.links.items() if name in names}

    def check(self, options: SparkOptions) -> None:
        """Raise a ConfigurationError if the pool cannot run a batch of these options."""
        options.check()

    @property
    @abstractmethod
    def vcore_pool(self) -> str:
        """Name of the Dagster pool that counts the pool's vCores."""

    def capacity(
        self, context: dg.AssetExecutionContext, options: dg.Config | None
    ) -> AbstractContextManager[None]:
        """Return what holds the batch's vCores, where there is a limit to them."""
        if self.vcore_limit is None:
            return nullcontext()
        vcores = count_vcores(self.asked(options))
        return holding_vcores(
            context.instance,
            self.vcore_pool,
            vcores=vcores,
            limit=self.vcore_limit,
            run_id=context.run.run_id,
            step=context.get_step_execution_context().step.key,
            say=context.log.info,
        )

    def limits(self) -> dict[BatchState, float]:
        """Return how long a batch may be in each of its states, in seconds."""
        return {
            BatchState.QUEUED: self.queued_timeout_seconds,
            BatchState.STARTING: self.starting_timeout_seconds,
            BatchState.RUNNING: self.timeout_seconds,
            BatchState.ENDING: self.ending_timeout_seconds,
        }

    def surroundings(self, options: dg.Config | None) -> Mapping[str, Any]:
        """Return what the batch asks of the pool: with other options it is other work."""
        merged = self.asked(options)
        wheels = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in merged.wheels()]
        return {"request": merged.to_request(conf=_CONF), "wheels": wheels}

    def batch_service(self, options: dg.Config | None) -> BatchService:
        """Return the pool's verbs.

        Raises:
            ConfigurationError: The pool cannot run a batch of these options.
        """
        merged = self.asked(options)
        self.check(merged)
        return LivyBatches(
            self.client(),
            self.datastore.storage(),
            make_request=functools.partial(self._request, options=merged),
            describe=functools.partial(self._describe, options=merged),
            place=self.place,
            patience=self.unreachable_timeout_seconds,
            submit_limit=self.queued_timeout_seconds,
            cancel_limit=self.ending_timeout_seconds,
        )

    def asked(self, options: dg.Config | None = None) -> SparkOptions:
        """Return what a batch asks of the pool in all.

        Raises:
            ConfigurationError: The options are not those of Spark.
        """
        own = self.options.over(self.default_options)
        if options is None:
            return own
        if not isinstance(options, SparkOptions):
            raise ConfigurationError(
                f"A Spark pool takes SparkOptions, and a step gives it {type(options).__name__}."
            )
        return options.over(own)

    def upload_extras(self, options: dg.Config | None) -> Sequence[str]:
        """Store the launcher and the wheels, once per content."""
        return [
            upload_once(self.datastore, LAUNCHER.encode(), suffix=".py"),
            *(
                # Spark adds what ends with .zip to the path of drivers and executors.
                upload_once(self.datastore, wheel.read_bytes(), suffix=".zip")
                for wheel in self.asked(options).wheels()
            ),
        ]

    def _request(self, submission: Submission, *, options: SparkOptions) -> dict[str, Any]:
        """Return the request of a batch."""
        launcher, *wheels = submission.extras
        request = options.to_request(
            conf=_CONF,
            py_files=[self._cluster_uri(uri) for uri in (submission.bundle, *wheels)],
            args=[submission.job_file],
        )
        name = submission.name if options.name is None else f"{options.name}-{submission.name}"
        return {
            **request,
            "name": name,
            "file": self._cluster_uri(launcher),
            "tags": {"synapse_assets_attempt": submission.attempt},
        }

    def _cluster_uri(self, uri: str) -> str:
        """Return a location as the cluster names it: its default file system may be another."""
        return f"file://{uri}" if uri.startswith("/") else uri

    def _describe(self, batch: LivyBatch, *, options: SparkOptions) -> dict[str, Any]:
        vcores = count_vcores(options)
        metadata: dict[str, Any] = {
            "batch": dg.MetadataValue.text(batch.id),
            "vcores": dg.MetadataValue.int(vcores),
            **{name: dg.MetadataValue.url(url) for name, url in self.links(batch).items()},
        }
        if batch.application_id:
            metadata["application_id"] = dg.MetadataValue.text(batch.application_id)
        seconds = _held_seconds(batch)
        if seconds is not None:
            used = vcore_seconds(vcores, seconds)
            metadata["vcore_seconds"] = dg.MetadataValue.float(round(used, 1))
            if self.price_per_vcore_hour is not None:
                price = cost(used, self.price_per_vcore_hour)
                metadata["cost"] = dg.MetadataValue.float(round(price, 6))
        return metadata


class SynapseSparkPool(SparkPool):
    """An Apache Spark pool of an Azure Synapse workspace.

    A batch runs as the workspace's managed identity, which needs the role 'Storage Blob Data
    Contributor' on the datastore's account. `credential` is who submits it: 'Synapse Compute
    Operator' on the pool, or 'Synapse Apache Spark Administrator'.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    # The service demands a size. This one is the how-to's, and fits on the smallest nodes.
    default_options: ClassVar[SparkOptions] = SparkOptions(
        driver_memory="7g",
        driver_cores=4,
        executor_memory="7g",
        executor_cores=4,
        num_executors=1,
    )

    workspace: str = Field(
        description="Name of the Synapse workspace, or its development endpoint "
        "('https://name.dev.azuresynapse.net')."
    )
    pool: str = Field(description="Name of the Spark pool, for example 'spark01'.")
    cloud: str = Field(
        default="public",
        description="Cloud of the workspace: 'public', 'us-government', 'china' or 'emulator'.",
    )
    credential: Credential = Field(
        default=DefaultChain(), discriminator="kind", description="How to log in to the workspace."
    )
    node_size: str | None = Field(
        default=None,
        description="Size of the pool's nodes, 'Small' to 'XXXLarge', to check options by before "
        "they are sent.",
    )
    max_nodes: int | None = Field(
        default=None, ge=1, description="How many nodes the pool may have, to check options by."
    )

    subscription_id: str | None = Field(
        default=None, description="Subscription of the workspace, for links to Synapse Studio."
    )
    resource_group: str | None = Field(
        default=None, description="Resource group of the workspace, for links to Synapse Studio."
    )

    @property
    def endpoint(self) -> str:
        """The workspace's development endpoint."""
        if "://" in self.workspace:
            return self.workspace
        return f"https://{self.workspace}.{get_cloud(self.cloud).synapse_suffix}"

    @property
    def place(self) -> str:
        """What messages call the pool."""
        return f"The Spark pool {self.pool} of {self.endpoint}"

    @property
    def vcore_pool(self) -> str:
        """Name of the Dagster pool that counts the pool's vCores."""
        return f"{self.pool}_vcores"

    def client(self) -> LivyClient:
        """Return the client of the pool.

        Raises:
            ConfigurationError: The credential is no identity.
        """
        cloud = get_cloud(self.cloud)
        login = login_to(self.place, credential=self.credential, cloud=cloud)
        return _synapse_client(self.endpoint, self.pool, login, cloud.synapse_scope)

    def check(self, options: SparkOptions) -> None:
        """Raise a ConfigurationError if the pool cannot run a batch of these options."""
        options.check()
        if self.node_size is not None:
            check_size(options, self.node_size, self.max_nodes)

    def links(self, batch: LivyBatch) -> Mapping[str, str]:
        """Return pages about a batch, Synapse Studio's monitor among them."""
        links = dict(super().links(batch))
        if self.subscription_id is not None and self.resource_group is not None:
            workspace = (
                f"/subscriptions/{self.subscription_id}/resourceGroups/{self.resource_group}"
                f"/providers/Microsoft.Synapse/workspaces/{self.workspace}"
            )
            query = {"workspace": workspace, "livyId": batch.id, "sparkPoolName": self.pool}
            links["synapse_studio"] = (
                f"https://web.azuresynapse.net/en/monitoring/sparkapplication/"
                f"{quote(batch.name or batch.id)}?{urlencode(query)}"
            )
        return links


class LivySparkPool(SparkPool):
    """A Spark cluster behind Apache Livy: HDInsight, or one's own.

    The cluster has to reach the datastore with a login of its own.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    url: str = Field(description="Where Livy answers, for example 'http://host:8998'.")
    user: str | None = Field(default=None, description="User, where Livy asks for one.")
    password: str | None = Field(
        default=None, repr=False, description="Password, as an environment variable (EnvVar)."
    )

    @property
    def place(self) -> str:
        """What messages call the pool."""
        return f"Livy at {self.url}"

    @property
    def vcore_pool(self) -> str:
        """Name of the Dagster pool that counts the cluster's vCores."""
        return "livy_vcores"

    def client(self) -> LivyClient:
        """Return the client of the server."""
        return _livy_client(self.url, self.user, self.password)


# One client for all steps of a process: it keeps its connections, and its tokens.
@functools.lru_cache(maxsize=16)
def _synapse_client(endpoint: str, pool: str, credential: Any, scope: str) -> LivyClient:
    return SynapseClient(endpoint, pool, credential=credential, scope=scope)


@functools.lru_cache(maxsize=16)
def _livy_client(url: str, user: str | None, password: str | None) -> LivyClient:
    return HttpLivyClient(url, login=None if user is None else (user, password or ""))


def _held_seconds(batch: LivyBatch) -> float | None:
    """Return how long a batch held its vCores, None where the service does not tell."""
    ends = [
        batch.times[name] for name in ("successAt", "deadAt", "killedAt") if name in batch.times
    ]
    start = batch.times.get("startingAt") or batch.times.get("runningAt")
    if start is None or not ends:
        return None
    return (max(ends) - start).total_seconds()
