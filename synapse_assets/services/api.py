"""What the stand-ins for services of Azure share: who may ask, how they answer, how they run."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from synapse_assets.compute.login import EMULATOR_TOKEN
from synapse_assets.services.process import HOST

# The methods of requests whose body has to be JSON.
_WITH_BODY = ("POST", "PUT")


class RefusedError(Exception):
    """Raised when a request is answered with an error."""

    def __init__(self, status: int, message: str, *, code: str = "UserError") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def route(path: str, handle: Callable[[Request, dict[str, Any]], Any], *methods: str) -> Route:
    """Return a route for those who have the emulators' token.

    Args:
        path: Its path.
        handle: Gets a request and its body, and returns an answer, or what is to be one as JSON.
            It may wait: it has a thread of its own.
        methods: Its methods; GET if there is none.
    """

    async def answer(request: Request) -> Response:
        if request.headers.get("Authorization") != f"Bearer {EMULATOR_TOKEN}":
            message = "The request has no valid bearer token."
            raise RefusedError(HTTPStatus.UNAUTHORIZED, message, code="InvalidAuthenticationToken")
        body: Any = {}
        if request.method in _WITH_BODY and await request.body():
            try:
                body = await request.json()
            except ValueError as e:
                raise RefusedError(HTTPStatus.BAD_REQUEST, f"The body is not JSON: {e}") from e
            if not isinstance(body, dict):
                raise RefusedError(HTTPStatus.BAD_REQUEST, "The body is not a JSON object.")
        result = await run_in_threadpool(handle, request, body)
        return result if isinstance(result, Response) else JSONResponse(result)

    return Route(path, answer, methods=methods or ("GET",))


def find(things: Mapping[Any, Any], key: Any, kind: str) -> Any:
    """Return what there is of that key, and refuse the request if there is nothing."""
    if key not in things:
        raise RefusedError(HTTPStatus.NOT_FOUND, f"The {kind} '{key}' was not found.")
    return things[key]


def build_app(
    routes: Sequence[Route],
    *,
    describe: Callable[[RefusedError], Any],
    middleware: Sequence[Middleware] = (),
) -> Starlette:
    """Return an application, in which `describe` returns the body of an error."""

    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        is_login = error.status == HTTPStatus.UNAUTHORIZED
        headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'} if is_login else {}
        return JSONResponse(describe(error), status_code=error.status, headers=headers)

    async def refuse_unknown(request: Request, _: Exception) -> Response:
        message = f"The stand-in does not have {request.method} {request.url.path}."
        return await refuse(request, RefusedError(HTTPStatus.NOT_FOUND, message, code="NoRoute"))

    return Starlette(
        routes=routes,
        exception_handlers={RefusedError: refuse, 404: refuse_unknown},
        middleware=middleware,
    )


def serve(app: Starlette, port: int, *, tls: Path | None = None) -> None:
    """Serve until told to stop; with TLS if `tls` holds 'server.pem' and 'server.key'."""
    uvicorn.run(
        app,
        host=HOST,
        port=port,
        ssl_certfile=tls and tls / "server.pem",
        ssl_keyfile=tls and tls / "server.key",
        access_log=False,
        timeout_graceful_shutdown=1,
    )


def now() -> str:
    """Return the time as Azure writes it."""
    return datetime.now(timezone.utc).isoformat()
