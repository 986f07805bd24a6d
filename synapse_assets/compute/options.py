"""What the options of all targets have in common."""

import re
from typing import Any, TypeVar

import dagster as dg
from pydantic import ConfigDict

from synapse_assets.errors import ConfigurationError

SECRET_VALUE = re.compile(r"[?&;]sig=|(AccountKey|SharedAccessSignature)=", re.IGNORECASE)

_Options = TypeVar("_Options", bound="StepOptions")


class StepOptions(dg.Config):
    """What a step asks of its target. What is not set is left to the target.

    The values are checked where they are used and not where they are given: until a resource is
    initialized, an environment variable may stand in their place.
    """

    # An error of pydantic repeats what it was given.
    model_config = ConfigDict(hide_input_in_errors=True)

    def over(self: _Options, base: _Options) -> _Options:
        """Return these options where they are set, and those of `base` elsewhere.

        Lists replace lists; mappings are merged by key.
        """
        values = base.set_values()
        for name, value in self.set_values().items():
            merges = isinstance(value, dict) and name in values
            values[name] = {**values[name], **value} if merges else value
        return type(self)(**values)

    def set_values(self) -> dict[str, Any]:
        """Return the options that are set, by name."""
        values = {field: getattr(self, field) for field in type(self).model_fields}
        return {field: value for field, value in values.items() if value is not None}


def asked(options: dg.Config | None, own: _Options, *, of: str) -> _Options:
    """Return what a step asks for in all: its options over those of its target.

    Raises:
        ConfigurationError: They are not of the kind that the target takes.
    """
    if options is None:
        return own
    if not isinstance(options, type(own)):
        raise ConfigurationError(
            f"{of} takes {type(own).__name__}, and a step gives it {type(options).__name__}."
        )
    return options.over(own)
