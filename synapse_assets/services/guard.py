"""Runs a server for as long as its parent lives: `python guard.py GRACE_SECONDS COMMAND...`.

Its standard input is a pipe that the parent holds open. The pipe closes however the parent dies,
also by SIGKILL, and then the server is ended: kindly, so that it can save what it holds, and after
the grace period by force. Neither Node.js nor Java would notice by itself, and what Linux offers
(PR_SET_PDEATHSIG) exists there alone and acts already when the parent's *thread* ends.

This file runs as a script of its own and imports the standard library alone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

# Tells the guard to kill the server.
KILL = signal.SIGUSR1


def main() -> None:
    """Run the command as a member of this process's group, and exit as it exits."""
    grace_seconds, command = float(sys.argv[1]), sys.argv[2:]
    # A handler and not SIG_IGN, which the command would inherit: SIGTERM goes to the whole group,
    # and ends the server only.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    # Killed from here, the server is also waited for: it is gone when this process is.
    signal.signal(KILL, lambda *_: server.kill())

    def end_with_parent() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.killpg(0, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(grace_seconds)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_parent, daemon=True).start()
    code = server.wait()
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
