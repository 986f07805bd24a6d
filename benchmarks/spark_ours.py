"""Our end of the benchmark of Spark pools: materializes one asset per case."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from benchmarks.spark_worker import serve
from synapse_assets.compute.spark import LivySparkPool, SynapseSparkPool
from synapse_assets.compute.step import Step
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.storage import LocalStorage, Storage

_STEP = Step("benchmarks.spark_step:make_rows")

# One case at a time: what became of it, and how often its datastore was asked.
_outcome: dict[str, Any] = {}
_store_calls = 0


class _CountingStorage(LocalStorage):
    def read_bytes(self, uri: str) -> bytes | None:
        _count()
        return super().read_bytes(uri)

    def write_atomically(self, uri: str, content: bytes) -> None:
        _count()
        super().write_atomically(uri, content)


class _CountingDatastore(Datastore):
    def storage(self) -> Storage:
        return _CountingStorage()


def _count() -> None:
    global _store_calls  # noqa: PLW0603
    _store_calls += 1


@dg.asset
def rows(
    context: dg.AssetExecutionContext, target: dg.ResourceParam[ComputeTarget]
) -> Iterator[Any]:
    try:
        completed = target.run(_STEP, context=context, inputs={})
    except BaseException as e:
        _outcome.update(succeeded=False, message=str(e).partition("\n")[0])
        raise
    finally:
        _outcome.update(returned_at=time.time(), store_calls=_store_calls)
    _outcome.update(succeeded=True, message="")
    yield from completed.get_results()


def run(case: Mapping[str, Any]) -> Mapping[str, Any]:
    global _store_calls  # noqa: PLW0603
    _outcome.clear()
    _store_calls = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        datastore = _CountingDatastore(root=str(Path(folder, "datastore")))
        result = dg.materialize(
            [rows],
            resources={
                "target": _target(case, datastore),
                "io_manager": DatasetIOManager(datastore=datastore),
            },
            raise_on_error=False,
        )
    # A commit that fails after the step is no success either.
    return {**_outcome, "succeeded": result.success}


def _target(case: Mapping[str, Any], datastore: Datastore) -> ComputeTarget:
    if case["service"] == "livy":
        return LivySparkPool(url=case["url"], datastore=datastore)
    return SynapseSparkPool(
        workspace=case["url"], pool="spark01", cloud="emulator", datastore=datastore
    )


if __name__ == "__main__":
    serve(run, {})
