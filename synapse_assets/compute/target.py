"""The compute target: what an asset's code calls to run a step."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal

import dagster as dg
from pydantic import Field

from synapse_assets.compute import environment
from synapse_assets.compute.attempt import Attempt, cancel
from synapse_assets.compute.batch import BatchService, BatchState, Submission
from synapse_assets.compute.step import Step
from synapse_assets.datasets.attempt import StagedDataset, attempt_key
from synapse_assets.datasets.slot import Slot, only_partition
from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ConfigurationError, StepFailedError

_DEFAULT_TIMEOUT_SECONDS = 6 * 60 * 60.0
# Constructors of `dg.MetadataValue` that take one JSON value.
_METADATA_TYPES = ("text", "md", "json", "url", "path", "int", "float", "bool")


class CompletedStep:
    """A finished step: staged datasets that the IO manager will commit, and check results."""

    def __init__(
        self,
        *,
        materializations: tuple[dg.MaterializeResult[StagedDataset], ...],
        checks: tuple[dg.AssetCheckResult, ...],
    ) -> None:
        """Create the result from its parts."""
        self._materializations = materializations
        self._checks = checks

    def get_results(
        self,
    ) -> tuple[dg.MaterializeResult[StagedDataset] | dg.AssetCheckResult, ...]:
        """Return one `MaterializeResult` per output, and the checks that the step reported."""
        return (*self._materializations, *self._checks)

    def get_materialize_result(
        self, name: str | None = None
    ) -> dg.MaterializeResult[StagedDataset]:
        """Return the result of a step with one output, or of the output with a name.

        Raises:
            ConfigurationError: The step has several outputs and none is named, or none of this
                name.
        """
        if name is not None:
            for result in self._materializations:
                if result.asset_key is not None and result.asset_key.to_user_string() == name:
                    return result
            raise ConfigurationError(f"The step has no output '{name}'.")
        if len(self._materializations) != 1:
            raise ConfigurationError(
                f"The step has {len(self._materializations)} outputs. Yield from get_results()."
            )
        result = self._materializations[0]
        return result._replace(check_results=list(self._checks))


@dataclass(frozen=True)
class _Adopted:
    """What an earlier try of the same work left: a batch, its proof, or both."""

    submission: Submission
    batch_id: str | None
    manifest: dict[str, Any] | None


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
        adopted = _adopt(attempt, service, context)
        if adopted is not None and adopted.manifest is not None and not service.keeps_messages:
            return _completed(adopted.manifest, slots, context=context, inputs=inputs)
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
                    adopted = _Adopted(submission, batch_id, None)
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
        return _completed(
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


def _adopt(
    attempt: Attempt, service: BatchService, context: dg.AssetExecutionContext
) -> _Adopted | None:
    """Return what an earlier try left of the same work, None if there is nothing to go on with."""
    last = attempt.last_submission()
    if last is None:
        return None
    submission, batch_id = last
    manifest = attempt.manifest(submission)
    if manifest is not None:
        context.log.info(f"{attempt.key} has already finished: its files are adopted.")
        return _Adopted(submission, batch_id, manifest)
    if batch_id is None:
        batch_id = service.find(submission)
    if batch_id is None:
        return None
    while (state := service.get_state(batch_id, submission)) is BatchState.UNKNOWN:
        service.wait(batch_id, seconds=1.0)
    if state.is_final:
        # It may have finished since its manifest was looked for.
        manifest = attempt.manifest(submission)
        return None if manifest is None else _Adopted(submission, batch_id, manifest)
    context.log.info(f"{attempt.key} is already there, as batch {batch_id}: it is adopted.")
    return _Adopted(submission, batch_id, None)


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


def _completed(
    manifest: Mapping[str, Any],
    slots: Mapping[str, tuple[dg.AssetKey, Slot]],
    *,
    context: dg.AssetExecutionContext,
    inputs: Mapping[str, DatasetVersion],
    reported: Sequence[dg.MaterializeResult[Any] | dg.AssetCheckResult] = (),
    use: Mapping[str, Any] | None = None,
) -> CompletedStep:
    """Return the result of a step from its manifest and what it reported through Pipes."""
    seconds = manifest["seconds"]
    provenance = {
        "seconds": dg.MetadataValue.float(round(seconds["load"] + seconds["run"], 2)),
        "inputs": dg.MetadataValue.json({v.name: v.version for v in inputs.values()}),
        environment.METADATA_KEY: dg.MetadataValue.json(manifest["environment"]),
        **(use or {}),
    }
    materializations = []
    for name, (key, _) in slots.items():
        output = manifest["outputs"][name]
        staged = StagedDataset(
            attempt=manifest["attempt"],
            kind=output["kind"],
            folder=output["folder"],
            files=tuple(DataFile(**file) for file in output["files"]),
            rows=output["rows"],
            provenance=provenance,
        )
        metadata = {label: _metadata_value(value) for label, value in output["metadata"].items()}
        changes = environment.find_changes(context, key, manifest["environment"])
        if changes:
            context.log.warning(f"{name} was made by other software than before: {changes}.")
            metadata["environment_changes"] = dg.MetadataValue.json(changes)
        for result in reported:
            if isinstance(result, dg.MaterializeResult) and result.asset_key == key:
                metadata.update(result.metadata or {})
        materializations.append(
            dg.MaterializeResult(
                asset_key=key, value=staged, metadata=metadata, data_version=_data_version(staged)
            )
        )
    checks = tuple(result for result in reported if isinstance(result, dg.AssetCheckResult))
    return CompletedStep(materializations=tuple(materializations), checks=checks)


def _metadata_value(value: Any) -> Any:
    """Return a value that a step reported as Dagster metadata.

    Raises:
        StepFailedError: `{"raw_value", "type"}` names a type that is not known here.
    """
    if not isinstance(value, dict) or set(value) != {"raw_value", "type"}:
        return dg.MetadataValue.json(value) if isinstance(value, dict | list) else value
    if value["type"] not in _METADATA_TYPES:
        raise StepFailedError(
            f"The step reported metadata of the type {value['type']!r}. "
            f"Use one of: {', '.join(_METADATA_TYPES)}."
        )
    return getattr(dg.MetadataValue, value["type"])(value["raw_value"])


def _data_version(staged: StagedDataset) -> dg.DataVersion | None:
    """Return a hash of the files' content, None to leave the data version to Dagster.

    Dagster derives a table's version from code and inputs. Of files the content itself is known,
    so that the same content under a new etag makes nothing downstream stale.
    """
    if staged.kind != "FileDataset":
        return None
    digest = hashlib.sha256()
    for file in sorted(staged.files, key=lambda file: file.name or ""):
        digest.update(f"{file.name}\0{file.sha256}\0".encode())
    return dg.DataVersion(digest.hexdigest()[:16])
