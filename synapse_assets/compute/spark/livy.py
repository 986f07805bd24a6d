"""Apache Livy's batches: the seam of five verbs, and the client for a plain Livy server.

Sources: the REST API of Apache Livy 0.7 and 0.8 (https://livy.apache.org/docs/latest/rest-api.html).
"""

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from synapse_assets.compute.calls import CallError, parse_retry_after

if TYPE_CHECKING:
    import requests

_CONNECT_SECONDS = 10.0
_READ_SECONDS = 60.0
_PAGE = 100
# From here on it is an error, and so is an answer that sends a request elsewhere.
_REDIRECTED = 300

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class LivyBatch:
    """A batch as the service tells of it.

    Attributes:
        id: Its id, an opaque string.
        state: Livy's state, in the service's own word.
        name: The name it was given; None where the service does not tell.
        result: Synapse's verdict: 'Uncertain' until there is one; None on plain Livy.
        application_id: YARN's or Spark's id of the application, None until there is one.
        links: Pages about it, by name: 'sparkUiUrl', 'driverLogUrl'.
        log: The last lines of its log.
        errors: What the service says went wrong: 'message', 'errorCode', 'source'.
        times: When it came into a state, by Livy's names for these: 'startingAt', ….
    """

    id: str
    state: str
    name: str | None = None
    result: str | None = None
    application_id: str | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    log: Sequence[str] = ()
    errors: Sequence[Mapping[str, str]] = ()
    times: Mapping[str, dt.datetime] = field(default_factory=dict)


@dataclass(frozen=True)
class LogPage:
    """Some lines of a batch's log.

    Attributes:
        lines: The lines.
        start: Number of the first of them, counted from 0; None where the service does not tell.
    """

    lines: Sequence[str]
    start: int | None = None


class LivyClient(ABC):
    """The five verbs. Each sends one request, once; whoever calls decides what to do about errors.

    Every verb raises a `CallError` if the request did not succeed.

    Attributes:
        page_size: How many batches a list has at once.
        forgets_deleted: Whether a batch that was deleted is not found any more, and has ended then.
    """

    page_size = _PAGE
    forgets_deleted = True

    @abstractmethod
    def post_batch(self, request: Mapping[str, Any]) -> LivyBatch:
        """Ask for a batch.

        Args:
            request: Livy's fields ('file', 'args', 'name', …), and 'tags' where they are known.
        """

    @abstractmethod
    def get_batch(self, batch_id: str) -> LivyBatch:
        """Return a batch."""

    @abstractmethod
    def list_batches(self, start: int) -> tuple[list[LivyBatch], int]:
        """Return up to `page_size` batches from number `start` on, and how many there are."""

    @abstractmethod
    def delete_batch(self, batch_id: str) -> None:
        """End a batch."""

    @abstractmethod
    def get_batch_logs(self, batch_id: str, *, start: int, size: int) -> LogPage:
        """Return up to `size` lines of the log of a batch from line `start` on, if kept."""

    def all_batches(self) -> Iterator[LivyBatch]:
        """Yield every batch that the service knows, page by page."""
        start, total = 0, 1
        while start < total:
            page, total = self.list_batches(start)
            yield from page
            if not page:
                return
            start += len(page)


class HttpLivyClient(LivyClient):
    """A plain Livy server."""

    def __init__(self, url: str, *, login: tuple[str, str] | None = None) -> None:
        """Create the client; nothing is contacted.

        Args:
            url: Where Livy answers, such as 'https://cluster.azurehdinsight.net/livy'.
            login: User and password for HTTP's basic authentication.
        """
        import requests

        self._url = url.rstrip("/")
        self._session = requests.Session()
        self._session.auth = login
        # Livy demands it where its protection against cross-site requests is on.
        self._session.headers["X-Requested-By"] = "synapse-assets"

    def post_batch(self, request: Mapping[str, Any]) -> LivyBatch:
        """Ask for a batch. Livy refuses fields that it does not know, so tags are left out."""
        known = {name: value for name, value in request.items() if name != "tags"}
        return self._call("POST", "/batches", read=lambda answer: _batch(answer.json()), json=known)

    def get_batch(self, batch_id: str) -> LivyBatch:
        """Return a batch."""
        path = f"/batches/{batch_id}"
        return self._call("GET", path, read=lambda answer: _batch(answer.json()))

    def list_batches(self, start: int) -> tuple[list[LivyBatch], int]:
        """Return up to `page_size` batches from number `start` on, and how many there are."""

        def read(answer: "requests.Response") -> tuple[list[LivyBatch], int]:
            page = answer.json()
            return [_batch(batch) for batch in page["sessions"]], int(page["total"])

        params = {"from": start, "size": self.page_size}
        return self._call("GET", "/batches", read=read, params=params)

    def delete_batch(self, batch_id: str) -> None:
        """End a batch; Livy forgets it then."""
        self._call("DELETE", f"/batches/{batch_id}", read=lambda _: None)

    def get_batch_logs(self, batch_id: str, *, start: int, size: int) -> LogPage:
        """Return lines of the log; of a long one Livy keeps the end only."""

        def read(answer: "requests.Response") -> LogPage:
            page = answer.json()
            return LogPage([str(line) for line in page["log"]], int(page["from"]))

        params = {"from": start, "size": size}
        return self._call("GET", f"/batches/{batch_id}/log", read=read, params=params)

    def _call(
        self,
        method: str,
        path: str,
        *,
        read: Callable[["requests.Response"], _Answer],
        **arguments: Any,
    ) -> _Answer:
        import requests

        try:
            response = self._session.request(
                method,
                f"{self._url}{path}",
                timeout=(_CONNECT_SECONDS, _READ_SECONDS),
                # A POST that is sent elsewhere would become a GET.
                allow_redirects=False,
                **arguments,
            )
            if response.status_code < _REDIRECTED:
                return read(response)
        except requests.RequestException as e:
            raise CallError(
                f"{self._url} could not be asked: {e}", was_sent=not _is_unconnected(e)
            ) from e
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise CallError(f"{self._url} answered what is not Livy's: {e!r}") from e
        raise CallError(
            _message(response),
            status=response.status_code,
            retry_after=parse_retry_after(response.headers.get("Retry-After")),
        )


def _is_unconnected(error: "requests.RequestException") -> bool:
    """Tell whether there was no connection, so that nothing was sent."""
    import requests
    from urllib3.exceptions import NewConnectionError

    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError)


def _message(response: "requests.Response") -> str:
    """Return what a refusal says: Livy's 'msg', or the first line of another page."""
    try:
        answer = response.json()
    except ValueError:
        answer = response.text.strip().partition("\n")[0]
    if isinstance(answer, dict) and "msg" in answer:
        answer = answer["msg"]
    return f"HTTP {response.status_code} {response.reason}: {answer}"


def _batch(answer: Mapping[str, Any]) -> LivyBatch:
    if answer["id"] is None or answer["state"] is None:
        raise ValueError(f"the answer names no batch: {answer}")
    return LivyBatch(
        id=str(answer["id"]),
        state=str(answer["state"]),
        name=answer.get("name"),
        application_id=answer.get("appId"),
        links={name: url for name, url in (answer.get("appInfo") or {}).items() if url},
        log=answer.get("log") or (),
    )
