"""The compute target: what an asset's code calls to run a step."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from importlib import import_module
from typing import Any, ClassVar, Literal

import dagster as dg
from pydantic import Field

from synapse_assets.compute.attempt import Adopted, Attempt, cancel
from synapse_assets.compute.batch import BatchService, BatchState
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
    def batch_service(self, options: dg.Config | None) -> BatchService:
        """Return the target's verbs, for one step.

        Args:
            options: What the step asks for beside what the resource gives to every step.

        Raises:
            ConfigurationError: The target cannot run anything as it is configured.
        """

    def surroundings(self, options: dg.Config | None) -> Mapping[str, Any]:
        """Return what the runner has to be told of where it runs. JSON-able."""
        return {"storage": self.datastore.storage_spec()}

    def upload_extras(self, options: dg.Config | None) -> Sequence[str]:
        """Store what a batch needs beside its bundle, and return the locations."""
        return ()

    def capacity(
        self, context: dg.AssetExecutionContext, options: dg.Config | None
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
        service = self.batch_service(options)
        slots = _slots(context)
        bundle = step.bundle()
        work = {
            "attempt": _key_of(context),
            "step": {
                "module": step.module,
                "function": step.function,
                "parameters": {**step.parameters, **(parameters or {})},
            },
            "engine": self.engine,
            **self.surroundings(options),
            "inputs": {name: version.to_json() for name, version in inputs.items()},
        }
        attempt = Attempt.of(
            work["attempt"],
            datastore=self.datastore,
            work={**work, "bundle": bundle.sha256, "outputs": list(slots)},
        )
        adopted = attempt.adopt(service, say=context.log.info)
        if adopted is not None and adopted.manifest is not None and not service.keeps_messages:
            return complete(adopted.manifest, slots, context=context, inputs=inputs)
        submission = (
            attempt.new_submission(
                bundle=bundle.upload(self.datastore), extras=self.upload_extras(options)
            )
            if adopted is None
            else adopted.submission
        )
        is_waited_for = False
        try:
            with (
                self.capacity(context, options),
                _pipes_session(context, service.message_reader(submission)) as session,
            ):
                if adopted is None:
                    job = {
                        **work,
                        "outputs": {
                            name: asdict(slot.fresh_target(self.datastore, attempt=attempt.key))
                            for name, (_, slot) in slots.items()
                        },
                        "manifest": attempt.uri(submission, "manifest.json"),
                        "failure": attempt.uri(submission, "failure.json"),
                        "claim": attempt.uri(submission, "claim"),
                        "output": submission.output,
                        "pipes": session.get_bootstrap_env_vars(),
                    }
                    batch_id = attempt.submit(
                        service, submission, job=job, run_id=context.run.run_id
                    )
                    adopted = Adopted(submission, batch_id, None)
                    context.log.info(f"{step.entry_point} started as batch {batch_id}.")
                    # What the commit needs is imported while the step works.
                    import_module("pyarrow.json"), import_module("pyarrow.parquet")
                manifest = adopted.manifest
                if manifest is None:
                    assert adopted.batch_id is not None
                    is_waited_for = True
                    manifest = attempt.wait(
                        service,
                        adopted.batch_id,
                        submission,
                        limits=self.limits(),
                        say=context.log.info,
                    )
        except BaseException:
            # An interruption where nobody waits for the batch yet.
            has_batch = adopted is not None and adopted.manifest is None and adopted.batch_id
            if has_batch and not is_waited_for:
                cancel(service, has_batch, submission)
            raise
        return complete(
            manifest,
            slots,
            context=context,
            inputs=inputs,
            reported=session.get_reported_results(),
            use=service.describe_use(adopted.batch_id) if adopted.batch_id is not None else {},
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
