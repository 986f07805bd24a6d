"""The client for a plain Apache Livy server.

Sources: the REST API of Apache Livy 0.7 and 0.8 (https://livy.apache.org/docs/latest/rest-api.html).
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from synapse_assets.compute.calls import CallError, parse_retry_after, sentence_of
from synapse_assets.compute.client import BatchClient, LogTail, RemoteBatch

if TYPE_CHECKING:
    import requests

_TIMEOUTS = (10.0, 60.0)
# From here on it is an error, and so is an answer that sends a request elsewhere.
_REDIRECTED = 300
_LINKS = {"sparkUiUrl": "spark_ui", "driverLogUrl": "driver_log"}


class HttpLivyClient(BatchClient):
    """A plain Livy server."""

    forgets_deleted = True

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

    def post_batch(self, request: Mapping[str, Any]) -> RemoteBatch:
        """Ask for a batch. Livy refuses fields that it does not know, so tags are left out."""
        known = {name: value for name, value in request.items() if name != "tags"}
        with self._calling("POST", "", json=known) as answer:
            return _batch(answer.json())

    def get_batch(self, batch_id: str) -> RemoteBatch:
        with self._calling("GET", f"/{batch_id}") as answer:
            return _batch(answer.json())

    def list_batches(self, start: int) -> tuple[list[RemoteBatch], int]:
        with self._calling("GET", "", params={"from": start, "size": self.page_size}) as answer:
            page = answer.json()
            return [_batch(batch) for batch in page["sessions"]], int(page["total"])

    def delete_batch(self, batch_id: str) -> None:
        """End a batch; Livy forgets it then."""
        with self._calling("DELETE", f"/{batch_id}"):
            pass

    def get_batch_logs(self, batch_id: str, *, size: int) -> LogTail:
        """Return the end of the log; of a long one Livy keeps no more than that."""
        # Before the first line: Livy counts from the end then.
        params = {"from": -1, "size": size}
        with self._calling("GET", f"/{batch_id}/log", params=params) as answer:
            page = answer.json()
            return LogTail([str(line) for line in page["log"]], int(page["from"]))

    @contextlib.contextmanager
    def _calling(self, method: str, path: str, **arguments: Any) -> Iterator["requests.Response"]:
        """Yield the answer to a request; errors, of reading it too, become `CallError`."""
        import requests

        try:
            response = self._session.request(
                method,
                f"{self._url}/batches{path}",
                timeout=_TIMEOUTS,
                # A POST that is sent elsewhere would become a GET.
                allow_redirects=False,
                **arguments,
            )
            if response.status_code >= _REDIRECTED:
                raise CallError(
                    f"HTTP {response.status_code} {response.reason}: {sentence_of(response.text)}",
                    status=response.status_code,
                    retry_after=parse_retry_after(response.headers.get("Retry-After")),
                )
            yield response
        except requests.RequestException as e:
            raise CallError(
                f"{self._url} could not be asked: {e}", was_sent=not _is_unconnected(e)
            ) from e
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise CallError(f"{self._url} answered what is not Livy's: {e!r}") from e


def links_of(info: Mapping[str, str | None] | None) -> dict[str, str]:
    """Return the links of Livy's `appInfo` by the names of the metadata that shows them."""
    return {_LINKS[name]: url for name, url in (info or {}).items() if url and name in _LINKS}


def _is_unconnected(error: "requests.RequestException") -> bool:
    """Tell whether there was no connection, so that nothing was sent."""
    import requests
    from urllib3.exceptions import NewConnectionError

    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError)


def _batch(answer: Mapping[str, Any]) -> RemoteBatch:
    if answer["id"] is None or answer["state"] is None:
        raise ValueError(f"the answer names no batch: {answer}")
    return RemoteBatch(
        id=str(answer["id"]),
        state=str(answer["state"]),
        name=answer.get("name"),
        application_id=answer.get("appId"),
        links=links_of(answer.get("appInfo")),
    )
