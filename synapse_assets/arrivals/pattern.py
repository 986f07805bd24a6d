"""Patterns of blob names, from which the arrival that a blob belongs to is read."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from synapse_assets.errors import ConfigurationError

# Stands for all arrivals that there may be; the name of none has a '/'.
ANY_ARRIVAL = "/"

_PLACEHOLDER = "{arrival}"
# A part that begins with '.' or '_', and half-written files of Hadoop and many another tool.
_HIDDEN = re.compile(r"(?:\A|/)[._]|\.tmp\Z")


@dataclass(frozen=True)
class ArrivalPatterns:
    """Patterns such as 'landing/titanic/{arrival}/*.csv' and 'landing/titanic/{arrival}.csv'.

    '*' stands for any characters within one part of a name, '**' for any characters at all. The
    arrival is never empty and never holds a '/'. The first pattern that fits a blob names it.

    All of them have the same text before the arrival. So the blobs of one arrival have a text in
    common with which their names begin, and every store lists such names one after the other.

    Attributes:
        head: What stands before the arrival in every pattern.
        rests: What stands after it in each of them, in order.
    """

    head: str
    rests: tuple[str, ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "ArrivalPatterns":
        """Return the patterns that some texts describe.

        Raises:
            ConfigurationError: There is none, they begin differently, or one does not hold
                '{arrival}' once, or holds a wildcard before it.
        """
        for text in texts:
            if text.count(_PLACEHOLDER) != 1:
                raise ConfigurationError(
                    f"The pattern '{text}' must hold {_PLACEHOLDER} exactly once, as in "
                    "'landing/{arrival}/*.csv'."
                )
            if "*" in text.partition(_PLACEHOLDER)[0] or text.startswith("/"):
                raise ConfigurationError(
                    f"The pattern '{text}' must begin with a folder of the datastore, without '/' "
                    f"or '*' before {_PLACEHOLDER}: the blobs of an arrival must lie together."
                )
        parts = [text.split(_PLACEHOLDER) for text in texts]
        if len({head for head, _ in parts}) != 1:
            raise ConfigurationError(
                f"The patterns {', '.join(texts) or '(none)'} must be at least one, and all have "
                f"the same text before {_PLACEHOLDER}: make a sensor for each place."
            )
        return cls(parts[0][0], tuple(rest for _, rest in parts))

    @property
    def folder(self) -> str:
        """The folder of the datastore that is listed."""
        return self.head.rpartition("/")[0]

    def match(self, name: str) -> str | None:
        """Return the arrival that a blob of the datastore belongs to, None if to none.

        Hidden names (with a part below the patterns' folder that begins with '.' or '_') and
        unfinished ones ('.tmp') belong to none.
        """
        found = self._regex.fullmatch(name)
        if found is None or _HIDDEN.search(name[self.head.rfind("/") + 1 :]):
            return None
        return found[found.lastindex or 0]

    def match_folder(self, path: str) -> str | None:
        """Return the arrival that the blobs of a folder belong to, None if to none.

        It is ANY_ARRIVAL where the folder's name does not tell.
        """
        inside = f"{path.strip('/')}/".removeprefix("/")
        if self.head.startswith(inside):
            return ANY_ARRIVAL
        if not inside.startswith(self.head):
            return None
        # The folder is an arrival where patterns go on with '/', and none where they have no '/'.
        if any(not rest.startswith("/") and ("/" in rest or "**" in rest) for rest in self.rests):
            return ANY_ARRIVAL
        return inside[len(self.head) :].partition("/")[0] or None

    def beginning(self, arrival: str) -> str:
        """Return the text with which the names of all blobs of an arrival begin."""
        return f"{self.head}{arrival}{self._tail}"

    def __str__(self) -> str:
        return ", ".join(f"{self.head}{_PLACEHOLDER}{rest}" for rest in self.rests)

    @cached_property
    def _tail(self) -> str:
        """What follows the arrival in every pattern; often nothing."""
        tails = [rest.partition("*")[0] for rest in self.rests]
        return os.path.commonprefix(tails)  # noqa: RUF071 -- no paths

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        ways = "|".join(
            "([^/]+)"
            + "".join(
                {"*": "[^/]*", "**": ".*"}.get(part, re.escape(part))
                for part in re.split(r"(\*\*|\*)", rest)
            )
            for rest in self.rests
        )
        return re.compile(f"{re.escape(self.head)}(?:{ways})", re.DOTALL)
