"""The sweeper: what a killed orchestrator left running on a service is found and cancelled."""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from dataclasses import dataclass, field
from http import HTTPStatus

import dagster as dg

from synapse_assets.compute.batch import Submission
from synapse_assets.compute.calls import CallError
from synapse_assets.compute.remote import RemoteTarget
from synapse_assets.datastore import Datastore
from synapse_assets.errors import SynapseAssetsError

# What one look may cost; the next one goes on where it ended.
_MAX_PAGES = 10
_MAX_SECONDS = 30.0
# Dagster gives a sensor a minute, and a request to a service that hangs takes as long.
_PATIENCE_SECONDS = 45.0

# How `Attempt` names a submission: the attempt's key, and 8 digits. A name of the user's own may
# come before it.
_NAME = re.compile(r"(?P<key>[A-Za-z0-9_-]+-[0-9a-f]{16})-[0-9a-f]{8}$")
_MAX_READABLE = 60
# The tag by which Dagster keeps re-executions together.
_ROOT_RUN_ID = "dagster/root_run_id"


@dataclass
class Sweep:
    """What one look at a service came to.

    Attributes:
        cancelled: A sentence about each batch that was cancelled.
        kept: A sentence about each of our batches that was left alone.
        problem: Why it ended early; None if it did not.
        start: Number of the batch with which the next look begins.
    """

    cancelled: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    problem: str | None = None
    start: int = 0

    def __str__(self) -> str:
        """Return all of it, what was done first."""
        problem = [] if self.problem is None else [self.problem]
        said = [*self.cancelled, *problem, *self.kept]
        return " ".join(said) or "No batch was left behind."


def sweep(
    target: RemoteTarget,
    instance: dg.DagsterInstance,
    *,
    start: int = 0,
    now: Callable[[], float] = time.time,
) -> Sweep:
    """Cancel the batches of a service for which no run waits, and none will.

    Those are batches whose attempt has submitted another one since, and batches whose run ended
    `orphaned_timeout_seconds` of the target ago, with all of its re-executions. Whatever this
    project's datastore or the instance does not know belongs to somebody else and is left alone.

    It returns within a minute, whatever the service does, and raises nothing that the service or
    the datastore is the cause of: `problem` tells.

    Args:
        target: What runs the batches.
        instance: The Dagster instance that knows the runs.
        start: Where to begin in the service's list of batches: `start` of the look before.
        now: Returns the time, in seconds since 1970.
    """
    found = Sweep(start=start)
    is_late = threading.Event()
    pool = ThreadPoolExecutor(1, thread_name_prefix="sweeper")
    look = pool.submit(_look, target, instance, found, now=now, is_late=is_late)
    pool.shutdown(wait=False)
    try:
        look.result(_PATIENCE_SECONDS)
    except LateError:
        is_late.set()
        return Sweep(
            cancelled=list(found.cancelled),
            problem=f"{target.place} did not answer within {_PATIENCE_SECONDS:g} s.",
            start=start,
        )
    except (CallError, SynapseAssetsError) as e:
        found.problem = f"{target.place} could not be swept: {e}"
    return found


def _look(
    target: RemoteTarget,
    instance: dg.DagsterInstance,
    found: Sweep,
    *,
    now: Callable[[], float],
    is_late: threading.Event,
) -> None:
    client = target.client()
    deadline = time.monotonic() + _MAX_SECONDS
    for _ in range(_MAX_PAGES):
        page, total = client.list_batches(found.start)
        for batch in page:
            name = batch.name or ""
            last = None if batch.phase.is_final else _last_submission(target.datastore, name)
            if last is None:
                continue
            # Stored before the batch was asked for: another one means a later submission.
            if name.endswith(last.name):
                reason = _reason_to_keep(last.run_id, instance, target, now=now)
                fault = f"its run {last.run_id} has ended, and nobody has re-executed it"
            else:
                reason, fault = None, f"its attempt has submitted {last.name} since"
            called = f"Batch {batch.id} ({name})"
            if reason is not None:
                found.kept.append(f"{called} is left alone: {reason}.")
            elif not is_late.is_set():
                try:
                    client.delete_batch(batch.id)
                except CallError as e:
                    if e.status != HTTPStatus.NOT_FOUND:
                        found.kept.append(f"{called} could not be cancelled: {e}.")
                    continue
                found.cancelled.append(f"{called} was cancelled: {fault}.")
        # A service that forgets what was cancelled moves the rest up: the next round sees it.
        found.start += len(page)
        if not page or found.start >= total:
            found.start = 0
            return
        if is_late.is_set() or time.monotonic() > deadline:
            return


def _last_submission(datastore: Datastore, name: str) -> Submission | None:
    """Return the last submission of the attempt that a batch is of, None if it is of none here."""
    match = _NAME.search(name)
    # All of what is before the digits may be the attempt's key, or what follows a prefix.
    words = match["key"].split("-") if match else []
    for index in range(len(words) - 1):
        if len("-".join(words[index:-1])) <= _MAX_READABLE:
            last = Submission.last(datastore, "-".join(words[index:]))
            if last is not None:
                return last
    return None


def _reason_to_keep(
    run_id: str, instance: dg.DagsterInstance, target: RemoteTarget, *, now: Callable[[], float]
) -> str | None:
    """Return why the batch of a run is left alone, None if nobody waits for it."""
    own = instance.get_run_record_by_id(run_id)
    if own is None:
        return f"its run {run_id} is of another Dagster instance, or was deleted"
    root = own.dagster_run.root_run_id or run_id
    first = instance.get_run_record_by_id(root)
    again = instance.get_run_records(dg.RunsFilter(tags={_ROOT_RUN_ID: root}))
    group = [own, *again] if first is None else [own, first, *again]
    for record in group:
        if not record.dagster_run.is_finished:
            return (
                f"the run {record.dagster_run.run_id} is in progress; if its process is gone, "
                "terminate it in Dagster's UI"
            )
    ended = max(record.end_time or record.update_timestamp.timestamp() for record in group)
    left = ended + target.orphaned_timeout_seconds - now()
    if left > 0:
        return f"for {left / 60:.0f} min more a re-execution of the run {run_id} can adopt it"
    return None
