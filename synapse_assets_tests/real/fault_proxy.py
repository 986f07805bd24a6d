"""A proxy on loopback between a client and an HTTP service, which breaks what it is told to break.

It hands every header on as it came, the one that names the host too. A signature of Azure
(SharedKey) covers the path and the 'x-ms-' headers and not the host, so a client that was given the
proxy's address signs what the service checks. A service with TLS is one that names itself in its
answers; there the proxy puts its own address in.
"""

import contextlib
import http.client
import itertools
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from synapse_assets.services.process import HOST, choose_ports

FaultKind = Literal[
    "refused",  # nothing listens for a second, and all open connections end
    "reset before",  # the connection is reset, and the service never sees the request
    "reset after",  # the service has done it, and its answer is lost
    "500 before",
    "500 after",  # the service has done it, and the client is told that it failed
    "503 before",
    "429 before",
    "slow",  # the answer trickles in
    "truncated",  # the answer ends in the middle
    "401 before",
    "403 before",
    "404 before",
    "409 before",
    "503 after",
    "reset within",  # the connection is reset in the middle of the answer
]
ALL_FAULTS: tuple[FaultKind, ...] = get_args(FaultKind)
# Those of a store: what it refuses is said by its own answers.
FAULTS = ALL_FAULTS[: ALL_FAULTS.index("truncated") + 1]

_DOWN_SECONDS = 1.0
# How long what was sent has to arrive before a reset, which would take it back otherwise.
_ARRIVAL_SECONDS = 0.05
_TRICKLE_SECONDS = 0.8
_PIECES = 8
_SERVICE_SECONDS = 120.0
# What a reset is made of: on, and no second of waiting for what was not sent.
_RESET = struct.pack("ii", 1, 0)
_REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_CODES = {
    401: "AuthenticationFailed",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServerBusy",
}


@dataclass
class Request:
    """A request that the proxy saw.

    Attributes:
        method: Its method.
        target: Path and query as the client sent them.
        headers: Its headers, with names in lower case.
        at: When it had come whole, on the monotonic clock.
        fault: What was done to it.
        status: What the service answered; None if it was not asked.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    at: float
    fault: str | None = None
    status: int | None = None

    @property
    def path(self) -> str:
        """The path without the query, which may hold a signature."""
        return self.target.partition("?")[0]

    @property
    def is_log_entry(self) -> bool:
        """Whether it writes an entry of a transaction log."""
        return self.method == "PUT" and "/_delta_log/" in self.path


@dataclass
class Rule:
    """What is to be done to which requests.

    Attributes:
        kind: The fault; None for none, where `before` and `after` are all that is wanted.
        matches: Which requests count.
        skip: How many of those go through first.
        times: How many are broken then.
        retry_after: Seconds that a 429 or 503 tells the client to wait.
        before: Called before the service is asked.
        after: Called after the service has answered.
        rewrite: Takes the service's status and body, and returns those that the client gets.
    """

    kind: FaultKind | None = None
    matches: Callable[[Request], bool] = lambda _: True
    skip: int = 0
    times: int = 1
    retry_after: int | None = None
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None
    rewrite: Callable[[int, bytes], tuple[int, bytes]] | None = None
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def takes(self, request: Request) -> bool:
        """Count a request and tell whether it is one to break."""
        return self.matches(request) and self.skip <= next(self._numbers) < self.skip + self.times


class FaultProxy:
    """A proxy in threads of this process, as a context manager."""

    def __init__(
        self,
        *,
        port: int,
        tls: Path | None = None,
        authorize: Callable[[str], str | None] | None = None,
    ) -> None:
        """Create a proxy in front of the service on a port of this machine.

        Args:
            port: The port.
            tls: Folder of the certificate of a service with TLS, which is the proxy's, too.
            authorize: Stands for what checks bearer tokens, which the service does not know. It
                gets a token and returns a SAS that goes on in its place, None to refuse it.
        """
        self._authorize = authorize
        (self.port,) = choose_ports("The proxy", None)
        self._service_port = port
        self._server_tls: ssl.SSLContext | None = None
        if tls is not None:
            self._server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._server_tls.load_cert_chain(tls / "server.pem", tls / "server.key")
            self._client_tls = ssl.create_default_context(cafile=str(tls / "trusted.pem"))
        self._lock = threading.RLock()
        self._seen: list[Request] = []
        self._rules: list[Rule] = []
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._closed = False

    def endpoint(self, account: str) -> str:
        """Return the URL that takes the place of the service's own."""
        return f"http://{HOST}:{self.port}/{account}"

    @property
    def seen(self) -> list[Request]:
        """The requests since the last `break_next`, in the order in which they came."""
        with self._lock:
            return list(self._seen)

    def break_next(self, *rules: Rule) -> None:
        """Forget what was seen, and follow these rules from now on."""
        with self._lock:
            self._seen = []
            self._rules = list(rules)

    def close_connections(self) -> None:
        """Close every connection that a client keeps."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            # Not a reset, which would wait for the thread that reads from it.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "FaultProxy":
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            self._stop_listening()
        self.close_connections()

    def _listen(self) -> None:
        with self._lock:
            if self._closed:
                return
            listener = socket.create_server((HOST, self.port), backlog=128)
            self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                # Wakes the thread that waits in accept, which would hold the port otherwise.
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if self._server_tls is not None:
                try:
                    connection = self._server_tls.wrap_socket(
                        connection, server_side=True, do_handshake_on_connect=False
                    )
                except OSError:
                    # Its client has gone already.
                    continue
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Answer the requests of one connection until one of the two ends it."""
        upstream = self._upstream()
        try:
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            with connection.makefile("rb") as stream:
                while not self._closed and self._serve_one(connection, stream, upstream):
                    pass
        except (OSError, ValueError, http.client.HTTPException):
            _reset(connection)
        finally:
            upstream.close()
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _upstream(self) -> http.client.HTTPConnection:
        """Return a connection to the service, which is not open yet."""
        if self._server_tls is None:
            return http.client.HTTPConnection(HOST, self._service_port, timeout=_SERVICE_SECONDS)
        return http.client.HTTPSConnection(
            HOST, self._service_port, timeout=_SERVICE_SECONDS, context=self._client_tls
        )

    def _serve_one(
        self, connection: socket.socket, stream: BinaryIO, upstream: http.client.HTTPConnection
    ) -> bool:
        line = stream.readline().decode("latin-1").split()
        if len(line) != 3:
            return False
        headers = http.client.parse_headers(stream)
        if headers.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b"".join(_read_body(headers, stream))
        request = Request(
            line[0], line[1], {k.lower(): v for k, v in headers.items()}, time.monotonic()
        )
        with self._lock:
            self._seen.append(request)
            rule = next((rule for rule in self._rules if rule.takes(request)), None)
        kind = None if rule is None else rule.kind
        request.fault = kind
        if rule is not None and rule.before is not None:
            rule.before()
        if kind == "refused":
            _reset(connection)
            self._refuse()
            return False
        if kind == "reset before":
            _reset(connection)
            return False
        if kind is not None and kind.endswith(" before"):
            connection.sendall(_refusal(int(kind[:3]), rule.retry_after if rule else None))
            return True
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if self._authorize is not None and scheme == "Bearer":
            signature = self._authorize(token)
            if signature is None:
                request.status = 401
                connection.sendall(_refusal(401, None))
                return True
            del headers["authorization"]
            # The token is kept with the request; the signature is not.
            separator = "&" if "?" in request.target else "?"
            target = f"{request.target}{separator}{signature}"
        else:
            target = request.target
        head, content = _ask(upstream, request, target, headers, body)
        if self._server_tls is not None:
            head, content = self._rename(head, content)
        if rule is not None and rule.after is not None:
            rule.after()
        if kind == "reset after":
            _reset(connection)
            return False
        if rule is not None and rule.rewrite is not None and request.status is not None:
            status, content = rule.rewrite(request.status, content)
            head = _head(status, len(content))
        if kind in ("500 after", "503 after"):
            connection.sendall(_refusal(int(kind[:3]), None))
        elif kind in ("truncated", "reset within"):
            whole = head + content
            connection.sendall(whole[: len(head) + len(content) // 2] if content else head[:-9])
            if kind == "reset within":
                time.sleep(_ARRIVAL_SECONDS)
                _reset(connection)
            else:
                connection.shutdown(socket.SHUT_RDWR)
            return False
        elif kind == "slow":
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in _pieces(head + content):
                connection.sendall(piece)
                time.sleep(_TRICKLE_SECONDS / _PIECES)
        else:
            connection.sendall(head + content)
        return True

    def _rename(self, head: bytes, content: bytes) -> tuple[bytes, bytes]:
        """Put the proxy's address where the answer has the service's."""
        own, other = (f"{HOST}:{port}".encode() for port in (self.port, self._service_port))
        length, renamed = len(content), content.replace(other, own)
        old, new = (b"Content-Length: %d\r\n" % size for size in (length, len(renamed)))
        return head.replace(other, own).replace(old, new), renamed

    def _refuse(self) -> None:
        """Let nobody connect for a while."""
        with self._lock:
            self._stop_listening()
        self.close_connections()
        time.sleep(_DOWN_SECONDS)
        self._listen()


def _read_body(headers: Message, stream: BinaryIO) -> Iterator[bytes]:
    """Yield the body as it is framed."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        length = int(headers.get("content-length") or 0)
        content = stream.read(length)
        if len(content) != length:
            raise ConnectionResetError("the client ended in the middle of a body")
        yield content
        return
    while True:
        size = stream.readline()
        yield size
        yield stream.read(int(size.partition(b";")[0], 16) + len(b"\r\n"))
        if int(size.partition(b";")[0], 16) == 0:
            return


def _ask(
    upstream: http.client.HTTPConnection,
    request: Request,
    target: str,
    headers: Message,
    body: bytes,
) -> tuple[bytes, bytes]:
    """Return head and body of what the service answers."""
    upstream.close()  # it may have been started anew since
    upstream.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        if name.lower() != "expect":
            upstream.putheader(name, value)
    upstream.endheaders(body)
    answer = upstream.getresponse()
    content = answer.read()
    request.status = answer.status
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
    lengths = ("content-length", "transfer-encoding", "connection", "keep-alive")
    has_length = request.method == "HEAD" or answer.status in (204, 304)
    for name, value in answer.getheaders():
        if name.lower() not in lengths or (has_length and name.lower() == "content-length"):
            lines.append(f"{name}: {value}")
    if not has_length:
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1"), content


def _head(status: int, length: int) -> bytes:
    """Return the head of an answer in JSON."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def _refusal(status: int, retry_after: int | None) -> bytes:
    """Return the answer of a service that does not want to."""
    code = _CODES[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        f"x-ms-error-code: {code}",
        "Content-Type: application/xml",
        f"Content-Length: {len(body)}",
        *([] if retry_after is None else [f"Retry-After: {retry_after}"]),
    ]
    return "\r\n".join([*lines, "", body]).encode()


def _pieces(content: bytes) -> Iterator[bytes]:
    size = max(1, -(-len(content) // _PIECES))
    for start in range(0, len(content), size):
        yield content[start : start + size]


def _reset(connection: socket.socket) -> None:
    """End a connection so that the other side sees it reset."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        # Not `close`, which waits for the files made of the socket.
        socket.socket(fileno=connection.detach()).close()
