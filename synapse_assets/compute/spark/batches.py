"""The life of a batch on a Livy service: one batch per submission, whatever the network does."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from synapse_assets.compute.batch import BatchService, BatchState, Submission
from synapse_assets.compute.calls import CallError, Patience, is_refusal, pause_after
from synapse_assets.compute.chunk_reader import ChunkReader
from synapse_assets.compute.spark.explanations import driver_traceback, explain
from synapse_assets.compute.spark.livy import LivyBatch, LivyClient
from synapse_assets.datastore.storage import Storage
from synapse_assets.errors import ServiceUnavailableError, StepFailedError

logger = logging.getLogger(__name__)

# Every state that Livy and Synapse have (azure-synapse-spark: LivyStates). One that is not here is
# not final.
_STATES = {
    "not_started": BatchState.QUEUED,
    "starting": BatchState.STARTING,
    "recovering": BatchState.RUNNING,
    "running": BatchState.RUNNING,
    "idle": BatchState.RUNNING,
    "busy": BatchState.RUNNING,
    "shutting_down": BatchState.ENDING,
    "success": BatchState.ENDED,
    "error": BatchState.ENDED,
    "dead": BatchState.ENDED,
    "killed": BatchState.ENDED,
}
# Synapse's verdict, which is there also for a batch that never came to Livy.
_VERDICTS = ("Succeeded", "Failed", "Cancelled")

# The step itself tells of its end. The service is asked for what comes without a word, and, after
# the last word, for the end of the batch.
_MIN_POLL_SECONDS = 1.0
_LAST_POLL_SECONDS = 0.5
# When a lost request is looked for, in seconds after the look before: a list may lag behind.
_LOOKS = (0.0, 1.0, 2.0, 4.0)
# A token that has just expired, a role that has just been given: a service may refuse what it
# accepts a little later.
_REFUSALS = 3
# A batch that runs is given up less soon for that.
_REFUSED_SECONDS = 60.0
# One answer that there is no such batch may come from a server that is just starting.
_NOT_FOUND = 3
_LOG_LINES = 100
_MAX_LOG_PAGES = 100
_LOG_SECONDS = 10.0

_UNAUTHORIZED, _GONE, _THROTTLED = 401, 404, 429
# The cause in `explanations` of a duplicate.
_NAME_TAKEN = "name_taken"


class LivyBatches(BatchService):
    """The batches of one Livy service, as one step uses them."""

    keeps_messages = True

    def __init__(
        self,
        client: LivyClient,
        storage: Storage,
        *,
        make_request: Callable[[Submission], Mapping[str, Any]],
        describe: Callable[[LivyBatch], Mapping[str, Any]],
        place: str,
        patience: float,
        submit_limit: float,
        cancel_limit: float,
    ) -> None:
        """Create the service; nothing is contacted.

        Args:
            client: The five verbs.
            storage: Where the batches leave what they say.
            make_request: Returns the request of a submission; called once per submission.
            describe: Returns metadata about a batch.
            place: What messages call the service: 'the Spark pool spark01 of workspace …'.
            patience: How long the service may be out of reach, in seconds.
            submit_limit: How long to wait for a service that has no room, in seconds.
            cancel_limit: How long a cancelled batch may take to end, in seconds.
        """
        self._client = client
        self._storage = storage
        self._make_request = make_request
        self._describe = describe
        self._place = place
        self._patience = patience
        self._submit_limit = submit_limit
        self._cancel_limit = cancel_limit
        self._said_last = threading.Event()
        self._reader: ChunkReader | None = None
        self._seen: dict[str, LivyBatch] = {}
        self._unknown_states: set[str] = set()
        # The submission of which there may be more than one batch.
        self._repeated: Submission | None = None
        self._not_found = 0
        self._refusals = 0
        self._failures = 0
        self._failing_since: float | None = None
        self._pause = 0.0

    def message_reader(self, submission: Submission) -> dg.PipesMessageReader:
        """Return what follows the chunks of the submission's batch."""
        self._reader = ChunkReader(self._storage, submission.output, said_last=self._said_last)
        return self._reader

    def submit(self, submission: Submission) -> str:
        """Ask for the batch, and ask again only when it is known that there is none.

        Raises:
            StepFailedError: The service does not take it; none was started.
            ServiceUnavailableError: The service was out of reach, or had no room, for too long.
        """
        request = self._make_request(submission)
        room, reach = Patience(self._submit_limit), Patience(self._patience)
        refusals = 0
        # Whether an answer was lost that may have been a good one.
        is_doubtful = False
        while True:
            try:
                return self._remember(self._client.post_batch(request))
            except CallError as e:
                error = e
            explanation = explain(str(error))
            is_refused = is_refusal(error)
            refusals += is_refused
            is_full = error.status == _THROTTLED or (
                is_refused and explanation is not None and explanation.is_transient
            )
            # A name that is taken is that of a batch whose answer was lost.
            is_taken = explanation is not None and explanation.name == _NAME_TAKEN
            is_lost = is_taken or (error.was_sent and not is_refused and not is_full)
            if is_full or is_taken or (error.status == _UNAUTHORIZED and refusals < _REFUSALS):
                is_refused = False
            if is_lost or (is_refused and is_doubtful):
                found = self._search(submission)
                if found is not None:
                    return found
            if is_refused:
                raise StepFailedError(
                    f"{self._place} did not take the batch {submission.name}. "
                    f"{_explained(str(error))}"
                ) from error
            if is_lost:
                is_doubtful, self._repeated = True, submission
            if is_full:
                reach = Patience(self._patience)
            logger.warning("%s; it is asked again.", error)
            patience = room if is_full else reach
            if not patience.wait(error):
                raise ServiceUnavailableError(
                    f"{self._place} did not start the batch {submission.name} within "
                    f"{patience.limit:g} s. {_explained(str(error))}"
                ) from error

    def find(self, submission: Submission) -> str | None:
        """Return the id of a submission's batch, None if the service has none.

        Raises:
            ServiceUnavailableError: The service could not be asked.
        """
        return self._search(submission)

    def get_state(self, batch_id: str) -> BatchState:
        """Ask once. What a service out of reach said last holds until the patience is over.

        Raises:
            ServiceUnavailableError: It was out of reach for longer than that.
            StepFailedError: It refuses to tell, again and again.
        """
        try:
            batch = self._client.get_batch(batch_id)
        except CallError as e:
            if e.status == _GONE:
                self._pause = pause_after(self._not_found)
                self._not_found += 1
                if self._not_found >= _NOT_FOUND:
                    return BatchState.VANISHED
            else:
                self._tolerate(e)
            self._pause = max(e.retry_after or 0.0, self._pause)
            known = self._seen.get(batch_id)
            return BatchState.UNKNOWN if known is None else self._state_of(known)
        self._not_found = self._refusals = self._failures = 0
        self._failing_since, self._pause = None, 0.0
        self._remember(batch)
        state = self._state_of(batch)
        # A driver may hang on at its end, and hold its vCores.
        is_done = self._said_last.is_set() and not state.is_final
        return BatchState.ENDING if is_done else state

    def wait(self, batch_id: str, *, seconds: float) -> None:
        """Sleep, less long when the step has said that it is at its end."""
        seconds = max(seconds, _MIN_POLL_SECONDS, self._pause)
        if self._said_last.is_set():
            time.sleep(max(_LAST_POLL_SECONDS, self._pause))
            return
        if self._said_last.wait(seconds) and self._pause:
            time.sleep(self._pause)

    def cancel(self, batch_id: str) -> None:
        """Delete the batch, and return when the service says that it is at its end.

        Raises:
            ServiceUnavailableError: That could not be made sure of in time.
        """
        self._end(batch_id)
        if self._repeated is not None:
            # A list that lagged behind may have hidden another one.
            for batch in self._all_of(self._repeated):
                if not self._state_of(batch).is_final:
                    self._end(batch.id)

    def _end(self, batch_id: str) -> None:
        patience = Patience(self._cancel_limit)
        is_deleted = False
        not_found = 0
        while True:
            error = None
            if not is_deleted:
                try:
                    self._client.delete_batch(batch_id)
                    is_deleted = True
                except CallError as e:
                    # Of a batch that is at its end some services refuse to cancel anything.
                    error = e
            try:
                if error is None or error.retry_after is None:
                    batch = self._client.get_batch(batch_id)
                    if self._state_of(batch).is_final:
                        return
            except CallError as e:
                error = e
                not_found += e.status == _GONE
                is_forgotten = is_deleted and self._client.forgets_deleted
                if e.status == _GONE and (is_forgotten or not_found >= _NOT_FOUND):
                    return
            if not patience.wait(error):
                raise ServiceUnavailableError(
                    f"The batch {batch_id} of {self._place} could not be cancelled within "
                    f"{self._cancel_limit:g} s and may still run: look at it there and end it. "
                    f"{error or 'It does not end.'}"
                ) from error

    def describe_end(self, batch_id: str) -> str:
        """Return the driver's traceback, what the service says, and the end of the output."""
        batch = self._seen.get(batch_id)
        said = [] if batch is None else [f"the batch {batch_id} ended as '{batch.state}'"]
        if self._not_found >= _NOT_FOUND:
            lost = "deleted there, or the service was started anew and the batch may still run"
            said = [f"{self._place} knows no batch {batch_id} any more: it may have been {lost}"]
        said += [
            f"{error['source']} error {error['errorCode']}: {error['message']}".strip()
            for error in (batch.errors if batch else ())
        ]
        own = list(self._reader.tail) if self._reader else []
        log, problem = self._log_tail(batch_id)
        source = batch.errors[0]["source"] if batch and batch.errors else None
        explanation = explain("\n".join([*said, *own, *log]), source=source)
        trace = driver_traceback([*own, *log])
        parts = [
            trace if trace is not None and trace not in "\n".join(own) else "",
            "" if explanation is None else f"{explanation.cause} {explanation.remedy}",
            "\n".join(said),
            "\n".join(own or log),
            problem or "",
        ]
        return "\n\n".join(part for part in parts if part)

    def describe_use(self, batch_id: str) -> Mapping[str, Any]:
        """Return metadata about the batch, as far as the service tells it."""
        try:
            # Of one that was adopted after its end nothing has been asked yet.
            batch = self._seen.get(batch_id) or self._client.get_batch(batch_id)
        except CallError:
            return {"batch": batch_id}
        return self._describe(batch)

    def _log_tail(self, batch_id: str) -> tuple[list[str], str | None]:
        """Return the end of the service's own log of the batch, which says what is left out.

        The second one tells why it is not all there; None if it is.
        """
        lines: list[str] = []
        problem = None
        patience = Patience(min(self._patience, _LOG_SECONDS))
        pages = 0
        while pages < _MAX_LOG_PAGES:
            try:
                page = self._client.get_batch_logs(batch_id, start=len(lines), size=_LOG_LINES)
            except CallError as e:
                if (is_refusal(e) and e.status != _UNAUTHORIZED) or not patience.wait(e):
                    problem = f"[the service's log could not be read: {e}]"
                    break
                continue
            pages += 1
            lines += page.lines
            if page.start is None or len(page.lines) < _LOG_LINES:
                break
        cut = [f"[{len(lines) - _LOG_LINES} earlier lines]"] if len(lines) > _LOG_LINES else []
        return [*cut, *lines[-_LOG_LINES:]], problem

    def _remember(self, batch: LivyBatch) -> str:
        self._seen[batch.id] = batch
        return batch.id

    def _state_of(self, batch: LivyBatch) -> BatchState:
        if batch.result in _VERDICTS:
            return BatchState.ENDED
        state = _STATES.get(batch.state)
        if state is None:
            if batch.state not in self._unknown_states:
                self._unknown_states.add(batch.state)
                logger.warning(
                    "Batch %s is in the state '%s', which is unknown here; it is taken to run.",
                    batch.id,
                    batch.state,
                )
            return BatchState.RUNNING
        return state

    def _tolerate(self, error: CallError) -> None:
        """Put up with an error for as long as the patience lasts, and with refusals for less."""
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if is_refusal(error):
            self._refusals += 1
            is_late = now - self._failing_since > min(self._patience, _REFUSED_SECONDS)
            if self._refusals >= _REFUSALS and is_late:
                raise StepFailedError(
                    f"{self._place} does not tell how the batch is. {_explained(str(error))}"
                ) from error
        if now - self._failing_since > self._patience:
            raise ServiceUnavailableError(
                f"{self._place} was out of reach for {self._patience:g} s: {error}"
            ) from error
        if self._failures == 0:
            logger.warning("%s; it is asked again.", error)
        self._pause = pause_after(self._failures)
        self._failures += 1

    def _search(self, submission: Submission) -> str | None:
        """Look for a submission's batch several times, since a list may lag behind.

        Raises:
            ServiceUnavailableError: The service could not be asked.
        """
        for pause in _LOOKS:
            time.sleep(pause)
            found = self._look(submission)
            if found is not None:
                return found
        return None

    def _look(self, submission: Submission) -> str | None:
        batches = self._all_of(submission)
        # Of several one does the work, and the others end when they see that.
        running = [batch for batch in batches if not self._state_of(batch).is_final]
        for batch in running or batches:
            return self._remember(batch)
        return None

    def _all_of(self, submission: Submission) -> list[LivyBatch]:
        """Return all batches of a submission that the service lists."""
        patience = Patience(min(self._patience, _REFUSED_SECONDS))
        outage = Patience(self._patience)
        while True:
            try:
                return [
                    batch
                    for batch in self._client.all_batches()
                    # A name of one's own may come before that of the submission.
                    if (batch.name or "").endswith(submission.name)
                ]
            except CallError as e:
                if not (patience if is_refusal(e) else outage).wait(e):
                    raise ServiceUnavailableError(
                        f"It is not known whether {self._place} has a batch {submission.name}: "
                        f"{e}. If it has, end it there."
                    ) from e


def is_over(batch: LivyBatch) -> bool:
    """Tell whether a batch is at its end; one in a state that is unknown here is not."""
    return batch.result in _VERDICTS or _STATES.get(batch.state, BatchState.RUNNING).is_final


def _explained(text: str) -> str:
    explanation = explain(text)
    return text if explanation is None else f"{explanation.cause} {explanation.remedy} ({text})"
