"""The life of a batch on a service: one batch per submission, whatever the network does."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from synapse_assets.compute.batch import BatchService, BatchState, Submission
from synapse_assets.compute.calls import CallError, Patience, is_refusal, pause_after
from synapse_assets.compute.channel import BEAT_SECONDS, beat_uri, stop_uri
from synapse_assets.compute.chunk_reader import ChunkReader
from synapse_assets.compute.client import STATES, RemoteBatch
from synapse_assets.compute.explanations import driver_traceback
from synapse_assets.errors import ServiceUnavailableError, StepFailedError, StorageError

if TYPE_CHECKING:
    from synapse_assets.compute.remote import RemoteTarget

logger = logging.getLogger(__name__)

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
# After so long without a beat a driver that the service has forgotten is dead.
_SILENCE_SECONDS = 4 * BEAT_SECONDS
_LOG_LINES = 100
_MAX_LOG_PAGES = 100
_LOG_SECONDS = 10.0

_UNAUTHORIZED, _GONE, _THROTTLED = 401, 404, 429
# The cause in `explanations` of a duplicate.
_NAME_TAKEN = "name_taken"


class RemoteBatches(BatchService):
    """The batches of one service, as one step uses them."""

    keeps_messages = True

    def __init__(self, target: "RemoteTarget", options: Any) -> None:
        """Create the service; nothing is contacted.

        Args:
            target: Where the batches run, and how long each phase may take.
            options: All that the step asks of it.
        """
        self._target = target
        self._options = options
        self._client = target.client()
        self._storage = target.datastore.storage()
        self._patience = target.unreachable_timeout_seconds
        self._said_last = threading.Event()
        self._reader: ChunkReader | None = None
        self._seen: dict[str, RemoteBatch] = {}
        self._unknown_states: set[str] = set()
        # Ids that are now those of batches which are not ours.
        self._others: set[str] = set()
        # Whether an answer was lost, so that there may be more than one batch.
        self._is_doubtful = False
        self._not_found = self._refusals = self._failures = 0
        self._failing_since: float | None = None
        self._pause = 0.0
        self._beat: tuple[str, float] | None = None

    def message_reader(self, submission: Submission) -> dg.PipesMessageReader:
        self._reader = ChunkReader(self._storage, submission.output, said_last=self._said_last)
        return self._reader

    def submit(self, submission: Submission) -> str:
        """Ask for the batch, and ask again only when it is known that there is none.

        Raises:
            StepFailedError: The service does not take it; none was started.
            ServiceUnavailableError: The service was out of reach, or had no room, for too long.
        """
        target = self._target
        request = target.request(submission, self._options)
        room, reach = Patience(target.queued_timeout_seconds), Patience(self._patience)
        refusals = 0
        while True:
            try:
                return self._remember(self._client.post_batch(request)).id
            except CallError as e:
                error = e
            explanation = target.explain(str(error))
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
            must_look = is_lost and not self._client.names_are_ids
            if must_look or (is_refused and self._is_doubtful):
                found = self.find(submission)
                if found is not None:
                    return found
            what = f"{target.unit} {submission.name}"
            if is_refused:
                raise StepFailedError(
                    f"{target.place} did not take the {what}. {self._explained(error)}"
                ) from error
            self._is_doubtful = self._is_doubtful or is_lost
            if is_full:
                reach = Patience(self._patience)
            logger.warning("%s; it is asked again.", error)
            patience = room if is_full else reach
            if not patience.wait(error):
                raise ServiceUnavailableError(
                    f"{target.place} did not start the {what} within {patience.limit:g} s. "
                    f"{self._explained(error)}"
                ) from error

    def find(self, submission: Submission) -> str | None:
        """Return the id of a submission's batch, None if the service has none.

        It is looked for several times, since a list may lag behind.

        Raises:
            ServiceUnavailableError: The service could not be asked.
        """
        for pause in _LOOKS:
            time.sleep(pause)
            batches = self._all_of(submission)
            # Of several one does the work, and the others end when they see that.
            running = [batch for batch in batches if not self._phase_of(batch).is_final]
            for batch in running or batches:
                return self._remember(batch).id
        return None

    def get_state(self, batch_id: str, submission: Submission) -> BatchState:
        """Ask once. What a service out of reach said last holds until the patience is over.

        Raises:
            ServiceUnavailableError: It was out of reach for longer than that.
            StepFailedError: It refuses to tell, again and again.
        """
        try:
            batch = self._get(batch_id, submission)
        except CallError as e:
            if e.status == _GONE:
                self._pause = pause_after(self._not_found)
                self._not_found += 1
                if self._not_found >= _NOT_FOUND:
                    # A service that was started anew knows nothing of what goes on.
                    lives = self._is_beating(submission)
                    return BatchState.RUNNING if lives else BatchState.VANISHED
            else:
                self._tolerate(e)
            self._pause = max(e.retry_after or 0.0, self._pause)
            known = self._seen.get(batch_id)
            return BatchState.UNKNOWN if known is None else self._phase_of(known)
        self._not_found = self._refusals = self._failures = 0
        self._failing_since, self._pause = None, 0.0
        phase = self._phase_of(self._remember(batch))
        # A driver may hang on at its end, and hold what it runs on.
        is_done = self._said_last.is_set() and not phase.is_final
        return BatchState.ENDING if is_done else phase

    def wait(self, batch_id: str, *, seconds: float) -> None:
        """Sleep, less long when the step has said that it is at its end."""
        seconds = max(seconds, _MIN_POLL_SECONDS, self._pause)
        if self._said_last.is_set():
            time.sleep(max(_LAST_POLL_SECONDS, self._pause))
        elif self._said_last.wait(seconds) and self._pause:
            time.sleep(self._pause)

    def cancel(self, batch_id: str, submission: Submission) -> None:
        """End the batch, and return when the service says that it is at its end.

        Raises:
            ServiceUnavailableError: That could not be made sure of in time.
        """
        self._end(batch_id, submission)
        if self._is_doubtful:
            # A list that lagged behind may have hidden another one.
            for batch in self._all_of(submission):
                if not self._phase_of(batch).is_final:
                    self._end(batch.id, submission)

    def _end(self, batch_id: str, submission: Submission) -> None:
        target = self._target
        patience = Patience(target.ending_timeout_seconds)
        is_deleted, not_found = False, 0
        while True:
            error = None
            if not is_deleted and batch_id not in self._others:
                try:
                    self._client.delete_batch(batch_id)
                    is_deleted = True
                except CallError as e:
                    # Of a batch that is at its end some services refuse to cancel anything.
                    error = e
            try:
                if error is None or error.retry_after is None:
                    batch = self._remember(self._get(batch_id, submission))
                    if self._phase_of(batch).is_final:
                        return
            except CallError as e:
                error = e
                not_found += e.status == _GONE
                is_forgotten = is_deleted and self._client.forgets_deleted
                if e.status == _GONE and (is_forgotten or not_found >= _NOT_FOUND):
                    if is_deleted or not self._is_beating(submission):
                        return
                    # Nobody else can end it: it looks for this with every beat.
                    self._storage.write_atomically(stop_uri(submission.output), b"")
            if not patience.wait(error):
                raise ServiceUnavailableError(
                    f"The {target.unit} {batch_id} of {target.place} could not be cancelled within "
                    f"{patience.limit:g} s and may still run: look at it there and end it. "
                    f"{error or 'It does not end.'}"
                ) from error

    def describe_end(self, batch_id: str) -> str:
        """Return the driver's traceback, what the service says, and the end of the output."""
        target = self._target
        batch = self._completed(self._seen.get(batch_id))
        said = [] if batch is None else [f"the {target.unit} {batch_id} ended as '{batch.state}'"]
        if self._not_found >= _NOT_FOUND:
            lost = "deleted there, or the service was started anew and it may still run"
            said = [f"{target.place} knows no {target.unit} {batch_id} any more: it may be {lost}"]
        errors = batch.errors if batch else ()
        for error in errors:
            origin = f"{error['source']} error {error['errorCode']}: " if error["source"] else ""
            said.append(f"{origin}{error['message']}".strip())
        own = list(self._reader.tail) if self._reader else []
        log, problem = self._log_tail(batch_id)
        source = errors[0]["source"] if errors else None
        explanation = target.explain("\n".join([*said, *own, *log]), source=source)
        trace = driver_traceback([*own, *log])
        parts = [
            trace if trace is not None and trace not in "\n".join(own) else "",
            "" if explanation is None else str(explanation),
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
        return self._target.describe(self._completed(batch) or batch, self._options)

    def _completed(self, batch: RemoteBatch | None) -> RemoteBatch | None:
        """Return a batch with all that the service tells of it, if it does in time."""
        patience = Patience(min(self._patience, _LOG_SECONDS))
        while batch is not None:
            try:
                return self._client.complete(batch)
            except CallError as e:
                if is_refusal(e) or not patience.wait(e):
                    return batch
        return None

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

    def _get(self, batch_id: str, submission: Submission) -> RemoteBatch:
        batch = self._client.get_batch(batch_id)
        if batch.name and not batch.name.endswith(submission.name):
            # A service that was started anew may count from 0 again.
            self._others.add(batch_id)
            raise CallError(f"{batch_id} is the batch {batch.name}, and not ours", status=_GONE)
        return batch

    def _is_beating(self, submission: Submission) -> bool:
        """Tell whether the driver has given a sign of life lately, or may have."""
        if self._said_last.is_set():
            return False
        try:
            beat = self._storage.read_text(beat_uri(submission.output))
        except StorageError:
            beat = self._beat[0] if self._beat else None
        if beat is None:
            return False
        now = time.monotonic()
        if self._beat is None or self._beat[0] != beat:
            self._beat = beat, now
        return now - self._beat[1] < _SILENCE_SECONDS

    def _remember(self, batch: RemoteBatch) -> RemoteBatch:
        self._seen[batch.id] = batch
        return batch

    def _phase_of(self, batch: RemoteBatch) -> BatchState:
        if batch.state not in STATES and batch.state not in self._unknown_states:
            self._unknown_states.add(batch.state)
            logger.warning(
                "The %s %s is in the state '%s', which is unknown here; it is taken to run.",
                self._target.unit,
                batch.id,
                batch.state,
            )
        return batch.phase

    def _tolerate(self, error: CallError) -> None:
        """Put up with an error for as long as the patience lasts, and with refusals for less."""
        place = self._target.place
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        failing = now - self._failing_since
        self._refusals += is_refusal(error)
        if self._refusals >= _REFUSALS and failing > min(self._patience, _REFUSED_SECONDS):
            raise StepFailedError(
                f"{place} does not tell how the {self._target.unit} is. {self._explained(error)}"
            ) from error
        if failing > self._patience:
            raise ServiceUnavailableError(
                f"{place} was out of reach for {self._patience:g} s: {error}"
            ) from error
        if self._failures == 0:
            logger.warning("%s; it is asked again.", error)
        self._pause = pause_after(self._failures)
        self._failures += 1

    def _all_of(self, submission: Submission) -> list[RemoteBatch]:
        """Return all batches of a submission that the service lists."""
        patience = Patience(min(self._patience, _REFUSED_SECONDS))
        outage = Patience(self._patience)
        while True:
            try:
                return self._client.find_batches(submission.name)
            except CallError as e:
                if not (patience if is_refusal(e) else outage).wait(e):
                    raise ServiceUnavailableError(
                        f"It is not known whether {self._target.place} has a {self._target.unit} "
                        f"{submission.name}: {e}. If it has, end it there."
                    ) from e

    def _explained(self, error: CallError) -> str:
        explanation = self._target.explain(str(error))
        return str(error) if explanation is None else f"{explanation} ({error})"
