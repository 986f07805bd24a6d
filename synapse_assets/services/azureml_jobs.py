"""The jobs and clusters of the stand-in for Azure ML; see `azureml_api` for how they are told of.

While there is a file 'hold-<status>' in the workspace's folder, jobs stay in that status; while
there is a file 'fail-<status>', they fail there, for the reason that is in it. A file 'preempt'
takes the node away from the job that runs, once.

A job of several nodes has one process for each, with the variables that Azure ML sets for PyTorch.
Where one fails, the job does, and the others are ended.
"""

import contextlib
import json
import logging
import os
import re
import sysconfig
import tempfile
import threading
import time
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from synapse_assets.services.api import RefusedError, now
from synapse_assets.services.azureml import NODE_VARIABLES
from synapse_assets.services.process import HOST, Server, choose_ports

_logger = logging.getLogger("uvicorn.error")  # the one that uvicorn shows

FINAL = ("Completed", "Failed", "Canceled")
_LOG = "user_logs/std_log.txt"
_LOG_OF_PROCESS = "user_logs/std_log_process_{rank}.txt"

_COMPUTE_SECONDS = 1.0
_GRACE_SECONDS = 2.0
_LOOK_SECONDS = 0.05
_JOB_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}")
_INPUT = re.compile(r"\$\{\{\s*inputs\.(\w+)\s*\}\}")
_PIN = re.compile(r"^\s*- (?P<name>[A-Za-z0-9._-]+)==(?P<version>[^;\s]+)", re.MULTILINE)


class _JobError(Exception):
    """Raised where a job fails for a reason that is not its command's."""


class _CanceledError(Exception):
    """Raised where a job is seen to be cancelled."""


@dataclass
class Cluster:
    """An AmlCompute cluster, as it was asked for."""

    name: str
    body: dict[str, Any]
    created: str = field(default_factory=now)
    ready_at: float = field(default_factory=lambda: time.monotonic() + _COMPUTE_SECONDS)
    busy: int = 0

    @property
    def max_nodes(self) -> int:
        """The most nodes that it may have."""
        return int(self.body["properties"]["properties"]["scaleSettings"]["maxNodeCount"])

    @property
    def state(self) -> str:
        """The provisioning state."""
        return "Succeeded" if time.monotonic() >= self.ready_at else "Creating"


@dataclass
class Job:
    """A command job."""

    name: str
    properties: dict[str, Any]
    folder: Path
    created: str = field(default_factory=now)
    status: str = "NotStarted"
    started: str | None = None
    ended: str | None = None
    error: str | None = None
    cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def cluster(self) -> str:
        """The name of the cluster that it runs on."""
        return str(self.properties.get("computeId")).rpartition("/")[2]

    @property
    def nodes(self) -> int:
        """How many nodes it holds."""
        return int((self.properties.get("resources") or {}).get("instanceCount") or 1)

    @property
    def logs(self) -> dict[str, Path]:
        """What the command prints on each node, by the log's name."""
        names = [_LOG]
        if self.properties.get("distribution"):
            names = [_LOG_OF_PROCESS.format(rank=rank) for rank in range(self.nodes)]
        return {name: self.folder / name for name in names}


class Workspace:
    """All that the workspace holds."""

    def __init__(self, folder: Path) -> None:
        self.clusters: dict[str, Cluster] = {}
        self.environments: dict[tuple[str, str], dict[str, Any]] = {}
        self.jobs: dict[str, Job] = {}
        self._folder = folder
        self._lock = threading.Lock()
        self._variables: dict[str, str] = json.loads(os.environ.get(NODE_VARIABLES, "{}"))

    def put_cluster(self, name: str, body: dict[str, Any]) -> tuple[Cluster, bool]:
        """Make a cluster, or change its scale; tell whether it was made."""
        if body.get("properties", {}).get("computeType") != "AmlCompute":
            raise RefusedError(400, "Only computes of the type AmlCompute are here.")
        with self._lock:
            known = self.clusters.get(name)
            if known is None:
                self.clusters[name] = Cluster(name, body)
                return self.clusters[name], True
            if known.state == "Creating":
                raise RefusedError(409, f"The compute {name} is being created.", code="Conflict")
            known.body = body
            return known, False

    def put_job(self, name: str, body: dict[str, Any]) -> tuple[Job, bool]:
        """Start a job, unless there is one of that name; tell whether it was started."""
        properties = body.get("properties", {})
        job = Job(name, properties, self._folder / "jobs" / name)
        if properties.get("jobType") != "Command":
            raise RefusedError(400, "Only jobs of the type Command are here.")
        if not _JOB_NAME.fullmatch(name):
            raise RefusedError(400, f"The job name {name!r} is invalid.")
        distribution = properties.get("distribution")
        if distribution or job.nodes != 1:
            kind = {"distributionType": "PyTorch", "processCountPerInstance": 1}
            if job.nodes < 1 or distribution != kind:
                raise RefusedError(400, "Only one process for each node is here, as PyTorch's.")
        if job.cluster not in self.clusters:
            raise RefusedError(400, f"There is no compute {job.cluster!r}.")
        with self._lock:
            known = self.jobs.setdefault(name, job)
        if known is job:
            threading.Thread(target=self._live, args=[job], daemon=True).start()
        elif known.properties != properties:
            raise RefusedError(400, "A job that is there cannot be changed.")
        return known, known is job

    def cancel(self, job: Job) -> None:
        """Have a job ended; its status tells when that is done."""
        if job.status in FINAL:
            raise RefusedError(400, f"The run {job.name} is in the final state {job.status}.")
        job.cancel.set()

    def _live(self, job: Job) -> None:
        """Take a job through its states."""
        status = "Failed"
        try:
            self._enter(job, "Starting")
            self._enter(job, "Preparing")
            programs = self._build(job)
            codes = None
            while codes is None:
                self._enter(job, "Queued")
                with self._nodes(job):
                    self._enter(job, "Running")
                    codes = self._execute(job, programs)
            self._enter(job, "Finalizing")
            failed = next((log for log, code in codes.items() if code), None)
            if failed is None or job.cancel.is_set():
                status = "Canceled" if job.cancel.is_set() else "Completed"
            else:
                job.error = (
                    f"Execution failed. User process 'bash' exited with status code "
                    f"{codes[failed]}. Please check log file '{failed}' for error details."
                )
        except _JobError as e:
            job.error = str(e)
        except _CanceledError:
            status = "Canceled"
        except Exception as e:
            _logger.exception("job %s", job.name)
            job.error = f"The stand-in is at fault: {e!r}"
        job.ended = now()
        job.status = status

    def _enter(self, job: Job, status: str) -> None:
        """Let a job come into a status, and stay there for as long as a test wants it to."""
        if job.cancel.is_set() and status != "Finalizing":
            raise _CanceledError
        job.status = status
        failing, holding = (self._folder / f"{kind}-{status}" for kind in ("fail", "hold"))
        while holding.exists():
            if job.cancel.wait(_LOOK_SECONDS):
                raise _CanceledError
        if failing.exists():
            raise _JobError(failing.read_text(encoding="utf-8"))

    @contextlib.contextmanager
    def _nodes(self, job: Job) -> Iterator[None]:
        """Wait until the cluster has the nodes for a job, and hold them."""
        cluster = self.clusters[job.cluster]
        while True:
            with self._lock:
                if cluster.busy + job.nodes <= cluster.max_nodes:
                    cluster.busy += job.nodes
                    break
            if job.cancel.wait(_LOOK_SECONDS):
                raise _CanceledError
        job.started = now()
        try:
            yield
        finally:
            with self._lock:
                cluster.busy -= job.nodes

    def _build(self, job: Job) -> Path:
        """Return the folder of the programs of a job's environment."""
        _, name, _, version = job.properties["environmentId"].rsplit("/", 3)
        if (name, version) not in self.environments:
            raise _JobError(f"There is no environment {name}:{version}.")
        conda = self.environments[name, version]["properties"].get("condaFile") or ""
        for pin in _PIN.finditer(conda):
            _check_pin(pin["name"], pin["version"])
        with self._lock:
            return _make_environment(self._folder / "environments" / version)

    def _execute(self, job: Job, programs: Path) -> dict[str, int] | None:
        """Run a job's command on its nodes until it ends, or fails on one, or is cancelled.

        Returns:
            The exit codes of the nodes on which it ended, by their logs; None if a node was taken
            away.
        """
        place = {}
        if job.properties.get("distribution"):
            (port,) = choose_ports("A job", None)
            place = {"MASTER_ADDR": HOST, "MASTER_PORT": str(port), "WORLD_SIZE": str(job.nodes)}
            place["LOCAL_RANK"] = "0"
        containers = {}
        for rank, (log, file) in enumerate(job.logs.items()):
            file.unlink(missing_ok=True)
            own = {**place, "RANK": str(rank), "NODE_RANK": str(rank)} if place else {}
            containers[log] = self._container(job, programs, log=file, place=own)
        for container in containers.values():
            container.start()
        preempt = self._folder / "preempt"
        codes: dict[str, int] = {}
        while len(codes) < len(containers) and not any(codes.values()):
            if job.cancel.wait(_LOOK_SECONDS):
                break
            if preempt.exists():
                preempt.unlink()
                for container in containers.values():
                    container.kill()
                return None
            found = {log: container.exit_code for log, container in containers.items()}
            codes = {log: code for log, code in found.items() if code is not None}
        for container in containers.values():
            # What the command has left behind goes with its container, too.
            container.stop()
        return codes

    def _container(
        self, job: Job, programs: Path, *, log: Path, place: Mapping[str, str]
    ) -> Server:
        """Return the command on one node, in a fresh folder, without starting it."""
        job.folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="node-", dir=job.folder))
        inputs: Mapping[str, Any] = job.properties.get("inputs") or {}
        command = _INPUT.sub(lambda m: str(inputs[m[1]].get("value")), job.properties["command"])
        return Server(
            f"The job {job.name}",
            ["bash", "-c", command],
            log_file=log,
            environment={
                "PATH": os.pathsep.join([str(programs), "/usr/local/bin", "/usr/bin", "/bin"]),
                "HOME": str(job.folder),
                "TMPDIR": str(work),
                "LANG": "C.UTF-8",
                **self._variables,
                **place,
                **(job.properties.get("environmentVariables") or {}),
                "AZUREML_RUN_ID": job.name,
                "AZUREML_EXPERIMENT_NAME": job.properties.get("experimentName") or "Default",
            },
            inherits=False,
            folder=work,
            grace_seconds=_GRACE_SECONDS,
        )


def _check_pin(name: str, pinned: str) -> None:
    """Fail as an image does that cannot be built, unless the package is here in that version."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "none"
    if version != pinned:
        raise _JobError(
            f"ImageBuildFailure: No matching distribution found for {name}=={pinned} "
            f"(there is {version})."
        )


def _make_environment(folder: Path) -> Path:
    """Return the programs of a virtual environment that sees the packages of this interpreter."""
    if not (folder / "ready").exists():
        venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
        own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        Path(own, "stand_in.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        (folder / "ready").touch()
    return folder / "bin"
