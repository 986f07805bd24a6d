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
import http.client
import itertools
import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from synapse_assets.compute.login import EMULATOR_TOKEN
from synapse_assets.services.process import HOST

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


class RefusedError(Exception):
    """Raised when a request is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


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
        self.seen.setdefault(self.state, _now())

    def plain(self) -> dict[str, Any]:
        """Return the answer to a client that did not ask for details."""
        view = {key: self.view.get(key) for key in ("id", "appId", "appInfo", "state", "log")}
        return {**view, "name": self.request["name"]}

    def detailed(self) -> dict[str, Any]:
        """Return the answer with all that Synapse adds to Livy's."""
        seen, ended = self.seen, self.seen.get(self.state) if self.is_final else None
        created = {key: value for key, value in self.request.items() if key not in _OWN_FIELDS}
        running = self.state == "running"
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
            "submitterName": "emulator",
            "submitterId": str(uuid.UUID(int=0)),
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
            "pluginInfo": {
                "preparationStartedAt": seen["not_started"],
                "resourceAcquisitionStartedAt": seen["not_started"],
                "submissionStartedAt": seen["not_started"],
                "monitoringStartedAt": seen.get("running"),
                "cleanupStartedAt": ended,
                "currentState": "Ended" if ended else "Monitoring" if running else "Submission",
            },
            "errorInfo": errors if self.error is not None else [],
            "tags": self.request.get("tags"),
        }


class Batches:
    """All batches of all pools, and the Livy that runs them. Its methods wait for Livy."""

    def __init__(self, livy_url: str) -> None:
        self._livy = urlsplit(livy_url)
        self._batches: dict[int, Batch] = {}

    def submit(self, pool: str, request: Mapping[str, Any]) -> Batch:
        """Start a batch."""
        missing = [key for key in _REQUIRED_FIELDS if request.get(key) in (None, "")]
        if missing:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"The request lacks {', '.join(missing)}.")
        asked_at = _now()
        body = {key: value for key, value in request.items() if key not in _OWN_FIELDS}
        body = {key: value for key, value in body.items() if value is not None}
        for count in itertools.count(2):
            status, view = self._call("POST", "/batches", body)
            if status != HTTPStatus.BAD_REQUEST or "Duplicate session name" not in view["msg"]:
                break
            # Synapse does not mind, and a client that sends a batch twice must get two.
            body["name"] = f"{request['name']} ({count})"
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
            batch.cancelled_at = _now()
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
        assert self._livy.hostname is not None
        connection = http.client.HTTPConnection(
            self._livy.hostname, self._livy.port, timeout=_LIVY_TIMEOUT_SECONDS
        )
        try:
            connection.request(
                method,
                self._livy.path.rstrip("/") + path,
                body=None if body is None else json.dumps(body),
                headers={"Content-Type": "application/json"},
            )
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", errors="replace")
        except (OSError, http.client.HTTPException) as e:
            raise RefusedError(HTTPStatus.BAD_GATEWAY, f"Livy does not answer: {e}") from e
        finally:
            connection.close()
        try:
            content = json.loads(text)
        except ValueError:
            content = text
        return answer.status, content if isinstance(content, dict) else {"msg": str(content)}


def build_app(batches: Batches, pools: Sequence[str]) -> Starlette:
    """Return the API for some pools."""

    async def list_or_create(request: Request) -> Response:
        pool = _check(request, pools)
        if request.method == "POST":
            batch = await run_in_threadpool(batches.submit, pool, await _json_of(request))
            return JSONResponse(_view(request, batch))
        start = _number(request, "from", default=0)
        size = min(_number(request, "size", default=_MAXIMUM_PAGE), _MAXIMUM_PAGE)
        total, page = await run_in_threadpool(batches.page, pool, start=start, size=size)
        sessions = [_view(request, batch) for batch in page]
        return JSONResponse({"from": start, "total": total, "sessions": sessions})

    async def get_or_cancel(request: Request) -> Response:
        pool = _check(request, pools)
        batch = await run_in_threadpool(batches.get, pool, request.path_params["number"])
        if request.method == "DELETE":
            batches.cancel(batch)
            return Response()
        return JSONResponse(_view(request, batch))

    return Starlette(
        routes=[
            Route(_PATH, list_or_create, methods=["GET", "POST"]),
            Route(_PATH + "/{number:int}", get_or_cancel, methods=["GET", "DELETE"]),
        ],
        exception_handlers={RefusedError: _refuse},
    )


def _check(request: Request, pools: Sequence[str]) -> str:
    """Return the pool that a request names, if it may use it."""
    if request.headers.get("Authorization") != f"Bearer {EMULATOR_TOKEN}":
        raise RefusedError(HTTPStatus.UNAUTHORIZED, "The request has no valid bearer token.")
    pool = str(request.path_params["pool"])
    if pool not in pools:
        raise RefusedError(HTTPStatus.NOT_FOUND, f"The workspace has no Spark pool '{pool}'.")
    return pool


def _number(request: Request, name: str, *, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdecimal():
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"'{name}' is not a number: {text}")
    return int(text)


async def _json_of(request: Request) -> Mapping[str, Any]:
    try:
        body = await request.json()
    except ValueError as e:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"The body is not JSON: {e}") from e
    if not isinstance(body, dict):
        raise RefusedError(HTTPStatus.BAD_REQUEST, "The body is not a JSON object.")
    return body


def _view(request: Request, batch: Batch) -> dict[str, Any]:
    detailed = request.query_params.get("detailed", "").lower() == "true"
    return batch.detailed() if detailed else batch.plain()


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
    body = {"TraceId": str(uuid.uuid4()), "Message": str(error)}
    return JSONResponse(body, status_code=error.status, headers=headers)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


def main() -> None:
    """Serve the pools until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--livy", required=True)
    parser.add_argument("--pool", action="append", required=True)
    options = parser.parse_args()
    batches = Batches(options.livy)
    threading.Thread(target=batches.watch, daemon=True).start()
    app = build_app(batches, options.pool)
    uvicorn.run(app, host=HOST, port=options.port, access_log=False, timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
