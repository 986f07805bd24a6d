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

import hashlib
import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg

from synapse_assets.compute.batch import BatchService, BatchState, Submission
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.datastore import ATTEMPTS
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


@dataclass(frozen=True)
class Record:
    """What the datastore keeps of an attempt's last submission.

    Attributes:
        fingerprint: Hash of what was to be done.
        submission: Name of the submission, and of its batch.
        batch_id: Id of the batch; None until the service has told it.
        bundle: Location of the bundle.
        extras: Locations of what the target needs beside it; vacuum keeps both.
        run_id: The run that submitted it.
    """

    fingerprint: str
    submission: str
    batch_id: str | None
    bundle: str
    extras: list[str]
    run_id: str


@dataclass(frozen=True)
class Adopted:
    """What an earlier try of the same work left: a batch, its proof, or both."""

    submission: Submission
    batch_id: str | None
    manifest: dict[str, Any] | None


@dataclass(frozen=True)
class Attempt:
    """One try of one step for one partition, and the files that tell of it.

    Attributes:
        key: The attempt's key, the same for every re-execution of a run.
        datastore: Where its files lie.
        fingerprint: Hash of what is to be done; a batch or a manifest of an older code or input
            is not adopted.
    """

    key: str
    datastore: Datastore
    fingerprint: str

    @classmethod
    def of(cls, key: str, *, datastore: Datastore, work: Mapping[str, Any]) -> "Attempt":
        """Return the attempt `key` at doing `work` (JSON values)."""
        digest = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
        return cls(key=key, datastore=datastore, fingerprint=digest)

    def new_submission(self, *, bundle: str, extras: Sequence[str]) -> Submission:
        """Return a submission of this attempt that was never made before."""
        return self._submission(f"{self.key}-{uuid.uuid4().hex[:8]}", bundle, extras)

    def last_submission(self) -> tuple[Submission, str | None] | None:
        """Return the last submission of this work and its batch's id; None if there is none."""
        record = read_record(self.datastore, self.key)
        if record is None or record.fingerprint != self.fingerprint:
            return None
        return self._submission(record.submission, record.bundle, record.extras), record.batch_id

    def adopt(self, service: BatchService, *, say: Callable[[str], None]) -> Adopted | None:
        """Return what an earlier try left of the same work, None if there is nothing to go on with.

        Raises:
            ServiceUnavailableError: It could not be found out.
        """
        last = self.last_submission()
        if last is None:
            return None
        submission, batch_id = last
        manifest = self.manifest(submission)
        if manifest is not None:
            say(f"{self.key} has already finished: its files are adopted.")
            return Adopted(submission, batch_id, manifest)
        batch_id = service.find(submission) if batch_id is None else batch_id
        if batch_id is None:
            return None
        while (state := service.get_state(batch_id, submission)) is BatchState.UNKNOWN:
            service.wait(batch_id, seconds=1.0)
        if state.is_final:
            # It may have finished since its manifest was looked for.
            manifest = self.manifest(submission)
            return None if manifest is None else Adopted(submission, batch_id, manifest)
        say(f"{self.key} is already there, as batch {batch_id}: it is adopted.")
        return Adopted(submission, batch_id, None)

    def manifest(self, submission: Submission) -> dict[str, Any] | None:
        """Return the proof that a submission's step finished, None if there is none."""
        return self._read(self.uri(submission, "manifest.json"))

    def uri(self, submission: Submission, name: str) -> str:
        """Return the location of one of a submission's files."""
        return self.datastore.uri(ATTEMPTS, self.key, submission.name, name)

    def submit(
        self,
        service: BatchService,
        submission: Submission,
        *,
        job: Mapping[str, Any],
        run_id: str,
    ) -> str:
        """Start a batch and return its id, which is then in the datastore.

        Whatever ends this early leaves no batch behind, as far as the service can be asked.
        """
        record = Record(
            fingerprint=self.fingerprint,
            submission=submission.name,
            batch_id=None,
            bundle=submission.bundle,
            extras=[*submission.extras],
            run_id=run_id,
        )
        self._write(submission.job_file, job)
        write_record(self.datastore, self.key, record)
        batch_id = None
        try:
            batch_id = service.submit(submission)
            write_record(self.datastore, self.key, replace(record, batch_id=batch_id))
        except ComputeError:
            # The service has been asked, as far as it can be.
            raise
        except BaseException:
            try:
                batch_id = batch_id or service.find(submission)
                if batch_id is not None:
                    service.cancel(batch_id, submission)
            except ComputeError as e:
                # What ended this must not be lost: an interruption ends the run.
                logger.error("%s", e)
            raise
        return batch_id

    def wait(
        self,
        service: BatchService,
        batch_id: str,
        submission: Submission,
        *,
        limits: Mapping[BatchState, float],
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """Wait for a batch and return its manifest.

        Whatever ends the waiting early (a timeout, an interruption, an error) cancels the batch
        and returns only when nothing of it runs any more.

        Args:
            service: The target's verbs.
            batch_id: The batch to wait for.
            submission: Its submission.
            limits: How long the batch may be in each of its states, in seconds.
            say: Takes a line for each change of the state.

        Raises:
            StepTimeoutError: It was in one state longer than that.
            StepRefusedError: The step refused its input.
            StepFailedError: It ended without a manifest, whatever the service says of it.
            ServiceUnavailableError: The service was out of reach for too long.
        """
        waited_for: set[str] = set()
        while True:
            waited_for.add(batch_id)
            try:
                self._wait(service, batch_id, submission, limits=limits, say=say)
            except BaseException as e:
                unsure = cancel(service, batch_id, submission)
                # A step that has finished is finished, however its batch is ended.
                manifest = self.manifest(submission) if isinstance(e, ComputeError) else None
                if manifest is not None:
                    say(f"{self.key} has finished, although: {e}")
                    return manifest
                if unsure is not None and isinstance(e, ComputeError):
                    raise type(e)(f"{e}\n\n{unsure}") from e
                raise
            manifest = self.manifest(submission)
            if manifest is not None:
                return manifest
            failure = self._read(self.uri(submission, "failure.json"))
            end = service.describe_end(batch_id)
            if failure is not None:
                error = StepRefusedError if failure.get("is_refusal") else StepFailedError
                raise error(f"{failure['message']}\n\nStep {self.key}: {end}")
            # Neither proof nor reason. Of a batch that was asked for twice the other one may do
            # the work.
            other, unsure = None, None
            try:
                other = service.find(submission)
            except ComputeError as e:
                unsure = e
            if other is not None and other not in waited_for:
                say(f"The work of batch {batch_id} is done by batch {other}.")
                batch_id = other
                continue
            # What says that it has ended may be wrong, too.
            unsure = cancel(service, batch_id, submission) or unsure
            manifest = self.manifest(submission)
            if manifest is not None:
                return manifest
            text = (
                f"{self.key} ended without a manifest, so nothing was committed. "
                f"Look at the end of its log, and run it again.\n\n{end}"
            )
            raise StepFailedError(text if unsure is None else f"{text}\n\n{unsure}")

    def _wait(
        self,
        service: BatchService,
        batch_id: str,
        submission: Submission,
        *,
        limits: Mapping[BatchState, float],
        say: Callable[[str], None],
    ) -> None:
        started = changed = time.monotonic()
        # A state that comes back goes on counting, so a service that wavers outwits no limit.
        spent = dict.fromkeys(BatchState, 0.0)
        last: BatchState | None = None
        while not (state := service.get_state(batch_id, submission)).is_final:
            now = time.monotonic()
            if last is not None:
                spent[last] += now - changed
            changed = now
            if state is not last and last is not None:
                say(f"Batch {batch_id} is {state.value} after {now - started:.1f} s.")
            last = state
            left = limits.get(state, math.inf) - spent[state]
            if left < 0:
                what, remedy = _PHASES[state]
                raise StepTimeoutError(
                    f"{self.key} {what.format(limit=limits[state])} and was cancelled. {remedy}"
                )
            poll = min(max(_FIRST_POLL_SECONDS, (now - started) * _POLL_SHARE), _MAX_POLL_SECONDS)
            service.wait(batch_id, seconds=min(poll, left + 0.001))

    def _submission(self, name: str, bundle: str, extras: Sequence[str]) -> Submission:
        folder = (ATTEMPTS, self.key, name)
        return Submission(
            name=name,
            attempt=self.key,
            bundle=bundle,
            extras=tuple(extras),
            job_file=self.datastore.uri(*folder, "job.json"),
            output=self.datastore.uri(*folder, "output"),
        )

    def _read(self, uri: str) -> dict[str, Any] | None:
        text = self.datastore.storage().read_text(uri)
        return None if text is None else json.loads(text)

    def _write(self, uri: str, value: Mapping[str, Any]) -> None:
        self.datastore.storage().write_atomically(uri, json.dumps(value, indent=1).encode())


def cancel(service: BatchService, batch_id: str, submission: Submission) -> ComputeError | None:
    """Cancel a batch; return why it is not known whether it ended, None if it is."""
    try:
        service.cancel(batch_id, submission)
    except ComputeError as e:
        # Said here too: an interruption leaves no room for it.
        logger.error("%s", e)
        return e
    return None


def read_record(datastore: Datastore, key: str) -> Record | None:
    """Return the record of an attempt, None if there is none."""
    text = datastore.storage().read_text(datastore.uri(ATTEMPTS, key, "record.json"))
    if text is None:
        return None
    values = json.loads(text)
    # One of an earlier release says less: its files are not where they are looked for now.
    return Record(**values) if values.keys() == Record.__annotations__.keys() else None


def write_record(datastore: Datastore, key: str, record: Record) -> None:
    """Store the record of an attempt."""
    content = json.dumps(vars(record), indent=1).encode()
    datastore.storage().write_atomically(datastore.uri(ATTEMPTS, key, "record.json"), content)
