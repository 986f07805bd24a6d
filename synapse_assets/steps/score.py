"""Scores passengers with a model of `train`: rows as they stand in a CSV file, without Spark.

Values, titles, decks and fillings follow `titanic_rules`, as in `prepare`. There, a bad row is set
aside; here it is refused with its line, since whoever asks for a score waits for an answer to it.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import skops.io
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from synapse_assets.steps import titanic_rules as rules
from synapse_assets.steps.titanic_schema import BLANKS, check_header, check_lines

# What a model of `train` holds beyond what skops trusts by itself. Named one by one: a whole
# package would let a changed file call any function that one of its modules has imported.
TRUSTED_TYPES = frozenset(
    {
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.model_selection._split.StratifiedKFold",
        # Those below are asked for by older versions of scikit-learn and skops only.
        "sklearn._loss.link.Interval",
        "sklearn._loss.link.LogitLink",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn.compose._column_transformer._RemainderColsList",
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
    }
)

_BATCH_ROWS = 50_000
_MAX_SHOWN_CHARS = 40

_CLASSES = [str(pclass) for pclass in rules.CLASSES]
_WHOLE_NUMBER = re.compile(rules.WHOLE_NUMBER, re.ASCII)
_SMALL_NUMBER = re.compile(rules.SMALL_NUMBER, re.ASCII)
_NUMBER = re.compile(rules.NUMBER, re.ASCII)
_TITLE_IN_NAME = re.compile(rules.TITLE_IN_NAME, re.ASCII)
_DECK_IN_CABIN = re.compile(rules.DECK_IN_CABIN, re.ASCII)


class Passenger(NamedTuple):
    """The values of one row that a model may look at, named as in titanic_prepared."""

    passenger_id: int
    pclass: int
    sex: str
    age: float
    sib_sp: int
    parch: int
    ticket: str
    fare: float
    embarked: str
    title: str
    family_size: int
    deck: str


def load_model(path: Path, *, trusted: Collection[str] = ()) -> tuple[Pipeline, list[str]]:
    """Return the model of a skops file that holds none but known types, and those types.

    Args:
        path: The file.
        trusted: Names of types that the caller trusts, beyond those of a model of `train`.

    Raises:
        ValueError: The file holds another type, or is no model that can be loaded here.
    """
    try:
        types: list[str] = skops.io.get_untrusted_types(file=path)
    except Exception as e:
        raise ValueError(
            f"{path.name} is no file of skops ({_summarize(e)}): materialize the model again."
        ) from e
    unknown = sorted(set(types) - TRUSTED_TYPES - set(trusted))
    if unknown:
        raise ValueError(
            f"{path.name} is not loaded: it holds {', '.join(unknown)}, which no model of this "
            "version's training step has, and loading it could run any code. Materialize the "
            "model again with this version; or, if you know who made the file, name each of these "
            "types with --trust."
        )
    try:
        return skops.io.load(path, trusted=types), types
    except Exception as e:
        raise ValueError(
            f"{path.name} cannot be loaded ({_summarize(e)}): materialize the model again, or use "
            "the version of scikit-learn that metrics.json beside it names."
        ) from e


def load_fillings(path: Path) -> rules.Fillings:
    """Return the fillings that belong to a model.

    Raises:
        ValueError: The model's training rows were prepared by other rules than those of here.
    """
    value = json.loads(path.read_text(encoding="utf-8"))
    if value["rules"] != rules.fingerprint():
        raise ValueError(
            "The model learnt from rows that were prepared by other rules than this version's, "
            "so that its answers would be wrong: materialize titanic_prepared and the model "
            "again, or predict with the version of the code that trained it."
        )
    return rules.Fillings.from_json(value)


def score(path: Path, model: Pipeline, fillings: rules.Fillings) -> Iterator[pd.DataFrame]:
    """Yield the passengers of a CSV file, some at a time, with `probability` and `survived`.

    Args:
        path: A file with the columns of Titanic.csv; Survived may be missing, and is not read.
        model: What `load_model` returned.
        fillings: What takes the place of missing values.

    Raises:
        ValueError: The file is not such a file, or a value is missing or wrong.
    """
    passengers = read_passengers(path, fillings)
    while batch := list(itertools.islice(passengers, _BATCH_ROWS)):
        frame = pd.DataFrame(batch, columns=list(Passenger._fields))
        # As in the training: on a busy machine the trees' threads mostly wait for each other.
        with threadpool_limits(1):
            frame["probability"] = model.predict_proba(frame)[:, 1]
        frame["survived"] = (frame["probability"] > 0.5).astype(int)
        yield frame


def read_passengers(path: Path, fillings: rules.Fillings) -> Iterator[Passenger]:
    """Yield the passengers of a CSV file, typed, filled and derived as by `prepare`.

    Raises:
        ValueError: The file is not such a file, or a value is missing or wrong.
    """
    for row in _read_rows(path):
        passenger_id = row.whole_number("PassengerId")
        pclass = int(row.one_of("Pclass", _CLASSES))
        title = _find_title(row.text("Name"))
        age = row.number("Age", highest=rules.OLDEST_AGE_YEARS)
        sib_sp = row.small_number("SibSp")
        parch = row.small_number("Parch")
        fare = row.number("Fare", highest=rules.HIGHEST_FARE_POUNDS)
        yield Passenger(
            passenger_id=passenger_id,
            pclass=pclass,
            sex=row.one_of("Sex", rules.SEXES, spelled=str.lower),
            age=fillings.age_of(title, pclass) if age is None else age,
            sib_sp=sib_sp,
            parch=parch,
            ticket=row.text("Ticket", required=False),
            fare=fillings.fare_of(pclass) if fare is None else fare,
            embarked=row.one_of("Embarked", rules.PORTS, spelled=str.upper, required=False)
            or fillings.port,
            title=title,
            family_size=sib_sp + parch + 1,
            deck=_find_deck(row.text("Cabin", required=False)),
        )


def _find_title(name: str) -> str:
    found = _TITLE_IN_NAME.search(name)
    return rules.TITLES.get(found[1].strip(" "), rules.OTHER_TITLE) if found else rules.OTHER_TITLE


def _find_deck(cabin: str) -> str:
    found = _DECK_IN_CABIN.search(cabin.upper())
    return found[1] if found else rules.UNKNOWN_DECK


@dataclass(frozen=True)
class _Row:
    """The texts of one row by column, and where it is, for the sentence that refuses one."""

    texts: Mapping[str, str]
    where: str

    def text(self, column: str, *, required: bool = True) -> str:
        text = self.texts[column].strip(" ")
        if required and not text:
            raise ValueError(f"{self.where}, column {column}: the value is missing: fill it in.")
        if len(text) > rules.MAX_FIELD_CHARS:
            raise ValueError(
                f"{self.where}, column {column}: the value has {len(text):,} characters: shorten "
                f"it to {rules.MAX_FIELD_CHARS:,}."
            )
        return text

    def one_of(
        self,
        column: str,
        allowed: Sequence[str],
        *,
        spelled: Callable[[str], str] = str,
        required: bool = True,
    ) -> str:
        text = self.text(column, required=required)
        if text and spelled(text) not in allowed:
            choice = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
            raise self._refusal(column, f"is not {choice}", required=required)
        return spelled(text)

    def whole_number(self, column: str) -> int:
        text = self.text(column)
        if not _WHOLE_NUMBER.fullmatch(text):
            raise self._refusal(column, "is not a whole number of up to 18 digits", required=True)
        return int(text)

    def small_number(self, column: str) -> int:
        text = self.text(column, required=False) or "0"
        if not _SMALL_NUMBER.fullmatch(text) or int(text) < 0:
            raise self._refusal(column, "is not a whole number from 0 to 999", required=False)
        return int(text)

    def number(self, column: str, *, highest: int) -> float | None:
        text = self.text(column, required=False)
        if not text:
            return None
        if not _NUMBER.fullmatch(text) or not 0 <= float(text) <= highest:
            problem = f"is not a number from 0 to {highest:,}"
            raise self._refusal(column, problem, required=False)
        return float(text)

    def _refusal(self, column: str, problem: str, *, required: bool) -> ValueError:
        text = self.texts[column].strip(" ")
        shown = text if len(text) <= _MAX_SHOWN_CHARS else f"{text[: _MAX_SHOWN_CHARS - 1]}…"
        remedy = "correct it" if required else "correct it, or leave it empty"
        return ValueError(f"{self.where}, column {column}: {shown!r} {problem}: {remedy}.")


def _read_rows(path: Path) -> Iterator[_Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(check_lines(text, file_name=str(path)), strict=True)
        begins_at = 1
        try:
            header = next(reader, [])
            check_header(header, file_name=str(path), optional=("Survived",))
            begins_at = reader.line_num + 1
            for fields in reader:
                where = f"{path}, line {begins_at}"
                begins_at = reader.line_num + 1
                if len(fields) == len(header):
                    yield _Row(dict(zip(header, fields, strict=True)), where)
                elif "".join(fields).strip(BLANKS):
                    raise ValueError(
                        f"{where}: the row has {len(fields)} fields, the header has "
                        f"{len(header)}: put a value, or nothing, between {len(header) - 1} commas."
                    )
        except csv.Error as e:
            raise ValueError(
                f"{path}, line {begins_at}: {e}: close the quote of this row, or double it where "
                "it is part of the text."
            ) from e


def _summarize(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
