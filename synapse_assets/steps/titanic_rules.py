"""What makes a passenger out of a row of Titanic.csv.

The rules are data, so that there is one of each: `prepare` makes Spark SQL of them, and `score`
applies them without Spark. Patterns hold for Java's and Python's regular expressions alike, as
long as Python is told re.ASCII; those of whole values have no anchors, which the two spell
differently. Only spaces are trimmed, as by SQL's trim.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

WHOLE_NUMBER = "[0-9]{1,18}"
SMALL_NUMBER = "-?[0-9]{1,3}"
# No NaN, Infinity, hexadecimal or type suffix: Spark's cast would take them as numbers.
NUMBER = "[+-]?(?:[0-9]{1,30}(?:[.][0-9]{0,30})?|[.][0-9]{1,30})(?:[eE][+-]?[0-9]{1,4})?"

CLASSES = (1, 2, 3)
# In lower and in upper case: those of a row may be either.
SEXES = ("male", "female")
PORTS = ("S", "C", "Q")

MAX_FIELD_CHARS = 10_000
OLDEST_AGE_YEARS = 120
HIGHEST_FARE_POUNDS = 1_000_000

TITLE_IN_NAME = r",\s*([^,.]{1,40})[.]"
TITLES = {
    "Mr": "Mr",
    "Mrs": "Mrs",
    "Mme": "Mrs",
    "Miss": "Miss",
    "Mlle": "Miss",
    "Ms": "Miss",
    "Master": "Master",
}
OTHER_TITLE = "Rare"

# Of a cabin in upper case.
DECK_IN_CABIN = "^([A-GT])"
UNKNOWN_DECK = "U"

# The historic medians and the port most passengers came aboard at, for a table that knows none.
AGE_WHERE_NONE_IS_KNOWN = 28.0
FARE_WHERE_NONE_IS_KNOWN = 14.4542


@dataclass(frozen=True)
class Fillings:
    """What takes the place of missing values, learnt from the rows where they are known.

    A missing age becomes the median of the passenger's title and class, else of the title, else
    of everyone; a missing fare the median of the class, else of everyone; a missing port the most
    common one. Medians are lower medians, those of ages rounded to hundredths of a year.
    """

    age_by_title_and_class: Mapping[tuple[str, int], float]
    age_by_title: Mapping[str, float]
    age: float
    fare_by_class: Mapping[int, float]
    fare: float
    port: str

    def age_of(self, title: str, pclass: int) -> float:
        """Return what takes the place of a missing age."""
        by_title = self.age_by_title.get(title, self.age)
        return self.age_by_title_and_class.get((title, pclass), by_title)

    def fare_of(self, pclass: int) -> float:
        """Return what takes the place of a missing fare."""
        return self.fare_by_class.get(pclass, self.fare)

    def to_json(self) -> dict[str, Any]:
        """Return the fillings as JSON values, with the fingerprint of the rules they go with."""
        by_both = [[*key, age] for key, age in sorted(self.age_by_title_and_class.items())]
        fares = sorted(self.fare_by_class.items())
        return {
            "rules": fingerprint(),
            **asdict(self),
            "age_by_title_and_class": by_both,
            "fare_by_class": [list(pair) for pair in fares],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Fillings":
        """Return the fillings that `to_json` described."""
        by_both = {(title, pclass): age for title, pclass, age in value["age_by_title_and_class"]}
        return cls(
            age_by_title_and_class=by_both,
            age_by_title=value["age_by_title"],
            age=value["age"],
            fare_by_class=dict(value["fare_by_class"]),
            fare=value["fare"],
            port=value["port"],
        )


def fingerprint() -> str:
    """Return a hash of the rules: a model learnt from rows prepared by others is no use here."""
    rules = {name: value for name, value in globals().items() if name.isupper()}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]
