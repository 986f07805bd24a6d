"""The options of a Spark batch, under the names that Azure ML's SynapseSparkStep gave them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from synapse_assets.compute.options import SECRET_VALUE, StepOptions
from synapse_assets.errors import ConfigurationError

_MEMORY = re.compile(r"[1-9][0-9]*[mg]")
_PURE_WHEEL = re.compile(r"[^-]+-[^-]+(-[0-9][^-]*)?-[^-]+-none-any\.whl")

# Properties that have an option of their own, which is what sizes are checked by.
_OPTION_OF_PROPERTY = {
    "spark.driver.memory": "driver_memory",
    "spark.driver.cores": "driver_cores",
    "spark.executor.memory": "executor_memory",
    "spark.executor.cores": "executor_cores",
    "spark.executor.instances": "num_executors",
}

_SECRET_KEY = re.compile(
    r"account\.key(\.|$)|\.sas(\.|$)|secret(\.|$)|passw(or)?d(\.|$)|access\.?key(\.|$)|token(\.|$)",
    re.IGNORECASE,
)
# These name where a secret is to be had, which is no secret.
_PROVIDER_KEY = re.compile(r"provider(\.(type|path)(\.|$)|$)", re.IGNORECASE)
_INSTEAD_OF_SECRETS = (
    "What is sent is shown to everyone who may list the pool's batches: let the pool's own "
    "identity open the store, or name a linked service (spark.storage.synapse.linkedServiceName)."
)


class SparkOptions(StepOptions):
    """What a Spark batch asks of its pool. What is not set is left to the pool."""

    driver_memory: str | None = Field(
        default=None, description="Heap of the driver, for example '7g' or '7168m'."
    )
    driver_cores: int | None = Field(default=None, description="vCores of the driver.")
    executor_memory: str | None = Field(
        default=None, description="Heap of each executor, for example '7g' or '7168m'."
    )
    executor_cores: int | None = Field(default=None, description="vCores of each executor.")
    num_executors: int | None = Field(default=None, description="How many executors to start.")
    conf: dict[str, str] | None = Field(
        default=None,
        description="Spark properties, for example {'spark.sql.shuffle.partitions': '64'}. "
        "Never secrets.",
    )
    py_files: list[str] | None = Field(
        default=None,
        description="Locations of further Python code (.py, .zip, .egg), which the pool opens.",
    )
    jars: list[str] | None = Field(
        default=None, description="Locations of jars for the driver and the executors."
    )
    files: list[str] | None = Field(
        default=None, description="Locations of files to place in each executor's folder."
    )
    archives: list[str] | None = Field(
        default=None, description="Locations of archives to unpack in each executor's folder."
    )
    name: str | None = Field(
        default=None, description="Name of the batch in the pool's list; the attempt's key follows."
    )
    arguments: list[str] | None = Field(
        default=None, description="Command line arguments, for code that reads sys.argv itself."
    )
    environment: list[str] | None = Field(
        default=None,
        description="Local pure-Python wheels ('…-none-any.whl') that are shipped with the step's "
        "code; what holds compiled code belongs into the pool's packages.",
    )

    def check(self) -> None:
        """Check every value, without looking at what the pool can hold.

        Raises:
            ConfigurationError: A value cannot be sent as it is; it is named.
        """
        for option in ("driver_memory", "executor_memory"):
            memory = getattr(self, option)
            if memory is not None and not _MEMORY.fullmatch(memory):
                raise ConfigurationError(
                    f"{option} is {memory!r}; write a whole number and 'm' or 'g', as '7g'."
                )
        for option, least in (("driver_cores", 1), ("executor_cores", 1), ("num_executors", 0)):
            number = getattr(self, option)
            if number is not None and number < least:
                raise ConfigurationError(f"{option} is {number}; it must be at least {least}.")
        if self.name is not None and not self.name.strip():
            raise ConfigurationError("name is empty; leave it out or say something.")
        for option in ("py_files", "jars", "files", "archives", "arguments"):
            values = getattr(self, option) or []
            if option != "arguments" and not all(value.strip() for value in values):
                raise ConfigurationError(f"{option} has an empty location; take it out.")
            if any(SECRET_VALUE.search(value) for value in values):
                raise ConfigurationError(f"{option} carries a secret. {_INSTEAD_OF_SECRETS}")
        for key, value in (self.conf or {}).items():
            _check_property(key, value)
        for _ in self.wheels():
            pass

    def wheels(self) -> Iterator[Path]:
        """Yield the wheels of `environment`, each of which exists and is pure Python.

        Raises:
            ConfigurationError: One is missing, or cannot be imported from where it is shipped.
        """
        for location in self.environment or []:
            wheel = Path(location).expanduser()
            if not _PURE_WHEEL.fullmatch(wheel.name):
                raise ConfigurationError(
                    f"environment names {location}, which is no pure-Python wheel "
                    "('…-none-any.whl'); install it with the pool's packages instead."
                )
            if not wheel.is_file():
                raise ConfigurationError(
                    f"environment names {location}, and there is no such file; build it with "
                    "'pip wheel --no-deps', or correct the path."
                )
            yield wheel

    def to_request(
        self,
        *,
        conf: Mapping[str, str] | None = None,
        py_files: Sequence[str] = (),
        args: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return the fields of a Livy request, without those that are not set.

        `file`, `name`, tags and the wheels of `environment` are added by who sends it.

        Args:
            conf: Properties that hold where these options do not say otherwise.
            py_files: Locations that come before those of these options.
            args: Arguments that come before those of these options.

        Raises:
            ConfigurationError: A value cannot be sent as it is.
        """
        self.check()
        fields: dict[str, Any] = {
            "driverMemory": self.driver_memory,
            "driverCores": self.driver_cores,
            "executorMemory": self.executor_memory,
            "executorCores": self.executor_cores,
            "numExecutors": self.num_executors,
            "conf": {**(conf or {}), **(self.conf or {})} or None,
            "pyFiles": [*py_files, *(self.py_files or [])] or None,
            "jars": self.jars or None,
            "files": self.files or None,
            "archives": self.archives or None,
            "args": [*args, *(self.arguments or [])] or None,
        }
        return {field: value for field, value in fields.items() if value is not None}


def _check_property(key: str, value: str) -> None:
    """Raise ConfigurationError if a property of `conf` must not or cannot be sent."""
    if not key.startswith("spark."):
        raise ConfigurationError(
            f"conf has the key {key!r}, and Spark drops what does not begin with 'spark.'; "
            f"a property of Hadoop is written 'spark.hadoop.{key}'."
        )
    if key in _OPTION_OF_PROPERTY:
        raise ConfigurationError(
            f"conf has the key {key!r}; set {_OPTION_OF_PROPERTY[key]} in its place."
        )
    carries_secret = _SECRET_KEY.search(key) and not _PROVIDER_KEY.search(key)
    if carries_secret or SECRET_VALUE.search(value):
        raise ConfigurationError(f"conf carries a secret in {key!r}. {_INSTEAD_OF_SECRETS}")
