"""Calls to a service that runs batches: what goes wrong with them, and how long to go on asking."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

logger = logging.getLogger(__name__)

_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_MAX_RETRY_AFTER_SECONDS = 300.0
_TIMEOUT, _CONFLICT, _THROTTLED = 408, 409, 429
_TRANSIENT = (_TIMEOUT, _CONFLICT, _THROTTLED)


class CallError(Exception):
    """A call to the service that did not succeed.

    Attributes:
        status: The status of HTTP; None if there was no answer, or none that can be read.
        retry_after: How long the service asks to be left alone, in seconds.
        was_sent: Whether the service may have seen the request.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        was_sent: bool = True,
    ) -> None:
        """Create the error from what the service or the network says."""
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.was_sent = was_sent


class Patience:
    """Waits longer and longer between tries, for so long in all from the first failure on."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._deadline: float | None = None
        self._tries = 0

    def wait(self, error: CallError | None) -> bool:
        """Wait before the next try; return False at once if the time is up."""
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self.limit
            if error is not None:
                logger.warning("%s; it is asked again.", error)
        asked = 0.0 if error is None else error.retry_after or 0.0
        left = self._deadline - now
        if left <= 0 or asked > left:
            return False
        pause = _PAUSES[min(self._tries, len(_PAUSES) - 1)]
        self._tries += 1
        # The last try is at the limit.
        time.sleep(max(min(pause, left), asked))
        return True


def is_refusal(error: CallError) -> bool:
    """Tell whether the service has understood the request, and will not do it."""
    status = error.status
    return status is not None and 300 <= status < 500 and status not in _TRANSIENT


def parse_retry_after(value: str | None) -> float | None:
    """Return a Retry-After header (RFC 9110, 10.2.3) in seconds, None if there is none to use."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    try:
        seconds = None if value is None else Retry().parse_retry_after(value)
    except InvalidHeader:
        return None
    return None if seconds is None else min(seconds, _MAX_RETRY_AFTER_SECONDS)


@contextlib.contextmanager
def translated(place: str) -> Iterator[None]:
    """Let the errors of Azure's libraries, and answers that cannot be read, be a `CallError`."""
    from azure.core.exceptions import AzureError, HttpResponseError, ServiceRequestError
    from msrest.exceptions import ClientException

    try:
        yield
    except HttpResponseError as e:
        if e.response is None:
            # The answer broke off.
            raise CallError(f"{place} could not be asked: {e.message}") from e
        response: Any = e.response
        headers: Mapping[str, str] = getattr(response, "headers", None) or {}
        said = sentence_of(response.body().decode(errors="replace")) or e.message
        raise CallError(
            f"HTTP {e.status_code} {e.reason}: {said}",
            status=e.status_code,
            retry_after=parse_retry_after(headers.get("Retry-After")),
        ) from e
    except (AzureError, ClientException) as e:
        raise CallError(
            f"{place} could not be asked: {e}", was_sent=not isinstance(e, ServiceRequestError)
        ) from e
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise CallError(f"{place} answered what cannot be read: {e!r}") from e


def sentence_of(text: str) -> str:
    """Return what a refusal says: a service's own sentence, or the first line of another page."""
    text = text.strip()
    try:
        answer = json.loads(text)
    except ValueError:
        return text.partition("\n")[0]
    if not isinstance(answer, dict):
        return str(answer)
    inner = answer["error"] if isinstance(answer.get("error"), dict) else answer
    return str(inner.get("message") or inner.get("Message") or inner.get("msg") or answer)
