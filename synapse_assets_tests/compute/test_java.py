import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_assets.compute.java import require_java
from synapse_assets.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _forget_java() -> Iterator[None]:
    require_java.cache_clear()
    yield
    require_java.cache_clear()


def fake_java(folder: Path, script: str) -> Path:
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    return folder


def test_java_of_this_machine_is_found() -> None:
    assert (require_java() / "bin" / "java").exists()


def test_missing_java_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"PATH has none\. Install Java 17 or newer"):
        require_java()


def test_wrong_java_home_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=f"JAVA_HOME={tmp_path} has none"):
        require_java()


@pytest.mark.parametrize(
    ("version", "major"), [("1.8.0_402", "8"), ("11.0.22", "11"), ("16", "16")]
)
def test_old_java_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, major: str
) -> None:
    home = fake_java(tmp_path, f"echo 'openjdk version \"{version}\"' >&2")
    monkeypatch.setenv("JAVA_HOME", str(home))
    with pytest.raises(ConfigurationError, match=f"java is {major}\\. Install Java 17"):
        require_java()


def test_java_that_does_not_start_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path, "exit 3")))
    with pytest.raises(ConfigurationError, match="-version' failed"):
        require_java()
