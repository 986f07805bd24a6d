"""The ledger: what was handed over, believed only as far as Dagster's runs bear it out."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from synapse_assets.arrivals import ledger as ledger_module
from synapse_assets.arrivals.ledger import Entry, Ledger
from synapse_assets.datastore.storage import LocalStorage

A, B = Entry("a" * 16, 0), Entry("0" * 15 + "b", 1)


@dataclass
class Runs:
    """What Dagster's runs tell, and which arrivals they were asked about."""

    entries: dict[str, Entry] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __call__(self, arrivals: Collection[str]) -> dict[str, Entry]:
        self.asked += arrivals
        return {name: self.entries[name] for name in arrivals if name in self.entries}


@pytest.fixture
def runs() -> Runs:
    return Runs()


def reopen(folder: Path, runs: Runs, *, in_another_process: bool = True) -> Ledger:
    if in_another_process:
        ledger_module._known_bases.clear()
    return Ledger(LocalStorage(), str(folder), recall=runs)


def test_entry_is_in_doubt_until_a_run_bears_it_out(tmp_path: Path, runs: Runs) -> None:
    ledger = reopen(tmp_path, runs)
    assert ledger.get("x") is None
    ledger.doubt(["x"], now=1.0)
    ledger.save()
    ledger = reopen(tmp_path, runs)
    ledger.settle(2.0)
    assert ledger.get("x") is None
    runs.entries["x"] = A
    ledger.settle(3.0)
    assert ledger.get("x") == A
    ledger.save()
    runs.asked.clear()
    assert reopen(tmp_path, runs).get("x") == A
    assert runs.asked == []


def test_former_entry_is_believed_again_once_no_run_can_come(tmp_path: Path, runs: Runs) -> None:
    ledger = reopen(tmp_path, runs)
    ledger.put("x", A)
    ledger.doubt(["x", "y"], now=0.0)
    ledger.settle(24 * 3600.0)
    assert (ledger.get("x"), ledger.confirm(["x"])["x"]) == (None, A)
    ledger.settle(26 * 3600.0)
    assert (ledger.get("x"), ledger.get("y")) == (A, None)


def test_memory_outlives_runs_that_were_deleted(tmp_path: Path, runs: Runs) -> None:
    runs.entries["x"] = B
    ledger = reopen(tmp_path, runs)
    assert ledger.confirm(["x"])["x"] == B
    runs.entries["x"] = A
    assert ledger.confirm(["x"])["x"] == B
    runs.entries.clear()
    assert ledger.confirm(["x"])["x"] == B


def test_nothing_is_written_where_nothing_changed(tmp_path: Path, runs: Runs) -> None:
    ledger = reopen(tmp_path, runs)
    ledger.settle(1.0)
    ledger.save()
    assert list(tmp_path.iterdir()) == []


def test_many_entries_take_twenty_bytes_each(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_MAX_RECENT", 100)
    entries = {f"arrival {i}": Entry(f"{i * 7919:016x}", i % 3) for i in range(1_000)}
    ledger = reopen(tmp_path, runs)
    for number, (name, entry) in enumerate(entries.items()):
        ledger.put(name, entry)
        if number % 150 == 0:
            ledger.doubt(["in doubt"], now=1.0)
            ledger.save()
            ledger = reopen(tmp_path, runs, in_another_process=number % 300 == 0)
    changed = {name: Entry("f" * 16, 9) for name in list(entries)[::7]}
    for name, entry in changed.items():
        ledger.put(name, entry)
    ledger.save()
    ledger = reopen(tmp_path, runs)
    assert {name: ledger.get(name) for name in entries} == {**entries, **changed}
    assert ledger.get("another") is None
    (base,) = tmp_path.glob("ledger-*")
    assert base.stat().st_size == 20 * 1_000
    assert (tmp_path / "ledger").stat().st_size < 1_000


@pytest.mark.parametrize("damage", ["cut", "gone", "base cut", "base gone", "other version"])
def test_damaged_ledger_is_made_again_from_the_runs(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(ledger_module, "_MAX_RECENT", 1)
    ledger = reopen(tmp_path, runs)
    for name in ("x", "y", "z"):
        ledger.put(name, A)
    ledger.save()
    (base,) = tmp_path.glob("ledger-*")
    file = base if damage.startswith("base") else tmp_path / "ledger"
    if damage.endswith("gone"):
        file.unlink()
    elif damage.endswith("cut"):
        file.write_bytes(file.read_bytes()[:-1])
    else:
        monkeypatch.setattr(ledger_module, "_VERSION", 2)
    runs.entries["x"] = B
    ledger = reopen(tmp_path, runs)
    assert ledger.was_damaged == (damage != "gone")
    assert [ledger.get(name) for name in ("x", "y")] == [None, None]
    assert ledger.confirm(["x"])["x"] == B
    ledger.save()
    assert reopen(tmp_path, runs).get("x") == B


def test_crash_between_its_two_files_leaves_the_former_ledger(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_MAX_RECENT", 1)
    ledger = reopen(tmp_path, runs)
    for name in ("x", "y"):
        ledger.put(name, A)
    ledger.save()

    def crash(self: LocalStorage, uri: str, content: bytes) -> None:
        if uri.endswith("/ledger"):
            raise KeyboardInterrupt
        Path(uri).write_bytes(content)

    ledger = reopen(tmp_path, runs)
    for name in ("x", "z"):
        ledger.put(name, B)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            ledger.save()
    ledger = reopen(tmp_path, runs)
    assert [ledger.get(name) for name in ("x", "y", "z")] == [A, A, None]
