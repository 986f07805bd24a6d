"""Spark pools: a Synapse Spark pool, or any cluster behind Apache Livy."""

import functools
import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal
from urllib.parse import quote, urlencode

import dagster as dg
from pydantic import Field

from synapse_assets.compute.batch import Submission
from synapse_assets.compute.bundle import LAUNCHER, upload_once
from synapse_assets.compute.client import BatchClient, RemoteBatch
from synapse_assets.compute.explanations import Explanation, explain
from synapse_assets.compute.login import login_to
from synapse_assets.compute.options import asked
from synapse_assets.compute.remote import RemoteTarget, describe_batch
from synapse_assets.compute.spark.livy import HttpLivyClient
from synapse_assets.compute.spark.options import SparkOptions
from synapse_assets.compute.spark.sizing import check_size, count_vcores
from synapse_assets.compute.spark.synapse import SynapseClient
from synapse_assets.compute.spark.vcores import holding_vcores
from synapse_assets.datastore.clouds import get_cloud
from synapse_assets.datastore.credentials import Credential, DefaultChain

# What the datasets need of every session.
_CONF = {
    "spark.sql.session.timeZone": "UTC",
    # A second driver would find the claim of the first, and do its work again.
    "spark.yarn.maxAppAttempts": "1",
}

# One client for all steps of a process: it keeps its connections, and its tokens.
_livy_client = functools.lru_cache(maxsize=16)(HttpLivyClient)
_synapse_client = functools.lru_cache(maxsize=16)(SynapseClient)


class SparkPool(RemoteTarget):
    """What all pools have in common: sizes, and what a batch is sent with."""

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

    @property
    @abstractmethod
    def vcore_pool(self) -> str:
        """Name of the Dagster pool that counts the pool's vCores."""

    def asked(self, options: dg.Config | None = None) -> SparkOptions:
        own = self.options.over(self.default_options)
        return asked(options, own, of="A Spark pool")

    def check(self, options: SparkOptions) -> None:
        options.check()

    def explain(self, text: str) -> Explanation | None:
        return explain(text)

    def capacity(
        self, context: dg.AssetExecutionContext, options: SparkOptions
    ) -> AbstractContextManager[None]:
        """Return what holds the batch's vCores, where there is a limit to them."""
        if self.vcore_limit is None:
            return nullcontext()
        return holding_vcores(
            context.instance,
            self.vcore_pool,
            vcores=count_vcores(options),
            limit=self.vcore_limit,
            run_id=context.run.run_id,
            step=context.get_step_execution_context().step.key,
            say=context.log.info,
        )

    def surroundings(self, options: SparkOptions) -> Mapping[str, Any]:
        """Return what the batch asks of the pool: with other options it is other work."""
        wheels = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in options.wheels()]
        return {"request": options.to_request(conf=_CONF), "wheels": wheels}

    def upload_extras(self, options: SparkOptions) -> Sequence[str]:
        """Store the launcher and the wheels, once per content."""
        return [
            upload_once(self.datastore, LAUNCHER.encode(), suffix=".py"),
            *(
                # Spark adds what ends with .zip to the path of drivers and executors.
                upload_once(self.datastore, wheel.read_bytes(), suffix=".zip")
                for wheel in options.wheels()
            ),
        ]

    def request(self, submission: Submission, options: SparkOptions) -> Mapping[str, Any]:
        """Return the request of a batch, in Livy's words."""
        launcher, *code = (
            # The cluster's default file system may be another.
            f"file://{uri}" if uri.startswith("/") else uri
            for uri in (submission.extras[0], submission.bundle, *submission.extras[1:])
        )
        name = submission.name if options.name is None else f"{options.name}-{submission.name}"
        return {
            **options.to_request(conf=_CONF, py_files=code, args=[submission.job_file]),
            "name": name,
            "file": launcher,
            "tags": {"synapse_assets_attempt": submission.attempt},
        }

    def describe(self, batch: RemoteBatch, options: SparkOptions) -> Mapping[str, Any]:
        """Return metadata about a batch: links, what it used and what it cost.

        Synapse bills the nodes of a pool from their start until they idle out: what a batch took
        is a part of that, and the rest is no one batch's.
        """
        size = {"vcores": count_vcores(options)}
        return describe_batch(batch, size, price=self.price_per_vcore_hour)


class SynapseSparkPool(SparkPool):
    """An Apache Spark pool of an Azure Synapse workspace.

    A batch runs as the workspace's managed identity, which needs the role 'Storage Blob Data
    Contributor' on the datastore's account. `credential` is who submits it: 'Synapse Compute
    Operator' on the pool, or 'Synapse Apache Spark Administrator'.
    """

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
        return f"The Spark pool {self.pool} of {self.endpoint}"

    @property
    def vcore_pool(self) -> str:
        return f"{self.pool}_vcores"

    def client(self) -> BatchClient:
        cloud = get_cloud(self.cloud)
        login = login_to(self.place, credential=self.credential, cloud=cloud)
        return _synapse_client(
            self.endpoint, self.pool, credential=login, scope=cloud.synapse_scope
        )

    def check(self, options: SparkOptions) -> None:
        options.check()
        if self.node_size is not None:
            check_size(options, self.node_size, self.max_nodes)

    def describe(self, batch: RemoteBatch, options: SparkOptions) -> Mapping[str, Any]:
        """Return metadata about a batch, with a link to Synapse Studio's monitor."""
        metadata = dict(super().describe(batch, options))
        if self.subscription_id is not None and self.resource_group is not None:
            workspace = (
                f"/subscriptions/{self.subscription_id}/resourceGroups/{self.resource_group}"
                f"/providers/Microsoft.Synapse/workspaces/{self.workspace}"
            )
            query = {"workspace": workspace, "livyId": batch.id, "sparkPoolName": self.pool}
            metadata["synapse_studio"] = dg.MetadataValue.url(
                f"https://web.azuresynapse.net/en/monitoring/sparkapplication/"
                f"{quote(batch.name or batch.id)}?{urlencode(query)}"
            )
        return metadata


class LivySparkPool(SparkPool):
    """A Spark cluster behind Apache Livy: HDInsight, or one's own.

    The cluster has to reach the datastore with a login of its own.
    """

    url: str = Field(description="Where Livy answers, for example 'http://host:8998'.")
    user: str | None = Field(default=None, description="User, where Livy asks for one.")
    password: str | None = Field(
        default=None, repr=False, description="Password, as an environment variable (EnvVar)."
    )

    @property
    def place(self) -> str:
        return f"Livy at {self.url}"

    @property
    def vcore_pool(self) -> str:
        return "livy_vcores"

    def client(self) -> BatchClient:
        login = None if self.user is None else (self.user, self.password or "")
        return _livy_client(self.url, login=login)
