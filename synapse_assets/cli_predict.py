"""The command on the model: `synapse-assets predict`."""

import argparse
import contextlib
import csv
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING

from synapse_assets.cli_datasets import check_names, open_datastore
from synapse_assets.errors import ConfigurationError, DatasetNotFoundError

if TYPE_CHECKING:
    from synapse_assets.datasets.version import DatasetVersion
    from synapse_assets.datastore import Datastore

_MODEL = "survival_model"
_FILES = ("model.skops", "fillings.json", "metrics.json")
_HEADER = ("PassengerId", "Survived", "Probability")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command on the model to the command line."""
    predict = commands.add_parser(
        "predict", help="say which passengers of a CSV file the model gives a chance"
    )
    predict.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="a CSV file with the columns of Titanic.csv, with or without Survived",
    )
    predict.add_argument(
        "--model", metavar="VERSION", type=int, help=f"version of {_MODEL} (default: the newest)"
    )
    predict.add_argument(
        "--out", metavar="FILE", type=Path, help="CSV file to write (default: standard output)"
    )
    predict.add_argument(
        "--trust",
        metavar="TYPE",
        action="append",
        default=[],
        help="a type that the model's file may hold beyond those of our own models; repeatable",
    )
    predict.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    _check_paths(options.file, options.out)
    datastore = open_datastore()
    version, model, fillings, metrics = _fetch(datastore, options.model)

    from synapse_assets.steps import score

    scorer, types = score.load_model(model, trusted=options.trust)
    passengers = survivors = 0
    with _output(options.out) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEADER)
        for scored in score.score(options.file, scorer, score.load_fillings(fillings)):
            chances = (f"{chance:.6f}" for chance in scored["probability"])
            writer.writerows(zip(scored["passenger_id"], scored["survived"], chances, strict=True))
            passengers += len(scored)
            survivors += int(scored["survived"].sum())
    data = json.loads(metrics.read_text(encoding="utf-8"))["training_data"]
    print(
        f"{_MODEL} version {version.version}, trained on {data['dataset']} version "
        f"{data['version']}: {survivors:,} of {passengers:,} passengers are predicted to survive.\n"
        f"Types trusted in its file: {', '.join(types)}.",
        file=sys.stderr,
    )
    return 0


def _check_paths(source: Path, out: Path | None) -> None:
    """Refuse what would fail, or destroy the input, before anything slow is done.

    Raises:
        ConfigurationError: The input is no file, or the output is the input or a folder.
    """
    if not source.is_file():
        what = "is not a file" if source.exists() else "does not exist"
        raise ConfigurationError(f"{source} {what}: name a CSV file with passengers.")
    if out is not None and out.exists():
        if out.is_dir():
            raise ConfigurationError(f"{out} is a folder: name a file to write.")
        if out.samefile(source):
            raise ConfigurationError(f"{out} is the input itself: name another file to write.")


def _fetch(datastore: "Datastore", number: int | None) -> "tuple[DatasetVersion, Path, Path, Path]":
    """Return a version of the model and local copies of its files, checked by their hashes.

    Raises:
        DatasetNotFoundError: There is no such version, or it has not the files.
        StorageError: A file is gone, or does not hold what was committed.
    """
    from synapse_assets.datasets.downloads import download_all
    from synapse_assets.datasets.table import resolve

    check_names(datastore, [_MODEL])
    version = resolve(datastore, _MODEL)
    if number is not None and number != version.version:
        # deltalake looks for a version that is far too high without an end.
        if not 0 <= number < version.version:
            raise DatasetNotFoundError(
                f"{_MODEL} never had a version {number}: its newest is {version.version}."
            )
        version = resolve(datastore, _MODEL, version=number)
    files = {file.name: file for file in version.files}
    missing = [name for name in _FILES if name not in files]
    if missing:
        raise DatasetNotFoundError(
            f"Version {version.version} of {_MODEL} has no {' and no '.join(missing)}: an older "
            "training step made it. Materialize it again, or choose another with --model."
        )
    wanted = [(version.file(name), asdict(files[name])) for name in _FILES]
    model, fillings, metrics = download_all(wanted, datastore.storage())
    return version, model, fillings, metrics


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    """Yield a text file that becomes the output if the block ends without an error."""
    if path is not None:
        from synapse_assets.datastore.storage import replacing

        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            yield file
        return
    with tempfile.TemporaryFile("w+", newline="") as spooled:
        yield spooled
        spooled.seek(0)
        try:
            shutil.copyfileobj(spooled, sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader has seen enough. Python itself would complain once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
