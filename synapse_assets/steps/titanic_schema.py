"""The 12 columns of Titanic.csv, and what is said of a file that does not have them as text."""

import csv
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import TextIO

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
# What Spark strips when it decides whether a line is blank: everything up to the space.
BLANKS = "".join(map(chr, range(33)))


def check_lines(text: TextIO, *, file_name: str) -> Iterator[str]:
    """Yield each line of a file opened with 'surrogateescape', with its end.

    Raises:
        ValueError: A line is not UTF-8 text.
    """
    for number, line in enumerate(text, start=1):
        # Escaped, a byte that is not UTF-8 stays visible in its line, which can be named then.
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as e:
                byte = ord(line[e.start]) - 0xDC00
                raise ValueError(
                    f"{file_name}, line {number}: the byte 0x{byte:02X} is not UTF-8: save the "
                    "file as CSV in UTF-8."
                ) from e
        yield line


def parse_header(line: str) -> list[str]:
    """Return the column names of one header line, or the line itself where it is not CSV."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return [line]


def check_header(names: Sequence[str], *, file_name: str, optional: Collection[str] = ()) -> None:
    """Refuse a header that does not have the 12 columns, in any order.

    Raises:
        ValueError: A column is missing that is not optional, unexpected, or there twice.
    """
    counts = Counter(names)
    found = {
        "lacks": [name for name in COLUMNS if name not in counts and name not in optional],
        "has the unexpected": [name for name in counts if name not in COLUMNS],
        "has more than once": [name for name in COLUMNS if counts[name] > 1],
    }
    if not any(found.values()):
        return
    separators = {";": "semicolons", "\t": "tabs", "|": "bars"}
    for char, word in separators.items():
        if len(names) == 1 and names[0].count(char) > 1:
            raise ValueError(
                f"{file_name}, line 1: the columns look separated by {word}: save the file with "
                "commas between the columns."
            )
    findings = ", and ".join(f"{verb} {_quote(names)}" for verb, names in found.items() if names)
    raise ValueError(
        f"{file_name}, line 1: the header {findings}: give it exactly the columns "
        f"{', '.join(COLUMNS)}, in any order"
        f"{''.join(f', with or without {name}' for name in optional)}."
    )


def _quote(names: Sequence[str]) -> str:
    # An unexpected name may be a whole data line or megabytes long: the message stays readable.
    shown = [f"'{name if len(name) <= 40 else name[:39] + '…'}'" for name in names[:12]]
    if len(names) > len(shown):
        shown.append(f"{len(names) - len(shown)} more")
    return ("column " if len(names) == 1 else "columns ") + ", ".join(shown)
