"""`synapse-assets arrivals`, as it is called."""

import os
import re
import time
from pathlib import Path

import dagster as dg
import pytest

from synapse_assets import pipeline
from synapse_assets.arrivals.sensor import evaluate
from synapse_assets.cli import main
from synapse_assets.datastore import Datastore
from synapse_assets.definitions import defs
from synapse_assets.defs.titanic.sensors import LIMITS, TITANIC_ARRIVALS


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster_home"))
    monkeypatch.setenv("SYNAPSE_ASSETS_DATASTORE", str(tmp_path / "datastore"))
    monkeypatch.delenv("SYNAPSE_ASSETS_DEPLOYMENT", raising=False)
    landing = tmp_path / "datastore" / "landing" / "titanic"
    landing.mkdir(parents=True)
    for name in ("one.csv", "two.csv"):
        (landing / name).write_text("x" * 2048)
        os.utime(landing / name, (time.time() - 60,) * 2)
    return tmp_path / "dagster_home"


def call(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as e:
        main(["arrivals", *arguments])
    output = capsys.readouterr()
    assert e.value.code == code, output
    return output.err if code else output.out


def asked(home: Path) -> list[str]:
    """Return what the sensor asks for in its next tick."""
    datastore = Datastore(root=str(home.parent / "datastore"))
    with pipeline.open_instance(home) as instance:
        context = dg.build_sensor_context(instance=instance)
        result = evaluate(context, datastore, TITANIC_ARRIVALS, events=None, limits=LIMITS)
    return [str(request.partition_key) for request in result.run_requests or []]


def test_list_says_what_there_is_and_what_became_of_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, *rows = call(capsys, "list").splitlines()
    assert re.fullmatch(r"arrival +blobs +size +state +last run \(UTC\)", header)
    assert [row.split() for row in rows] == [
        ["one", "1", "2.0", "KB", "new", "-"],
        ["two", "1", "2.0", "KB", "new", "-"],
    ]
    datastore = Datastore(root=str(home.parent / "datastore"))
    with pipeline.open_instance(home) as instance:
        tags = pipeline.observe_arrival(instance, datastore, "two")
        instance.create_run_for_job(defs().resolve_job_def("titanic_arrival"), tags=tags)
    row = call(capsys, "list").splitlines()[2]
    assert re.search(r" asked +[0-9a-f]{8} 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d$", row)


def test_ignored_is_not_asked_for_until_it_is_replayed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "leaves it alone until its blobs change" in call(capsys, "ignore", "one")
    assert " ignored " in call(capsys, "list")
    assert asked(home) == ["two"]
    assert "looks at it again" in call(capsys, "ignore", "one", "--undo")
    assert "nothing to do" in call(capsys, "ignore", "one", "--undo")
    assert "one" in asked(home)
    call(capsys, "ignore", "two")
    assert "asks for it once more in its next tick" in call(capsys, "replay", "two")
    assert "two" in asked(home)


@pytest.mark.parametrize("verb", ["replay", "ignore"])
def test_name_that_is_not_there_is_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    error = call(capsys, verb, "x", code=1)
    assert error.startswith("synapse-assets: No blob of the arrival 'x' is in ")
    assert "there is one, two." in error
    assert error.count("\n") == 1


def test_retire_says_that_there_is_nothing_to_retire(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, "retire", "--before", "2026-01-01").startswith("Nothing to do")
    with pytest.raises(SystemExit, match="2"):
        main(["arrivals", "retire", "--before", "yesterday"])
