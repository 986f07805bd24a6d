"""The life cycle of an attempt: adopt what is there, or submit; wait; demand the proof.

What an attempt leaves in the datastore, so that a re-execution by another process finds it:
    _attempts/<key>/record.json        the last submission: what was asked for, and which batch runs
                                       it, stored before it is asked for and before the first look
    _attempts/<key>/<submission>/
        job.json                       what the runner was told to do
        manifest.json                  the proof that the step finished, written last
        failure.json                   why it did not
        claim, output/                 of a batch on a cluster: see `runner` and `channel`
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import dagster as dg

from synapse_assets.compute.batch import Batch, BatchState
from synapse_assets.errors import ComputeError, StepFailedError, StepTimeoutError

logger = logging.getLogger(__name__)

# Metadata of a failure that no retry can mend: Dagster itself does not record that.
FINAL = {"allow_retries": dg.MetadataValue.bool(False)}

_FIRST_POLL_SECONDS = 0.2
_MAX_POLL_SECONDS = 5.0
# A batch's end is noticed within this share of the time it ran.
_POLL_SHARE = 0.1

_PHASES = {
    BatchState.QUEUED: (
        "waited longer than its limit of {limit:g} s for its turn",
        "Look at what else the pool runs, or raise queued_timeout_seconds of the compute target.",
    ),
    BatchState.STARTING: (
        "took longer than its limit of {limit:g} s to start",
        "Look at the pool's state, or raise starting_timeout_seconds of the compute target.",
    ),
    BatchState.RUNNING: (
        "ran longer than its limit of {limit:g} s",
        "Raise timeout_seconds of the compute target, or give it less to do.",
    ),
    BatchState.ENDING: (
        "took longer than its limit of {limit:g} s to end",
        "Look at the pool's state, or raise ending_timeout_seconds of the compute target.",
    ),
}


class StepRefusedError(StepFailedError, dg.Failure):
    """Raised when a step refused its input, so that to try it again would change nothing.

    It is Dagster's own way to say that, too: no retry policy has the step run again.
    """

    def __init__(self, message: str) -> None:
        """Create the error from what the step said."""
        dg.Failure.__init__(self, description=message, metadata=FINAL, allow_retries=False)


def adopt(batch: Batch, *, say: Callable[[str], None]) -> Batch | None:
    """Return the batch of an earlier try if it runs or has left its proof, None otherwise.

    Raises:
        ServiceUnavailableError: It could not be found out.
    """
    key = batch.submission.attempt
    if batch.submission.manifest() is None:
        batch.id = batch.id or batch.find() or ""
        if batch.id and not batch.get_state().is_final:
            say(f"{key} is already there, as batch {batch.id}: it is adopted.")
            return batch
        # It may have finished since its manifest was looked for.
        if not batch.id or batch.submission.manifest() is None:
            return None
    say(f"{key} has already finished: its files are adopted.")
    return batch


def submit(batch: Batch, job: Mapping[str, Any]) -> None:
    """Start a batch; its id is in the datastore then.

    Where an interruption ends this, the batch has an id if there may be one to cancel.
    """
    submission = batch.submission
    submission.write_job(job)
    submission.save()
    try:
        batch.id = batch.submit()
        replace(submission, batch_id=batch.id).save()
    except ComputeError:
        # The service has been asked, as far as it can be.
        raise
    except BaseException:
        try:
            batch.id = batch.id or batch.find() or ""
        except ComputeError as e:
            # What ended this must not be lost: an interruption ends the run.
            logger.error("%s", e)
        raise


def wait(
    batch: Batch, *, limits: Mapping[BatchState, float], say: Callable[[str], None]
) -> dict[str, Any]:
    """Wait for a batch and return its manifest.

    Whatever ends the waiting early (a timeout, an interruption, an error) cancels the batch
    and returns only when nothing of it runs any more.

    Args:
        batch: The batch to wait for.
        limits: How long it may be in each of its states, in seconds.
        say: Takes a line for each change of the state.

    Raises:
        StepTimeoutError: It was in one state longer than that.
        StepRefusedError: The step refused its input.
        StepFailedError: It ended without a manifest, whatever the service says of it.
        ServiceUnavailableError: The service was out of reach for too long.
    """
    submission = batch.submission
    waited_for: set[str] = set()
    while True:
        waited_for.add(batch.id)
        try:
            _wait_for_end(batch, limits=limits, say=say)
        except BaseException as e:
            unsure = cancel(batch)
            # A step that has finished is finished, however its batch is ended.
            manifest = submission.manifest() if isinstance(e, ComputeError) else None
            if manifest is not None:
                say(f"{submission.attempt} has finished, although: {e}")
                return manifest
            if unsure is not None and isinstance(e, ComputeError):
                raise type(e)(f"{e}\n\n{unsure}") from e
            raise
        manifest = submission.manifest()
        if manifest is not None:
            return manifest
        failure = submission.read("failure.json")
        end = batch.describe_end()
        if failure is not None:
            error = StepRefusedError if failure.get("is_refusal") else StepFailedError
            raise error(f"{failure['message']}\n\nStep {submission.attempt}: {end}")
        # Neither proof nor reason. Of a batch that was asked for twice the other one may do
        # the work.
        other, unsure = None, None
        try:
            other = batch.find()
        except ComputeError as e:
            unsure = e
        if other is not None and other not in waited_for:
            say(f"The work of batch {batch.id} is done by batch {other}.")
            batch.id = other
            continue
        # What says that it has ended may be wrong, too.
        unsure = cancel(batch) or unsure
        manifest = submission.manifest()
        if manifest is not None:
            return manifest
        text = (
            f"{submission.attempt} ended without a manifest, so nothing was committed. "
            f"Look at the end of its log, and run it again.\n\n{end}"
        )
        raise StepFailedError(text if unsure is None else f"{text}\n\n{unsure}")


def _wait_for_end(
    batch: Batch, *, limits: Mapping[BatchState, float], say: Callable[[str], None]
) -> None:
    started = changed = time.monotonic()
    # A state that comes back goes on counting, so a service that wavers outwits no limit.
    spent = dict.fromkeys(BatchState, 0.0)
    last: BatchState | None = None
    while not (state := batch.get_state()).is_final:
        now = time.monotonic()
        if last is not None:
            spent[last] += now - changed
        changed = now
        if state is not last and last is not None:
            say(f"Batch {batch.id} is {state.value} after {now - started:.1f} s.")
        last = state
        left = limits.get(state, math.inf) - spent[state]
        if left < 0:
            what, remedy = _PHASES[state]
            raise StepTimeoutError(
                f"{batch.submission.attempt} {what.format(limit=limits[state])} and was cancelled. "
                f"{remedy}"
            )
        poll = min(max(_FIRST_POLL_SECONDS, (now - started) * _POLL_SHARE), _MAX_POLL_SECONDS)
        batch.wait(min(poll, left + 0.001))


def cancel(batch: Batch) -> ComputeError | None:
    """Cancel a batch; return why it is not known whether it ended, None if it is."""
    try:
        batch.cancel()
    except ComputeError as e:
        # Said here too: an interruption leaves no room for it.
        logger.error("%s", e)
        return e
    return None
