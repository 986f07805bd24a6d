"""The IO manager: turns references into what a parameter asks for, and staged files into versions.

What happens around an asset, in Dagster's order:
    load_input     -> the upstream's DatasetVersion, loaded by a type handler if asked for
    the asset body -> StagedDataset from a compute target, or a value that a type handler writes
    handle_output  -> one atomic commit, described in the materialization's metadata
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_assets.datasets import handlers, table
from synapse_assets.datasets.attempt import StagedDataset, attempt_key
from synapse_assets.datasets.description import describe
from synapse_assets.datasets.slot import Slot, only_partition
from synapse_assets.datasets.version import DataFile, DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Definition metadata of an input that says how it wants the files of a FileDataset.
MODE = "mode"
_MODES: dict[str, Any] = {"direct": list[str], "download": Path}


class DatasetIOManager(dg.ConfigurableIOManager):
    """Keeps every asset as a dataset of the datastore, one Delta commit per materialization.

    An input is loaded as its parameter is annotated: `DatasetVersion` (or nothing) gives the
    pinned reference and reads no data; `pyarrow.Table`, `pyarrow.dataset.Dataset`,
    `polars.DataFrame`, `polars.LazyFrame`, `pandas.DataFrame`, `pyspark.sql.DataFrame` and
    `pathlib.Path` give the data.

    An input of a FileDataset may say how it wants its files, as in Azure ML, with
    `dg.AssetIn(metadata={"mode": "direct"})`: 'direct' gives their locations (`list[str]`) and
    'download' a local folder (`Path`), whose files are copied, checked by their hashes, and kept
    for the next use.

    Asset metadata: `partition_by` names the partition column (default 'partition_key');
    `schema_change` is 'refuse' (default) or 'evolve'.
    """

    datastore: dg.ResourceDependency[Datastore]

    def load_input(self, context: dg.InputContext) -> Any:
        """Return the upstream dataset as the parameter's annotation asks for it.

        Raises:
            DatasetNotFoundError: The upstream asset has never been materialized.
            PartitionNotFoundError: It has no data for the partitions of this run.
            ConfigurationError: No handler serves the annotation, or the mode is not one of ours.
            StorageError: The store cannot be reached, or holds something else than was committed.
        """
        partitions = list(context.asset_partition_keys) if context.has_asset_partitions else None
        name = "/".join(context.asset_key.path)
        version = table.resolve(self.datastore, name, partitions=partitions)
        if partitions is not None and context.log is not None:
            missing = sorted(set(partitions) - set(version.partitions))
            if missing:
                context.log.warning(f"'{name}' has no data yet for: {', '.join(missing[:10])}")
        annotation = _annotation(context)
        if annotation in (Any, object, type(None), DatasetVersion):
            return version
        handler = handlers.handler_for(annotation)
        if handler is None:
            raise ConfigurationError(
                f"No type handler loads {annotation} for the input '{context.name}'. Annotate it "
                f"with DatasetVersion or one of: {', '.join(handlers.handled_types())}."
            )
        return handler.load(version.to_json(), self._access())

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Commit what the asset returned as the new version of its dataset.

        Raises:
            ConfigurationError: No handler serves the type of the value, or the run covers
                several partitions at once.
            DatasetError: The commit was refused; see `datasets.table.commit`.
        """
        if obj is None:
            return
        slot = _slot(context)
        staged = obj if isinstance(obj, StagedDataset) else self._stage(context, slot, obj)
        version = table.commit(self.datastore, staged, slot=slot)
        whole = version
        if slot.partition is not None and version.kind == "TabularDataset":
            whole = table.resolve(self.datastore, slot.name, version=version.version)
        description = describe(version, whole=whole, datastore=self.datastore)
        context.add_output_metadata({**description, **staged.provenance})

    def _stage(self, context: dg.OutputContext, slot: Slot, value: Any) -> StagedDataset:
        """Write a value that the asset itself returned into a fresh attempt folder."""
        handler = handlers.handler_for(type(value))
        if handler is None:
            raise ConfigurationError(
                f"No type handler stores a {type(value).__qualname__}, which '{slot.name}' "
                "returned. Return what a compute target's run gives, or one of: "
                f"{', '.join(handlers.handled_types())}."
            )
        run = context.step_context.dagster_run
        key = attempt_key(
            root_run_id=run.root_run_id or run.run_id,
            step_key=context.step_key,
            partition=slot.partition,
        )
        target = slot.fresh_target(self.datastore, attempt=key)
        files = handler.write(value, target, self._access())
        # A value that lives in this process cannot be adopted by a re-execution: each write is
        # an attempt of its own.
        return StagedDataset(
            attempt=f"{key}-{target.folder.rpartition('-')[2]}",
            kind="FileDataset" if handler.kind == "FileDataset" else "TabularDataset",
            folder=target.files_folder if handler.kind == "FileDataset" else target.folder,
            files=tuple(DataFile(**file) for file in files),
        )

    def _access(self) -> handlers.Access:
        return handlers.Access(
            storage=self.datastore.storage(), spark=lambda: _spark_session(self.datastore)
        )


def _annotation(context: dg.InputContext) -> Any:
    """Return the type that an input is to be loaded as: by its mode, or as it is annotated.

    Raises:
        ConfigurationError: The mode is not one of ours, or contradicts the annotation.
    """
    annotation = context.dagster_type.typing_type
    mode = (context.definition_metadata or {}).get(MODE)
    if mode is None:
        return annotation
    if mode == "mount":
        raise ConfigurationError(
            f"The input '{context.name}' asks for the mode 'mount', which needs a file system "
            "driver and its rights on the machine that reads: neither a Dagster process nor a "
            "Spark pool has them. Use 'download' for local copies, or 'direct' for locations."
        )
    if mode not in _MODES:
        raise ConfigurationError(
            f"The input '{context.name}' asks for the mode {mode!r}. Use one of: "
            f"{', '.join(_MODES)}."
        )
    is_open = annotation in (Any, object, type(None))
    # Dagster hands over `list[str]` in another spelling.
    if not is_open and handlers.handler_for(annotation) is not handlers.handler_for(_MODES[mode]):
        raise ConfigurationError(
            f"The input '{context.name}' asks for the mode '{mode}', which gives "
            f"{_MODES[mode]}, and is annotated {annotation}. Leave one of them out."
        )
    return _MODES[mode]


def _slot(context: dg.OutputContext) -> Slot:
    """Return the slot that an output replaces.

    Raises:
        ConfigurationError: The run covers several partitions of the asset at once.
    """
    partitions = list(context.asset_partition_keys) if context.has_asset_partitions else []
    return Slot.of_asset(
        context.asset_key,
        partition=only_partition(context.asset_key, partitions),
        metadata=context.definition_metadata or {},
    )


def _spark_session(datastore: Datastore) -> "SparkSession":
    """Return the orchestrator's own Spark session, from dagster-pyspark's resource."""
    from dagster_pyspark import PySparkResource

    # All times are UTC: Delta's timestamps are, and so a reader's zone changes no value.
    options = datastore.hadoop_configuration()
    public = {f"spark.hadoop.{name}": value for name, value in options.public.items()}
    resource = PySparkResource(spark_config={"spark.sql.session.timeZone": "UTC", **public})
    # Spark's workers must be the Python that the session was made by.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    resource.setup_for_execution(dg.build_init_resource_context())
    session: SparkSession = resource.spark_session
    handlers.set_hadoop_secrets(session, options.secret)
    return session
