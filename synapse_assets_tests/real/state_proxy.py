"""A Livy that says another state of its batches than they are in, for as long as a test likes."""

from typing import Any

import requests

from synapse_assets_tests.real.json_server import JsonServer

_TIMEOUT_SECONDS = 60.0
_ACTIVE = ("starting", "running")


class StateProxy(JsonServer):
    """A proxy in front of a Livy.

    Attributes:
        state: What it says of a batch that has not ended; None for what Livy says.
    """

    def __init__(self, url: str) -> None:
        """Create the proxy in front of the Livy at `url`."""
        super().__init__()
        self.state: str | None = None
        self._livy = url

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, Any]:
        """Return an answer of Livy with the state that is to be said."""
        with requests.Session() as session:
            session.trust_env = False  # no proxy but this one
            headers = {"Content-Type": "application/json"}
            url = f"{self._livy}{target}"
            livys = session.request(
                method, url, data=body, headers=headers, timeout=_TIMEOUT_SECONDS
            )
        answer = livys.json()
        for batch in answer.get("sessions", [answer]) if isinstance(answer, dict) else []:
            if self.state is not None and batch.get("state") in _ACTIVE:
                batch["state"] = self.state
        return livys.status_code, answer
