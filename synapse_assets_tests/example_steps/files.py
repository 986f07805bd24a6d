"""A step that writes two files."""

import os
import signal
from pathlib import Path


def fill_names(names: Path) -> None:
    """Fill the folder with two files."""
    (names / "a.txt").write_text("a")
    (names / "b.txt").write_text("b")


def fill_and_die(files: Path) -> None:
    """Fill the folder in part, and be killed."""
    (files / "half.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)


def fill_names_of(files: Path) -> None:
    """Fill the folder."""
    (files / "whole.txt").write_text("whole")


def fill_nothing(files: Path) -> None:
    """Leave the folder as it is."""
    assert not list(files.iterdir())
