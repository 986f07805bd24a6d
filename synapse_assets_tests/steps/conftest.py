import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from synapse_assets.steps.titanic_schema import COLUMNS

TITANIC_CSV = Path(__file__).parents[3] / "shared" / "data" / "Titanic.csv"
HEADER = ",".join(COLUMNS)


class Reports:
    """Stands in for the runner's report function and keeps what it was told."""

    def __init__(self) -> None:
        self.of: dict[str, dict[str, Any]] = {}

    def __call__(self, output: str, /, **metadata: Any) -> None:
        self.of.setdefault(output, {}).update(metadata)


def passenger(number: int | str = 1, **changes: str) -> str:
    """Return one good CSV line, with some of its fields changed as they would stand in a file."""
    fields = {
        "PassengerId": str(number),
        "Survived": "0",
        "Pclass": "3",
        "Name": f'"Braund, Mr. Owen {number}"',
        "Sex": "male",
        "Age": "22",
        "SibSp": "1",
        "Parch": "0",
        "Ticket": f"A/5 {number}",
        "Fare": "7.25",
        "Cabin": "",
        "Embarked": "S",
    }
    return ",".join({**fields, **changes}.values())


def quoted(text: str) -> str:
    """Return the text as a quoted CSV field."""
    return '"' + text.replace('"', '""') + '"'


def make_table(rows: int, *, seed: int = 1) -> pa.Table:
    """Return passengers of whom women mostly survive, and men mostly do not."""
    draw = random.Random(seed)
    records = []
    for number in range(1, rows + 1):
        sex = draw.choice(["male", "female"])
        records.append(
            {
                "passenger_id": number,
                "survived": int(draw.random() < (0.8 if sex == "female" else 0.15)),
                "pclass": draw.choice([1, 2, 3]),
                "name": "not read",
                "sex": sex,
                "age": draw.uniform(1, 70),
                "sib_sp": draw.choice([0, 1]),
                "parch": 0,
                "ticket": draw.choice([None, *(f"T{n}" for n in range(rows))]),
                "fare": draw.uniform(5, 80),
                "cabin": None,
                "embarked": draw.choice(["S", "C", "Q"]),
                "title": "Mr" if sex == "male" else "Mrs",
                "family_size": 1,
                "is_alone": True,
                "deck": "U",
                "age_imputed": False,
                "arrival": "2026-11",
            }
        )
    return pa.Table.from_pylist(records)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes lines, by default below the header, and gives the path."""

    def write(
        *lines: str, name: str = "Titanic.csv", header: str = HEADER, end: str = "\n"
    ) -> Path:
        path = tmp_path / "landing" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(f"{line}{end}" for line in (header, *lines)).encode())
        return path

    return write


@pytest.fixture(scope="session")
def titanic_csv() -> Path:
    if not TITANIC_CSV.exists():
        pytest.skip("the real Titanic.csv does not lie beside the checkout (../shared/data)")
    return TITANIC_CSV


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    session = (
        SparkSession.builder.master("local[2]")
        .appName("synapse_assets_tests.steps")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()
