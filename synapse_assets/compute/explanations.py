"""Why a batch failed, in its user's words: from messages of Synapse, Livy, YARN and Spark.

What is known is in the table `causes.txt`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from typing import Literal


@dataclass(frozen=True)
class Explanation:
    """A known cause of a failure.

    Attributes:
        name: The cause in one word, for code that tells causes apart.
        pattern: The regular expression that finds it.
        cause: What happened; named groups of the pattern fill it in.
        remedy: What to do about it.
        is_transient: Whether the same request may succeed later, with nothing changed.
        is_symptom: Whether the end of a batch that failed by itself leaves this in its log, too.
    """

    name: str
    pattern: str
    cause: str
    remedy: str
    is_transient: bool = False
    is_symptom: bool = False

    def __str__(self) -> str:
        """Return the cause and the remedy."""
        return f"{self.cause} {self.remedy}"


def _read_table() -> tuple[Explanation, ...]:
    text = resources.files("synapse_assets.compute").joinpath("causes.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    known = []
    for first in range(0, len(lines), 4):
        title, pattern, cause, remedy = lines[first : first + 4]
        name, *marks = title.split()
        known.append(
            Explanation(name, pattern, cause, remedy, "waits" in marks, "symptom" in marks)
        )
    return tuple(known)


KNOWN = _read_table()
# A request for more than the whole quota will not be served by waiting.
_ASKED = re.compile(
    r"requested (\d+) vcores\b.*?\bout of (?:quota of|available) (\d+) vcores",
    re.IGNORECASE | re.DOTALL,
)
_ASKED_TOO_MUCH = {"workspace_busy": "workspace_quota", "pool_busy": "pool_too_small"}


def explain(text: str) -> Explanation | None:
    """Return the cause that messages and a log's tail speak of, None if it is not known here.

    What the driver's traceback says goes before all else. If that is an error of the step's own,
    what else the log's end tells of lost containers and connections is its consequence.

    Args:
        text: The service's messages, and the last lines of the log.
    """
    trace = driver_traceback(text.split("\n"))
    error = "" if trace is None else _last_error(trace)[0]
    is_own = trace is not None and not _ERROR_OF_SPARK.match(error)
    causes = [known for known in KNOWN if not (is_own and known.is_symptom)]
    return _search(error, KNOWN) or _search(trace or "", causes) or _search(text, causes)


def _search(text: str, known: Iterable[Explanation]) -> Explanation | None:
    for explanation in known:
        match = re.search(explanation.pattern, text, re.IGNORECASE)
        if match is not None:
            found = _lasting(explanation, text)
            return replace(found, cause=found.cause.format_map(match.groupdict()))
    return None


def _lasting(found: Explanation, text: str) -> Explanation:
    """Return the cause, or the lasting one in its place if the batch asks for too much."""
    asked = _ASKED.search(text)
    if found.name in _ASKED_TOO_MUCH and asked is not None and int(asked[1]) > int(asked[2]):
        return next(other for other in KNOWN if other.name == _ASKED_TOO_MUCH[found.name])
    return found


_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_LOG4J = re.compile(
    r"\[?\d{2,4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d\S*\s.*?\b(TRACE|DEBUG|INFO|WARN|ERROR|FATAL)\b"
)
_ERROR_OF_SPARK = re.compile(r"(py4j|pyspark)\.")
_JAVA = re.compile(r"\s+at [\w.$<>/]+\(|\s*\.\.\. \d+ more|Caused by: |Driver stacktrace:")


def driver_traceback(lines: Iterable[str]) -> str | None:
    """Return the last Python traceback of a log, with those it is chained to; None without one.

    Lines of log4j that came between are left out. Of an error that came from an executor it is
    the executor's traceback, which Spark repeats inside of the driver's.
    """
    last: list[str] = []
    current: list[str] = []
    # What the next traceback continues, if the log says that it does.
    chain: list[str] = []
    place: Literal["outside", "frames", "message"] = "outside"
    for line in map(str.rstrip, lines):
        if _TRACEBACK in line:
            current, chain = [*chain, _TRACEBACK], []
            place = "frames"
        elif _LOG4J.match(line):
            place = "outside" if place == "message" else place
        elif place == "frames" and line.startswith(" "):
            current.append(line)
        elif place != "outside" and line and not _JAVA.match(line):
            current.append(line)
            last, place = current, "message"
        elif line in _CHAINED:
            chain = [*current, "", line, ""]
        elif line or place == "message":
            chain = [] if line else chain
            place = "outside"
    return "\n".join(last) if last else None


def _last_error(trace: str) -> list[str]:
    """Return the lines of the error that a traceback ends with."""
    end = trace.rpartition(_TRACEBACK)[2].split("\n")
    return [line for line in end if line and not line.startswith(" ")]
