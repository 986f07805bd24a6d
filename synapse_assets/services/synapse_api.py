"""Synapse's Spark batch REST API in front of a real Apache Livy.

It is a stand-in, written from what Microsoft has published; nothing here was compared with a
workspace on Azure. Sources:

- paths, parameters and status codes: "Spark Batch" in the REST reference of the Synapse data plane,
  API versions 2019-11-01-preview and 2020-12-01, below
  https://learn.microsoft.com/rest/api/synapse/data-plane/spark-batch;
- keys and values of the answers: the models of azure-synapse-spark 0.7.0;
- the body of an error, {TraceId, Message}: an answer quoted in the issue 32297 of
  https://github.com/Azure/azure-sdk-for-net.

Livy runs the batches. What it does not know is kept here: pools, tags, the time at which each state
was first seen, the result, the error, and batches that were cancelled, which Livy forgets.
"""

import argparse
import logging
import re
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import requests
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from synapse_assets.services import api
from synapse_assets.services.api import RefusedError, now

_logger = logging.getLogger("uvicorn.error")  # the one that uvicorn shows

_PATH = "/livyApi/versions/{version}/sparkPools/{pool}/batches"
_MAXIMUM_PAGE = 20
_POLL_SECONDS = 0.5
_LIVY_TIMEOUT_SECONDS = 60.0

# Kept here; Livy refuses fields that it does not know.
_OWN_FIELDS = ("tags", "artifactId")
_REQUIRED_FIELDS = (
    *("name", "file", "driverMemory", "driverCores"),
    *("executorMemory", "executorCores", "numExecutors"),
)
_RESULTS = {"success": "Succeeded", "dead": "Failed", "error": "Failed", "killed": "Cancelled"}
_SEEN = {
    "not_started": "notStartedAt",
    "starting": "startingAt",
    "running": "runningAt",
    "dead": "deadAt",
    "success": "successAt",
    "killed": "killedAt",
    "recovering": "recoveringAt",
}
_ERROR_LINE = re.compile(r"(Caused by: )?([\w$]+\.)*\w*(Error|Exception)\b.*")


@dataclass
class Batch:
    """One batch, as it was asked for and as it was last seen.

    Attributes:
        view: What Livy said of it last.
        seen: When each state was first seen.
        cancelled_at: When a client asked to cancel it.
        error: The line of the log that tells why it died.
    """

    pool: str
    request: Mapping[str, Any]
    view: dict[str, Any]
    seen: dict[str, str] = field(default_factory=dict)
    cancelled_at: str | None = None
    error: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def state(self) -> str:
        """The state in Livy's words."""
        return str(self.view["state"])

    @property
    def is_final(self) -> bool:
        """Whether the state stays as it is."""
        return self.state in _RESULTS

    def see(self, view: dict[str, Any]) -> None:
        """Take what Livy says now."""
        self.view = view
        self.seen.setdefault(self.state, now())

    def plain(self) -> dict[str, Any]:
        """Return the answer to a client that did not ask for details."""
        view = {key: self.view.get(key) for key in ("id", "appId", "appInfo", "state", "log")}
        return {**view, "name": self.request["name"]}

    def detailed(self) -> dict[str, Any]:
        """Return the answer with all that Synapse adds to Livy's."""
        seen, ended = self.seen, self.seen.get(self.state) if self.is_final else None
        created = {key: value for key, value in self.request.items() if key not in _OWN_FIELDS}
        errors = [{"message": self.error, "errorCode": "LIVY_JOB_STATE_DEAD", "source": "User"}]
        return {
            **self.plain(),
            "livyInfo": {
                **{key: seen[state] for state, key in _SEEN.items() if state in seen},
                "currentState": self.state,
                "jobCreationRequest": created,
            },
            "workspaceName": "emulator",
            "sparkPoolName": self.pool,
            "artifactId": self.request.get("artifactId"),
            "jobType": "SparkBatch",
            "result": _RESULTS.get(self.state, "Uncertain"),
            "schedulerInfo": {
                "submittedAt": seen["not_started"],
                "scheduledAt": seen["not_started"],
                "endedAt": ended,
                "cancellationRequestedAt": self.cancelled_at,
                "currentState": "Ended" if ended else "Scheduled",
            },
            "errorInfo": errors if self.error is not None else [],
            "tags": self.request.get("tags"),
        }


class Batches:
    """All batches of all pools, and the Livy that runs them. Its methods wait for Livy."""

    def __init__(self, livy_url: str) -> None:
        self._livy_url = livy_url.rstrip("/")
        self._batches: dict[int, Batch] = {}

    def submit(self, pool: str, request: Mapping[str, Any]) -> Batch:
        """Start a batch."""
        missing = [key for key in _REQUIRED_FIELDS if request.get(key) in (None, "")]
        if missing:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"The request lacks {', '.join(missing)}.")
        asked_at = now()
        body = {
            key: value
            for key, value in request.items()
            if key not in _OWN_FIELDS and value is not None
        }
        # Livy refuses a name that it knows; a client that sends a batch twice must get two.
        body["name"] = f"{request['name']} {uuid.uuid4().hex[:8]}"
        status, view = self._call("POST", "/batches", body)
        if status >= HTTPStatus.BAD_REQUEST:
            raise RefusedError(status, view["msg"])
        batch = Batch(pool, request, view, seen={"not_started": asked_at})
        batch.see(view)
        self._batches[view["id"]] = batch
        return batch

    def get(self, pool: str, number: int) -> Batch:
        """Return a batch as it is now."""
        batch = self._batches.get(number)
        if batch is not None and batch.pool == pool:
            self._refresh(batch)
        if number not in self._batches or self._batches[number].pool != pool:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"The pool '{pool}' has no batch {number}.")
        return self._batches[number]

    def page(self, pool: str, *, start: int, size: int) -> tuple[int, Sequence[Batch]]:
        """Return the number of batches of a pool, and some of them as they are now."""
        for batch in self._all(pool)[start : start + size]:
            self._refresh(batch)
        batches = self._all(pool)
        return len(batches), batches[start : start + size]

    def cancel(self, batch: Batch) -> None:
        """Have a batch ended; its state tells when that is done."""
        if batch.cancelled_at is None and not batch.is_final:
            batch.cancelled_at = now()
            threading.Thread(target=self._delete, args=[batch], daemon=True).start()

    def watch(self) -> None:
        """Look at all unfinished batches for ever, so that the times of their states are right."""
        while True:
            time.sleep(_POLL_SECONDS)
            for batch in list(self._batches.values()):
                try:
                    self._refresh(batch)
                except RefusedError as e:
                    _logger.warning("batch %s: %s", batch.view["id"], e)

    def _all(self, pool: str) -> Sequence[Batch]:
        return [batch for _, batch in sorted(self._batches.items()) if batch.pool == pool]

    def _refresh(self, batch: Batch) -> None:
        number = batch.view["id"]
        with batch.lock:
            if batch.is_final:
                return
            status, view = self._call("GET", f"/batches/{number}")
            if status == HTTPStatus.NOT_FOUND:
                if batch.cancelled_at is None and self._batches.get(number) is batch:
                    del self._batches[number]  # another Livy than the one that ran it
                view = {**batch.view, "state": "killed"}
            elif batch.cancelled_at is not None and view["state"] in ("dead", "error"):
                view["state"] = "killed"
            elif view["state"] in ("dead", "error"):
                batch.error = self._last_error(number)
            batch.see(view)

    def _delete(self, batch: Batch) -> None:
        try:
            # Answers when spark-submit has ended.
            self._call("DELETE", f"/batches/{batch.view['id']}")
            self._refresh(batch)
        except RefusedError as e:
            _logger.warning("batch %s was not cancelled: %s", batch.view["id"], e)

    def _last_error(self, number: int) -> str:
        lines = self._call("GET", f"/batches/{number}/log?size=-1")[1].get("log", [])
        errors = [line for line in lines if _ERROR_LINE.match(line)]
        return str((errors or ["The log has no error."])[-1])

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Return Livy's status and answer; that of an error has the message in 'msg'."""
        try:
            with requests.Session() as session:
                session.trust_env = False  # no proxy
                url = f"{self._livy_url}{path}"
                answer = session.request(method, url, json=body, timeout=_LIVY_TIMEOUT_SECONDS)
        except requests.RequestException as e:
            raise RefusedError(HTTPStatus.BAD_GATEWAY, f"Livy does not answer: {e}") from e
        try:
            content = answer.json()
        except ValueError:
            content = answer.text
        return answer.status_code, content if isinstance(content, dict) else {"msg": str(content)}


def build_app(batches: Batches, pools: Sequence[str]) -> Starlette:
    """Return the API for some pools."""

    def pool_of(request: Request) -> str:
        pool = str(request.path_params["pool"])
        if pool not in pools:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"The workspace has no Spark pool '{pool}'.")
        return pool

    def list_or_create(request: Request, body: Mapping[str, Any]) -> Any:
        pool = pool_of(request)
        if request.method == "POST":
            return _view(request, batches.submit(pool, body))
        start = _number(request, "from", default=0)
        size = min(_number(request, "size", default=_MAXIMUM_PAGE), _MAXIMUM_PAGE)
        total, page = batches.page(pool, start=start, size=size)
        return {"from": start, "total": total, "sessions": [_view(request, b) for b in page]}

    def get_or_cancel(request: Request, _: Mapping[str, Any]) -> Any:
        batch = batches.get(pool_of(request), request.path_params["number"])
        if request.method == "DELETE":
            batches.cancel(batch)
            return Response()
        return _view(request, batch)

    return api.build_app(
        [
            api.route(_PATH, list_or_create, "GET", "POST"),
            api.route(_PATH + "/{number:int}", get_or_cancel, "GET", "DELETE"),
        ],
        describe=lambda error: {"TraceId": str(uuid.uuid4()), "Message": str(error)},
    )


def _number(request: Request, name: str, *, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdecimal():
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"'{name}' is not a number: {text}")
    return int(text)


def _view(request: Request, batch: Batch) -> dict[str, Any]:
    detailed = request.query_params.get("detailed", "").lower() == "true"
    return batch.detailed() if detailed else batch.plain()


def main() -> None:
    """Serve the pools until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--livy", required=True)
    parser.add_argument("--pool", action="append", required=True)
    options = parser.parse_args()
    batches = Batches(options.livy)
    threading.Thread(target=batches.watch, daemon=True).start()
    api.serve(build_app(batches, options.pool), options.port)


if __name__ == "__main__":
    main()
