"""A Livy that says another state of its batches than they are in, for as long as a test likes."""

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from synapse_assets.services.process import HOST

_TIMEOUT_SECONDS = 60.0
_ACTIVE = ("starting", "running")
# Asks for an answer that cannot be read here.
_PACKED = "Accept-Encoding"


class StateProxy:
    """A proxy on loopback in front of Livy, in threads of this process, as a context manager.

    Attributes:
        state: What it says of a batch that has not ended; None for what Livy says.
    """

    def __init__(self, url: str) -> None:
        """Create the proxy in front of the Livy at `url`."""
        self.state: str | None = None
        service = urlsplit(url)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                connection = http.client.HTTPConnection(
                    str(service.hostname), service.port, timeout=_TIMEOUT_SECONDS
                )
                headers = {name: value for name, value in self.headers.items() if name != _PACKED}
                connection.request(self.command, self.path, self.rfile.read(length), headers)
                answer = connection.getresponse()
                content = json.dumps(proxy.change(json.loads(answer.read()))).encode()
                connection.close()
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 -- the names of http.server

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """The root of the REST API."""
        return f"http://{HOST}:{self._server.server_port}"

    def change(self, answer: Any) -> Any:
        """Return an answer of Livy with the state that is to be said."""
        batches = answer.get("sessions", [answer]) if isinstance(answer, dict) else []
        for batch in batches:
            if self.state is not None and batch.get("state") in _ACTIVE:
                batch["state"] = self.state
        return answer

    def __enter__(self) -> "StateProxy":
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
