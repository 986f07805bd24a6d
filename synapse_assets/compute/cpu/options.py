"""The options of a command job of Azure ML."""

import re
from typing import Any

import dagster as dg
from pydantic import ConfigDict, Field

from synapse_assets.errors import ConfigurationError

_SIZE = re.compile(r"[1-9][0-9]*[bkmg]")
_SECRET = re.compile(r"[?&;]sig=|(AccountKey|SharedAccessSignature)=", re.IGNORECASE)


class CpuOptions(dg.Config):
    """What a job asks of its cluster. What is not set is left to the cluster."""

    # An error of pydantic repeats what it was given.
    model_config = ConfigDict(hide_input_in_errors=True)

    instance_count: int | None = Field(
        default=None, description="How many nodes the job holds; its step runs on the first."
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

    def over(self, base: "CpuOptions") -> "CpuOptions":
        """Return these options where they are set, and those of `base` elsewhere.

        Lists replace lists. `environment_variables` are merged by name.
        """
        values = {**_set_values(base), **_set_values(self)}
        if base.environment_variables is not None and self.environment_variables is not None:
            values["environment_variables"] = {
                **base.environment_variables,
                **self.environment_variables,
            }
        return CpuOptions(**values)

    def check(self) -> None:
        """Check every value, without looking at what the cluster can hold.

        Raises:
            ConfigurationError: A value cannot be sent as it is; it is named.
        """
        if self.instance_count is not None and self.instance_count < 1:
            raise ConfigurationError(
                f"instance_count is {self.instance_count}; it must be at least 1."
            )
        for option in ("memory", "shm_size"):
            size = getattr(self, option)
            if size is not None and not _SIZE.fullmatch(size):
                raise ConfigurationError(
                    f"{option} is {size!r}; write a whole number and 'b', 'k', 'm' or 'g', as '4g'."
                )
        sent = [*(self.environment_variables or {}).values(), *(self.arguments or [])]
        if any(_SECRET.search(value) for value in sent):
            raise ConfigurationError(
                "environment_variables or arguments carry a secret, which everyone would see who "
                "may look at the workspace's jobs: let the cluster's own identity open the store."
            )

    def to_json(self) -> dict[str, Any]:
        """Return the options that are set."""
        return _set_values(self)


def _set_values(options: CpuOptions) -> dict[str, Any]:
    values = {field: getattr(options, field) for field in CpuOptions.model_fields}
    return {field: value for field, value in values.items() if value is not None}
