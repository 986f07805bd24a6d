"""The life cycle of an attempt: adopt what is there, or submit; wait; demand the proof.

What an attempt leaves in the datastore, so that a re-execution by another process finds it:
    _attempts/<key>/record.json    which batch runs it, stored before the first look at its state
    _attempts/<key>/job.json       what the runner was told to do
    _attempts/<key>/manifest.json  the proof that the step finished, written last
    _attempts/<key>/failure.json   why it did not
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synapse_assets.compute.batch import BatchService, Submission
from synapse_assets.datastore import Datastore
from synapse_assets.datastore.datastore import ATTEMPTS
from synapse_assets.errors import StepFailedError, StepTimeoutError

_FIRST_POLL_SECONDS = 0.2
_MAX_POLL_SECONDS = 5.0
# A batch's end is noticed within this share of the time it ran.
_POLL_SHARE = 0.1


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

    def uri(self, name: str) -> str:
        """Return the location of one of the attempt's files."""
        return self.datastore.uri(ATTEMPTS, self.key, name)

    def manifest(self) -> dict[str, Any] | None:
        """Return the proof that the step finished, None if there is none for this work."""
        manifest = self._read("manifest.json")
        record = self._read("record.json")
        if manifest is None or record is None or record["fingerprint"] != self.fingerprint:
            return None
        return manifest

    def running_batch(self, service: BatchService) -> str | None:
        """Return the id of a batch that is already at this work, None if there is none."""
        record = self._read("record.json")
        if record is None or record["fingerprint"] != self.fingerprint:
            return None
        batch_id: str | None = record["batch_id"]
        if batch_id is None or service.get_state(batch_id).is_final:
            return None
        return batch_id

    def submit(self, service: BatchService, *, bundle: str, job: Mapping[str, Any]) -> str:
        """Start a batch with fresh files and return its id."""
        for name in ("manifest.json", "failure.json"):
            self.datastore.storage().remove(self.uri(name))
        self._write("job.json", job)
        self._write("record.json", {"fingerprint": self.fingerprint, "batch_id": None})
        batch_id = service.submit(
            Submission(name=self.key, bundle=bundle, job_file=self.uri("job.json"))
        )
        self._write("record.json", {"fingerprint": self.fingerprint, "batch_id": batch_id})
        return batch_id

    def wait(self, service: BatchService, batch_id: str, *, timeout: float) -> dict[str, Any]:
        """Wait for a batch and return its manifest.

        Whatever ends the waiting early (a timeout, an interruption, an error) cancels the batch
        and returns only when nothing of it runs any more.

        Args:
            service: The target's verbs.
            batch_id: The batch to wait for.
            timeout: How long the batch may run, in seconds.

        Raises:
            StepTimeoutError: It ran longer than that.
            StepFailedError: It ended without a manifest, whatever the service says of it.
        """
        started = time.monotonic()
        try:
            while not service.get_state(batch_id).is_final:
                elapsed = time.monotonic() - started
                if elapsed > timeout:
                    raise StepTimeoutError(
                        f"{self.key} ran longer than its limit of {timeout:g} s and was "
                        "cancelled. Raise timeout_seconds of the compute target, or give it less "
                        "to do."
                    )
                poll = min(max(_FIRST_POLL_SECONDS, elapsed * _POLL_SHARE), _MAX_POLL_SECONDS)
                service.wait(batch_id, seconds=min(poll, timeout - elapsed + 0.001))
        except BaseException:
            service.cancel(batch_id)
            raise
        manifest = self.manifest()
        if manifest is None:
            raise StepFailedError(self._explain(service, batch_id))
        return manifest

    def _explain(self, service: BatchService, batch_id: str) -> str:
        """Return why there is no manifest: the step's own words first, then the log's tail."""
        failure = self._read("failure.json")
        end = service.describe_end(batch_id)
        if failure is not None:
            return f"{failure['message']}\n\nStep {self.key}: {end}"
        return (
            f"{self.key} ended without a manifest, so nothing was committed. "
            f"Look at the end of its log, and run it again.\n\n{end}"
        )

    def _read(self, name: str) -> dict[str, Any] | None:
        text = self.datastore.storage().read_text(self.uri(name))
        return None if text is None else json.loads(text)

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        content = json.dumps(value, indent=1).encode()
        self.datastore.storage().write_atomically(self.uri(name), content)
