"""`synapse-assets predict`, as it is called."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import skops.io
from sklearn.preprocessing import FunctionTransformer

from synapse_assets.cli import main
from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import resolve
from synapse_assets.datastore import Datastore
from synapse_assets.sample import write_sample
from synapse_assets.steps.train import train
from synapse_assets_tests.datasets.staging import put_files
from synapse_assets_tests.steps.conftest import HEADER, Reports, make_table, passenger

MODEL = Slot("survival_model")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return what the training step writes, by name."""
    folder = tmp_path_factory.mktemp("survival_model")
    train(ds.dataset(make_table(200)), folder, Reports(), dataset_version=5, code_version="abc")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def datastore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Datastore:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster_home"))
    monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", str(tmp_path / "datastore"))
    monkeypatch.setenv("SYNAPSE_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SYNAPSE_ASSETS_DEPLOYMENT", raising=False)
    return Datastore(root=str(tmp_path / "datastore"))


@pytest.fixture
def passengers(tmp_path: Path) -> Path:
    path = tmp_path / "passengers.csv"
    write_sample(path, rows=300, seed=3)
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """Call `predict` where it succeeds, and return what it printed on both streams."""
    with pytest.raises(SystemExit) as exit_:
        main(["predict", *map(str, arguments)])
    printed = capsys.readouterr()
    assert exit_.value.code == 0, printed.err
    return printed.out, printed.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Call `predict` where it fails, and return the one line it prints."""
    with pytest.raises(SystemExit) as exit_:
        main(["predict", *map(str, arguments)])
    printed = capsys.readouterr()
    assert (exit_.value.code, printed.out) == (1, "")
    (line,) = printed.err.splitlines()
    return line.removeprefix("synapse-assets: ")


def test_every_passenger_gets_a_line_in_order(
    datastore: Datastore,
    files: dict[str, bytes],
    passengers: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_files(datastore, MODEL, files)
    output, said = call(capsys, passengers)
    rows = list(csv.DictReader(io.StringIO(output)))
    assert output.startswith("PassengerId,Survived,Probability\n1,")
    assert [int(row["PassengerId"]) for row in rows] == list(range(1, 301))
    for row in rows:
        assert (float(row["Probability"]) > 0.5) == (row["Survived"] == "1")
    survivors = sum(int(row["Survived"]) for row in rows)
    assert 0 < survivors < 300
    first, second = said.splitlines()
    assert first == (
        "survival_model version 0, trained on titanic_prepared version 5: "
        f"{survivors} of 300 passengers are predicted to survive."
    )
    trusted = json.loads(files["metrics.json"])["trusted_types"]
    assert second == f"Types trusted in its file: {', '.join(trusted)}."


def test_the_file_written_is_what_is_printed_and_survived_is_not_needed(
    datastore: Datastore,
    files: dict[str, bytes],
    passengers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_files(datastore, MODEL, files)
    printed, _ = call(capsys, passengers)
    with passengers.open(newline="") as file:
        rows = list(csv.reader(file))
    without = tmp_path / "without.csv"
    with without.open("w", newline="") as file:
        csv.writer(file).writerows([*row[:1], *row[2:]] for row in rows)
    nothing, _ = call(capsys, without, "--out", tmp_path / "new" / "scores.csv")
    assert nothing == ""
    assert (tmp_path / "new" / "scores.csv").read_text() == printed
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scores.csv"]


def test_version_of_the_model_is_the_newest_or_the_one_asked_for(
    datastore: Datastore,
    files: dict[str, bytes],
    passengers: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_files(datastore, MODEL, files)
    put_files(datastore, MODEL, {"metrics.json": files["metrics.json"]})
    error = refused(capsys, passengers)
    assert error == (
        "Version 1 of survival_model has no model.skops and no fillings.json: an older training "
        "step made it. Materialize it again, or choose another with --model."
    )
    _, said = call(capsys, passengers, "--model", 0)
    assert said.startswith("survival_model version 0,")
    for number in (-1, 2, 10**12):
        error = refused(capsys, passengers, f"--model={number}")
        assert error == f"survival_model never had a version {number}: its newest is 1."


def test_wrong_value_is_one_line_and_leaves_the_old_output(
    datastore: Datastore,
    files: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_files(datastore, MODEL, files)
    path, out = tmp_path / "passengers.csv", tmp_path / "scores" / "scores.csv"
    path.write_text("\n".join([HEADER, passenger(1), passenger(2, Age="old")]))
    out.parent.mkdir()
    out.write_text("old")
    expected = (
        f"{path}, line 3, column Age: 'old' is not a number from 0 to 120: correct it, or leave "
        "it empty."
    )
    assert refused(capsys, path, "--out", out) == expected
    assert [(file.name, file.read_text()) for file in out.parent.iterdir()] == [(out.name, "old")]
    assert refused(capsys, path) == expected


def test_file_with_another_type_is_refused_unless_it_is_trusted_by_name(
    datastore: Datastore,
    files: dict[str, bytes],
    passengers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = skops.io.loads(
        files["model.skops"], trusted=json.loads(files["metrics.json"])["trusted_types"]
    )
    model.steps.insert(0, ("odd", FunctionTransformer(do_nothing)))
    put_files(datastore, MODEL, {**files, "model.skops": skops.io.dumps(model)})
    error = refused(capsys, passengers)
    name = f"{__name__}.do_nothing"
    assert error.startswith(f"model.skops is not loaded: it holds {name}, which no model of this")
    assert error.endswith("name each of these types with --trust.")
    output, said = call(capsys, passengers, "--trust", name)
    assert output.count("\n") == 301
    assert name in said


def do_nothing(rows: object) -> object:
    return rows


def test_file_that_somebody_changed_is_refused(
    datastore: Datastore,
    files: dict[str, bytes],
    passengers: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_files(datastore, MODEL, files)
    uri = resolve(datastore, "survival_model").file("model.skops")
    Path(uri.removeprefix("file://")).write_bytes(files["model.skops"] + b"x")
    assert "does not hold what was committed: its sha256 is" in refused(capsys, passengers)


def test_paths_are_looked_at_before_anything_slow(
    datastore: Datastore, passengers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone.csv"
    assert refused(capsys, gone) == f"{gone} does not exist: name a CSV file with passengers."
    assert refused(capsys, tmp_path).startswith(f"{tmp_path} is not a file")
    same = tmp_path / "." / "passengers.csv"
    assert refused(capsys, passengers, "--out", same).endswith("name another file to write.")
    assert "is a folder" in refused(capsys, passengers, "--out", tmp_path)
    assert refused(capsys, passengers).startswith("There is no dataset 'survival_model' in")


def test_reader_that_has_seen_enough_is_no_error(
    datastore: Datastore, files: dict[str, bytes], tmp_path: Path
) -> None:
    put_files(datastore, MODEL, files)
    path = tmp_path / "many.csv"
    write_sample(path, rows=20_000, seed=1)
    script = f"from synapse_assets.cli import main; main(['predict', {str(path)!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"PassengerId,Survived,Probability\n"
        process.stdout.close()
        said = process.stderr.read().decode()
    assert (process.returncode, said.count("\n")) == (0, 2), said
