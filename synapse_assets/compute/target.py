"""The compute target: what an asset's code calls to run a step."""

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from importlib import import_module
from typing import Any, ClassVar, Literal

import dagster as dg
from pydantic import Field

from synapse_assets.compute.attempt import adopt, cancel, submit, wait
from synapse_assets.compute.batch import Batch, BatchState, Submission
from synapse_assets.compute.completed import CompletedStep, complete
from synapse_assets.compute.step import Step
from synapse_assets.datasets.attempt import attempt_key
from synapse_assets.datasets.slot import Slot, only_partition
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore

_DEFAULT_TIMEOUT_SECONDS = 6 * 60 * 60.0


class ComputeTarget(dg.ConfigurableResource["ComputeTarget"], ABC):
    """A place where steps run. Every target keeps the promises of docs/compute.md."""

    engine: ClassVar[Literal["spark", "python"]]

    datastore: dg.ResourceDependency[Datastore]
    timeout_seconds: float = Field(
        default=_DEFAULT_TIMEOUT_SECONDS,
        gt=0,
        description="How long a step may run before it is cancelled, in seconds.",
    )

    @abstractmethod
    def asked(self, options: dg.Config | None = None) -> Any:
        """Return all that a step asks for: its options over what the resource gives to every step.

        The other methods get what this one returns as their `options`.

        Raises:
            ConfigurationError: The options are not those of this target.
        """

    def check(self, options: Any) -> None:
        """Raise a ConfigurationError if no batch of these options can run."""

    @abstractmethod
    def batch(self, submission: Submission, options: Any) -> Batch:
        """Return the batch of a submission; nothing is contacted.

        Raises:
            ConfigurationError: The credential is no identity.
        """

    def surroundings(self, options: Any) -> Mapping[str, Any]:
        """Return what the runner has to be told of where it runs. JSON-able."""
        return {"storage": self.datastore.storage_spec()}

    def upload_extras(self, options: Any) -> Sequence[str]:
        """Store what a batch needs beside its bundle, and return the locations."""
        return ()

    def capacity(
        self, context: dg.AssetExecutionContext, options: Any
    ) -> AbstractContextManager[None]:
        """Return what a step holds for as long as its batch is not final."""
        return nullcontext()

    def limits(self) -> dict[BatchState, float]:
        """Return how long a batch may be in each of its states, in seconds."""
        return {BatchState.RUNNING: self.timeout_seconds}

    def run(
        self,
        step: Step,
        *,
        context: dg.AssetExecutionContext,
        inputs: Mapping[str, DatasetVersion],
        parameters: Mapping[str, Any] | None = None,
        options: dg.Config | None = None,
    ) -> CompletedStep:
        """Run a step for the assets of `context` and return what it staged.

        The step's outputs are the selected assets, named by their keys (parts joined by '__').
        Nothing of it is visible to readers before the IO manager commits it.

        Args:
            step: What to run.
            context: The context of the asset.
            inputs: References to the versions that the step reads, by parameter name.
            parameters: Values for this run, added to those of the step.
            options: What this step asks of the target, `SparkOptions` on Spark: it goes before
                what the resource gives to every step.

        Raises:
            ConfigurationError: The target or the arguments are not as they must be.
            BundleError: The step's code cannot be shipped.
            StepTimeoutError: A phase of the step took longer than its limit; it was cancelled.
            StepRefusedError: The step refused its input with a `ValueError`; it is not retried.
            StepFailedError: The step failed, or ended without proof that it finished.
        """
        asked = self.asked(options)
        self.check(asked)
        slots = _slots(context)
        bundle = step.bundle()
        key = _key_of(context)
        say = context.log.info
        work = {
            "attempt": key,
            "step": {
                "module": step.module,
                "function": step.function,
                "parameters": {**step.parameters, **(parameters or {})},
            },
            "engine": self.engine,
            **self.surroundings(asked),
            "inputs": {name: version.to_json() for name, version in inputs.items()},
        }
        done = json.dumps({**work, "bundle": bundle.sha256, "outputs": list(slots)}, sort_keys=True)
        fingerprint = hashlib.sha256(done.encode()).hexdigest()
        last, adopted = Submission.last(self.datastore, key), None
        if last is not None and last.fingerprint == fingerprint:
            adopted = adopt(self.batch(last, asked), say=say)
        batch = adopted or self.batch(
            Submission.new(
                self.datastore,
                key,
                fingerprint=fingerprint,
                bundle=bundle.upload(self.datastore),
                extras=self.upload_extras(asked),
                run_id=context.run.run_id,
            ),
            asked,
        )
        manifest = None if adopted is None else batch.submission.manifest()
        if manifest is not None and not batch.keeps_messages:
            return complete(manifest, slots, context=context, inputs=inputs)
        is_waited_for = manifest is not None
        try:
            with (
                self.capacity(context, asked),
                _pipes_session(context, batch.message_reader()) as session,
            ):
                if adopted is None:
                    job = {
                        **work,
                        "outputs": {
                            name: asdict(slot.fresh_target(self.datastore, attempt=key))
                            for name, (_, slot) in slots.items()
                        },
                        **batch.submission.locations(),
                        "pipes": session.get_bootstrap_env_vars(),
                    }
                    submit(batch, job)
                    say(f"{step.entry_point} started as batch {batch.id}.")
                    # What the commit needs is imported while the step works.
                    import_module("pyarrow.json"), import_module("pyarrow.parquet")
                if manifest is None:
                    is_waited_for = True
                    manifest = wait(batch, limits=self.limits(), say=say)
        except BaseException:
            # An interruption where nobody waits for the batch yet.
            if batch.id and not is_waited_for:
                cancel(batch)
            raise
        return complete(
            manifest,
            slots,
            context=context,
            inputs=inputs,
            reported=session.get_reported_results(),
            use=batch.describe_use() if batch.id else {},
        )


def _key_of(context: dg.AssetExecutionContext) -> str:
    return attempt_key(
        root_run_id=context.run.root_run_id or context.run.run_id,
        step_key=context.get_step_execution_context().step.key,
        partition=context.partition_key if context.has_partition_key else None,
    )


@contextmanager
def _pipes_session(
    context: dg.AssetExecutionContext, reader: dg.PipesMessageReader
) -> Iterator[dg.PipesSession]:
    with warnings.catch_warnings():
        # Dagster marks what it calls here as a preview, to itself.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        with dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesEnvContextInjector(),
            message_reader=reader,
        ) as session:
            yield session


def _slots(context: dg.AssetExecutionContext) -> dict[str, tuple[dg.AssetKey, Slot]]:
    """Return the selected assets and their slots, by the names the step knows them by."""
    definition = context.assets_def
    partitions = context.partition_keys if context.has_partition_key else []
    slots = {}
    for key in sorted(context.selected_asset_keys):
        own = partitions if definition.specs_by_key[key].partitions_def is not None else []
        slots[key.to_python_identifier()] = (
            key,
            Slot.of_asset(
                key,
                partition=only_partition(key, own),
                metadata=definition.specs_by_key[key].metadata,
            ),
        )
    return slots
