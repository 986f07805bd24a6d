"""What the command line prints: a plan, progress while it works, and a summary."""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from synapse_assets.datasets.version import DatasetVersion

_STDOUT, _STDERR = 1, 2


@dataclass(frozen=True)
class Summary:
    """What one asset holds now.

    Attributes:
        key: The asset.
        version: The dataset; None if there is none.
        seconds: How long its step took when it last ran.
        accuracy: Of a model, cross-validated.
    """

    key: dg.AssetKey
    version: DatasetVersion | None
    seconds: float | None
    accuracy: float | None

    def cells(self, *, is_up_to_date: bool) -> list[str]:
        """Return a line of the table of assets."""
        name, version = self.key.to_user_string(), self.version
        if version is None:
            return [name, "-", "nothing yet", "0 B", "-", ""]
        is_table = version.kind == "TabularDataset"
        count = (version.rows or 0) if is_table else len(version.files)
        content = f"{count:,} {'row' if is_table else 'file'}{'' if count == 1 else 's'}"
        seconds = "-" if self.seconds is None else f"{self.seconds:.1f}"
        made = "up to date" if is_up_to_date else seconds
        size = format_size(version.size)
        return [name, str(version.version), content, size, made, version.uri]


class Console:
    """Prints to the terminal, while everything that others print goes to a log file."""

    def __init__(self, log_file: Path, *, started: float) -> None:
        """Create the console.

        Args:
            log_file: Takes what Dagster and the steps print.
            started: When the command began, on the monotonic clock, in seconds.
        """
        self.log_file = log_file
        self._terminal = os.fdopen(os.dup(_STDOUT), "w", buffering=1, encoding="utf-8")
        self._started = started

    def say(self, line: str) -> None:
        """Print a line to the terminal."""
        print(line, file=self._terminal, flush=True)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Send stdout and stderr, also of subprocesses, to the log file."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        saved = [(descriptor, os.dup(descriptor)) for descriptor in (_STDOUT, _STDERR)]
        with self.log_file.open("ab") as log:
            for descriptor, _ in saved:
                os.dup2(log.fileno(), descriptor)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, copy in saved:
                os.dup2(copy, descriptor)
                os.close(copy)

    def plan(self, stale: Mapping[dg.AssetKey, str]) -> None:
        """Print what is going to run, and why."""
        for key, reason in stale.items():
            self.say(f"  {key.to_user_string():<25} {reason}")

    def on_event(self, entry: dg.EventLogEntry) -> None:
        """Print an entry of the event log, if it tells of progress."""
        text = _progress(entry)
        if text is not None:
            self.say(f"{time.monotonic() - self._started:7.1f} s  {text}")

    def summarize(
        self, summaries: Sequence[Summary], *, stale: Mapping[dg.AssetKey, str], seconds: float
    ) -> None:
        """Print one line per asset: what it holds now, and whether this run made it."""
        header = ["asset", "version", "content", "size", "seconds", "where"]
        rows = [summary.cells(is_up_to_date=summary.key not in stale) for summary in summaries]
        for line in ("", *format_columns(header, rows), ""):
            self.say(line)
        for summary in summaries:
            if summary.accuracy is not None:
                self.say(f"Cross-validated accuracy: {summary.accuracy:.3f}")
        if not stale:
            self.say("Nothing to do: same code and same input as when each asset was made.")
        self.say(f"{seconds:.1f} s in all.")


def _progress(entry: dg.EventLogEntry) -> str | None:
    """Return a line on an entry of the event log; None if it tells a user nothing."""
    event = entry.dagster_event
    step = entry.step_key
    if event is None:
        is_noise = step is None or entry.user_message.startswith("[pipes]")
        return None if is_noise else f"{step}: {entry.user_message}"
    if event.is_step_materialization and event.asset_key is not None:
        return f"{event.asset_key.to_user_string()}: committed"
    if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        check = event.asset_check_evaluation_data
        outcome = "passed" if check.passed else f"FAILED ({check.severity.value})"
        asset = check.asset_key.to_user_string()
        return f"{asset}: check {check.check_name} {outcome}: {check.description or ''}"
    if event.is_step_failure:
        return f"{step}: FAILED"
    return None


def format_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a header and rows as lines, each column as wide as its longest cell."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]


def format_size(size: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
