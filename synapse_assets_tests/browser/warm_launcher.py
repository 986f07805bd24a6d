"""A run launcher whose runs begin at once: hundreds of them are possible in a test."""

import itertools
import multiprocessing
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

import dagster as dg
from dagster._core.launcher import LaunchRunContext, RunLauncher
from dagster._core.launcher.sync_in_memory_run_launcher import SyncInMemoryRunLauncher
from dagster._serdes import ConfigurableClass, ConfigurableClassData

_WORKERS = 3


class WarmLauncher(RunLauncher, ConfigurableClass):
    """Runs in processes that have imported all that is needed, which takes a run's own seconds.

    As with Dagster's default launcher a run is not in the daemon's process, and outlives it.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._workers: Iterator[Connection] | None = None
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "WarmLauncher":
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        if self._workers is None:
            self._workers = itertools.cycle([_start_worker() for _ in range(_WORKERS)])
        next(self._workers).send(context.dagster_run.run_id)

    def terminate(self, run_id: str) -> bool:
        raise NotImplementedError


def _start_worker() -> Connection:
    reader, writer = multiprocessing.Pipe(duplex=False)
    # Not forked: the daemon has threads, and this end of the pipe has to be its alone.
    multiprocessing.get_context("spawn").Process(target=_work, args=(reader,), daemon=True).start()
    return writer


def _work(run_ids: Connection) -> None:
    """Execute the runs that come, until the daemon has gone."""
    with dg.DagsterInstance.get() as instance:
        launcher = SyncInMemoryRunLauncher()
        launcher.register_instance(instance)
        while True:
            try:
                run = instance.get_run_by_id(run_ids.recv())
            except EOFError:
                return
            assert run is not None
            launcher.launch_run(LaunchRunContext(run, workspace=None))
