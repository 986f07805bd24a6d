"""An orchestrator in a process of its own, to be killed by a test.

python -m …orchestrator TARGET FOLDER FUNCTION [--kill=before_commit|after_commit] …

FOLDER names the target's store; where services answer is in the environment.
"""

import argparse
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

from synapse_assets.compute.batch import BatchState
from synapse_assets.compute.batches import ServiceBatch
from synapse_assets.compute.cpu.workspace import MLWorkspace
from synapse_assets.compute.spark.livy import HttpLivyClient
from synapse_assets.compute.spark.synapse import SynapseClient
from synapse_assets.compute.step import Step
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets import table
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets_tests.contract.stores import STORES
from synapse_assets_tests.contract.targets import TARGETS


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("folder", type=Path)
    parser.add_argument("function")
    parser.add_argument("--kill")
    parser.add_argument("--home")
    parser.add_argument("--parameters", type=json.loads, default={})
    parser.add_argument("--partition")
    parser.add_argument("--reexecute")
    return parser.parse_args()


def make_job() -> dg.JobDefinition:
    options = parse()
    target = TARGETS[options.target]
    datastore = STORES[target.store](options.folder)
    step = Step(f"synapse_assets_tests.example_steps.plain:{options.function}", options.parameters)
    partitions = dg.StaticPartitionsDefinition([options.partition]) if options.partition else None

    @dg.asset(partitions_def=partitions, metadata={"partition_by": "day"} if partitions else None)
    def numbers(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        return target.run(step, context=context, inputs={}).get_materialize_result()

    return dg.Definitions(
        assets=[numbers],
        jobs=[dg.define_asset_job("the_job", selection=[numbers])],
        executor=dg.in_process_executor,
        resources={
            "target": target.make(datastore=datastore),
            "io_manager": DatasetIOManager(datastore=datastore),
        },
    ).resolve_job_def("the_job")


def kill_at(moment: str, *, counter: str | None) -> None:
    """Have this process killed, around its commit or as soon as a batch is so far.

    Args:
        moment: 'before_commit' or 'after_commit'; of a pool also 'posted', which is before anything
            knows the batch's id, or the state in which the batch is seen.
        counter: The file that a running step makes.
    """
    if moment == "before_commit":
        table.commit = lambda *_args, **_kwargs: _die()  # type: ignore[assignment]
    elif moment == "after_commit":
        _die_after(table, "commit")
    elif moment == "posted":
        _die_after(HttpLivyClient, "post_batch")
        _die_after(SynapseClient, "post_batch")
        _die_after(MLWorkspace, "post_batch")
    else:

        def is_so_far(state: BatchState) -> bool:
            has_begun = counter is None or Path(counter).exists()
            return state.value == moment and (state is not BatchState.RUNNING or has_begun)

        _die_after(ServiceBatch, "get_state", is_so_far)


def _die_after(owner: Any, verb: str, when: Callable[[Any], bool] = lambda _: True) -> None:
    original = getattr(owner, verb)

    def dying(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        if when(answer):
            _die()
        return answer

    setattr(owner, verb, dying)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    options = parse()
    if options.kill:
        kill_at(options.kill, counter=options.parameters.get("counter"))
    if not options.home:
        make_job().execute_in_process(partition_key=options.partition)
        return
    os.environ["DAGSTER_HOME"] = options.home
    Path(options.home).mkdir(exist_ok=True)
    (Path(options.home) / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    with dg.DagsterInstance.get() as instance:
        again = None
        if options.reexecute:
            (parent,) = instance.get_runs()
            again = dg.ReexecutionOptions(parent_run_id=parent.run_id)
        dg.execute_job(
            dg.reconstructable(make_job),
            instance=instance,
            reexecution_options=again,
            raise_on_error=True,
        )


if __name__ == "__main__":
    main()
