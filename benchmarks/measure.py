"""Wall time and peak memory of processes, from their start to their end."""

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

# Of each look the kernel walks every page.
_SAMPLE_SECONDS = 0.25
_TAIL_LINES = 20
# What is shared between processes counts once; the resident size would count it in each.
HAS_PSS = Path("/proc/self/smaps_rollup").exists()


@dataclass(frozen=True)
class Measurement:
    """What one run cost.

    Attributes:
        seconds: From the start of the first process to the end of the last.
        tree: Highest sum of memory over the process and all its descendants, in bytes.
        own: Highest resident memory of the process itself, in bytes.
    """

    seconds: float
    tree: int = 0
    own: int = 0


def measure(
    commands: Sequence[Sequence[str]],
    *,
    environment: Mapping[str, str],
    log: Path,
    with_memory: bool = False,
) -> Measurement:
    """Run commands one after the other and return what they cost together.

    To look at the memory of all processes takes time from them: ask for it in a run whose time
    does not count.

    Raises:
        SystemExit: One of them failed; the message ends with what it printed last.
    """
    peaks: list[tuple[int, int]] = []
    started = time.perf_counter()
    with log.open("ab") as output:
        for command in commands:
            process = subprocess.Popen(
                command,
                env={**environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            ended = threading.Event()
            sampler = threading.Thread(target=_sample, args=(process.pid, ended, peaks))
            if with_memory:
                sampler.start()
            # Waited for here and sampled there: the end is noticed at once.
            code = process.wait()
            seconds = time.perf_counter() - started
            ended.set()
            if with_memory:
                sampler.join()
            if code != 0:
                tail = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
                raise SystemExit("\n".join([f"exit code {code}: {' '.join(command)}", *tail]))
    return Measurement(
        seconds=seconds,
        tree=max((tree for tree, _ in peaks), default=0),
        own=max((own for _, own in peaks), default=0),
    )


def _sample(pid: int, ended: threading.Event, peaks: list[tuple[int, int]]) -> None:
    while not ended.wait(_SAMPLE_SECONDS):
        try:
            process = psutil.Process(pid)
            tree = sum(map(_memory, [process, *process.children(recursive=True)]))
            peaks.append((tree, _own_peak(process)))
        except psutil.NoSuchProcess:
            return


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss if HAS_PSS else process.memory_info().rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        # It ended since it was listed.
        return 0


def _own_peak(process: psutil.Process) -> int:
    """Return the kernel's own record of the peak where there is one, else what is resident now.

    Not what `wait4` tells: that includes the descendants.
    """
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return int(process.memory_info().rss)
    peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    # A zombie has no memory any more.
    return int(peak[0]) * 1024 if peak else 0
