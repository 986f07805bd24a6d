"""What comes of a step that has finished: staged datasets, their metadata, and check results."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.errors import ConfigurationError, StepFailedError

_ENVIRONMENT = "environment"
# Constructors of `dg.MetadataValue` that take one JSON value.
_METADATA_TYPES = ("text", "md", "json", "url", "path", "int", "float", "bool")


@dataclass(frozen=True)
class CompletedStep:
    """A finished step: staged datasets that the IO manager will commit, and check results."""

    materializations: tuple[dg.MaterializeResult[StagedDataset], ...]
    checks: tuple[dg.AssetCheckResult, ...]

    def get_results(
        self,
    ) -> tuple[dg.MaterializeResult[StagedDataset] | dg.AssetCheckResult, ...]:
        """Return one `MaterializeResult` per output, and the checks that the step reported."""
        return (*self.materializations, *self.checks)

    def get_materialize_result(
        self, name: str | None = None
    ) -> dg.MaterializeResult[StagedDataset]:
        """Return the result of a step with one output, or of the output with a name.

        Raises:
            ConfigurationError: The step has several outputs and none is named, or none of this
                name.
        """
        if name is not None:
            for result in self.materializations:
                if result.asset_key is not None and result.asset_key.to_user_string() == name:
                    return result
            raise ConfigurationError(f"The step has no output '{name}'.")
        if len(self.materializations) != 1:
            raise ConfigurationError(
                f"The step has {len(self.materializations)} outputs. Yield from get_results()."
            )
        return self.materializations[0]._replace(check_results=list(self.checks))


def complete(
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
        _ENVIRONMENT: dg.MetadataValue.json(manifest["environment"]),
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
        changes = _find_changes(context, key, manifest["environment"])
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


def _find_changes(
    context: dg.AssetExecutionContext, key: dg.AssetKey, environment: Mapping[str, str]
) -> list[str]:
    """Return what is other than when the asset was last materialized, as 'name old -> new'.

    A version that changes by itself (a pool's runtime, a package of an image) explains results
    that change without a change of code.
    """
    event = context.instance.get_latest_materialization_event(key)
    last = None if event is None else event.asset_materialization
    before = None if last is None else last.metadata.get(_ENVIRONMENT)
    if not isinstance(before, dg.JsonMetadataValue) or not isinstance(before.value, dict):
        return []
    old = before.value
    return [
        f"{name} {old.get(name) or 'none'} -> {environment.get(name) or 'none'}"
        for name in sorted({*old, *environment})
        if old.get(name) != environment.get(name)
    ]
