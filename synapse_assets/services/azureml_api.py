"""Azure ML's control plane for one workspace: the routes that MLClient calls to run command jobs.

It is a stand-in, written from what Microsoft has published; nothing here was compared with a
workspace on Azure. Sources:

- paths, bodies and states: the specifications in https://github.com/Azure/azure-rest-api-specs,
  specification/machinelearningservices/resource-manager/Microsoft.MachineLearningServices
  (machineLearningServices.json, mfe.json, workspaceRP.json);
- which of them, in which API version: the requests of azure-ai-ml 1.35.2;
- run history and discovery: the client that azure-ai-ml carries (`_restclient/runhistory`);
- the list of clouds: https://learn.microsoft.com/cli/azure/manage-clouds-azure-cli.

A job is a real process in a folder of its own. Its environment is a virtual one that sees the
packages of this interpreter: nothing is downloaded, and a package that is pinned to a version
other than the one here fails the job as an image does that cannot be built. It has none of this
process's variables but those that `NODE_VARIABLES` holds: they stand for the node's identity.

While there is a file 'hold-<status>' in the folder, jobs stay in that status; while there is a file
'fail-<status>', they fail there, for the reason that is in it. A file 'preempt' takes the node away
from the job that runs, once. Each line of a file 'faults' spoils some requests:

    METHOD PATTERN STATUS before|after COUNT [RETRY_AFTER]

The first COUNT requests of that method whose path matches are answered with that status: before
anything was done, or after it was done, which is an answer that was lost.
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import uuid
import venv
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http import HTTPStatus
from importlib import metadata
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from synapse_assets.compute.login import EMULATOR_TOKEN
from synapse_assets.services import guard
from synapse_assets.services.azureml import CLOUD_NAME, NODE_VARIABLES
from synapse_assets.services.process import HOST

_logger = logging.getLogger("uvicorn.error")  # the one that uvicorn shows

_GROUP = "/subscriptions/{subscription}/resourceGroups/{group}"
_PROVIDER = "/providers/Microsoft.MachineLearningServices"
_WORKSPACE = f"{_GROUP}{_PROVIDER}/workspaces/{{workspace}}"
_LOCATION = "localhost"
_LOG = "user_logs/std_log.txt"

_FINAL = ("Completed", "Failed", "Canceled")
_GRACE_SECONDS = 2.0
_LOOK_SECONDS = 0.05
# What may be changed of a job that is there.
_MUTABLE = ("tags", "properties", "displayName", "description", "isArchived", "services")
_INPUT = re.compile(r"\$\{\{\s*inputs\.(\w+)\s*\}\}")
_PIN = re.compile(r"^\s*- (?P<name>[A-Za-z0-9._-]+)==(?P<version>[^;\s]+)", re.MULTILINE)


class RefusedError(Exception):
    """Raised when a request is answered with an error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class JobError(Exception):
    """Raised where a job fails for a reason that is not its command's."""


@dataclass
class Compute:
    """A cluster, and how many of its nodes are in use."""

    name: str
    body: dict[str, Any]
    created: str
    ready_at: float
    busy: int = 0
    allocated: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def maximum(self) -> int:
        """The most nodes that it may have."""
        return int(self.settings["scaleSettings"]["maxNodeCount"])

    @property
    def settings(self) -> dict[str, Any]:
        """What is told of the nodes."""
        settings: dict[str, Any] = self.body["properties"]["properties"]
        return settings

    @property
    def state(self) -> str:
        """The provisioning state."""
        return "Succeeded" if time.monotonic() >= self.ready_at else "Creating"

    def view(self, folder: str) -> dict[str, Any]:
        """Return the resource, below the workspace `folder`."""
        return {
            "id": f"{folder}/computes/{self.name}",
            "name": self.name,
            "type": "Microsoft.MachineLearningServices/workspaces/computes",
            "location": self.body.get("location", _LOCATION),
            "tags": self.body.get("tags"),
            "identity": self.body.get("identity"),
            "properties": {
                **self.body["properties"],
                "computeLocation": self.body.get("location", _LOCATION),
                "provisioningState": self.state,
                "provisioningErrors": None,
                "createdOn": self.created,
                "isAttachedCompute": False,
                "properties": {
                    **self.settings,
                    "allocationState": "Steady",
                    "currentNodeCount": self.allocated,
                    "targetNodeCount": self.allocated,
                    "nodeStateCounts": {
                        "idleNodeCount": self.allocated - self.busy,
                        "runningNodeCount": self.busy,
                        "preparingNodeCount": 0,
                        "unusableNodeCount": 0,
                        "leavingNodeCount": 0,
                        "preemptedNodeCount": 0,
                    },
                },
            },
        }


@dataclass
class Job:
    """A command job."""

    name: str
    properties: dict[str, Any]
    folder: Path
    created: str
    status: str = "NotStarted"
    started: str | None = None
    ended: str | None = None
    error: str | None = None
    cancel: threading.Event = field(default_factory=threading.Event)

    def view(self, folder: str, endpoint: str) -> dict[str, Any]:
        """Return the resource, below the workspace `folder`."""
        studio = {
            "jobServiceType": "Studio",
            "endpoint": f"{endpoint}/runs/{self.name}?wsid={folder}",
            "status": None,
        }
        return {
            "id": f"{folder}/jobs/{self.name}",
            "name": self.name,
            "type": "Microsoft.MachineLearningServices/workspaces/jobs",
            "properties": {
                **self.properties,
                "status": "CancelRequested" if self._is_ending else self.status,
                "services": {"Studio": studio},
            },
            "systemData": {
                "createdAt": self.created,
                "createdBy": "emulator",
                "createdByType": "User",
            },
        }

    def details(self, endpoint: str) -> dict[str, Any]:
        """Return what run history tells."""
        log = f"{endpoint}/logs/{self.name}/{_LOG}"
        error = {"error": {"code": "UserError", "message": self.error}}
        return {
            "runId": self.name,
            "target": self.properties["computeId"].rpartition("/")[2],
            "status": self.status,
            "startTimeUtc": self.started,
            "endTimeUtc": self.ended,
            "error": None if self.error is None else error,
            "logFiles": {_LOG: log} if self.log.exists() else {},
        }

    @property
    def log(self) -> Path:
        """What the command printed."""
        return self.folder / _LOG

    @property
    def _is_ending(self) -> bool:
        return self.cancel.is_set() and self.status not in _FINAL


class Workspace:
    """All that the workspace holds. Its methods may wait."""

    def __init__(self, folder: Path, *, endpoint: str, compute_seconds: float) -> None:
        self.endpoint = endpoint
        self.computes: dict[str, Compute] = {}
        self.environments: dict[tuple[str, str], dict[str, Any]] = {}
        self.jobs: dict[str, Job] = {}
        self._folder = folder
        self._compute_seconds = compute_seconds
        self._lock = threading.Lock()
        self._variables: dict[str, str] = json.loads(os.environ.get(NODE_VARIABLES, "{}"))

    def put_compute(self, name: str, body: dict[str, Any]) -> tuple[Compute, bool]:
        """Make a cluster, or change its scale; tell whether it was made."""
        if body.get("properties", {}).get("computeType") != "AmlCompute":
            raise RefusedError(400, "BadRequest", "Only computes of the type AmlCompute are here.")
        with self._lock:
            known = self.computes.get(name)
            if known is not None:
                if known.state == "Creating":
                    raise RefusedError(409, "Conflict", f"The compute {name} is being created.")
                known.body = body
                return known, False
            ready = time.monotonic() + self._compute_seconds
            made = Compute(name, body, _now(), ready)
            made.allocated = int(made.settings["scaleSettings"]["minNodeCount"])
            self.computes[name] = made
            return made, True

    def put_job(self, name: str, body: dict[str, Any]) -> tuple[Job, bool]:
        """Start a job, or change what may be changed of one; tell whether it was started."""
        properties = body.get("properties", {})
        if properties.get("jobType") != "Command":
            raise RefusedError(400, "UserError", "Only jobs of the type Command are here.")
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}", name):
            raise RefusedError(400, "UserError", f"The job name {name!r} is invalid.")
        with self._lock:
            known = self.jobs.get(name)
            if known is not None:
                if _fixed(known.properties) != _fixed(properties):
                    raise RefusedError(
                        400, "UserError", "Only tags and properties of a job can be changed."
                    )
                known.properties = properties
                return known, False
            compute = properties.get("computeId", "").rpartition("/")[2]
            if compute not in self.computes:
                raise RefusedError(400, "UserError", f"There is no compute {compute!r}.")
            job = Job(name, properties, self._folder / "jobs" / name, _now())
            self.jobs[name] = job
        threading.Thread(target=self._live, args=[job], daemon=True).start()
        return job, True

    def note(self, request: Request, body: Any) -> None:
        """Keep what was sent, in the file 'requests.log'."""
        line = f"{request.method} {request.url.path} {json.dumps(body)}\n"
        with (self._folder / "requests.log").open("a", encoding="utf-8") as log:
            log.write(line)

    def cancel(self, job: Job) -> None:
        """Have a job ended; its status tells when that is done."""
        if job.status in _FINAL:
            raise RefusedError(
                400, "UserError", f"The run {job.name} is in the final state {job.status}."
            )
        job.cancel.set()

    def _live(self, job: Job) -> None:
        """Take a job through its states."""
        compute = self.computes[job.properties["computeId"].rpartition("/")[2]]
        try:
            job.log.parent.mkdir(parents=True)
            self._enter(job, "Starting")
            self._enter(job, "Preparing")
            programs = self._build(job)
            while True:
                with self._node(job, compute):
                    self._enter(job, "Running")
                    code = self._execute(job, programs)
                    if code is None:
                        continue
                    self._enter(job, "Finalizing")
                    break
            if job.cancel.is_set():
                self._end(job, "Canceled")
            elif code:
                job.error = f"Execution failed. User process 'bash' exited with status code {code}."
                self._end(job, "Failed")
            else:
                self._end(job, "Completed")
        except JobError as e:
            job.error = str(e)
            self._end(job, "Failed")
        except _CanceledError:
            self._end(job, "Canceled")
        except Exception as e:
            _logger.exception("job %s", job.name)
            job.error = f"The stand-in is at fault: {e!r}"
            self._end(job, "Failed")

    def _end(self, job: Job, status: str) -> None:
        job.ended = _now()
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
            raise JobError(failing.read_text(encoding="utf-8"))

    @contextlib.contextmanager
    def _node(self, job: Job, compute: Compute) -> Any:
        """Wait until the cluster has the nodes that a job asks for, and hold them."""
        count = int((job.properties.get("resources") or {}).get("instanceCount") or 1)
        if count > compute.maximum:
            raise JobError(
                f"The job asks for {count} nodes, and the cluster has at most {compute.maximum}."
            )
        self._enter(job, "Queued")
        with compute.changed:
            while compute.busy + count > compute.maximum:
                if job.cancel.is_set():
                    raise _CanceledError
                compute.changed.wait(_LOOK_SECONDS)
            compute.busy += count
            compute.allocated = max(compute.allocated, compute.busy)
        job.started = _now()
        try:
            yield
        finally:
            with compute.changed:
                compute.busy -= count
                compute.changed.notify_all()

    def _build(self, job: Job) -> Path:
        """Return the folder of the programs of a job's environment."""
        name, _, version = (
            job.properties["environmentId"].partition("/environments/")[2].partition("/versions/")
        )
        environment = self.environments.get((name, version))
        if environment is None:
            raise JobError(f"There is no environment {name}:{version}.")
        for pin in _PIN.finditer(environment["properties"].get("condaFile") or ""):
            _check_pin(pin["name"], pin["version"])
        with self._lock:
            return _make_environment(self._folder / "environments" / version)

    def _execute(self, job: Job, programs: Path) -> int | None:
        """Run a job's command to its end, or to that of the job.

        Returns:
            The exit code, None if the node was taken away.
        """
        work = Path(tempfile.mkdtemp(prefix="node-", dir=job.folder))
        inputs = job.properties.get("inputs") or {}
        command = _INPUT.sub(lambda m: str(inputs[m[1]].get("value")), job.properties["command"])
        environment = {
            "PATH": os.pathsep.join([str(programs), "/usr/local/bin", "/usr/bin", "/bin"]),
            "HOME": str(job.folder),
            "TMPDIR": str(work),
            "LANG": "C.UTF-8",
            **self._variables,
            **(job.properties.get("environmentVariables") or {}),
            "AZUREML_RUN_ID": job.name,
            "AZUREML_EXPERIMENT_NAME": job.properties.get("experimentName") or "Default",
        }
        launcher = [sys.executable, "-I", "-S", guard.__file__, str(_GRACE_SECONDS)]
        with job.log.open("wb") as log:
            process = subprocess.Popen(
                [*launcher, "bash", "-c", command],
                cwd=work,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = None
        is_preempted = False
        limit = _seconds((job.properties.get("limits") or {}).get("timeout"))
        began = time.monotonic()
        while process.poll() is None:
            now = time.monotonic()
            if limit is not None and now - began > limit:
                job.error = f"The job ran longer than its limit of {limit:g} s."
                job.cancel.set()
            preempt = self._folder / "preempt"
            if preempt.exists():
                preempt.unlink()
                is_preempted = True
                break
            if job.cancel.is_set():
                if deadline is None:
                    deadline = now + _GRACE_SECONDS
                    os.killpg(process.pid, signal.SIGTERM)
                elif now > deadline:
                    break
            time.sleep(_LOOK_SECONDS)
        # What the command has left behind goes with its container.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.stdin is not None
        process.stdin.close()
        code = process.wait()
        return None if is_preempted else code


class _CanceledError(Exception):
    """Raised where a job is seen to be cancelled."""


def _fixed(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in properties.items() if k not in _MUTABLE and v is not None}


def _check_pin(name: str, pinned: str) -> None:
    """Fail as an image does that cannot be built, unless the package is here in that version."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "none"
    if version != pinned:
        raise JobError(
            f"ImageBuildFailure: No matching distribution found for {name}=={pinned} "
            f"(there is {version})."
        )


def _make_environment(folder: Path) -> Path:
    """Return the programs of a virtual environment that sees the packages of this interpreter."""
    programs = folder / "bin"
    if not (folder / "ready").exists():
        venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
        own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        Path(own, "stand_in.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        (folder / "ready").touch()
    return programs


def _seconds(duration: str | None) -> float | None:
    """Return the seconds of an ISO 8601 duration."""
    match = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?", duration or "")
    if not match:
        return None
    return sum(
        float(part or 0) * unit
        for part, unit in zip(match.groups(), (86_400, 3_600, 60, 1), strict=True)
    )


class Faults:
    """The requests that a test wants to be spoilt."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._done: dict[str, int] = {}

    def find(self, request: Request, moment: str) -> Response | None:
        """Return the answer that a request gets in place of its own, None if it gets that."""
        if not self._file.exists():
            return None
        for line in self._file.read_text(encoding="utf-8").splitlines():
            method, pattern, status, when, count, *pause = line.split()
            is_meant = (request.method, moment) == (method, when)
            if not is_meant or not re.search(pattern, request.url.path):
                continue
            if self._done.get(line, 0) < int(count):
                self._done[line] = self._done.get(line, 0) + 1
                with self._file.with_name("requests.log").open("a", encoding="utf-8") as log:
                    log.write(f"FAULT {line}\n")
                headers = {"Retry-After": pause[0]} if pause else None
                body = {"error": {"code": "Fault", "message": "A test wants it so."}}
                return JSONResponse(body, status_code=int(status), headers=headers)
        return None


_Handler = Callable[[Request], Awaitable[Response]]


def build_app(workspace: Workspace, name: str, faults: Faults) -> Starlette:
    """Return the API of a workspace."""
    endpoint = workspace.endpoint

    def folder_of(request: Request) -> str:
        return _WORKSPACE.format(**{**request.path_params, "workspace": name})

    async def clouds(_: Request) -> Response:
        cloud = {
            "name": CLOUD_NAME,
            "portal": "https://portal.azure.localhost/",
            "resourceManager": f"{endpoint}/",
            "authentication": {
                "loginEndpoint": f"{endpoint}/",
                "audiences": [endpoint],
                "tenant": "common",
                "identityProvider": "AAD",
            },
            "suffixes": {"storage": "core.localhost"},
        }
        return JSONResponse([cloud])

    async def get_workspace(request: Request) -> Response:
        return JSONResponse(
            {
                "id": folder_of(request),
                "name": name,
                "type": "Microsoft.MachineLearningServices/workspaces",
                "location": _LOCATION,
                "identity": {"type": "SystemAssigned"},
                "kind": "Default",
                "properties": {
                    "friendlyName": name,
                    "provisioningState": "Succeeded",
                    "workspaceId": str(uuid.UUID(int=0)),
                    "discoveryUrl": f"{endpoint}/discovery",
                    "mlFlowTrackingUri": f"azureml://{endpoint.partition('://')[2]}/mlflow/v1.0",
                },
            }
        )

    async def discovery(_: Request) -> Response:
        return JSONResponse({"api": endpoint, "history": endpoint, "studio": endpoint})

    async def compute(request: Request) -> Response:
        own = request.path_params["compute"]
        if request.method == "PUT":
            body = await request.json()
            made, is_new = await run_in_threadpool(workspace.put_compute, own, body)
            location = f"{endpoint}{_GROUP.format(**request.path_params)}{_PROVIDER}"
            operation = f"{location}/locations/{_LOCATION}/computeOperationsStatus/{own}"
            return JSONResponse(
                made.view(folder_of(request)),
                status_code=HTTPStatus.CREATED if is_new else HTTPStatus.OK,
                headers={"Azure-AsyncOperation": f"{operation}?api-version=2023-08-01-preview"},
            )
        found = _found(workspace.computes, own, "compute")
        return JSONResponse(found.view(folder_of(request)))

    async def compute_operation(request: Request) -> Response:
        found = _found(workspace.computes, request.path_params["compute"], "operation")
        state = "Succeeded" if found.state == "Succeeded" else "InProgress"
        return JSONResponse({"status": state}, headers={"Retry-After": "1"})

    async def environment(request: Request) -> Response:
        own = request.path_params["environment"], request.path_params["version"]
        body = workspace.environments.setdefault(own, await request.json())
        path = f"{folder_of(request)}/environments/{own[0]}/versions/{own[1]}"
        return JSONResponse(
            {
                "id": path,
                "name": own[1],
                "type": "Microsoft.MachineLearningServices/workspaces/environments/versions",
                "properties": {"environmentType": "UserCreated", "osType": "Linux"}
                | body["properties"],
            }
        )

    async def job(request: Request) -> Response:
        own = request.path_params["job"]
        status = HTTPStatus.OK
        if request.method == "PUT":
            body = await request.json()
            workspace.note(request, body)
            found, is_new = await run_in_threadpool(workspace.put_job, own, body)
            status = HTTPStatus.CREATED if is_new else HTTPStatus.OK
        else:
            found = _found(workspace.jobs, own, "job")
        return JSONResponse(found.view(folder_of(request), endpoint), status_code=status)

    async def list_jobs(request: Request) -> Response:
        views = [found.view(folder_of(request), endpoint) for found in workspace.jobs.values()]
        return JSONResponse({"value": views})

    async def cancel(request: Request) -> Response:
        workspace.cancel(_found(workspace.jobs, request.path_params["job"], "job"))
        return Response(status_code=HTTPStatus.OK)

    async def details(request: Request) -> Response:
        found = _found(workspace.jobs, request.path_params["job"], "run")
        return JSONResponse(found.details(endpoint))

    async def log(request: Request) -> Response:
        found = _found(workspace.jobs, request.path_params["job"], "run")
        return PlainTextResponse(found.log.read_text(encoding="utf-8", errors="replace"))

    def route(path: str, handle: _Handler, *methods: str) -> Route:
        @functools.wraps(handle)
        async def checked(request: Request) -> Response:
            _check(request, name)
            spoilt = faults.find(request, "before")
            if spoilt is not None:
                return spoilt
            answer = await handle(request)
            return faults.find(request, "after") or answer

        return Route(path, checked, methods=methods or ("GET",))

    operations = f"{_GROUP}{_PROVIDER}/locations/{{location}}/computeOperationsStatus/{{compute}}"
    return Starlette(
        routes=[
            # These two ask for no token, as in Azure: the second one's is in its address.
            Route("/metadata/endpoints", clouds),
            Route(f"/logs/{{job}}/{_LOG}", log),
            route(_WORKSPACE, get_workspace),
            route("/discovery", discovery),
            route(f"{_WORKSPACE}/computes/{{compute}}", compute, "GET", "PUT"),
            route(operations, compute_operation),
            route(
                f"{_WORKSPACE}/environments/{{environment}}/versions/{{version}}",
                environment,
                "PUT",
            ),
            route(f"{_WORKSPACE}/jobs", list_jobs),
            route(f"{_WORKSPACE}/jobs/{{job}}", job, "GET", "PUT"),
            route(f"{_WORKSPACE}/jobs/{{job}}/cancel", cancel, "POST"),
            route(f"/history/v1.0{_WORKSPACE}/runs/{{job}}/details", details),
        ],
        exception_handlers={RefusedError: _refuse, 404: _unknown},
    )


def _check(request: Request, name: str) -> None:
    if request.headers.get("Authorization") != f"Bearer {EMULATOR_TOKEN}":
        raise RefusedError(
            HTTPStatus.UNAUTHORIZED, "InvalidAuthenticationToken", "There is no valid token."
        )
    if request.path_params.get("workspace", name) != name:
        raise RefusedError(
            HTTPStatus.NOT_FOUND,
            "ResourceNotFound",
            f"The workspace '{request.path_params['workspace']}' was not found.",
        )


def _found(things: Mapping[Any, Any], key: Any, kind: str) -> Any:
    if key not in things:
        raise RefusedError(HTTPStatus.NOT_FOUND, "UserError", f"The {kind} {key} was not found.")
    return things[key]


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
    body = {"error": {"code": error.code, "message": str(error)}}
    return JSONResponse(body, status_code=error.status, headers=headers)


async def _unknown(request: Request, _: Exception) -> Response:
    _logger.error("not a route of the stand-in: %s %s", request.method, request.url)
    message = f"The stand-in does not have {request.method} {request.url.path}."
    body = {"error": {"code": "NotARouteOfTheStandIn", "message": message}}
    return JSONResponse(body, status_code=HTTPStatus.NOT_FOUND)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


def main() -> None:
    """Serve the workspace until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--compute-seconds", type=float, default=1.0)
    options = parser.parse_args()
    workspace = Workspace(
        options.folder,
        endpoint=f"https://{HOST}:{options.port}",
        compute_seconds=options.compute_seconds,
    )
    uvicorn.run(
        build_app(workspace, options.workspace, Faults(options.folder / "faults")),
        host=HOST,
        port=options.port,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
        access_log=bool(os.environ.get("SYNAPSE_ASSETS_ML_ACCESS_LOG")),
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
