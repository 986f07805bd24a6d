"""The AmlCompute cluster: found, or made, and never changed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synapse_assets.compute.calls import CallError, Patience, is_refusal
from synapse_assets.errors import (
    ConfigurationError,
    ServiceUnavailableError,
    StepFailedError,
    StepTimeoutError,
)

if TYPE_CHECKING:
    from synapse_assets.compute.cpu.azureml import AzureMLCpu

_CONFLICT = 409
_POLL_SECONDS = 2.0
_SAY_SECONDS = 30.0
_READY = "Succeeded"
_BROKEN = ("Failed", "Canceled")
# What may differ, and how that is said.
_DIFFERENCES = {
    "vm_size": "its nodes are",
    "min_nodes": "its least number of nodes is",
    "max_nodes": "its greatest number of nodes is",
    "idle_seconds": "the seconds after which an idle node goes are",
    "tier": "its tier is",
    "identities": "its identity is",
}


@dataclass(frozen=True)
class Cluster:
    """An AmlCompute cluster: as it is wanted, or as it is.

    Attributes:
        name: Its name.
        vm_size: Size of its nodes.
        min_nodes: How many it keeps.
        max_nodes: The most that it may have.
        idle_seconds: After how long an idle node goes; None if nobody has said it.
        tier: 'dedicated' or 'low_priority'.
        identities: 'SystemAssigned', or the resource ids of its identities.
        state: The provisioning state; None for one that is wanted.
        problem: Why it could not be made.
    """

    name: str
    vm_size: str
    min_nodes: int
    max_nodes: int
    idle_seconds: int | None = None
    tier: str = "dedicated"
    identities: tuple[str, ...] = ()
    state: str | None = None
    problem: str | None = None

    @property
    def is_broken(self) -> bool:
        """Whether it could not be made."""
        return self.state in _BROKEN

    def differences(self, wanted: "Cluster") -> list[str]:
        """Return in what this one is another one than that which is wanted."""
        return [
            f"{text} {_shown(getattr(self, name))} and not {_shown(getattr(wanted, name))}"
            for name, text in _DIFFERENCES.items()
            if getattr(wanted, name) is not None
            and _comparable(getattr(self, name)) != _comparable(getattr(wanted, name))
        ]


def ensure_cluster(
    target: "AzureMLCpu", wanted: Cluster, *, nodes: int, say: Callable[[str], None]
) -> list[str]:
    """Find a cluster, or make it; return when it is there, with what is other than wanted.

    Args:
        target: Whose cluster it is: its client and its limits.
        wanted: The cluster.
        nodes: How many nodes a job will ask of it.
        say: Takes a line of progress.

    Raises:
        ConfigurationError: It never has as many nodes.
        StepFailedError: The service refuses to make it, or could not make it.
        StepTimeoutError: It is not there within `starting_timeout_seconds`.
        ServiceUnavailableError: The service was out of reach for too long.
    """
    client, place = target.client(), target.place
    started = said = time.monotonic()
    is_asked = False
    reach = Patience(target.unreachable_timeout_seconds)
    while True:
        error, found = None, None
        try:
            found = client.get_cluster(wanted.name)
            check_size(found or wanted, nodes, place=place)
            if found is None and not is_asked:
                say(f"{place} is not there: it is made, of {wanted.vm_size}.")
                client.put_cluster(wanted)
                is_asked = True
            reach = Patience(target.unreachable_timeout_seconds)
        except CallError as e:
            # Of two that ask for it at once one meets a conflict, and finds it the next time.
            error = None if e.status == _CONFLICT else e
        if error is not None and is_refusal(error):
            raise StepFailedError(f"{place} could not be had. {error}") from error
        if error is not None and not reach.wait(error):
            raise ServiceUnavailableError(
                f"{place} could not be had, since the workspace was out of reach for "
                f"{reach.limit:g} s: {error}. Look whether it answers, and run this again."
            ) from error
        if found is not None and found.state == _READY:
            return found.differences(wanted)
        if found is not None and found.is_broken:
            raise StepFailedError(
                f"{place} could not be made: {found.problem or found.state}. Look at it in Studio, "
                "remove it there and run this again."
            )
        now = time.monotonic()
        if now - started > target.starting_timeout_seconds:
            raise StepTimeoutError(
                f"{place} was not there within its limit of {target.starting_timeout_seconds:g} s. "
                "Look at the workspace, or raise starting_timeout_seconds of the compute target."
            )
        if now - said > _SAY_SECONDS:
            state = "asked for" if found is None else found.state
            say(f"{place} is '{state}' after {now - started:.0f} s.")
            said = now
        time.sleep(_POLL_SECONDS)


def check_size(cluster: Cluster, nodes: int, *, place: str) -> None:
    """Raise a ConfigurationError if a job of so many nodes would wait for ever."""
    # Of a compute that is no AmlCompute the greatest number is not known, and 0 here.
    if 0 < cluster.max_nodes < nodes:
        raise ConfigurationError(
            f"{place} has {cluster.max_nodes} nodes at most, and instance_count is {nodes}: the "
            "job would wait for ever. Lower instance_count, or raise the cluster's greatest number "
            "of nodes (max_nodes of a new cluster, in Studio that of one which is there)."
        )


def _comparable(value: Any) -> Any:
    if isinstance(value, tuple):
        return sorted(map(_comparable, value))
    return value.lower().replace("_", "") if isinstance(value, str) else value


def _shown(value: Any) -> str:
    return (", ".join(value) or "none") if isinstance(value, tuple) else str(value)
