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

`azureml_jobs` says how a test holds jobs or fails them. Each line of a file 'faults' in the folder
spoils some requests:

    METHOD PATTERN STATUS before|after COUNT [RETRY_AFTER]

The first COUNT requests of that method whose path matches are answered with that status: before
anything was done, or after it was done, which is an answer that was lost.
"""

import json
import re
import sys
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from synapse_assets.services import api
from synapse_assets.services.azureml import CLOUD_NAME, ML_WORKSPACE, TLS
from synapse_assets.services.azureml_jobs import FINAL, Cluster, Job, Workspace
from synapse_assets.services.process import HOST

_PROVIDER = (
    "/subscriptions/{subscription}/resourceGroups/{group}"
    "/providers/Microsoft.MachineLearningServices"
)
_WORKSPACE = f"{_PROVIDER}/workspaces/{{workspace}}"
_OPERATION = f"{_PROVIDER}/locations/{{location}}/computeOperationsStatus/{{compute}}"
_LOCATION = "localhost"

_Body = dict[str, Any]


class Requests:
    """Those that change something, in the file 'requests.log', and those to be spoilt."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "requests.log"
        self._faults = folder / "faults"
        self._done: Counter[str] = Counter()

    def note(self, line: str) -> None:
        """Keep a line in the log."""
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")

    async def spoil(
        self, request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Answer a request, unless a test wants it to be spoilt."""
        spoilt = self._find(request, "before")
        if spoilt is not None:
            return spoilt
        own = await answer(request)
        return self._find(request, "after") or own

    def _find(self, request: Request, moment: str) -> Response | None:
        faults = self._faults.read_text(encoding="utf-8") if self._faults.exists() else ""
        for line in faults.splitlines():
            method, pattern, status, when, count, *pause = line.split()
            if (request.method, moment) != (method, when) or self._done[line] >= int(count):
                continue
            if re.search(pattern, request.url.path):
                self._done[line] += 1
                self.note(f"FAULT {line}")
                headers = {"Retry-After": pause[0]} if pause else None
                body = {"error": {"code": "Fault", "message": "A test wants it so."}}
                return JSONResponse(body, status_code=int(status), headers=headers)
        return None


def build_app(folder: Path, *, endpoint: str) -> Starlette:
    """Return the API of a workspace that keeps its files in a folder."""
    workspace = Workspace(folder)
    requests = Requests(folder)

    def folder_of(request: Request) -> str:
        if request.path_params["workspace"] != ML_WORKSPACE:
            message = f"The workspace '{request.path_params['workspace']}' was not found."
            raise api.RefusedError(HTTPStatus.NOT_FOUND, message, code="ResourceNotFound")
        return _WORKSPACE.format(**request.path_params)

    def job_of(request: Request) -> Job:
        folder_of(request)
        job: Job = api.find(workspace.jobs, request.path_params["job"], "job")
        return job

    def clouds(_: Request) -> Response:
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

    def log(request: Request) -> Response:
        job = api.find(workspace.jobs, request.path_params["job"], "run")
        file = api.find(job.logs, request.path_params["log"], "log")
        return PlainTextResponse(file.read_text(encoding="utf-8", errors="replace"))

    def get_workspace(request: Request, _: _Body) -> _Body:
        return {
            "id": folder_of(request),
            "name": ML_WORKSPACE,
            "type": "Microsoft.MachineLearningServices/workspaces",
            "location": _LOCATION,
            "identity": {"type": "SystemAssigned"},
            "kind": "Default",
            "properties": {
                "friendlyName": ML_WORKSPACE,
                "provisioningState": "Succeeded",
                "workspaceId": str(uuid.UUID(int=0)),
                "discoveryUrl": f"{endpoint}/discovery",
                "mlFlowTrackingUri": f"azureml://{endpoint.partition('://')[2]}/mlflow/v1.0",
            },
        }

    def discovery(_: Request, __: _Body) -> _Body:
        return {"api": endpoint, "history": endpoint, "studio": endpoint}

    def compute(request: Request, body: _Body) -> Any:
        where, name = folder_of(request), request.path_params["compute"]
        if request.method == "GET":
            return _view_cluster(api.find(workspace.clusters, name, "compute"), where)
        cluster, is_new = workspace.put_cluster(name, body)
        operation = _OPERATION.format(**request.path_params, location=_LOCATION)
        return JSONResponse(
            _view_cluster(cluster, where),
            status_code=HTTPStatus.CREATED if is_new else HTTPStatus.OK,
            headers={
                "Azure-AsyncOperation": f"{endpoint}{operation}?api-version=2023-08-01-preview"
            },
        )

    def compute_operation(request: Request, _: _Body) -> Response:
        cluster = api.find(workspace.clusters, request.path_params["compute"], "operation")
        state = "Succeeded" if cluster.state == "Succeeded" else "InProgress"
        return JSONResponse({"status": state}, headers={"Retry-After": "1"})

    def environment(request: Request, body: _Body) -> _Body:
        name, version = request.path_params["environment"], request.path_params["version"]
        known = workspace.environments.setdefault((name, version), body)
        return {
            "id": f"{folder_of(request)}/environments/{name}/versions/{version}",
            "name": version,
            "type": "Microsoft.MachineLearningServices/workspaces/environments/versions",
            "properties": {"environmentType": "UserCreated", "osType": "Linux"}
            | known["properties"],
        }

    def list_jobs(request: Request, _: _Body) -> _Body:
        where = folder_of(request)
        tag = request.query_params.get("tag")
        jobs = [
            j
            for j in list(workspace.jobs.values())
            if not tag or tag in (j.properties.get("tags") or {})
        ]
        return {"value": [_view_job(found, where, endpoint=endpoint) for found in jobs]}

    def job(request: Request, body: _Body) -> Any:
        where, status = folder_of(request), HTTPStatus.OK
        if request.method == "GET":
            found = job_of(request)
        else:
            requests.note(f"{request.method} {request.url.path} {json.dumps(body)}")
            found, is_new = workspace.put_job(request.path_params["job"], body)
            status = HTTPStatus.CREATED if is_new else HTTPStatus.OK
        return JSONResponse(_view_job(found, where, endpoint=endpoint), status_code=status)

    def cancel(request: Request, _: _Body) -> Response:
        workspace.cancel(job_of(request))
        return Response()

    def details(request: Request, _: _Body) -> _Body:
        found = job_of(request)
        error = {"error": {"code": "UserError", "message": found.error}}
        return {
            "runId": found.name,
            "target": found.cluster,
            "status": found.status,
            "startTimeUtc": found.started,
            "endTimeUtc": found.ended,
            "error": None if found.error is None else error,
            "logFiles": {
                log: f"{endpoint}/logs/{found.name}/{log}"
                for log, file in found.logs.items()
                if file.exists()
            },
        }

    return api.build_app(
        [
            # These two ask for no token, as in Azure: the second one's is in its address.
            Route("/metadata/endpoints", clouds),
            Route("/logs/{job}/{log:path}", log),
            api.route("/discovery", discovery),
            api.route(_WORKSPACE, get_workspace),
            api.route(f"{_WORKSPACE}/computes/{{compute}}", compute, "GET", "PUT"),
            api.route(_OPERATION, compute_operation),
            api.route(
                f"{_WORKSPACE}/environments/{{environment}}/versions/{{version}}",
                environment,
                "PUT",
            ),
            api.route(f"{_WORKSPACE}/jobs", list_jobs),
            api.route(f"{_WORKSPACE}/jobs/{{job}}", job, "GET", "PUT"),
            api.route(f"{_WORKSPACE}/jobs/{{job}}/cancel", cancel, "POST"),
            api.route(f"/history/v1.0{_WORKSPACE}/runs/{{job}}/details", details),
        ],
        describe=lambda error: {"error": {"code": error.code, "message": str(error)}},
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=requests.spoil)],
    )


def _view_cluster(cluster: Cluster, folder: str) -> _Body:
    """Return the resource, below the workspace `folder`."""
    location = cluster.body.get("location", _LOCATION)
    return {
        "id": f"{folder}/computes/{cluster.name}",
        "name": cluster.name,
        "type": "Microsoft.MachineLearningServices/workspaces/computes",
        "location": location,
        "tags": cluster.body.get("tags"),
        "identity": cluster.body.get("identity"),
        "properties": {
            **cluster.body["properties"],
            "computeLocation": location,
            "provisioningState": cluster.state,
            "provisioningErrors": None,
            "createdOn": cluster.created,
            "isAttachedCompute": False,
        },
    }


def _view_job(job: Job, folder: str, *, endpoint: str) -> _Body:
    """Return the resource, below the workspace `folder`."""
    is_ending = job.cancel.is_set() and job.status not in FINAL
    studio = f"{endpoint}/runs/{job.name}?wsid={folder}"
    return {
        "id": f"{folder}/jobs/{job.name}",
        "name": job.name,
        "type": "Microsoft.MachineLearningServices/workspaces/jobs",
        "properties": {
            **job.properties,
            "status": "CancelRequested" if is_ending else job.status,
            "services": {"Studio": {"jobServiceType": "Studio", "endpoint": studio}},
        },
        "systemData": {
            "createdAt": job.created,
            "createdBy": "emulator",
            "createdByType": "User",
        },
    }


def main() -> None:
    """Serve the workspace until it is told to stop: `azureml_api PORT FOLDER`."""
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    app = build_app(folder, endpoint=f"https://{HOST}:{port}")
    api.serve(app, port, tls=folder / TLS)


if __name__ == "__main__":
    main()
