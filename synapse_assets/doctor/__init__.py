"""What is right and what is not for the chosen deployment, each with its remedy.

`check` says what a check is and runs them, `machine` looks at this machine, and `store` at the
datastore, with `identity`, `clock` and `azure`, and `spark` at what runs the Spark steps. Nothing
here prints: the command line does.
"""

from collections.abc import Iterator
from pathlib import Path

from synapse_assets.doctor import machine, spark, store
from synapse_assets.doctor.check import Check, Finding, Status, Subject, run_checks
from synapse_assets.errors import ConfigurationError

_BEFORE_A_RUN = ("deployment", "location", "login", "reach", "spark")

CHECKS: tuple[Check, ...] = (*machine.CHECKS, *store.CHECKS, *spark.CHECKS)


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
