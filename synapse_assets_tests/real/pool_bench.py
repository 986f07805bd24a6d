"""One step on a Spark pool, with its service behind a proxy that breaks."""

import contextlib
import itertools
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from synapse_assets.compute.attempt import submit, wait
from synapse_assets.compute.batch import Batch as PoolBatch
from synapse_assets.compute.batch import Submission
from synapse_assets.compute.spark.pool import LivySparkPool, SparkPool, SynapseSparkPool
from synapse_assets.datasets.slot import Slot
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ComputeError
from synapse_assets.services import SynapseEmulator
from synapse_assets.services.process import HOST
from synapse_assets_tests.real.fake_livy import Batch, FakeLivy, Plan
from synapse_assets_tests.real.fault_proxy import FaultProxy, Request

CLIENTS = ("livy", "synapse")
# How a step ended, as it stands in the tables of the matrices.
SHORT = {
    "green": "green",
    "StepFailedError": "failed",
    "StepTimeoutError": "timeout",
    "ServiceUnavailableError": "unavailable",
}


def is_told(message: str) -> bool:
    """Tell whether an error says that something may still run."""
    return "may still run" in message or "If it has, end it" in message


@dataclass
class Outcome:
    """What came of one step.

    Attributes:
        ended: 'green', or the name of our error.
        message: What that says.
        posted: How many batches the service made.
        ran: How many of them did the work.
        left: How many still ran when the step had ended.
        has_manifest: Whether the proof is there in the end.
        was_hit: Whether the fault happened at all.
        seconds: How long it took.
        came_back_after: How long after a 429 the service was asked again, in seconds.
    """

    ended: str
    message: str = ""
    posted: int = 0
    ran: int = 0
    left: int = 0
    has_manifest: bool = False
    was_hit: bool = True
    seconds: float = 0.0
    came_back_after: float | None = None

    @property
    def is_told(self) -> bool:
        """Whether the message says that something may still run."""
        return is_told(self.message)

    def __str__(self) -> str:
        """Return it as it stands in the table."""
        left = f"+{self.left}" if self.left else ""
        return f"{SHORT[self.ended]}{left}{' (told)' if left and self.is_told else ''}"


@dataclass
class Try:
    """One step that is tried.

    Attributes:
        key: Its attempt.
        client: Which client.
        proxy: Between client and service.
        plan: What the batch does.
        pool: The resource.
        batch: The batch of its submission.
    """

    key: str
    client: str
    proxy: FaultProxy
    plan: Plan
    pool: SparkPool
    batch: PoolBatch
    fake: FakeLivy

    @property
    def batches(self) -> list[Batch]:
        return self.fake.batches_of(self.key)

    def new_submission(self) -> Submission:
        """Return another submission of the attempt."""
        return new_submission(self.pool.datastore, self.key)

    def job_of(self, submission: Submission) -> dict[str, Any]:
        """Return the job file that goes with a submission."""
        target = Slot("numbers").fresh_target(submission.datastore, attempt=self.key)
        return {
            "attempt": self.key,
            "step": {
                "module": "synapse_assets_tests.example_steps.plain",
                "function": "make_rows",
                "parameters": {},
            },
            "engine": "spark",
            "inputs": {},
            "outputs": {"numbers": asdict(target)},
            **submission.locations(),
            "pipes": {},
        }

    def run(self) -> dict[str, Any]:
        """Submit and wait, as `ComputeTarget.run` does."""
        handler: Any = None  # no message comes
        with self.batch.message_reader().read_messages(handler):
            try:
                submit(self.batch, self.job_of(self.batch.submission))
            except BaseException:
                if self.batch.id:
                    self.batch.cancel()
                raise
            return wait(self.batch, limits=self.pool.limits(), say=lambda _: None)

    def outcome(self) -> Outcome:
        """Run it and look at what came of it."""
        started = time.monotonic()
        try:
            manifest = self.run()
        except ComputeError as e:
            outcome = Outcome(type(e).__name__, str(e))
        else:
            outcome = Outcome("green")
            assert manifest["attempt"] == self.key
            assert manifest["outputs"]["numbers"]["rows"] == 3
        outcome.seconds = time.monotonic() - started
        # A driver that has written its manifest has a few things left to do.
        deadline = time.monotonic() + 0.3
        while any(batch.runs for batch in self.batches) and time.monotonic() < deadline:
            time.sleep(0.01)
        outcome.left = sum(batch.runs for batch in self.batches)
        outcome.posted = len(self.batches)
        outcome.ran = sum(batch.is_claimed for batch in self.batches)
        outcome.has_manifest = self.batch.submission.manifest() is not None
        for batch in self.batches:
            batch.killed.set()
        return outcome


def new_submission(datastore: Datastore, key: str) -> Submission:
    return Submission.new(
        datastore, key, fingerprint="f", bundle="no bundle", extras=["no launcher"], run_id="run"
    )


@dataclass
class Bench:
    """The services behind the proxies of all cells."""

    fake: FakeLivy
    emulator: SynapseEmulator
    folder: Path
    pools: Iterator[str] = field(default_factory=lambda: map("spark{}".format, itertools.count()))

    @contextlib.contextmanager
    def step(
        self,
        client: str,
        plan: Plan,
        *,
        timeout: float = 60.0,
        patience: float = 20.0,
        datastore: Datastore | None = None,
    ) -> Iterator[Try]:
        """Yield a step of a pool of its own."""
        key = f"step-{uuid.uuid4().hex[:16]}"
        self.fake.plan(key, plan)
        datastore = datastore or Datastore(root=str(self.folder / key))
        port = self.fake.port if client == "livy" else self.emulator.port
        with FaultProxy(port=port) as proxy:
            settings: dict[str, Any] = {
                "datastore": datastore,
                "timeout_seconds": timeout,
                "queued_timeout_seconds": patience,
                "starting_timeout_seconds": 20.0,
                "ending_timeout_seconds": patience,
                "unreachable_timeout_seconds": patience,
            }
            url = f"http://{HOST}:{proxy.port}"
            pool: SparkPool = (
                LivySparkPool(url=url, **settings)
                if client == "livy"
                else SynapseSparkPool(
                    workspace=url, pool=next(self.pools), cloud="emulator", **settings
                )
            )
            batch = pool.batch(new_submission(datastore, key), pool.asked())
            yield Try(key, client, proxy, plan, pool, batch, self.fake)


def is_list(request: Request) -> bool:
    return request.method == "GET" and request.path.endswith("/batches")


def is_get(request: Request) -> bool:
    return request.method == "GET" and request.path.rpartition("/")[2].isdecimal()


def is_log(request: Request) -> bool:
    return request.path.endswith("/log")
