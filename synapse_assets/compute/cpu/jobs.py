"""The life of a command job of Azure ML: one job per submission, whatever the network does.

A job's name is its id, and a second request for the same name starts nothing. So a submission
whose answer was lost is asked for again without a doubt.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from synapse_assets.compute.batch import BatchService, BatchState, Submission
from synapse_assets.compute.calls import CallError, Patience, is_refusal
from synapse_assets.compute.chunk_reader import ChunkReader
from synapse_assets.compute.cpu.workspace import CommandJob, JobDetails, JobView, Workspace
from synapse_assets.datastore.storage import Storage
from synapse_assets.errors import ServiceUnavailableError, StepFailedError

logger = logging.getLogger(__name__)

# Every status that Azure ML has (JobStatus in mfe.json). One that is not here is not final.
STATES = {
    "NotStarted": BatchState.QUEUED,
    "Scheduled": BatchState.QUEUED,
    "Starting": BatchState.STARTING,
    "Provisioning": BatchState.STARTING,
    "Preparing": BatchState.STARTING,
    "Queued": BatchState.QUEUED,
    "Paused": BatchState.QUEUED,
    "Running": BatchState.RUNNING,
    # It has lost its heartbeat, and may come back.
    "NotResponding": BatchState.RUNNING,
    "Unknown": BatchState.RUNNING,
    "Finalizing": BatchState.ENDING,
    "CancelRequested": BatchState.ENDING,
    "Completed": BatchState.ENDED,
    "Failed": BatchState.ENDED,
    "Canceled": BatchState.ENDED,
}

_MIN_POLL_SECONDS = 1.0
_LAST_POLL_SECONDS = 0.5
_GONE, _THROTTLED, _UNAUTHORIZED = 404, 429, 401
_NOT_FOUND = 3
_REFUSALS = 3
_LOG_LINES = 100
_DETAILS_SECONDS = 10.0
# When a lost request is looked for, in seconds after the look before.
_LOOKS = (0.0, 1.0, 2.0)


class AzureMLJobs(BatchService):
    """The command jobs of one workspace, as one step uses them."""

    keeps_messages = True

    def __init__(
        self,
        workspace: Workspace,
        storage: Storage,
        *,
        make_request: Callable[[Submission], CommandJob],
        describe: Callable[[JobView, JobDetails], Mapping[str, Any]],
        place: str,
        patience: float,
        submit_limit: float,
        cancel_limit: float,
    ) -> None:
        """Create the service; nothing is contacted.

        Args:
            workspace: The verbs.
            storage: Where the jobs leave what they say.
            make_request: Returns the request of a submission.
            describe: Returns metadata about a job.
            place: What messages call the workspace.
            patience: How long the service may be out of reach, in seconds.
            submit_limit: How long to wait for a service that takes no more requests, in seconds.
            cancel_limit: How long a cancelled job may take to end, in seconds.
        """
        self._workspace = workspace
        self._storage = storage
        self._make_request = make_request
        self._describe = describe
        self._place = place
        self._patience_seconds = patience
        self._submit_limit = submit_limit
        self._cancel_limit = cancel_limit
        self._said_last = threading.Event()
        self._reader: ChunkReader | None = None
        self._seen: dict[str, JobView] = {}
        self._unknown: set[str] = set()
        self._patience: Patience | None = None
        self._not_found = 0
        self._refusals = 0

    def message_reader(self, submission: Submission) -> dg.PipesMessageReader:
        """Return what follows the chunks of the submission's job."""
        self._reader = ChunkReader(self._storage, submission.output, said_last=self._said_last)
        return self._reader

    def submit(self, submission: Submission) -> str:
        """Ask for the job, again and again under its one name, until it is there or refused.

        Raises:
            StepFailedError: The service does not take it; none was started.
            ServiceUnavailableError: The service was out of reach, or throttled, for too long.
        """
        request = self._make_request(submission)
        room, reach = Patience(self._submit_limit), Patience(self._patience_seconds)
        refusals = 0
        is_doubtful = False
        while True:
            try:
                return self._remember(self._workspace.put_job(request))
            except CallError as e:
                error = e
            if is_refusal(error):
                refusals += 1
                # It may refuse to change a job that an answer which was lost has started.
                found = self.find(submission) if is_doubtful else None
                if found is not None:
                    return found
                if error.status != _UNAUTHORIZED or refusals >= _REFUSALS:
                    raise StepFailedError(
                        f"{self._place} did not take the job {submission.name}. {error}"
                    ) from error
            is_doubtful = is_doubtful or error.was_sent
            logger.warning("%s; it is asked again.", error)
            patience = room if error.status == _THROTTLED else reach
            if not patience.wait(error):
                raise ServiceUnavailableError(
                    f"{self._place} did not start the job {submission.name} within "
                    f"{patience.limit:g} s. {error}"
                ) from error

    def find(self, submission: Submission) -> str | None:
        """Return the name of a submission's job, None if the service has none.

        Raises:
            ServiceUnavailableError: The service could not be asked.
        """
        patience = Patience(self._patience_seconds)
        looks = list(_LOOKS)
        while looks:
            time.sleep(looks[0])
            try:
                return self._remember(self._workspace.get_job(submission.name))
            except CallError as e:
                if e.status == _GONE:
                    looks.pop(0)
                elif not patience.wait(e):
                    raise ServiceUnavailableError(
                        f"It is not known whether {self._place} has a job {submission.name}: {e}. "
                        "If it has, cancel it there."
                    ) from e
        return None

    def get_state(self, batch_id: str) -> BatchState:
        """Ask once. What a service out of reach said last holds until the patience is over.

        Raises:
            ServiceUnavailableError: It was out of reach for longer than that.
            StepFailedError: It refuses to tell, again and again.
        """
        try:
            job = self._workspace.get_job(batch_id)
        except CallError as e:
            if e.status == _GONE:
                self._not_found += 1
                if self._not_found >= _NOT_FOUND:
                    return BatchState.VANISHED
            self._tolerate(e)
            known = self._seen.get(batch_id)
            return BatchState.UNKNOWN if known is None else self._state_of(known)
        self._not_found = self._refusals = 0
        self._patience = None
        self._remember(job)
        state = self._state_of(job)
        # A job may hang on at its end, and hold its nodes.
        is_done = self._said_last.is_set() and not state.is_final
        return BatchState.ENDING if is_done else state

    def wait(self, batch_id: str, *, seconds: float) -> None:
        """Sleep, less long when the step has said that it is at its end."""
        if self._said_last.is_set():
            time.sleep(_LAST_POLL_SECONDS)
        else:
            self._said_last.wait(max(seconds, _MIN_POLL_SECONDS))

    def cancel(self, batch_id: str) -> None:
        """Ask for the job's end, and return when the service says that it is there.

        Raises:
            ServiceUnavailableError: That could not be made sure of in time.
        """
        patience = Patience(self._cancel_limit)
        is_asked = False
        not_found = 0
        while True:
            error = None
            if not is_asked:
                try:
                    self._workspace.cancel_job(batch_id)
                    is_asked = True
                except CallError as e:
                    # Of a job that is at its end it refuses to cancel anything.
                    error = e
            try:
                if error is None or error.retry_after is None:
                    job = self._workspace.get_job(batch_id)
                    self._remember(job)
                    if self._state_of(job).is_final:
                        return
            except CallError as e:
                error = e
                not_found += e.status == _GONE
                if not_found >= _NOT_FOUND:
                    return
            if not patience.wait(error):
                raise ServiceUnavailableError(
                    f"The job {batch_id} of {self._place} could not be cancelled within "
                    f"{self._cancel_limit:g} s and may still run: look at it there and end it. "
                    f"{error or 'It does not end.'}"
                ) from error

    def describe_end(self, batch_id: str) -> str:
        """Return what the service says, and the end of the output."""
        job = self._seen.get(batch_id)
        said = [] if job is None else [f"the job {batch_id} ended as '{job.status}'"]
        if self._not_found >= _NOT_FOUND:
            said = [f"{self._place} knows no job {batch_id} any more: it may have been deleted"]
        own = list(self._reader.tail) if self._reader else []
        details, problem = self._details(batch_id)
        log = list(details.log)
        cut = [f"[{len(log) - _LOG_LINES} earlier lines]"] if len(log) > _LOG_LINES else []
        parts = [
            "\n".join(said),
            details.error or "",
            "\n".join(own or [*cut, *log[-_LOG_LINES:]]),
            problem or "",
        ]
        return "\n\n".join(part for part in parts if part)

    def describe_use(self, batch_id: str) -> Mapping[str, Any]:
        """Return metadata about the job, as far as the service tells it."""
        try:
            # Of one that was adopted after its end nothing has been asked yet.
            job = self._seen.get(batch_id) or self._workspace.get_job(batch_id)
        except CallError:
            return {"batch": batch_id}
        return self._describe(job, self._details(batch_id)[0])

    def _details(self, batch_id: str) -> tuple[JobDetails, str | None]:
        """Return what run history tells, and why it tells nothing."""
        patience = Patience(min(self._patience_seconds, _DETAILS_SECONDS))
        while True:
            try:
                return self._workspace.get_details(batch_id), None
            except CallError as e:
                if is_refusal(e) or not patience.wait(e):
                    return JobDetails(), f"[the job's history could not be read: {e}]"

    def _remember(self, job: JobView) -> str:
        self._seen[job.name] = job
        return job.name

    def _state_of(self, job: JobView) -> BatchState:
        state = STATES.get(job.status)
        if state is None:
            if job.status not in self._unknown:
                self._unknown.add(job.status)
                logger.warning(
                    "Job %s has the status '%s', which is unknown here; it is taken to run.",
                    job.name,
                    job.status,
                )
            return BatchState.RUNNING
        return state

    def _tolerate(self, error: CallError) -> None:
        """Put up with an error for as long as the patience lasts, and with few refusals."""
        if self._patience is None:
            self._patience = Patience(self._patience_seconds)
            logger.warning("%s; it is asked again.", error)
        if is_refusal(error) and error.status != _GONE:
            self._refusals += 1
            if self._refusals >= _REFUSALS:
                raise StepFailedError(
                    f"{self._place} does not tell how the job is. {error}"
                ) from error
        if not self._patience.wait(error):
            raise ServiceUnavailableError(
                f"{self._place} was out of reach for {self._patience_seconds:g} s: {error}"
            ) from error
