import re

import pytest

from synapse_assets.compute.explanations import (
    KNOWN,
    Explanation,
    driver_traceback,
    explain,
)

# What users see, by the entry that has to explain it.
SAMPLES: list[tuple[str, str]] = [
    ("service_fault", "the batch 7 ended as 'dead'\nSystem error X: all is well."),
    ("dependency_fault", "the batch 7 ended as 'dead'\ndependency error X: all is well."),
    (
        "workspace_quota",
        (
            "InvalidHttpRequestToLivy: Your Spark job requested 12 vcores. However, the workspace "
            "has a 0 core limit. Try reducing the numbers of vcores requested or increasing "
            "your vcore quota. HTTP status code: 400. Trace ID: 8ece06f2-13d4-4665-8e98."
        ),
    ),
    (
        "workspace_quota",
        (
            "Failed to start session: [User] MAXIMUM_WORKSPACE_CAPACITY_EXCEEDED\n"
            "Your Spark job requested 480 vcores.\n"
            "However, the workspace only has 50 vcores available out of quota of 50 vcores.\n"
        ),
    ),
    ("workspace_quota", "[User] EXCEEDED_QUOTA: The request exceeds the vCore quota."),
    ("workspace_quota", "errorCode: CORE_QUOTA_EXCEEDED"),
    (
        "workspace_busy",
        (
            "[User] AVAILABLE_WORKSPACE_CAPACITY_EXCEEDED. Your Spark job requested 16 vcores. "
            "However, the workspace only has 2 vcores available out of quota of 50 vcores."
        ),
    ),
    ("pool_too_small", "Error code: MAXIMUM_COMPUTE_CAPACITY_EXCEEDED. Source: User."),
    (
        "pool_too_small",
        (
            "AVAILABLE_COMPUTE_CAPACITY_EXCEEDED. Your job requested 24 vcores. However, the pool "
            "only has 12 vcores available out of quota of 12 vcores."
        ),
    ),
    (
        "pool_busy",
        (
            "Livy session has failed. Session state: Error. Error code: "
            "AVAILABLE_COMPUTE_CAPACITY_EXCEEDED. Your job requested 12 vcores. However, the pool "
            "only has 0 vcores available out of quota of 12 vcores. Try ending the running job(s) "
            "in the pool, reducing the numbers of vcores requested, increasing the pool maximum "
            "size or using another pool. Source: User."
        ),
    ),
    (
        "pool_busy",
        (
            "Failed to start session: Your Spark job requested 8 vCores.\nHowever, the pool is "
            "consuming 12 vCores out of available 12 vCores.Try ending the running job(s)"
        ),
    ),
    ("queue_full", "MAX_QUEUED_JOBS_EXCEEDED for Spark pool 'pool1'"),
    ("queue_full", "The maximum number of active jobs has been reached for the Spark pool."),
    ("too_many_requests", "Operation returned an invalid status 'Too Many Requests'"),
    ("too_many_requests", '{"code":"TooManyRequests","message":"Rate limit reached"}'),
    ("livy_busy", '{"msg":"Rejected, too many sessions are being created!"}'),
    ("name_taken", '{"msg":"Duplicate session name: Some(prepare-1f0c) for session 7"}'),
    (
        "missing_synapse_role",
        (
            "(Unauthorized) The principal 'a6aa3158-f305-4032-97cd-c2ee0f620959' does not have the "
            "required Synapse RBAC permission to perform this action. Required permission: Action: "
            "Microsoft.Synapse/workspaces/bigDataPools/useCompute/action, Scope: "
            "workspaces/ws/bigDataPools/pool1."
        ),
    ),
    ("missing_synapse_role", "The user does not have sufficient privileges to submit the job."),
    (
        "runtime_retired",
        "Spark Compute version: 3.1 is invalid (Code: InvalidSparkComputeVersion)",
    ),
    ("runtime_retired", "Azure Synapse Runtime for Apache Spark 3.1 has been disabled."),
    ("wrong_pool", "Spark pool 'pool2' not found in workspace 'ws'."),
    ("wrong_pool", "SparkComputeNotFound: the compute pool2 is unknown"),
    (
        "invalid_size",
        (
            "InvalidHttpRequestToLivy: [InvalidSparkSettings] Unable to submit this request "
            "because spark settings specified are invalid. Error: Code = "
            "SparkSettingsInvalidDriverMemory, Message = 'Invalid DriverMemory: '4g'."
        ),
    ),
    (
        "invalid_size",
        (
            "java.lang.IllegalArgumentException: Required executor memory (28672 MB), offHeap "
            "memory (0) MB, overhead (2867 MB), and PySpark memory (0 MB) is above the max "
            "threshold (8192 MB) of this cluster! Please check the values of "
            "'yarn.scheduler.maximum-allocation-mb'"
        ),
    ),
    (
        "property_refused",
        (
            '{"msg":"Rejected, Reason: Blacklisted configuration values in session config: '
            'spark.master, spark.submit.deployMode"}'
        ),
    ),
    (
        "local_path",
        (
            '{"msg":"requirement failed: Local path /srv/jobs/etl.jar cannot be added to user '
            'sessions."}'
        ),
    ),
    ("missing_module", "ModuleNotFoundError: No module named 'titles.parsing'"),
    ("missing_module", "ImportError: No module named sklearn"),
    (
        "python_version",
        (
            "pyspark.errors.exceptions.base.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python "
            "in worker has different version: 3.9 than that in driver: 3.10, PySpark cannot run "
            "with different minor versions."
        ),
    ),
    (
        "java_version",
        (
            "java.lang.UnsupportedClassVersionError: com/example/Udf has been compiled by a more "
            "recent version of the Java Runtime (class file version 61.0)"
        ),
    ),
    ("java_version", "java.lang.IllegalArgumentException: Unsupported class file major version 61"),
    (
        "missing_storage_role",
        (
            'Operation failed: "This request is not authorized to perform this operation using '
            'this permission.", 403, HEAD, https://lake.dfs.core.windows.net/c/demo?upn=false&action='
            "getStatus&timeout=90"
        ),
    ),
    (
        "missing_storage_role",
        "403, PUT, https://lake.dfs.core.windows.net/c?timeout=90, AuthorizationPermissionMismatch",
    ),
    (
        "storage_firewall",
        (
            'Operation failed: "This request is not authorized to perform this operation.", 403, '
            "GET, https://lake.dfs.core.windows.net/c?resource=filesystem, AuthorizationFailure"
        ),
    ),
    (
        "hdfs_permission",
        (
            "org.apache.hadoop.security.AccessControlException: Permission denied: user=livy, "
            'access=WRITE, inode="/data":hdfs:supergroup:drwxr-xr-x'
        ),
    ),
    ("unknown_host", "java.net.UnknownHostException: lakee.dfs.core.windows.net"),
    ("unknown_host", "socket.gaierror: [Errno -2] Name or service not known"),
    (
        "path_not_found",
        (
            "pyspark.errors.exceptions.captured.AnalysisException: [PATH_NOT_FOUND] Path does not "
            "exist: abfss://c@lake.dfs.core.windows.net/input."
        ),
    ),
    ("path_not_found", 'Operation failed: "The specified path does not exist.", 404, HEAD'),
    (
        "result_too_large",
        (
            "Job aborted due to stage failure: Total size of serialized results of 512 tasks (4.0 "
            "GiB) is bigger than spark.driver.maxResultSize (4.0 GiB)"
        ),
    ),
    (
        "container_memory",
        (
            "24/11/24 12:00:00 ERROR YarnClusterScheduler: Lost executor 9 on vm-e2f44742: "
            "Container killed by YARN for exceeding physical memory limits. 8.3 GB of 8 GB "
            "physical memory used. Consider boosting spark.executor.memoryOverhead."
        ),
    ),
    ("container_memory", "Container exited with a non-zero exit code 137. Error file: prelaunch"),
    ("container_memory", "Exit status: 137. Diagnostics: Container killed on request."),
    (
        "container_memory",
        "Container [pid=1,containerID=c_1] is running 12M beyond the 'PHYSICAL' memory limit.",
    ),
    ("out_of_memory", "java.lang.OutOfMemoryError: Java heap space"),
    ("out_of_memory", "java.lang.OutOfMemoryError: GC overhead limit exceeded"),
    ("disk_full", "java.io.IOException: No space left on device"),
    (
        "lost_executor",
        (
            "Lost task 3.0 in stage 1.0 (TID 10) (vm-1 executor 9): ExecutorLostFailure (executor "
            "9 exited unrelated to the running tasks) Reason: Executor heartbeat timed out after "
            "130 s"
        ),
    ),
    ("lost_executor", "INFO DAGScheduler: Executor lost: 1 (epoch 0)"),
    ("container_killed", "Container exited with a non-zero exit code 143"),
    (
        "not_started",
        (
            "java.lang.IllegalStateException: No YARN application is found with tag "
            "livy-batch-3-y0vypazx in 120 seconds. This may be because 1) spark-submit fail to "
            "submit application to YARN; or 2) YARN cluster doesn't have enough resources"
        ),
    ),
    (
        "unreachable",
        (
            "java.net.ConnectException: Call From vm-1/10.0.0.4 to localhost:8020 failed on "
            "connection exception: java.net.ConnectException: Connection refused"
        ),
    ),
    ("missing_class", "Caused by: java.lang.ClassNotFoundException: com.example.Driver"),
    (
        "driver_died",
        (
            "[Monitoring] Livy Endpoint=[https://hubservice1.eastus.azuresynapse.net:8001/api/v1.0/"
            "publish/6fac]. Livy Id=[0] Job failed during run time with state=[dead]."
        ),
    ),
]


@pytest.mark.parametrize(("name", "message"), SAMPLES)
def test_message_is_explained_by_its_own_entry(name: str, message: str) -> None:
    log = f"24/11/24 12:00:00 INFO SparkContext: Running Spark version 3.5.9\n{message}\n"
    explained = explain(log)
    assert explained is not None
    assert explained.name == name
    assert "{" not in str(explained)


def test_every_entry_has_a_message() -> None:
    names = [entry.name for entry in KNOWN]
    assert len(set(names)) == len(names)
    assert set(names) == {name for name, _ in SAMPLES}


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: entry.name)
def test_cause_and_remedy_are_sentences(entry: Explanation) -> None:
    for text in (entry.cause, entry.remedy):
        assert re.fullmatch(r"[A-Z].*\.", text)


def test_explanation_names_what_is_missing() -> None:
    explained = explain("ModuleNotFoundError: No module named 'titles.parsing'")
    assert explained is not None
    assert str(explained).startswith("The pool's Python has no module titles.parsing. Ship it")


def test_busy_pool_is_worth_waiting_for_and_a_small_one_is_not() -> None:
    text = "the pool only has 0 vcores available out of quota of 12 vcores"
    busy = explain(f"Your job requested 12 vcores. However, {text}.")
    small = explain(f"Your job requested 13 vcores. However, {text}.")
    assert busy is not None
    assert small is not None
    assert busy.is_transient
    assert not small.is_transient


def test_source_of_a_fault_explains_what_nothing_else_does() -> None:
    assert explain("It ended.\nUser error X: all is well.") is None
    specific = explain("System error X: No space left on device")
    assert specific is not None
    assert specific.name == "disk_full"


def test_error_of_the_step_goes_before_what_its_end_left_behind() -> None:
    noise = "Container exited with a non-zero exit code 143\nLost executor 1 on vm-1: bye\n"
    own = "Traceback (most recent call last):\n  File 'a.py', line 1\nValueError: no age\n"
    java = (
        "Traceback (most recent call last):\n  File 'a.py', line 1\n"
        "py4j.protocol.Py4JJavaError: An error occurred while calling o45.csv.\n"
    )
    for text, name in (
        (own + noise, None),
        (noise, "lost_executor"),
        (java + noise, "lost_executor"),
        (own + "Exit status: 137.\n" + noise, "container_memory"),
        (own.replace("no age", "Connection refused"), "unreachable"),
        (own.replace("no age", "[PATH_NOT_FOUND]") + "Exit status: 137.\n", "path_not_found"),
    ):
        explained = explain(f"System error X: it failed\n{text}" if name is None else text)
        assert (explained and explained.name) == name


SIMPLE = """\
24/11/24 12:00:00 INFO SparkContext: Running Spark version 3.5.9
Traceback (most recent call last):
  File "/mnt/launcher.py", line 12, in <module>
    main()
24/11/24 12:00:01 WARN ShutdownHook: stopping
  File "/mnt/steps/prepare.py", line 40, in prepare
    raise ValueError("row 7: no age")
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
ValueError: row 7: no age
Correct the file.
2024-11-24 12:00:02,123 ERROR ApplicationMaster: User application exited with status 1
end of the log
"""


def test_traceback_is_found_among_the_log() -> None:
    assert driver_traceback(SIMPLE.splitlines()) == (
        "Traceback (most recent call last):\n"
        '  File "/mnt/launcher.py", line 12, in <module>\n'
        "    main()\n"
        '  File "/mnt/steps/prepare.py", line 40, in prepare\n'
        '    raise ValueError("row 7: no age")\n'
        "    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "ValueError: row 7: no age\n"
        "Correct the file."
    )


CHAINED = """\
Traceback (most recent call last):
  File "old.py", line 1, in <module>
OSError: long past
unrelated output
Traceback (most recent call last):
  File "a.py", line 1, in f
KeyError: 'age'

The above exception was the direct cause of the following exception:

24/11/24 12:00:01 INFO BlockManager: removed
Traceback (most recent call last):
  File "a.py", line 3, in <module>
ValueError: no column age

stderr:
"""


def test_chained_exceptions_stay_together() -> None:
    trace = driver_traceback(CHAINED.splitlines(keepends=True))
    assert trace is not None
    assert trace.startswith('Traceback (most recent call last):\n  File "a.py", line 1, in f')
    assert "\n\nThe above exception was the direct cause of the following exception:\n\n" in trace
    assert trace.endswith("\nValueError: no column age")


FROM_EXECUTOR = """\
Traceback (most recent call last):
  File "/mnt/steps/prepare.py", line 40, in prepare
    frame.collect()
  File "/opt/py4j/protocol.py", line 326, in get_return_value
    raise Py4JJavaError(
py4j.protocol.Py4JJavaError: An error occurred while calling o45.collectToPython.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 0.0 failed 4 \
times, most recent failure: Lost task 0.3 in stage 0.0 (TID 3) (vm-1 executor 1): \
org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "/opt/spark/python/lib/pyspark.zip/pyspark/worker.py", line 1247, in main
    process()
  File "/mnt/steps/prepare.py", line 12, in rate
    return 1 / fare
ZeroDivisionError: division by zero

\tat org.apache.spark.api.python.BasePythonRunner$ReaderIterator.handlePythonException(Runner:572)
\t... 1 more

Driver stacktrace:
\tat org.apache.spark.scheduler.DAGScheduler.failJobAndIndependentStages(DAGScheduler.scala:2856)
"""


def test_traceback_of_an_executor_is_the_cause() -> None:
    assert driver_traceback(FROM_EXECUTOR.splitlines()) == (
        "Traceback (most recent call last):\n"
        '  File "/opt/spark/python/lib/pyspark.zip/pyspark/worker.py", line 1247, in main\n'
        "    process()\n"
        '  File "/mnt/steps/prepare.py", line 12, in rate\n'
        "    return 1 / fare\n"
        "ZeroDivisionError: division by zero"
    )


def test_error_of_java_keeps_its_first_line() -> None:
    log = (
        "Traceback (most recent call last):\n"
        '  File "a.py", line 1, in <module>\n'
        "py4j.protocol.Py4JJavaError: An error occurred while calling o45.csv.\n"
        ": java.nio.file.AccessDeniedException: no right\n"
        "\tat org.apache.hadoop.fs.FileSystem.exists(FileSystem.java:1627)\n"
    )
    trace = driver_traceback(log.splitlines())
    assert trace is not None
    assert trace.endswith("o45.csv.\n: java.nio.file.AccessDeniedException: no right")


def test_log_without_a_traceback_has_none() -> None:
    assert driver_traceback(["24/11/24 12:00:00 INFO SparkContext: fine", "done"]) is None
    # The log's tail may be cut off in the middle of one.
    assert driver_traceback(["Traceback (most recent call last):", '  File "a.py", line 1']) is None
