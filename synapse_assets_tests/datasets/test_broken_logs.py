"""A table that cannot be opened is an error, whatever the trouble; it is never made anew."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake.exceptions import DeltaError

from synapse_assets.datasets.slot import Slot
from synapse_assets.datasets.table import commit, resolve
from synapse_assets.datastore import Datastore
from synapse_assets_tests.datasets.staging import numbers, put, stage_table

SLOT = Slot("table")


def garbage_in_the_first_entry(log: Path) -> None:
    (log / f"{0:020}.json").write_text("garbage")


def garbage_in_the_last_entry(log: Path) -> None:
    (log / f"{1:020}.json").write_text("{}garbage")


def first_entry_empty(log: Path) -> None:
    (log / f"{0:020}.json").write_text("")


def first_entry_gone(log: Path) -> None:
    (log / f"{0:020}.json").unlink()


def log_is_a_file(log: Path) -> None:
    log.rename(log.with_name("elsewhere"))
    log.write_text("")


def log_is_a_loop(log: Path) -> None:
    log.rename(log.with_name("elsewhere"))
    log.symlink_to(log)


@pytest.mark.parametrize(
    "damage",
    [
        garbage_in_the_first_entry,
        garbage_in_the_last_entry,
        first_entry_empty,
        first_entry_gone,
        log_is_a_file,
        log_is_a_loop,
    ],
)
def test_damaged_log_is_an_error_and_left_as_it_is(
    datastore: Datastore, damage: Callable[[Path], None]
) -> None:
    put(datastore, SLOT, numbers(1))
    put(datastore, SLOT, numbers(2))
    log = Path(datastore.uri("table", "_delta_log"))
    damage(log)
    before = _content(log)
    staged = stage_table(datastore, SLOT, numbers(3))
    with pytest.raises((DeltaError, OSError)):
        resolve(datastore, "table")
    with pytest.raises((DeltaError, OSError)):
        commit(datastore, staged, slot=SLOT)
    assert _content(log) == before


def _content(log: Path) -> dict[str, str]:
    if log.is_symlink() or log.is_file():
        return {}
    return {path.name: path.read_text() for path in sorted(log.iterdir())}


_OPEN_AS_NOBODY = """
import os, sys
import deltalake.exceptions, fsspec.implementations.local
from synapse_assets.datasets.table import resolve
from synapse_assets.datastore import Datastore
if os.getuid() == 0:
    os.setgroups([])
    os.setuid(65534)
try:
    resolve(Datastore(root=sys.argv[1]), "table")
except Exception as e:
    print(type(e).__name__, e)
"""


def test_forbidden_log_is_not_taken_for_a_missing_one() -> None:
    # Not pytest's folder, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        datastore = Datastore(root=folder)
        put(datastore, SLOT, numbers(1))
        log = Path(datastore.uri("table", "_delta_log"))
        log.chmod(0)
        command = [sys.executable, "-c", _OPEN_AS_NOBODY, folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        log.chmod(0o755)
    assert done.stdout.startswith("StorageError"), done.stderr
    assert "Permission denied" in done.stdout
