"""A step that writes two files."""

from pathlib import Path


def fill_names(names: Path) -> None:
    """Fill the folder with two files."""
    (names / "a.txt").write_text("a")
    (names / "b.txt").write_text("b")
