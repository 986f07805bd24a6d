"""A step: a function that runs on a compute target, named so that nothing has to be imported."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from synapse_assets.compute.bundle import Bundle, source_files
from synapse_assets.errors import ConfigurationError

_ENTRY_POINT = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Step:
    """One unit of work: 'package.module:function', and values for its parameters.

    The function is imported only where it runs. Its parameters are bound by name: an input or
    an output of the asset, `spark` (the session, on Spark targets), `report` (to say something
    about an output), or one of `parameters`. It returns its tables by output name; see
    docs/compute.md.

    Attributes:
        entry_point: Where the function is, for example 'synapse_assets.steps.train:train'.
        parameters: JSON values for parameters that are neither inputs nor outputs.
    """

    entry_point: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the entry point's form.

        Raises:
            ConfigurationError: It is not of the form 'package.module:function'.
        """
        if not _ENTRY_POINT.fullmatch(self.entry_point):
            raise ConfigurationError(
                f"The entry point {self.entry_point!r} of a step is not of the form "
                "'package.module:function'."
            )

    @property
    def module(self) -> str:
        """Name of the module that holds the function."""
        return self.entry_point.partition(":")[0]

    @property
    def function(self) -> str:
        """Name of the function."""
        return self.entry_point.partition(":")[2]

    @cached_property
    def code_version(self) -> str:
        """Hash of the step's own code and parameters, for Dagster's `code_version`.

        It covers the module and what it imports from its own package, so that editing one step
        makes no other step's data stale.
        """
        digest = hashlib.sha256(json.dumps(dict(self.parameters), sort_keys=True).encode())
        for name, content in sorted(source_files(self.module).items()):
            digest.update(f"\0{name}\0".encode() + content)
        return digest.hexdigest()[:16]

    def bundle(self) -> Bundle:
        """Return the code to ship: the step's, the runner's and what they need.

        Raises:
            BundleError: The code cannot run away from here as it is.
        """
        return Bundle.of_module(self.module)
