"""Why a batch failed, in its user's words: from messages of Synapse, Livy, YARN and Spark.

The table is searched from top to bottom, what is specific before what is general: a log that ends
with a lost executor may say further up that YARN killed it for its memory.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# What Synapse says of where a fault came from (`errorInfo[].source`).
Source = Literal["System", "User", "Unknown", "Dependency"]


@dataclass(frozen=True)
class Explanation:
    """A known cause of a failure.

    Attributes:
        name: The cause in one word, for code that tells causes apart.
        cause: What happened.
        remedy: What to do about it.
        line: The line that gave it away; empty if it was the source alone.
        is_transient: Whether the same request may succeed later, with nothing changed.
    """

    name: str
    cause: str
    remedy: str
    line: str
    is_transient: bool = False

    def __str__(self) -> str:
        """Return the cause and the remedy."""
        return f"{self.cause} {self.remedy}"


@dataclass(frozen=True)
class Entry:
    """One known cause; named groups of the pattern fill in the cause.

    A symptom is also what the end of a batch that failed by itself leaves in its log.
    """

    name: str
    pattern: str
    cause: str
    remedy: str
    is_transient: bool = False
    is_symptom: bool = False


_WHEN_BUSY = "Wait for the batches before it, end idle sessions, or "
_MORE_QUOTA = (
    "Lower num_executors or the cores, or ask for more in the Azure portal: Quotas, Azure Synapse "
    "Analytics, 'Apache Spark (vCore) per workspace'."
)

ENTRIES: tuple[Entry, ...] = (
    # Refused at the door: quota, capacity, rights, and requests that no pool can serve.
    Entry(
        "workspace_quota",
        r"MAXIMUM_WORKSPACE_CAPACITY_EXCEEDED|workspace has a \d+ core limit|"
        r"\b(?:CORE_QUOTA|EXCEEDED_QUOTA)",
        "The batch asks for more vCores than the workspace may ever use.",
        _MORE_QUOTA,
    ),
    Entry(
        "workspace_busy",
        r"AVAILABLE_WORKSPACE_CAPACITY_EXCEEDED|workspace only has \S+ vcores available",
        "Other batches and sessions hold the workspace's vCores.",
        f"{_WHEN_BUSY}ask for a larger quota in the Azure portal.",
        is_transient=True,
    ),
    Entry(
        "pool_too_small",
        r"MAXIMUM_COMPUTE_CAPACITY_EXCEEDED",
        "The batch asks for more vCores than the Spark pool may ever have.",
        "Lower num_executors or the cores, or raise the pool's largest number of nodes.",
    ),
    Entry(
        "pool_busy",
        r"AVAILABLE_COMPUTE_CAPACITY_EXCEEDED|pool only has \S+ vcores available|"
        r"pool is consuming \S+ vcores out of",
        "Other batches and sessions hold the Spark pool's vCores.",
        f"{_WHEN_BUSY}raise the pool's largest number of nodes.",
        is_transient=True,
    ),
    Entry(
        "queue_full",
        r"MAX_QUEUED|maximum number of (?:queued|active|running|concurrent) (?:jobs|batches)",
        "The Spark pool's queue is full: it takes 50 running and 200 queued jobs, the workspace "
        "1000 in all.",
        "Wait, start fewer partitions at once (a Dagster pool limits them), or use a second pool.",
        is_transient=True,
    ),
    Entry(
        "too_many_requests",
        r"TooManyRequests|Too Many Requests|HTTP (?:status code: )?429\b",
        "The service turned the request away because too many came at once: Synapse starts 2 "
        "batches a second.",
        "Wait, or start fewer partitions at once.",
        is_transient=True,
    ),
    Entry(
        "livy_busy",
        r"Rejected, too many sessions are being created",
        "Livy starts as many batches already as it may at once.",
        "Wait, or raise livy.server.session.max-creation in Livy's livy.conf.",
        is_transient=True,
    ),
    Entry(
        "name_taken",
        r"Duplicate session name",
        "Livy has a batch of this name already.",
        "Look at that batch: it may be this very step. Delete it, or run the step again.",
    ),
    Entry(
        "missing_synapse_role",
        r"required Synapse RBAC permission|bigDataPools/useCompute|sufficient privileges",
        "The orchestrator's identity may not run batches on this Spark pool.",
        "In Synapse Studio, Manage, Access control, give it 'Synapse Compute Operator' on the pool "
        "or 'Synapse Apache Spark Administrator'; a role of Azure does not do, and a new one takes "
        "some minutes.",
    ),
    Entry(
        "runtime_retired",
        r"InvalidSparkComputeVersion|Spark Compute version: \S+ is invalid|"
        r"runtime (?:version|for (?:apache )?spark)\b.*\b(?:retired|deprecated|disabled|"
        r"unsupported|no longer supported|end[- ]of[- ](?:life|support))",
        "The pool's Spark runtime is retired and runs nothing any more.",
        "Give the pool a supported version of Spark, in the Azure portal or by making it anew.",
    ),
    Entry(
        "wrong_pool",
        r"(?:spark ?pool|big ?data ?pool|spark ?compute)\b.*(?:not found|does not exist|NotFound)|"
        r"SparkComputeNotFound",
        "The workspace has no Spark pool of this name.",
        "Correct the pool's name or the workspace in the resource; Synapse Studio, Manage, Apache "
        "Spark pools lists them.",
    ),
    Entry(
        "invalid_size",
        r"SparkSettingsInvalid\w+|Invalid (?:Driver|Executor)(?:Memory|Cores)|"
        r"Required (?:executor|AM) memory .* above the max threshold",
        "The cluster has no node for a driver or executor of this size.",
        "Lower driver_memory, executor_memory or the cores, or use a pool of larger nodes.",
    ),
    Entry(
        "property_refused",
        r"Blacklisted configuration values in session config: (?P<keys>[\w., ]+)",
        "Livy lets nobody set {keys}.",
        "Take it out of conf: the cluster decides it.",
    ),
    Entry(
        "local_path",
        r"Local path (?P<path>\S+) cannot be added to user sessions",
        "Livy does not take {path}: it is a path on its own machine.",
        "Put the file into the datastore and name it there, or have Livy's administrator add the "
        "folder to livy.file.local-dir-whitelist.",
    ),
    # What the step or its surroundings lack.
    Entry(
        "missing_module",
        r"(?:ModuleNotFoundError|ImportError): No module named '?(?P<module>[\w.]+)",
        "The pool's Python has no module {module}.",
        "Ship it with the step, environment=['….whl'], if it is pure Python; else install it with "
        "the pool's packages.",
    ),
    Entry(
        "python_version",
        r"PYTHON_VERSION_MISMATCH|Python in worker has different version",
        "The driver and the executors run different versions of Python.",
        "Take spark.pyspark.python and PYSPARK_PYTHON out of conf, or point all at one Python.",
    ),
    Entry(
        "java_version",
        r"UnsupportedClassVersionError|Unsupported class file major version",
        "A jar was built for another version of Java than the cluster runs.",
        "Use the jar's release for the pool's Java, or a pool with a newer runtime.",
    ),
    Entry(
        "missing_storage_role",
        r"AuthorizationPermissionMismatch|Spark_System_ABFS_OperationFailed|"
        r"not authorized to perform this operation using this permission",
        "The batch's identity has no right to the data in the storage account.",
        "Give it the role 'Storage Blob Data Contributor' on the account or container (Owner and "
        "Contributor do not count), or a rule in the folder's access list; a new role takes some "
        "minutes.",
    ),
    Entry(
        "storage_firewall",
        r"AuthorizationFailure|not authorized to perform this operation\.",
        "The storage account's firewall does not let the Spark pool in.",
        "Make a managed private endpoint from the workspace to the account, or let the pool's "
        "network in.",
    ),
    Entry(
        "hdfs_permission",
        r"Permission denied: user=(?P<user>[^,\s]+)",
        "HDFS refuses the user {user}, as whom the batch runs.",
        "Give that user the right to the folder, or run the batch as one who has it.",
    ),
    Entry(
        "unknown_host",
        r"UnknownHostException:? *(?P<host>[\w.-]+\w)|Name or service not known|"
        r"Temporary failure in name resolution",
        "The cluster cannot resolve the name of a host it needs.",
        "Check the account's name; on a managed virtual network, make a managed private endpoint "
        "for the account's 'dfs' and 'blob'.",
    ),
    Entry(
        "path_not_found",
        r"PATH_NOT_FOUND|Path does not exist: |The specified (?:path|blob|container|filesystem) "
        r"does not exist|FileNotFoundException|FileNotFoundError",
        "A file or folder that the batch needs is not there.",
        "Look at the path in the message: it has to exist, and as the cluster sees it.",
    ),
    # Too small, or too much.
    Entry(
        "result_too_large",
        r"bigger than (?:local maxResultSize|spark\.driver\.maxResultSize)",
        "The step collects more rows into the driver than it may hold.",
        "Write the data instead of collect() or toPandas(), or raise driver_memory and "
        "spark.driver.maxResultSize.",
    ),
    Entry(
        "container_memory",
        r"exceeding (?:physical |virtual )?memory limits|"
        r"beyond (?:the )?'?(?:physical|virtual)'? memory limit|"
        r"exit(?:ed)? (?:code|status|with code)(?: is|:)? 137\b",
        "A container used more memory than it had asked for, and was killed.",
        "Raise spark.executor.memoryOverhead (Python and Arrow live there) or executor_memory, or "
        "give each executor fewer cores.",
    ),
    Entry(
        "out_of_memory",
        r"java\.lang\.OutOfMemoryError|GC overhead limit exceeded",
        "The driver or an executor ran out of heap.",
        "Raise executor_memory or, where the driver's log says so, driver_memory; or split the "
        "data into more partitions (spark.sql.shuffle.partitions).",
    ),
    Entry(
        "disk_full",
        r"No space left on device",
        "The disk of a node is full of shuffle data.",
        "Use more or larger nodes, more partitions, or the pool's elastic storage.",
    ),
    Entry(
        "lost_executor",
        r"ExecutorLostFailure|Lost executor \S+|Executor heartbeat timed out|executor lost",
        "An executor was lost, and its tasks failed too often.",
        "See its log for why; mostly it was memory (raise executor_memory and "
        "spark.executor.memoryOverhead), else a node went away: run the step again.",
        is_transient=True,
        is_symptom=True,
    ),
    Entry(
        "container_killed",
        r"exit(?:ed)? (?:code|status|with code)(?: is|:)? 143\b",
        "A container was told to end: the batch was cancelled, its node taken away, or its memory "
        "used up.",
        "If nobody cancelled it, run it again; if it recurs, raise driver_memory and "
        "executor_memory.",
        is_transient=True,
        is_symptom=True,
    ),
    Entry(
        "not_started",
        r"No YARN application is found with tag",
        "The cluster did not start the batch in the time that Livy gives it.",
        "Wait until it is less busy; if the log shows an error of spark-submit, mend that.",
        is_transient=True,
        is_symptom=True,
    ),
    Entry(
        "unreachable",
        r"Connection refused|ConnectException|connect timed out|No route to host",
        "The cluster cannot reach a service it needs, most likely the store.",
        "Check that it runs, and that its address is one that the cluster can reach: 'localhost' "
        "is another machine there.",
        is_transient=True,
        is_symptom=True,
    ),
    Entry(
        "missing_class",
        r"(?:ClassNotFoundException|NoClassDefFoundError):? (?P<class>[\w.$/]+)",
        "No jar of the batch has the class {class}.",
        "Name the jar that has it in jars, or install it with the pool's packages.",
        is_symptom=True,
    ),
    Entry(
        "driver_died",
        r"LIVY_JOB_STATE_DEAD|Job failed during run time with state=\[dead\]",
        "The driver ended with an error that Synapse does not tell.",
        "Look for it at the end of the driver's log.",
        is_symptom=True,
    ),
)

_OF_SOURCE = {
    "System": Explanation(
        name="service_fault",
        cause="Synapse says that the fault is its own.",
        remedy="Run the step again; if it recurs, ask Azure's support with the batch's id.",
        line="",
        is_transient=True,
    ),
    "Dependency": Explanation(
        name="dependency_fault",
        cause="Synapse says that a service it depends on failed, such as storage or the network.",
        remedy="Look at Azure's service health and at the storage account, and run it again.",
        line="",
        is_transient=True,
    ),
}


# A request for more than the whole quota will not be served by waiting.
_ASKED = re.compile(
    r"requested (\d+) vcores\b.*?\bout of (?:quota of|available) (\d+) vcores",
    re.IGNORECASE | re.DOTALL,
)
_ASKED_TOO_MUCH = {"workspace_busy": "workspace_quota", "pool_busy": "pool_too_small"}


def explain(text: str, *, source: str | None = None) -> Explanation | None:
    """Return the cause that messages and a log's tail speak of, None if it is not known here.

    What the driver's traceback says goes before all else. If that is an error of the step's own,
    what else the log's end tells of lost containers and connections is its consequence.

    Args:
        text: The service's messages, and the last lines of the log.
        source: What Synapse says of where the fault came from; used if `text` says nothing.
    """
    trace = driver_traceback(text.split("\n"))
    error = "" if trace is None else _last_error(trace)[0]
    is_own = trace is not None and not _ERROR_OF_SPARK.match(error)
    entries = [entry for entry in ENTRIES if not (is_own and entry.is_symptom)]
    found = _search(error, ENTRIES) or _search(trace or "", entries) or _search(text, entries)
    if found is None and source is not None and not is_own:
        return _OF_SOURCE.get(source.capitalize())
    return found


def _search(text: str, entries: Iterable[Entry]) -> Explanation | None:
    for entry in entries:
        match = re.search(entry.pattern, text, re.IGNORECASE)
        if match is not None:
            start = text.rfind("\n", 0, match.start()) + 1
            known = _lasting(entry, text)
            return Explanation(
                name=known.name,
                cause=known.cause.format_map(match.groupdict()),
                remedy=known.remedy,
                line=text[start:].partition("\n")[0].strip(),
                is_transient=known.is_transient,
            )
    return None


def _lasting(entry: Entry, text: str) -> Entry:
    """Return the entry, or the lasting one in its place if the batch asks for too much."""
    asked = _ASKED.search(text)
    if entry.name in _ASKED_TOO_MUCH and asked is not None and int(asked[1]) > int(asked[2]):
        return next(other for other in ENTRIES if other.name == _ASKED_TOO_MUCH[entry.name])
    return entry


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
        elif place == "frames" and line and not _JAVA.match(line):
            current.append(line)
            last = current
            place = "message"
        elif place == "message" and line and not _JAVA.match(line):
            current.append(line)
        elif line in _CHAINED:
            chain = [*current, "", line, ""]
        elif line:
            chain = []
            place = "outside"
        elif place == "message":
            place = "outside"
    return "\n".join(last) if last else None


def first_cause(lines: Iterable[str]) -> str | None:
    """Return the error at the bottom of it all in one line, None if the log has none.

    It is the end of the last Python traceback, or else the innermost cause of the last Java one.
    """
    lines = list(lines)
    trace = driver_traceback(lines)
    if trace is not None:
        error, *more = _last_error(trace)
        # py4j tells on the next line what Java said.
        is_java = error.startswith("py4j.") and more and more[0].startswith(": ")
        return more[0].removeprefix(": ") if is_java else error
    causes = [line for line in lines if line.startswith("Caused by: ")]
    return causes[-1].removeprefix("Caused by: ").strip() if causes else None


def _last_error(trace: str) -> list[str]:
    """Return the lines of the error that a traceback ends with."""
    end = trace.rpartition(_TRACEBACK)[2].split("\n")
    return [line for line in end if line and not line.startswith(" ")]
