"""The 12 columns of Titanic.csv, and the sentence for a header that does not have them."""

import csv
from collections import Counter
from collections.abc import Collection, Sequence

COLUMNS = (
    "PassengerId",
    "Survived",
    "Pclass",
    "Name",
    "Sex",
    "Age",
    "SibSp",
    "Parch",
    "Ticket",
    "Fare",
    "Cabin",
    "Embarked",
)


def parse_header(line: str) -> list[str]:
    """Return the column names of one header line, or the line itself where it is not CSV."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return [line]


def explain_wrong_header(
    names: Sequence[str], *, file_name: str, optional: Collection[str] = ()
) -> str | None:
    """Return the sentence that refuses a header, or None where it has the 12 columns.

    The columns may stand in any order: `prepare` reads each file by its own header. Those of
    `optional` may be missing.
    """
    counts = Counter(names)
    missing = [name for name in COLUMNS if name not in counts and name not in optional]
    unexpected = [name for name in counts if name not in COLUMNS]
    doubled = [name for name in COLUMNS if counts[name] > 1]
    if not (missing or unexpected or doubled):
        return None
    other = _find_other_separator(names)
    if other is not None:
        return (
            f"{file_name}, line 1: the columns look separated by {other}: "
            "save the file with commas between the columns."
        )
    findings = [
        f"{verb} {_quote_names(found)}"
        for verb, found in (
            ("lacks", missing),
            ("has the unexpected", unexpected),
            ("has more than once", doubled),
        )
        if found
    ]
    return (
        f"{file_name}, line 1: the header {', and '.join(findings)}: "
        f"give it exactly the columns {', '.join(COLUMNS)}, in any order"
        f"{''.join(f', with or without {name}' for name in optional)}."
    )


def _find_other_separator(names: Sequence[str]) -> str | None:
    if len(names) != 1:
        return None
    separators = {";": "semicolons", "\t": "tabs", "|": "bars"}
    return next((word for char, word in separators.items() if names[0].count(char) > 1), None)


def _quote_names(names: Sequence[str]) -> str:
    # An unexpected name may be a whole data line or megabytes long: the message stays readable.
    shown = [f"'{name if len(name) <= 40 else name[:39] + '…'}'" for name in names[:12]]
    if len(names) > len(shown):
        shown.append(f"{len(names) - len(shown)} more")
    return ("column " if len(names) == 1 else "columns ") + ", ".join(shown)
