"""An orchestrator in a process of its own, to be killed by a test.

python -m …orchestrator TARGET DATASTORE FUNCTION [--kill=before_commit|after_commit] …
"""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import dagster as dg

from synapse_assets.compute.cpu import LocalCpu
from synapse_assets.compute.spark import LocalSpark
from synapse_assets.compute.step import Step
from synapse_assets.compute.target import ComputeTarget
from synapse_assets.datasets import table
from synapse_assets.datasets.attempt import StagedDataset
from synapse_assets.datasets.io_manager import DatasetIOManager
from synapse_assets.datastore import Datastore

TARGETS: dict[str, type[ComputeTarget]] = {"LocalCpu": LocalCpu, "LocalSpark": LocalSpark}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("datastore")
    parser.add_argument("function")
    parser.add_argument("--kill")
    parser.add_argument("--home")
    parser.add_argument("--counter")
    parser.add_argument("--pid_file")
    parser.add_argument("--reexecute")
    return parser.parse_args()


def make_job() -> dg.JobDefinition:
    options = parse()
    names = ("counter", "pid_file")
    given = {name: getattr(options, name) for name in names if getattr(options, name)}
    step = Step(f"synapse_assets_tests.example_steps.plain:{options.function}", given)
    datastore = Datastore(root=options.datastore)

    @dg.asset
    def numbers(
        context: dg.AssetExecutionContext, target: ComputeTarget
    ) -> dg.MaterializeResult[StagedDataset]:
        return target.run(step, context=context, inputs={}).get_materialize_result()

    return dg.Definitions(
        assets=[numbers],
        jobs=[dg.define_asset_job("the_job", selection=[numbers])],
        executor=dg.in_process_executor,
        resources={
            "target": TARGETS[options.target](datastore=datastore),
            "io_manager": DatasetIOManager(datastore=datastore),
        },
    ).resolve_job_def("the_job")


def kill_at(moment: str) -> None:
    commit = table.commit

    def dying_commit(*args: Any, **kwargs: Any) -> Any:
        if moment == "after_commit":
            commit(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    table.commit = dying_commit


def main() -> None:
    options = parse()
    if options.kill:
        kill_at(options.kill)
    if not options.home:
        make_job().execute_in_process()
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
