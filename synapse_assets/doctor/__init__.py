"""What is right and what is not for the chosen deployment, each with its remedy.

`check` says what a check is and runs them; `machine` looks at this machine, `store` and `azure` at
the datastore, with `identity`, and `compute` at what runs the steps. Nothing here prints: the
command line does.
"""

from collections.abc import Iterator
from pathlib import Path

from synapse_assets.doctor import azure, compute, identity, machine, store
from synapse_assets.doctor.check import Check, Finding, Kind, Status, Subject, run_checks
from synapse_assets.errors import ConfigurationError

_BEFORE_A_RUN = ("deployment", "location", "login", "reach", "spark", "cpu")
_SERVICES: tuple[Kind, ...] = ("azure", "hdfs")

CHECKS = (
    Check("python", machine.check_python),
    Check("java", machine.check_java, seconds=40),
    Check("home", machine.check_home),
    Check("disk", machine.check_disk),
    Check("pools", machine.check_pools),
    Check("deployment", store.check_deployment),
    Check("location", store.check_location, needs=("deployment",)),
    Check("login", identity.check_login, needs=("location",), kinds=("azure",)),
    Check("reach", store.check_reach, needs=("location", "login"), kinds=_SERVICES, seconds=8),
    Check("clock", azure.check_clock, needs=("reach",), kinds=("azure",), seconds=15),
    # Some of azure-identity's logins ask a program, or a service of the machine, that takes long.
    Check("identity", identity.check_identity, needs=("reach",), kinds=_SERVICES, seconds=40),
    Check("container", azure.check_container, needs=("identity",), kinds=("azure",), seconds=20),
    Check("root", store.check_root, needs=("location", "reach"), kinds=("local", "hdfs")),
    Check("rights", store.check_rights, needs=("container", "root", "location"), seconds=30),
    Check("clock", store.check_hdfs_clock, needs=("rights",), kinds=("hdfs",)),
    Check("delta", store.check_delta, needs=("container", "root", "location"), seconds=50),
    Check("commit", store.check_commit, needs=("rights", "delta"), seconds=50),
    Check("namespace", azure.check_namespace, needs=("container",), kinds=("azure",)),
    Check("spark", compute.check_spark, needs=("location",), seconds=30),
    Check("cpu", compute.check_cpu, needs=("location",), seconds=60),
)


def examine(*, deployment: str, home: Path) -> Iterator[Finding]:
    """Yield what each check finds, as soon as it is found.

    Args:
        deployment: Name of the deployment.
        home: Where Dagster keeps its records.
    """
    return run_checks(Subject(deployment=deployment, home=home), CHECKS)


def require_reachable(*, deployment: str, home: Path) -> None:
    """Return if the services answer, so that a run need not find out after all its retries.

    Raises:
        ConfigurationError: It does not answer, or is not set up as it must be.
    """
    subject = Subject(deployment=deployment, home=home)
    for finding in run_checks(subject, [c for c in CHECKS if c.name in _BEFORE_A_RUN]):
        if finding.status == "failed":
            raise ConfigurationError(f"{finding.found}. {finding.remedy}")


__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "Status",
    "Subject",
    "examine",
    "require_reachable",
    "run_checks",
]
