"""The life of a batch on a service: one batch per submission, whatever the network does."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import dagster as dg

from synapse_assets.compute.batch import Batch, BatchState, Submission
from synapse_assets.compute.calls import CallError, Patience, is_refusal
from synapse_assets.compute.channel import BEAT_SECONDS, beat_uri, stop_uri
from synapse_assets.compute.chunk_reader import ChunkReader
from synapse_assets.compute.client import RemoteBatch
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
_REFUSED_SECONDS = 60.0
# One answer that there is no such batch may come from a server that is just starting. So long it is
# asked again, which makes three answers.
_MOMENT_SECONDS = 1.5
_NOT_FOUND = 3
# After so long without a beat a driver that the service has forgotten is dead.
_SILENCE_SECONDS = 4 * BEAT_SECONDS
_LOG_LINES = 100
# What only makes a message longer is asked for so long.
_BRIEFLY = {"reach": 10.0, "refused": 1.0}

_UNAUTHORIZED, _GONE, _THROTTLED = 401, 404, 429
# The cause in `explanations` of a duplicate.
_NAME_TAKEN = "name_taken"

_Answer = TypeVar("_Answer")


class ServiceBatch(Batch):
    """A batch on a service."""

    keeps_messages = True

    def __init__(self, target: "RemoteTarget", submission: Submission, options: Any) -> None:
        """Create it; nothing is contacted.

        Args:
            target: Where it runs, and how long each phase may take.
            submission: What asks for it.
            options: All that the step asks of the target.
        """
        super().__init__(submission)
        self._target = target
        self._options = options
        self._client = target.client()
        self._storage = target.datastore.storage()
        self._patience = target.unreachable_timeout_seconds
        self._reader = ChunkReader(self._storage, submission.output)
        self._seen: dict[str, RemoteBatch] = {}
        # Ids that are now those of batches which are not ours.
        self._others: set[str] = set()
        # Whether an answer was lost, so that there may be more than one batch.
        self._is_doubtful = False
        self._is_forgotten = False
        self._beat: tuple[str, float] | None = None

    def message_reader(self) -> dg.PipesMessageReader:
        return self._reader

    def submit(self) -> str:
        """Ask for the batch, and ask again only when it is known that there is none.

        Raises:
            StepFailedError: The service does not take it; none was started.
            ServiceUnavailableError: The service was out of reach, or had no room, for too long.
        """
        target = self._target
        request = target.request(self.submission, self._options)
        room, reach = Patience(target.queued_timeout_seconds), Patience(self._patience)
        login = Patience(_MOMENT_SECONDS)
        while True:
            try:
                return self._remember(self._client.post_batch(request)).id
            except CallError as e:
                error = e
            if error.status == _UNAUTHORIZED and login.wait(error):
                continue
            kind = self._kind_of(error)
            must_look = kind == "lost" and not self._client.names_are_ids
            if must_look or (kind == "refused" and self._is_doubtful):
                found = self.find()
                if found is not None:
                    return found
            self._is_doubtful = self._is_doubtful or kind == "lost"
            what = f"{target.unit} {self.submission.name}"
            if kind == "refused":
                raise StepFailedError(
                    f"{target.place} did not take the {what}. {self._explained(error)}"
                ) from error
            if kind == "full":
                reach = Patience(self._patience)
            patience = room if kind == "full" else reach
            if not patience.wait(error):
                # Where a name is an id, nobody has looked for what was lost.
                found = self.find() if self._is_doubtful else None
                if found is not None:
                    return found
                raise ServiceUnavailableError(
                    f"{target.place} did not start the {what} within {patience.limit:g} s. "
                    f"{self._explained(error).rstrip('.')}. Look whether it answers and has room, "
                    "and run the step again."
                ) from error

    def _kind_of(self, error: CallError) -> Literal["full", "lost", "refused", "unsent"]:
        """Tell what came of a request for a batch that was not answered with one."""
        explanation = self._target.explain(str(error))
        # A name that is taken is that of a batch whose answer was lost.
        if explanation is not None and explanation.name == _NAME_TAKEN:
            return "lost"
        is_refused = is_refusal(error)
        waits = is_refused and explanation is not None and explanation.is_transient
        if waits or error.status == _THROTTLED:
            return "full"
        return "refused" if is_refused else "lost" if error.was_sent else "unsent"

    def find(self) -> str | None:
        """Return the id of the submission's batch, None if the service has none.

        It is looked for several times, since a list may lag behind.

        Raises:
            ServiceUnavailableError: The service could not be asked.
        """
        for pause in _LOOKS:
            time.sleep(pause)
            batches = self._find_all()
            # Of several one does the work, and the others end when they see that.
            running = [batch for batch in batches if not batch.phase.is_final]
            for batch in running or batches:
                return self._remember(batch).id
        return None

    def get_state(self) -> BatchState:
        """Ask until there is an answer.

        Raises:
            ServiceUnavailableError: The service was out of reach for too long.
            StepFailedError: It refuses to tell, again and again.
        """
        target = self._target
        try:
            batch = self._ask(lambda: self._get(self.id), gone=_MOMENT_SECONDS)
        except CallError as e:
            if e.status == _GONE:
                self._is_forgotten = True
                # A service that was started anew knows nothing of what goes on.
                return BatchState.RUNNING if self._is_beating() else BatchState.VANISHED
            if is_refusal(e):
                raise StepFailedError(
                    f"{target.place} does not tell how the {target.unit} is. {self._explained(e)}"
                ) from e
            raise ServiceUnavailableError(
                f"{target.place} does not tell how the {target.unit} is: it was out of reach for "
                f"{self._patience:g} s: {e}. Look whether it answers, and run the step again."
            ) from e
        phase = batch.phase
        # A driver may hang on at its end, and hold what it runs on.
        is_done = self._reader.said_last.is_set() and not phase.is_final
        return BatchState.ENDING if is_done else phase

    def wait(self, seconds: float) -> None:
        """Sleep, less long when the step has said that it is at its end."""
        if self._reader.said_last.is_set():
            time.sleep(_LAST_POLL_SECONDS)
        else:
            self._reader.said_last.wait(max(seconds, _MIN_POLL_SECONDS))

    def cancel(self) -> None:
        """End the batch, and return when the service says that it is at its end.

        Raises:
            ServiceUnavailableError: That could not be made sure of in time.
        """
        self._end(self.id)
        if self._is_doubtful:
            # A list that lagged behind may have hidden another one.
            for batch in self._find_all():
                if not batch.phase.is_final:
                    self._end(batch.id)

    def _end(self, batch_id: str) -> None:
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
                may_ask = error is None or error.retry_after is None
                if may_ask and self._get(batch_id).phase.is_final:
                    return
            except CallError as e:
                error = e
                not_found += e.status == _GONE
                is_forgotten = is_deleted and self._client.forgets_deleted
                if e.status == _GONE and (is_forgotten or not_found >= _NOT_FOUND):
                    if is_deleted or not self._is_beating():
                        return
                    # Nobody else can end it: it looks for this with every beat.
                    self._storage.write_atomically(stop_uri(self.submission.output), b"")
            if not patience.wait(error):
                raise ServiceUnavailableError(
                    f"The {target.unit} {batch_id} of {target.place} could not be cancelled within "
                    f"{patience.limit:g} s and may still run: look at it there and end it. "
                    f"{error or 'It does not end.'}"
                ) from error

    def describe_end(self) -> str:
        """Return the driver's traceback, what the service says, and the end of the output."""
        target = self._target
        batch = self._seen.get(self.id)
        batch = None if batch is None else self._completed(batch)
        said = [] if batch is None else [f"the {target.unit} {self.id} ended as '{batch.state}'"]
        if self._is_forgotten:
            lost = "deleted there, or the service was started anew and it may still run"
            said = [f"{target.place} knows no {target.unit} {self.id} any more: it may be {lost}"]
        for error in batch.errors if batch else ():
            origin = f"{error['source']} error {error['errorCode']}: " if error["source"] else ""
            said.append(f"{origin}{error['message']}".strip())
        own = list(self._reader.tail)
        log = self._log_tail()
        explanation = target.explain("\n".join([*said, *own, *log]))
        trace = driver_traceback([*own, *log])
        parts = [
            trace if trace is not None and trace not in "\n".join(own) else "",
            "" if explanation is None else str(explanation),
            "\n".join(said),
            "\n".join(own or log),
        ]
        return "\n\n".join(part for part in parts if part)

    def describe_use(self) -> Mapping[str, Any]:
        """Return metadata about the batch, as far as the service tells it."""
        try:
            # Of one that was adopted after its end nothing has been asked yet.
            batch = self._seen.get(self.id) or self._client.get_batch(self.id)
        except CallError:
            return {"batch": self.id}
        return self._target.describe(self._completed(batch), self._options)

    def _completed(self, batch: RemoteBatch) -> RemoteBatch:
        """Return a batch with all that the service tells of it, if it does in time."""
        try:
            return self._ask(lambda: self._client.complete(batch), **_BRIEFLY)
        except CallError:
            return batch

    def _log_tail(self) -> list[str]:
        """Return the end of the service's own log of the batch, or why there is none."""
        try:
            log = self._ask(
                lambda: self._client.get_batch_logs(self.id, size=_LOG_LINES), **_BRIEFLY
            )
        except CallError as e:
            return [f"[the service's log could not be read: {e}]"]
        lines = log.lines[-_LOG_LINES:]
        earlier = log.earlier + len(log.lines) - len(lines)
        return [*([f"[{earlier} earlier lines]"] if earlier else []), *lines]

    def _find_all(self) -> list[RemoteBatch]:
        """Return all batches of the submission that the service lists."""
        name = self.submission.name
        try:
            return self._ask(lambda: self._client.find_batches(name))
        except CallError as e:
            raise ServiceUnavailableError(
                f"It is not known whether {self._target.place} has a {self._target.unit} "
                f"{name}: {e}. If it has, end it there."
            ) from e

    def _ask(
        self,
        call: Callable[[], _Answer],
        *,
        reach: float = math.inf,
        refused: float = _REFUSED_SECONDS,
        gone: float = math.inf,
    ) -> _Answer:
        """Return what a call returns, and put up with errors for a while.

        Args:
            call: Asks once.
            reach: For how long at most, in seconds, and not longer than the target's patience.
            refused: For how long with refusals.
            gone: For how long with answers that there is no such thing.

        Raises:
            CallError: The last one.
        """
        outage, refusal, absence = (
            Patience(min(self._patience, reach, limit))
            for limit in (math.inf, refused, min(refused, gone))
        )
        while True:
            try:
                return call()
            except CallError as e:
                patience = refusal if is_refusal(e) else outage
                if not (absence if e.status == _GONE else patience).wait(e):
                    raise

    def _get(self, batch_id: str) -> RemoteBatch:
        batch = self._client.get_batch(batch_id)
        if batch.name and not batch.name.endswith(self.submission.name):
            # A service that was started anew may count from 0 again.
            self._others.add(batch_id)
            raise CallError(f"{batch_id} is the batch {batch.name}, and not ours", status=_GONE)
        return self._remember(batch)

    def _is_beating(self) -> bool:
        """Tell whether the driver has given a sign of life lately, or may have."""
        if self._reader.said_last.is_set():
            return False
        try:
            beat = self._storage.read_text(beat_uri(self.submission.output))
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

    def _explained(self, error: CallError) -> str:
        explanation = self._target.explain(str(error))
        return str(error) if explanation is None else f"{explanation} ({error})"
