"""Patterns of blob names, from which the arrival that a blob belongs to is read."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from synapse_assets.errors import ConfigurationError

_PLACEHOLDER = "{arrival}"
_WILDCARD = re.compile(r"\*\*|\*")
# A part that begins with '.' or '_', and half-written files of Hadoop and many another tool.
_HIDDEN = re.compile(r"(?:\A|/)[._]|\.tmp\Z")


@dataclass(frozen=True)
class ArrivalPattern:
    """One pattern such as 'landing/titanic/{arrival}/*.csv' or 'landing/titanic/{arrival}.csv'.

    '*' stands for any characters within one part of a name, '**' for any characters at all. The
    arrival is never empty and never holds a '/'.

    Attributes:
        text: The pattern as it was written.
        head: What stands before the arrival.
        tail: What stands after it, up to its first wildcard.
        is_exact: Whether there is no wildcard, and so one blob for each arrival at most.
    """

    text: str
    head: str
    tail: str
    is_exact: bool
    _regex: re.Pattern[str] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> "ArrivalPattern":
        """Return the pattern that a text describes.

        Raises:
            ConfigurationError: It does not hold '{arrival}' once, or holds a wildcard before it.
        """
        head, found, rest = text.partition(_PLACEHOLDER)
        if not found or _PLACEHOLDER in rest:
            raise ConfigurationError(
                f"The pattern '{text}' must hold {_PLACEHOLDER} exactly once, as in "
                "'landing/{arrival}/*.csv'."
            )
        if "*" in head or text.startswith("/"):
            raise ConfigurationError(
                f"The pattern '{text}' must begin with a folder of the datastore, without '/' or "
                f"'*' before {_PLACEHOLDER}: the blobs of an arrival must lie together."
            )
        expression = "".join(
            {"*": "[^/]*", "**": ".*"}.get(part, re.escape(part))
            for part in re.split(r"(\*\*|\*)", rest)
        )
        return cls(
            text=text,
            head=head,
            tail=_WILDCARD.split(rest, maxsplit=1)[0],
            is_exact="*" not in rest,
            _regex=re.compile(f"{re.escape(head)}([^/]+){expression}", re.DOTALL),
        )

    def match(self, name: str) -> str | None:
        """Return the arrival that a blob belongs to, None if to none.

        Hidden names (with a part below the pattern's first folder that begins with '.' or '_')
        and unfinished ones ('.tmp') belong to none.
        """
        found = self._regex.fullmatch(name)
        if found is None or _HIDDEN.search(name[self.head.rfind("/") + 1 :]):
            return None
        return found.group(1)


@dataclass(frozen=True)
class ArrivalPatterns:
    """Several patterns of one sensor; the first that fits a blob names its arrival.

    All of them have the same text before the arrival. So the blobs of one arrival have a text in
    common with which their names begin, and every store lists such names one after the other.

    Attributes:
        patterns: The patterns, in order.
        tail: What follows the arrival in every one of them; often nothing.
    """

    patterns: tuple[ArrivalPattern, ...]
    tail: str

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "ArrivalPatterns":
        """Return the patterns that some texts describe.

        Raises:
            ConfigurationError: There is none, one is no pattern, or they begin differently.
        """
        patterns = tuple(ArrivalPattern.parse(text) for text in texts)
        if len({pattern.head for pattern in patterns}) != 1:
            raise ConfigurationError(
                f"The patterns {', '.join(texts) or '(none)'} must be at least one, and all have "
                f"the same text before {_PLACEHOLDER}: make a sensor for each place."
            )
        tails = [pattern.tail for pattern in patterns]
        return cls(patterns, tail=os.path.commonprefix(tails))  # noqa: RUF071 -- no paths

    @property
    def head(self) -> str:
        """What stands before the arrival in every pattern."""
        return self.patterns[0].head

    @property
    def folder(self) -> str:
        """The folder of the datastore that is listed."""
        return self.head.rpartition("/")[0]

    def match(self, name: str) -> str | None:
        """Return the arrival that a blob of the datastore belongs to, None if to none."""
        for pattern in self.patterns:
            arrival = pattern.match(name)
            if arrival is not None:
                return arrival
        return None

    def beginning(self, arrival: str) -> str:
        """Return the text with which the names of all blobs of an arrival begin."""
        return f"{self.head}{arrival}{self.tail}"

    def __str__(self) -> str:
        return ", ".join(pattern.text for pattern in self.patterns)
