"""A process that runs cases one after the other: one JSON a line in, one JSON a line out.

Needs the standard library alone, since one of its ends runs where Airflow is installed.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


def serve(run: Callable[[Mapping[str, Any]], Mapping[str, Any]], ready: Mapping[str, Any]) -> None:
    """Say that it is ready, and run what comes on standard input until that ends.

    Whatever else is printed, by libraries or by steps, goes to standard error.
    """
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        print(json.dumps(ready), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line))), file=answers, flush=True)
