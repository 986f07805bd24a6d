import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

HEADER = "PassengerId,Survived,Pclass,Name,Sex,Age,SibSp,Parch,Ticket,Fare,Cabin,Embarked\n"
TITANIC = Path(__file__).parents[2] / "shared" / "data" / "Titanic.csv"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DAGSTER_HOME": str(tmp_path / "dagster_home"),
        "SYNAPSE_ASSETS_DATASTORE": str(tmp_path / "datastore"),
    }


def call(*arguments: str, environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from synapse_assets.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def line_on_stderr(result: "subprocess.CompletedProcess[str]") -> str:
    """Return the one line that a refused call prints."""
    assert result.returncode == 1, result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("synapse-assets: ")
    return line.removeprefix("synapse-assets: ")


def start_and_kill(*arguments: str, when: str, environment: Mapping[str, str]) -> None:
    """Start a command and kill it when a line of its output holds `when`."""
    command = [sys.executable, "-c", "from synapse_assets.cli import main; main()", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert any(when in line for line in process.stdout)
        process.kill()


@pytest.mark.spark
@pytest.mark.kill
@pytest.mark.timeout(600)
def test_run_repairs_what_was_killed_then_has_nothing_to_do_then_takes_what_is_new(
    environment: dict[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "arrival one.csv"
    call("sample", "--rows", "600", "--out", str(source), environment=environment)
    run = ("run", "--input", str(source))
    start_and_kill(*run, when="steps.prepare:prepare started", environment=environment)

    first = call(*run, environment=environment)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stderr == ""
    assert "was killed; what it had not committed is made again" in first.stdout
    assert re.search(r"^titanic_input .* up to date ", first.stdout, re.MULTILINE)
    assert re.search(r"titanic_prepared +has never been materialized", first.stdout)
    assert "check rows_are_conserved passed: 600 rows in = " in first.stdout
    assert re.search(r"^survival_model +0 +\d+ files .* \d+\.\d ", first.stdout, re.MULTILINE)
    assert re.search(r"Cross-validated accuracy: 0\.[6-9]\d\d", first.stdout)
    assert "make ui" in first.stdout

    second = call(*run, environment=environment)
    assert second.returncode == 0
    assert second.stdout.count("up to date") == 5
    assert "Nothing to do: same code and same input" in second.stdout

    # A row that has to be refused: re-landed under the same name, the arrival runs again.
    with source.open("a") as file:
        file.write('99999,1,3,"Doe, Mr. John",male,abc,0,0,1,7.5,,S\n')
    third = call(*run, environment=environment)
    assert third.returncode == 0
    assert "landing has a new data version" in third.stdout
    assert re.search(r"^titanic_quarantined +1 +1 row ", third.stdout, re.MULTILINE)
    assert re.search(r"^survival_model +1 ", third.stdout, re.MULTILINE)


@pytest.mark.spark
def test_failed_run_says_which_line_and_keeps_the_last_good_version(
    environment: dict[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "bad.csv"
    source.write_bytes(HEADER.encode() + b'1,0,3,"Mu\xf1oz, Mr. A",male,22,1,0,A/5,7.25,,S\n')
    result = call("run", "--input", str(source), environment=environment)
    assert result.returncode == 1
    assert (
        "FAILED  titanic_input: No file of the arrival 'bad' can be read: "
        "bad.csv, line 2: the byte 0xF1 is not UTF-8" in result.stdout
    )
    assert "The whole log: " in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "empty.csv is empty"),
        ("gzip.csv", b"\x1f\x8b\x08\x00", "gzip.csv is a gzip file"),
        ("wide.csv", HEADER.encode("utf-16"), "the text is UTF-16: save it as UTF-8"),
        ("short.csv", b"PassengerId,Survived\n1,0\n", "short.csv, line 1: the header lacks"),
        ("text.csv", b"hello world\n", "text.csv, line 1: the header lacks"),
    ],
)
def test_input_that_is_not_the_csv_is_refused_before_any_work(
    environment: dict[str, str], tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    result = call("run", "--input", str(tmp_path / name), environment=environment)
    assert message in line_on_stderr(result)
    assert not (tmp_path / "datastore").exists()


def test_folder_dangling_link_and_missing_file_are_refused(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "nowhere.csv")
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "link.csv", "which does not exist"),
        (tmp_path / "absent.csv", "does not exist"),
    ):
        result = call("run", "--input", str(path), environment=environment)
        assert message in line_on_stderr(result)


def test_missing_java_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    environment |= {"JAVA_HOME": str(tmp_path)}
    message = line_on_stderr(call("run", environment=environment))
    assert message.startswith(f"Spark needs Java, and JAVA_HOME={tmp_path} has none.")


def test_taken_port_is_one_line(environment: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = line_on_stderr(call("ui", "--port", str(port), environment=environment))
    assert message.startswith(f"Port {port} is taken")


def test_unwritable_place_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    # A file where a folder must be stands in for missing rights, which root always has.
    (tmp_path / "file").write_text("")
    environment |= {"DAGSTER_HOME": str(tmp_path / "file" / "home")}
    (tmp_path / "in.csv").write_text(HEADER)
    result = call("run", "--input", str(tmp_path / "in.csv"), environment=environment)
    assert line_on_stderr(result).startswith(f"Cannot write to {tmp_path / 'file' / 'home'}: ")


def test_deployment_that_is_not_complete_is_one_line(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text(HEADER)
    environment |= {"SYNAPSE_ASSETS_DEPLOYMENT": "azure"}
    result = call("run", "--input", str(tmp_path / "in.csv"), environment=environment)
    assert "SYNAPSE_ASSETS_DEPLOYMENT=azure is not complete. Set " in line_on_stderr(result)


def test_negative_number_of_rows_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    result = call("sample", "--rows", "-1", "--out", str(out), environment=environment)
    line_on_stderr(result)
    assert not out.exists()


@pytest.mark.spark
@pytest.mark.titanic
@pytest.mark.skipif(not TITANIC.exists(), reason="there is no ../shared/data/Titanic.csv")
def test_real_titanic_reaches_the_accuracy(environment: dict[str, str], tmp_path: Path) -> None:
    source = shutil.copy(TITANIC, tmp_path)
    result = call("run", "--input", str(source), environment=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "891 rows in = 891 prepared + 0 quarantined" in result.stdout
    accuracy = re.search(r"Cross-validated accuracy: (0\.\d+)", result.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.82


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SYNAPSE_ASSETS_AZURITE", "http://127.0.0.1:{}/devstoreaccount1"),
        ("SYNAPSE_ASSETS_DATASTORE", "hdfs://127.0.0.1:{}/x"),
    ],
)
def test_service_that_is_not_there_is_one_line_before_any_work(
    environment: dict[str, str], tmp_path: Path, name: str, value: str
) -> None:
    source = tmp_path / "a.csv"
    source.write_text(HEADER)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        del environment["SYNAPSE_ASSETS_DATASTORE"]
        environment |= {
            "SYNAPSE_ASSETS_DEPLOYMENT": "emulated",
            name: value.format(closed.getsockname()[1]),
        }
        message = line_on_stderr(call("run", "--input", str(source), environment=environment))
    assert "does not answer" in message
    assert "make services" in message
    assert not (tmp_path / "dagster_home" / "history").exists()
