"""The runner: what executes a step where it runs, on a cluster or in a local process.

It is shipped in the step's bundle and needs the standard library and the step's engine alone.
It reads the job file, binds the inputs to the function's parameters, calls it, writes what it
returned as new files, and last of all writes the manifest: the proof that the step finished.

The job file is JSON:
    attempt      key of the attempt
    step         {module, function, parameters}
    engine       'spark' or 'python'
    inputs       {parameter: reference}, references as `DatasetVersion.to_json` makes them
    outputs      {name: fields of `handlers.Target`}
    manifest     where to write the manifest; `failure`: where to write why there is none
    pipes        environment variables that connect Dagster Pipes
and, for a process of this machine:
    storage      the store, as `Datastore.storage_spec` describes it
    spark_conf   properties for a session that the process creates itself
    arguments    the command line, for code that reads it
or, for a driver on a cluster:
    claim        file that only the first batch of a job can create
    output       folder for what the driver says; see `channel`
or, for a node of a cluster: `output` and `arguments`. Its environment tells the `storage`.

Of several nodes each runs the same function with the same inputs, and finds its place in RANK and
WORLD_SIZE. Node 0 alone reports, writes outputs and, once all others are done, the manifest. What
the others return, or write into a folder, is dropped. The first one that fails ends them all.
"""

import atexit
import functools
import inspect
import json
import logging
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
import typing
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_assets.compute.channel import Channel, SilentChannel, done_uri, stop_uri
from synapse_assets.datasets import handlers
from synapse_assets.datastore.storage import SECRETS, Storage, open_storage

if TYPE_CHECKING:
    from dagster_pipes import PipesContext
    from pyspark.sql import SparkSession

Job = Mapping[str, Any]

# Exit code that tells "the step failed, and said why" from a crash.
EXIT_STEP_FAILED = 3
# Set by a parent that holds the other end of our standard input for as long as it lives.
WATCH_PARENT = "SYNAPSE_ASSETS_WATCH_PARENT"
# Environment variable of a node: the store, as `Datastore.storage_spec` describes it.
STORAGE = "SYNAPSE_ASSETS_STORAGE"
# What Azure ML's first SDK calls the variable of a DataReference; that of a dataset is called as
# the input is.
_INPUT_VARIABLE = "AZUREML_DATAREFERENCE_{name}"
_INPUT = re.compile(r"\$\{\{\s*inputs\.(\w+)\s*\}\}")
# Folder of the bundle with modules for where they are not installed.
VENDORED = "vendored"

_JVM_CHECK_SECONDS = 0.5
_NODES_CHECK_SECONDS = 0.5

_PACKAGES = ("pyspark", "pyarrow", "pandas", "polars", "scikit-learn", "skops", "numpy")


def main() -> None:
    """Run the job whose local file is named on the command line, and exit."""
    code = 0
    if os.environ.get(WATCH_PARENT):
        threading.Thread(target=_die_with_parent, daemon=True).start()
        # Registered first, so it comes after whatever else wants to be done at exit. Engines take
        # up to a second to free memory piece by piece that goes with the process anyway.
        atexit.register(lambda: _exit(code))
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # Taken out, so that no process of the engine has them in its environment.
    secrets = json.loads(os.environ.pop(SECRETS, "{}"))
    storage = open_storage(job["storage"], secrets.get("storage", {}))
    spark = functools.cache(lambda: _spark_session(job["spark_conf"], secrets.get("hadoop", {})))
    _tell_inputs(job)
    code = _run_and_tell(job, storage=storage, spark=spark)
    sys.exit(code)


def main_on_cluster() -> None:
    """Run the job whose URI is the first argument, in a Spark driver of a cluster, and exit.

    Everything is read and written through Hadoop, with the identity of the cluster.
    """
    from pyspark.sql import SparkSession

    from synapse_assets.datastore.hadoop import open_hadoop_storage

    threading.Thread(target=_die_with_jvm, args=(os.getppid(),), daemon=True).start()
    # At once: YARN gives up on a driver that has no session within a minute or two.
    session = SparkSession.builder.getOrCreate()
    storage = open_hadoop_storage(sys.argv[1], session)
    job = _read_job(storage, sys.argv[1])
    application = session.sparkContext.applicationId
    # A service may start a batch twice that was asked for once. Another try of the same
    # application, which YARN makes where it is told to, goes on with its work.
    claimed = storage.create_once(job["claim"], application.encode())
    if not claimed and storage.read_text(job["claim"]) != application:
        sys.exit(f"Another batch does this work already, so {application} leaves it alone.")
    sys.argv[1:] = sys.argv[2:]
    with Channel(storage, job["output"], stop=_kill_group).opened() as channel:
        code = _run_and_tell(job, storage=storage, spark=lambda: session, channel=channel)
    session.stop()
    sys.exit(code)


def main_on_node() -> None:
    """Run the job whose URI is the first argument, on a node of a cluster, and exit.

    The node has an identity of its own, by which it opens the store that its environment names.
    """
    secrets = json.loads(os.environ.pop(SECRETS, "{}"))
    storage = open_storage(json.loads(os.environ[STORAGE]), secrets.get("storage", {}))
    job = _read_job(storage, sys.argv[1])
    _tell_inputs(job)
    # Of several nodes Azure ML tells each its place, as torch.distributed wants it.
    rank, nodes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    channel: Channel = SilentChannel(storage, job["output"], stop=_kill_group)
    if rank == 0:
        # A job that lost its node begins anew on another one, and goes on with the output.
        chunks = len(storage.list_files(job["output"]))
        channel = Channel(storage, job["output"], stop=_kill_group, first=chunks + 1)
    with channel.opened():
        code = _run_and_tell(
            job, storage=storage, spark=_no_spark, channel=channel, rank=rank, nodes=nodes
        )
    if code and nodes > 1:
        # The others may wait for this one.
        storage.write_atomically(stop_uri(job["output"]), b"")
    sys.exit(code)


def _tell_inputs(job: Job) -> None:
    """Set the command line, and the variables of the inputs, as Azure ML does for a script."""
    locations = {name: reference["uri"] for name, reference in job["inputs"].items()}
    for name, location in locations.items():
        os.environ[_INPUT_VARIABLE.format(name=name)] = location
        os.environ.setdefault(name, location)
    sys.argv[1:] = [
        _INPUT.sub(lambda match: locations.get(match[1], match[0]), argument)
        for argument in job.get("arguments") or []
    ]


def _read_job(storage: Storage, uri: str) -> Job:
    text = storage.read_text(uri)
    if text is None:
        sys.exit(f"There is no job file at {uri}: run the step again.")
    job: Job = json.loads(text)
    return job


def _no_spark() -> "SparkSession":
    raise TypeError("The step has a parameter 'spark', and runs where there is none.")


def _run_and_tell(
    job: Job,
    *,
    storage: Storage,
    spark: Callable[[], "SparkSession"],
    channel: "Channel | None" = None,
    rank: int = 0,
    nodes: int = 1,
) -> int:
    """Run a job, tell of it through Dagster Pipes, and return the exit code."""
    os.environ.update(job["pipes"])
    try:
        import dagster_pipes
    except ImportError:
        sys.path.append(str(Path(__file__).parents[2] / VENDORED))
        import dagster_pipes

    writer = None if channel is None else channel.pipes_writer()
    with dagster_pipes.open_dagster_pipes(message_writer=writer) as pipes:
        _forward_logging(pipes, package=job["step"]["module"].rpartition(".")[0])
        try:
            run(job, storage=storage, spark=spark, rank=rank, nodes=nodes)
        except Exception as e:  # noqa: BLE001 -- whatever ends a step, its user has to be told
            traceback.print_exc()
            failure = _describe(e)
            if nodes == 1:
                _write_json(storage, job["failure"], failure)
            else:
                failure["message"] = f"Node {rank}: {failure['message']}"
                # The failures after the first one follow from it.
                storage.write_once(job["failure"], json.dumps(failure).encode())
            return EXIT_STEP_FAILED
    return 0


def run(
    job: Job,
    *,
    storage: Storage,
    spark: Callable[[], "SparkSession"],
    rank: int = 0,
    nodes: int = 1,
) -> None:
    """Execute a job: load, call, write, and write the manifest as the last thing.

    Args:
        job: What the job file holds.
        storage: The store that the datasets lie in.
        spark: Returns the Spark session.
        rank: This node's number; what another one than node 0 makes is dropped.
        nodes: How many nodes run the job.
    """
    started = time.monotonic()
    hadoop_paths = job["engine"] == "spark"
    access = handlers.Access(storage=storage, spark=spark, hadoop_paths=hadoop_paths)
    function = getattr(import_module(job["step"]["module"]), job["step"]["function"])
    targets = {name: handlers.Target(**fields) for name, fields in job["outputs"].items()}
    if rank:
        targets = {name: replace(t, uri=tempfile.mkdtemp()) for name, t in targets.items()}
    reports: dict[str, dict[str, Any]] = {name: {} for name in targets}

    def report(output: str, /, **values: Any) -> None:
        if output not in reports:
            raise ValueError(f"There is no output '{output}'; there is: {sorted(reports)}.")
        reports[output].update(values)

    arguments = _bind(function, job, targets, report, access)
    loaded = time.monotonic()
    returned = function(**arguments) or {}
    unknown = set(returned) - set(targets)
    if unknown:
        raise ValueError(
            f"The step returned {sorted(unknown)}, but its outputs are {sorted(targets)}."
        )
    if rank:
        storage.write_atomically(done_uri(job["output"], rank), b"")
        return
    outputs = _write_outputs(returned, arguments, targets, access)
    for name, output in outputs.items():
        output["metadata"] = reports[name]
    for other in range(1, nodes):
        # What it left before the job began anew will do: it has done its work then.
        while storage.read_text(done_uri(job["output"], other)) is None:
            time.sleep(_NODES_CHECK_SECONDS)
    ended = time.monotonic()
    manifest = {
        "attempt": job["attempt"],
        "outputs": outputs,
        "environment": _environment(),
        "seconds": {"load": loaded - started, "run": ended - loaded},
    }
    _write_json(storage, job["manifest"], manifest)


def _bind(
    function: Callable[..., Any],
    job: Job,
    targets: Mapping[str, handlers.Target],
    report: Callable[..., None],
    access: handlers.Access,
) -> dict[str, Any]:
    """Return the function's arguments, by the names of its parameters."""
    hints = typing.get_type_hints(function)
    parameters = job["step"]["parameters"]
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "spark":
            arguments[name] = access.spark()
        elif name == "report":
            arguments[name] = report
        elif name in job["inputs"]:
            handler = handlers.handler_for(hints.get(name))
            if handler is None:
                raise TypeError(
                    f"The step's parameter '{name}' is an input, but is annotated "
                    f"{hints.get(name)}. Annotate it with one of: "
                    f"{', '.join(handlers.handled_types())}."
                )
            arguments[name] = handler.load(job["inputs"][name], access)
        elif name in targets:
            arguments[name] = handlers.output_folder(targets[name], access.storage)
        elif name in parameters:
            arguments[name] = parameters[name]
        elif parameter.default is inspect.Parameter.empty:
            raise TypeError(
                f"The step's parameter '{name}' is neither an input ({', '.join(job['inputs'])}) "
                f"nor an output ({', '.join(targets)}) nor a given parameter, and has no default."
            )
    unused = (set(job["inputs"]) | set(parameters)) - set(arguments)
    if unused:
        raise TypeError(f"The step has no parameter for: {', '.join(sorted(unused))}.")
    return arguments


def _write_outputs(
    returned: Mapping[str, Any],
    arguments: Mapping[str, Any],
    targets: Mapping[str, handlers.Target],
    access: handlers.Access,
) -> dict[str, dict[str, Any]]:
    """Write all outputs and return what the manifest says of each.

    The outputs of Spark are jobs of its own scheduler: side by side, one fills the cores that
    the last tasks of the other leave idle. Other engines use all cores for one output already.
    """

    def write(name: str) -> dict[str, Any]:
        value = returned.get(name)
        if name in arguments:
            # The function has filled a folder, and returns what it has to say of the files.
            return _write_output(name, arguments[name], value or {}, targets[name], access)
        return _write_output(name, value, {}, targets[name], access)

    with ThreadPoolExecutor(len(targets) if access.hadoop_paths else 1) as pool:
        return dict(zip(targets, pool.map(write, targets), strict=True))


def _write_output(
    name: str,
    value: Any,
    properties: Mapping[str, Mapping[str, str]],
    target: handlers.Target,
    access: handlers.Access,
) -> dict[str, Any]:
    """Write one output and return its part of the manifest."""
    handler = handlers.handler_for(type(value))
    if handler is None:
        raise TypeError(
            f"The step returned {type(value).__qualname__} for the output '{name}'. Return one "
            f"of: {', '.join(handlers.handled_types())}; or take a parameter '{name}: Path' and "
            "fill that folder."
        )
    files = handler.write(value, target, access)
    unknown = set(properties) - {file["name"] for file in files if "name" in file}
    if unknown:
        raise ValueError(f"The step describes files of '{name}' it did not write: {unknown}.")
    for file in files:
        if file.get("name") in properties:
            file["properties"] = dict(properties[file["name"]])
    counted = [file["rows"] for file in files if file.get("rows") is not None]
    return {
        "kind": handler.kind,
        "folder": target.files_folder if handler.kind == "FileDataset" else target.folder,
        "files": files,
        "rows": sum(counted) if counted else None,
    }


def _spark_session(conf: Mapping[str, str], secrets: Mapping[str, str]) -> "SparkSession":
    from pyspark.sql import SparkSession

    builder = SparkSession.builder
    for key, value in conf.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    handlers.set_hadoop_secrets(session, secrets)
    return session


def _environment() -> dict[str, str]:
    """Return the versions of what the step ran on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    # Asked only where it is there already. A cluster's Spark is not always that of the package.
    sql = sys.modules.get("pyspark.sql")
    session = None if sql is None else sql.SparkSession.getActiveSession()
    if session is not None:
        versions["spark"] = session.version
        versions["java"] = session._jvm.System.getProperty("java.version")
    return versions


def _forward_logging(pipes: "PipesContext", *, package: str) -> None:
    """Send what the step's package logs, and everyone's warnings, to Dagster's event log."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            pipes.log.log(record.levelno, self.format(record))

    # What libraries log at INFO (py4j logs every call) is not progress of the step.
    logging.getLogger().addHandler(Handler(logging.WARNING))
    logger = logging.getLogger(package)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(Handler(logging.INFO))


def _describe(error: BaseException) -> dict[str, Any]:
    """Return what the orchestrator is told of an error."""
    # The step's own sentence on an input that its user has to mend.
    is_refusal = isinstance(error, ValueError) and not isinstance(error, UnicodeError)
    text = str(error).strip()
    if not is_refusal or not text:
        text = ": ".join(filter(None, [type(error).__name__, text]))
    return {"message": text, "is_refusal": is_refusal}


def _write_json(storage: Storage, uri: str, value: Any) -> None:
    storage.write_atomically(uri, json.dumps(value, indent=1).encode())


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _kill_group() -> None:
    """Kill this process and its children."""
    os.killpg(0, signal.SIGKILL)


def _die_with_parent() -> None:
    """Die once the parent is gone, however it went."""
    while os.read(0, 1):
        pass
    _kill_group()


def _die_with_jvm(parent: int) -> None:
    """Die once the driver's JVM is gone.

    A cluster ends the JVM; this process would go on, with nobody to hear it.
    """
    os.setpgid(0, 0)
    while os.getppid() == parent:
        time.sleep(_JVM_CHECK_SECONDS)
    _kill_group()
