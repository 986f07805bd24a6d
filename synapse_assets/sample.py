"""Writes passenger lists in Titanic.csv's twelve columns, of any length, from invented people.

Class, sex, age group and survival follow the historic table of those aboard, without the crew, whom
Titanic.csv does not list either. People travel in parties that share surname, ticket, fare and
port; as in Titanic.csv the list is mingled, and its end may cut a family.

The bytes depend on `rows` and `seed` alone: of Python's generator only `random()` is used, whose
sequence the language guarantees for a seed. The rest is tables, whole numbers and comparisons, so
no platform's mathematics library has a say. A shorter list is the beginning of a longer one.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple, TextIO, TypeVar

from synapse_assets.steps.titanic_schema import COLUMNS

_T = TypeVar("_T")
_Random = Callable[[], float]
Kind = Literal["boy", "girl", "man", "woman"]

# The arrival that a generated file makes where no file is given.
SAMPLE_ARRIVAL = "sample"
# (aboard, survived) by class: the British Board of Trade's inquiry (reprinted 1990), as given by
# Dawson, R. J. MacG. (1995), "The 'Unusual Episode' Data Revisited", Journal of Statistics
# Education 3(3). Its 2,201 people include the crew: 862 men (192 survived), 23 women (20).
ABOARD: dict[int, dict[Kind, tuple[int, int]]] = {
    1: {"boy": (5, 5), "girl": (1, 1), "man": (175, 57), "woman": (144, 140)},
    2: {"boy": (11, 11), "girl": (13, 13), "man": (168, 14), "woman": (93, 80)},
    3: {"boy": (48, 13), "girl": (31, 14), "man": (462, 75), "woman": (165, 76)},
}
CHILD_BELOW_YEARS = 12

# How many parties of each make-up are aboard (invented): k = child, m, w = man, woman of the same
# generation; H, W = husband, wife, the parents of all in small letters. The children are exactly
# the table's; the men and women of the table whom no party here needs travel alone.
_PARTIES = {
    1: {"HW": 44, "kHW": 3, "kkHW": 1, "kW": 1, "wHW": 6, "mHW": 5, "mwHW": 3, "wW": 6, "mH": 3,
        "ww": 6, "mm": 3, "W": 18},
    2: {"HW": 22, "kHW": 4, "kkHW": 4, "kkkHW": 1, "kW": 3, "kkW": 2, "kkH": 1, "wHW": 3, "mHW": 1,
        "wW": 3, "mm": 7, "ww": 3, "mw": 2, "W": 12},
    3: {"HW": 18, "kHW": 7, "kkHW": 4, "kkkHW": 2, "kkkkHW": 3, "kkkkkHW": 2, "kkkkmwHW": 1,
        "kkkmmwHW": 1, "kkkkkmmwwHW": 1, "kW": 10, "kkW": 4, "kkkW": 1, "kH": 1, "kkH": 1, "mHW": 2,
        "wW": 2, "mW": 2, "mm": 12, "mmm": 3, "mw": 7, "ww": 4, "W": 15},
}  # fmt: skip

_SURNAMES = str.split(
    """
    Atherton Bancroft Barlow Bellamy Blackwood Bradshaw Brennan Broadbent Burgess Calloway
    Carrington Chadwick Claridge Colby Connelly Copeland Crawley Cullen Dalton Darby Delaney
    Dempsey Donnelly Dunbar Eastwood Ellison Engstrom Fairfax Fallon Fenwick Fitzgerald
    Forsyth Garrison Gilmore Granger Gresham Hadley Halloran Hammond Hargreaves Hartley
    Hathaway Henriksen Holbrook Holloway Horvat Huxley Ingram Isaksson Jamieson Kavanagh
    Kendrick Kershaw Kowalski Langley Larkin Lindgren Lockwood Lundberg MacKenzie Maddox
    Marchetti Marlowe Merrick Middleton Monroe Mulligan Norwood Nygaard O'Malley O'Rourke
    Pemberton Pendleton Petrov Prescott Quigley Radcliffe Rafferty Ramsey Redmond Rossi
    Rutledge Sandberg Sheridan Sinclair Stanhope Stoddard Sundqvist Talbot Tierney Tolliver
    Underhill Vasquez Wainwright Waverly Weston Whitaker Whitfield Winslow Wolcott Wyatt
    """
)
_MENS_NAMES = str.split(
    """
    Albert Alexander Alfred Andrew Anton Archibald Arthur August Benjamin Carl Charles Daniel
    David Edgar Edward Edwin Ernest Francis Frank Frederick George Gustaf Harold Harry Henry
    Herbert Hugh Jacob James John Joseph Karl Lawrence Leonard Leslie Lewis Martin Michael
    Nils Oscar Patrick Percy Peter Philip Ralph Reginald Richard Robert Samuel Sidney Stanley
    Thomas Victor Walter Wilfred William
    """
)
_WOMENS_NAMES = str.split(
    """
    Ada Agnes Alice Amelia Anna Annie Beatrice Bertha Bridget Catherine Charlotte Clara
    Constance Dorothy Edith Eleanor Eliza Elizabeth Ellen Elsie Emily Emma Ethel Eva Florence
    Frances Gertrude Hanna Harriet Hedwig Helen Hilda Ida Ingrid Irene Jane Jessie Kate
    Lillian Louise Mabel Margaret Maria Marion Martha Mary Maud Mildred Nora Olga Rose Ruth
    Sarah Signe Sofia Susan Theresa Violet Winifred
    """
)
_NICKNAMES = {
    "Albert": "Bertie", "Edward": "Ned", "Frederick": "Fred", "Henry": "Harry", "John": "Jack",
    "Thomas": "Tommy", "William": "Will", "Anna": "Annie", "Bridget": "Delia", "Catherine": "Kate",
    "Elizabeth": "Bessie", "Ellen": "Nellie", "Margaret": "Maggie", "Mary": "Mamie",
}  # fmt: skip
_NICKNAME_SHARE = 0.5  # of those whose first name has one
_INFANT_AGES = ("0.42", "0.67", "0.75", "0.83", "0.92")
_ESTIMATED_AGE_SHARE = 0.025  # ages that end in .5
_PORT_MISSING_SHARE = 0.002
_FREE_TICKET_SHARE = 0.04  # of the men who travel alone

# A party's ordinal times a number, modulo a prime: no ticket twice in nearly ten million parties.
_TICKET_PRIME, _TICKET_STRIDE = 9_999_991, 7_368_787
_MINGLED_ROWS = 512


def _spread(*brackets: tuple[int, int, int]) -> list[int]:
    """Returns numbers to draw from: each bracket (low, high, n) gives n of them."""
    return [low + (high - low) * i // n for low, high, n in brackets for i in range(n)]


class _Class(NamedTuple):
    """What travelling in one class means, apart from the historic table; shares are 0 to 1."""

    ages: list[int]
    pence_a_head: list[int]
    age_missing: float
    cabin_known: tuple[float, float]  # of those who died, of those who survived
    decks: str
    ports: str
    ticket_prefixes: tuple[str, ...]
    titles: tuple[str, ...]


_CLASSES = {
    1: _Class(
        ages=_spread((15, 22, 20), (22, 30, 40), (30, 40, 45), (40, 50, 37), (50, 72, 38)),
        pence_a_head=_spread(
            (6000, 6480, 25), (6480, 7440, 30), (7440, 12000, 27), (12000, 48000, 18)
        ),
        age_missing=0.14,
        cabin_known=(0.74, 0.86),
        decks="AABBBBBCCCCCCDDDEEE",
        ports="S" * 59 + "C" * 40 + "Q",
        ticket_prefixes=("", "", "PC "),
        titles=("Mr",) * 22 + ("Dr", "Col", "Major"),
    ),
    2: _Class(
        ages=_spread((14, 20, 16), (20, 30, 62), (30, 40, 44), (40, 50, 19), (50, 70, 14)),
        pence_a_head=_spread((2520, 2640, 25), (2880, 3240, 45), (3240, 3840, 24), (3840, 7920, 6)),
        age_missing=0.06,
        cabin_known=(0.03, 0.15),
        decks="DEFF",
        ports="S" * 89 + "C" * 9 + "QQ",
        ticket_prefixes=("", "", "", "C.A. ", "S.C./PARIS "),
        titles=("Mr",) * 22 + ("Rev", "Rev", "Dr"),
    ),
    3: _Class(
        ages=_spread((13, 18, 38), (18, 26, 120), (26, 33, 72), (33, 45, 50), (45, 72, 20)),
        pence_a_head=_spread(
            (1690, 1740, 10), (1740, 1940, 55), (1940, 2280, 22), (2280, 3840, 13)
        ),
        age_missing=0.277,
        cabin_known=(0.016, 0.05),
        decks="EFFG",
        ports="S" * 72 + "C" * 13 + "Q" * 15,
        ticket_prefixes=("", "", "", "A/5 ", "STON/O 2. ", "SOTON/O.Q. "),
        titles=("Mr",),
    ),
}


def _parties() -> list[tuple[int, str]]:
    """Returns (class, make-up) of every party aboard; together they are the historic table."""
    aboard = []
    for pclass, counts in _PARTIES.items():
        roles = "".join(party * number for party, number in counts.items())
        men = ABOARD[pclass]["man"][0] - roles.count("m") - roles.count("H")
        women = ABOARD[pclass]["woman"][0] - roles.count("w") - roles.count("W")
        for party, number in {**counts, "m": men, "w": women}.items():
            aboard += [(pclass, party)] * number
    return aboard


def _pick(random: _Random, items: Sequence[_T]) -> _T:
    return items[int(random() * len(items))]


def _draw_ages(random: _Random, party: str, adult_ages: list[int]) -> list[int]:
    """Returns the years of each in the party: parents are older than children, couples are near."""
    has_parents = not party.islower()
    ages: list[int] = []
    eldest = 0
    for role in party:
        if role == "k":
            age = int(random() * CHILD_BELOW_YEARS)
        elif role in "mw" and has_parents:
            age = CHILD_BELOW_YEARS + int(random() * 14)
        elif role in "mw" and ages:
            age = max(CHILD_BELOW_YEARS, ages[-1] - 5 + int(random() * 11))
        elif role == "W" and party[-2:] == "HW":
            age = max(eldest + 17, 19, ages[-1] - 7 + int(random() * 9))
        elif role in "HW" and eldest:
            age = eldest + 18 + int(random() * 14)
        else:
            age = _pick(random, adult_ages)
            if role in "HW" and age < 20:
                age += 10
        ages.append(age)
        if role.islower():
            eldest = max(eldest, age)
    return ages


def _given_names(random: _Random, names: list[str]) -> str:
    """Returns a first name, with a second one for half of the people."""
    first, second = _pick(random, names), _pick(random, names)
    return f"{first} {second}" if random() < 0.5 and first != second else first


def _nickname(random: _Random, given: str) -> str:
    """Returns the nickname in the doubled quotes of a quoted field, or nothing for most people."""
    nickname = _NICKNAMES.get(given.partition(" ")[0])
    return f' ""{nickname}""' if nickname and random() < _NICKNAME_SHARE else ""


def _fare(pence: int) -> str:
    """Returns pence (240 a pound) as pounds with up to four decimals, rounded half up."""
    pounds, fraction = divmod((pence * 10_000 + 120) // 240, 10_000)
    return f"{pounds}.{fraction:04}".rstrip("0").rstrip(".")


def _passengers(random: _Random) -> Iterator[str]:
    """Yields lines without their PassengerId, party after party, without end."""
    parties = _parties()
    survive = {c: {k: s / n for k, (n, s) in kinds.items()} for c, kinds in ABOARD.items()}
    boys = {c: n["boy"][0] / (n["boy"][0] + n["girl"][0]) for c, n in ABOARD.items()}
    for ordinal in count(1):
        pclass, party = _pick(random, parties)
        book = _CLASSES[pclass]
        surname = _pick(random, _SURNAMES)
        older = ("H" in party) + ("W" in party)
        younger = len(party) - older

        ticket_number = ordinal * _TICKET_STRIDE % _TICKET_PRIME
        ticket = f"{_pick(random, book.ticket_prefixes)}{ticket_number}"
        # Children pay half.
        pence = _pick(random, book.pence_a_head) * (2 * len(party) - party.count("k")) // 2
        fare = "0" if party == "m" and random() < _FREE_TICKET_SHARE else _fare(pence)
        deck, room = _pick(random, book.decks), 1 + int(random() * 120)
        cabin = f"{deck}{room}" if len(party) < 3 else f"{deck}{room} {deck}{room + 2}"
        port = _pick(random, book.ports)
        husband = _given_names(random, _MENS_NAMES)

        kind: Kind
        for role, age in zip(party, _draw_ages(random, party, book.ages), strict=True):
            if role == "k":
                kind = "boy" if random() < boys[pclass] else "girl"
            else:
                kind = "man" if role in "mH" else "woman"
            if role == "W":
                own = f"{_given_names(random, _WOMENS_NAMES)} {_pick(random, _SURNAMES)}"
                name = f"Mrs. {husband} ({own})"
            elif kind in ("girl", "woman"):
                given = _given_names(random, _WOMENS_NAMES)
                name = f"Miss. {given}{_nickname(random, given)}"
            else:
                given = husband if role == "H" else _given_names(random, _MENS_NAMES)
                title = "Master" if kind == "boy" else "Mr"
                if party == "m" and age >= 28:
                    title = _pick(random, book.titles)
                name = f"{title}. {given}{_nickname(random, given)}"

            survived = random() < survive[pclass][kind]
            if random() < book.age_missing:
                age_text = ""
            elif age == 0:
                age_text = _pick(random, _INFANT_AGES)
            else:
                age_text = f"{age}.5" if random() < _ESTIMATED_AGE_SHARE else f"{age}"
            siblings, parents = (younger - 1, older) if role.islower() else (older - 1, younger)
            yield (
                f'{survived:d},{pclass},"{surname}, {name}",'
                f"{'male' if kind in ('boy', 'man') else 'female'},{age_text},{siblings},{parents},"
                f"{ticket},{fare},{cabin if random() < book.cabin_known[survived] else ''},"
                f"{'' if random() < _PORT_MISSING_SHARE else port}\n"
            )


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Yields a file that takes the place of `path` if the block ends without an error."""
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} is not a regular file: name a file to write the sample to.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".sample-{os.urandom(8).hex()}.part")
    try:
        with part.open("x", encoding="ascii", newline="\n") as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def write_sample(path: Path, *, rows: int, seed: int) -> None:
    """Writes an invented passenger list as CSV (RFC 4180 quoting, line feeds) in constant memory.

    The file appears complete or not at all, and replaces one that is there.

    Args:
        path: The file to write.
        rows: The number of passengers, 0 or more; the header comes on top.
        seed: The same seed and rows give the same bytes on every Python.

    Raises:
        ValueError: `rows` is negative, or `path` is something else than a regular file.
        OSError: The file cannot be written; nothing is left behind.
    """
    if rows < 0:
        raise ValueError(f"rows is {rows}: give 0 or a greater number of passengers.")
    # As text, because an integer seed loses its sign.
    random = Random(str(seed)).random  # noqa: S311 (nothing secret, and it must be repeatable)
    passengers = _passengers(random)
    waiting = list(islice(passengers, _MINGLED_ROWS))
    with _replacing(path) as file:
        file.write(",".join(COLUMNS) + "\n")
        for number in range(1, rows + 1):
            seat = int(random() * _MINGLED_ROWS)
            file.write(f"{number},{waiting[seat]}")
            waiting[seat] = next(passengers)
