import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import skops.io
from pyspark.sql import SparkSession
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from synapse_assets.sample import write_sample
from synapse_assets.steps import titanic_rules as rules
from synapse_assets.steps.prepare import prepare
from synapse_assets.steps.score import (
    Passenger,
    load_fillings,
    load_model,
    read_passengers,
    score,
)
from synapse_assets.steps.titanic_schema import COLUMNS
from synapse_assets.steps.train import train
from synapse_assets_tests.steps.conftest import HEADER, Reports, make_table, passenger, quoted

FILLINGS = rules.Fillings(
    age_by_title_and_class={("Mr", 3): 25.0},
    age_by_title={"Mr": 30.0},
    age=28.0,
    fare_by_class={3: 8.05},
    fare=14.5,
    port="S",
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survival_model")
    train(ds.dataset(make_table(200)), folder, Reports())
    return folder


# --- the same as prepare ----------------------------------------------------------------------


@pytest.mark.spark
@pytest.mark.titanic
def test_scores_of_the_real_file_are_those_of_its_prepared_rows(
    titanic_csv: Path, spark: SparkSession, tmp_path: Path
) -> None:
    assert _compare(titanic_csv, spark, tmp_path) == 891


@pytest.mark.spark
def test_scores_of_a_sample_are_those_of_its_prepared_rows(
    spark: SparkSession, tmp_path: Path
) -> None:
    path = tmp_path / "sample.csv"
    write_sample(path, rows=2000, seed=7)
    assert _compare(path, spark, tmp_path) == 2000


@pytest.mark.spark
@pytest.mark.parametrize("seed", range(2))
def test_scores_of_odd_rows_are_those_of_their_prepared_rows(
    seed: int, spark: SparkSession, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    draw = random.Random(seed)
    path = write_csv(*(_draw_odd_row(draw, number) for number in range(1, 2001)))
    assert _compare(path, spark, tmp_path) == 2000


def _compare(path: Path, spark: SparkSession, tmp_path: Path) -> int:
    """Compare what is read without Spark with what Spark prepares, and the scores of the two.

    Returns:
        How many passengers there were.
    """
    frame = prepare(spark, [str(path)], Reports())["titanic_prepared"]
    prepared = pd.DataFrame([row.asDict() for row in frame.collect()])
    spark.catalog.clearCache()
    folder = tmp_path / "survival_model"
    folder.mkdir()
    train(ds.dataset(pa.Table.from_pandas(prepared)), folder, Reports())
    model, _ = load_model(folder / "model.skops")
    fillings = load_fillings(folder / "fillings.json")

    prepared = prepared.fillna({"ticket": ""}).sort_values("passenger_id", ignore_index=True)
    read = pd.DataFrame(read_passengers(path, fillings), columns=list(Passenger._fields))
    read = read.sort_values("passenger_id", ignore_index=True)
    pd.testing.assert_frame_equal(
        read, prepared[list(read.columns)], check_dtype=False, check_exact=True
    )
    scored = pd.concat(score(path, model, fillings)).sort_values("passenger_id")
    expected = model.predict_proba(prepared)[:, 1]
    assert scored["probability"].to_list() == expected.tolist()
    assert scored["survived"].to_list() == (expected > 0.5).astype(int).tolist()
    return len(read)


def _draw_odd_row(draw: random.Random, number: int) -> str:
    """Return a good row, spelled as nobody would who did not test."""
    titles = [*rules.TITLES, "Dr", "the Countess", "mr", " Mr", "Mr ", "x" * 41, "Jonkheer", "Ünal"]
    surname = draw.choice(["O'Brien", "van der Berg", "Ünal", "Li, the younger", "", "a\tb"])
    gap = draw.choice([" ", "", "  ", "\t", "\u00a0"])
    name = f"{surname},{gap}{draw.choice(titles)}{draw.choice(['.', ',', '. ', ''])} X {number}"
    blank = draw.choice(["", " "])
    return passenger(
        number,
        Survived=draw.choice("01"),
        Pclass=f"{blank}{draw.choice('123')}{blank}",
        Name=quoted(name),
        Sex=draw.choice(["male", "female", "Male", "FEMALE ", " fEmale"]),
        Age=draw.choice(
            ["", " ", "0", "0.42", "+30", "3e1", "1.5E+1", ".5", "120", "28.", "-0"]
            + [repr(round(draw.uniform(0, 90), draw.randrange(6)))] * 9
        ),
        SibSp=draw.choice(["", " ", "0", "1", "-0", "007", "11", "999"]),
        Parch=draw.choice(["", "0", "2", " 3 "]),
        Ticket=draw.choice(["", "  ", " LINE ", f"PC {draw.randrange(50)}", quoted('a "b", c')]),
        Fare=draw.choice(
            ["", "0", "1e3", "1000000"] + [repr(round(draw.expovariate(1 / 30), 4))] * 6
        ),
        Cabin=draw.choice(["", " ", "C85", "c85", "t", "Z9", "F G73", "D", "h1", "ﬁ", "ẚ"]),
        Embarked=draw.choice(["S", "c", " Q ", "", " "]),
    )


# --- reading ----------------------------------------------------------------------------------


def test_columns_are_found_by_the_header_with_or_without_survived(
    write_csv: Callable[..., Path],
) -> None:
    fields = dict(zip(COLUMNS, passenger(5, Name="X").split(","), strict=True))
    rows = []
    for names in (COLUMNS, [name for name in reversed(COLUMNS) if name != "Survived"]):
        line = ",".join(fields[name] for name in names)
        path = write_csv(line, "", "  ", header="\ufeff" + ",".join(names), end="\r\n")
        rows += list(read_passengers(path, FILLINGS))
    assert rows[0] == rows[1]
    assert rows[0].passenger_id == 5


def test_missing_values_are_filled(write_csv: Callable[..., Path]) -> None:
    path = write_csv(
        passenger(1, Age="", Fare="", Embarked=""),
        passenger(2, Age="", Fare="", Pclass="1"),
        passenger(3, Age="", Name="X"),
    )
    first, second, third = read_passengers(path, FILLINGS)
    assert (first.age, first.fare, first.embarked) == (25.0, 8.05, "S")
    assert (second.age, second.fare) == (30.0, 14.5)
    assert third.age == 28.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Age": "old"}, "column Age: 'old' is not a number from 0 to 120: correct it, or leave"),
        ({"Age": "121"}, "column Age: '121' is not a number from 0 to 120"),
        ({"Age": "NaN"}, "column Age: 'NaN' is not a number"),
        ({"Age": "٣"}, "column Age: '٣' is not a number"),
        ({"Fare": "-1"}, "column Fare: '-1' is not a number from 0 to 1,000,000"),
        ({"Fare": "1e999"}, "column Fare: '1e999' is not a number from 0"),
        ({"SibSp": "1.5"}, "column SibSp: '1.5' is not a whole number from 0 to 999"),
        ({"Parch": "-1"}, "column Parch: '-1' is not a whole number from 0 to 999"),
        ({"Pclass": ""}, "column Pclass: the value is missing: fill it in"),
        ({"Pclass": "4"}, "column Pclass: '4' is not 1, 2 or 3: correct it."),
        ({"Sex": "m" * 99}, f"column Sex: '{'m' * 39}…' is not male or female: correct it."),
        ({"Embarked": "X"}, "column Embarked: 'X' is not S, C or Q: correct it, or leave"),
        ({"Name": " "}, "column Name: the value is missing: fill it in."),
        ({"PassengerId": "1a"}, "column PassengerId: '1a' is not a whole number of up to 18"),
        ({"Ticket": "x" * 10_001}, "column Ticket: the value has 10,001 characters: shorten it"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_value_is_one_sentence_with_line_and_column(
    changes: dict[str, str], expected: str, write_csv: Callable[..., Path]
) -> None:
    two_lines = passenger(1, Name='"Braund,\nMr. Owen"')
    path = write_csv(two_lines, passenger(2, **changes))
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 4, {expected}")) as refused:
        list(read_passengers(path, FILLINGS))
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "line 1: the header lacks columns 'PassengerId', 'Pclass'"),
        (b"PassengerId;Survived;Pclass\n1;0;3\n", "line 1: the columns look separated by semic"),
        (HEADER.replace("Age", "Years").encode(), "line 1: the header lacks column 'Age', and has"),
        (f"{HEADER}\n1,0,3\n".encode(), "line 2: the row has 3 fields, the header has 12: put"),
        (f'{HEADER}\n1,0,"x\n\n'.encode(), "line 2: unexpected end of data: close the quote"),
        (f'{HEADER}\n\n1,"0"x,3\n'.encode(), "line 3: ',' expected after '\"': close the quote"),
        (f"{HEADER}\nJos\xe9".encode("latin-1"), "line 2: the byte 0xE9 is not UTF-8: save the"),
        (f"{HEADER}\n".encode("utf-16"), "line 1: the byte 0xFF is not UTF-8: save the file as C"),
    ],
)
def test_file_that_is_no_passenger_list_is_one_sentence_with_its_line(
    content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "passengers.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}, {expected}")) as refused:
        list(read_passengers(path, FILLINGS))
    assert str(refused.value).endswith(".")


# --- the model's files ------------------------------------------------------------------------


def test_file_with_another_type_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    skops.io.dump(Pipeline([("odd", FunctionTransformer(write_sample))]), path)
    with pytest.raises(
        ValueError, match=r"it holds synapse_assets\.sample\.write_sample, which no"
    ):
        load_model(path)
    _, types = load_model(path, trusted=["synapse_assets.sample.write_sample"])
    assert types == ["synapse_assets.sample.write_sample"]


def test_functions_that_scikit_learn_imports_are_not_trusted(tmp_path: Path) -> None:
    """A name that begins with 'sklearn.' may stand for what downloads a file, or runs one."""
    path = tmp_path / "model.skops"
    skops.io.dump(FunctionTransformer(load_fillings), path)
    _replace_in_schema(
        path, "synapse_assets.steps.score", "sklearn.datasets._base", "load_fillings"
    )
    with pytest.raises(ValueError, match=r"it holds sklearn\.datasets\._base\.urlretrieve"):
        load_model(path)


def _replace_in_schema(path: Path, module: str, by: str, function: str) -> None:
    with ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    schema = contents["schema.json"].decode().replace(module, by).replace(function, "urlretrieve")
    with ZipFile(path, "w") as archive:
        for name, content in {**contents, "schema.json": schema.encode()}.items():
            archive.writestr(name, content)


def test_file_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    path.write_bytes(b"pickled")
    with pytest.raises(ValueError, match=r"model\.skops is no file of skops \(BadZipFile: .*again"):
        load_model(path)


def test_model_of_other_rules_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fillings.json"
    path.write_text(json.dumps(FILLINGS.to_json()))
    assert load_fillings(path) == FILLINGS
    monkeypatch.setattr(rules, "OTHER_TITLE", "Other")
    with pytest.raises(ValueError, match=r"prepared by other rules .* materialize"):
        load_fillings(path)


def test_batches_change_no_score(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sample.csv"
    write_sample(path, rows=25, seed=1)
    model, _ = load_model(model_folder / "model.skops")
    fillings = load_fillings(model_folder / "fillings.json")
    (whole,) = score(path, model, fillings)
    monkeypatch.setattr("synapse_assets.steps.score._BATCH_ROWS", 10)
    batches = list(score(path, model, fillings))
    assert [len(batch) for batch in batches] == [10, 10, 5]
    pd.testing.assert_frame_equal(pd.concat(batches, ignore_index=True), whole)
