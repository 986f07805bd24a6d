"""The options of a command job of Azure ML."""

import re

from pydantic import Field

from synapse_assets.compute.options import SECRET_VALUE, StepOptions
from synapse_assets.errors import ConfigurationError

_SIZE = re.compile(r"[1-9][0-9]*[bkmg]")


class CpuOptions(StepOptions):
    """What a job asks of its cluster. What is not set is left to the cluster."""

    instance_count: int | None = Field(
        default=None,
        description="How many nodes the job holds, 1 unless told: each runs the step's function.",
    )
    memory: str | None = Field(
        default=None,
        description="The most memory that the step may take of its node, for example '4g'.",
    )
    shm_size: str | None = Field(
        default=None, description="Shared memory of the container, for example '2g'."
    )
    docker_args: str | None = Field(default=None, description="Further arguments of 'docker run'.")
    environment_variables: dict[str, str] | None = Field(
        default=None, description="Environment variables of the step. Never secrets."
    )
    packages: list[str] | None = Field(
        default=None,
        description="Packages that the step needs beside those that it imports, as pip takes them "
        "('mlflow-skinny==2.16.0').",
    )
    arguments: list[str] | None = Field(
        default=None,
        description="Command line arguments, for code that reads sys.argv itself; "
        "'${{inputs.name}}' stands for the location of an input.",
    )
    name: str | None = Field(
        default=None, description="What Studio calls the job; the step's name unless told."
    )

    @property
    def nodes(self) -> int:
        """How many nodes the job holds."""
        return 1 if self.instance_count is None else self.instance_count

    def check(self) -> None:
        """Check every value, without looking at what the cluster can hold.

        Raises:
            ConfigurationError: A value cannot be sent as it is; it is named.
        """
        if self.nodes < 1:
            raise ConfigurationError(f"instance_count is {self.nodes}; it must be at least 1.")
        for option in ("memory", "shm_size"):
            size = getattr(self, option)
            if size is not None and not _SIZE.fullmatch(size):
                raise ConfigurationError(
                    f"{option} is {size!r}; write a whole number and 'b', 'k', 'm' or 'g', as '4g'."
                )
        sent = [*(self.environment_variables or {}).values(), *(self.arguments or [])]
        if any(SECRET_VALUE.search(value) for value in sent):
            raise ConfigurationError(
                "environment_variables or arguments carry a secret, which everyone would see who "
                "may look at the workspace's jobs: let the cluster's own identity open the store."
            )
