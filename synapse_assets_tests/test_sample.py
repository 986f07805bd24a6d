"""The sample is reproducible to the byte, as cheap at any length, and has the history's shape."""

import csv
import errno
import hashlib
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_assets.sample import ABOARD, CHILD_BELOW_YEARS, write_sample
from synapse_assets.steps.titanic_schema import COLUMNS

_GOLDEN_SHA256 = "d56b4bcbf375bf4753a499672bb1b29db5ef1ac6f4dff046abcdb25995cee32f"
_REAL_FILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "Titanic.csv"

Row = dict[str, str]


def _write(path: Path, *, rows: int, seed: int = 1912) -> bytes:
    write_sample(path, rows=rows, seed=seed)
    return path.read_bytes()


def _read(path: Path) -> list[Row]:
    with path.open(encoding="ascii", newline="") as file:
        return list(csv.DictReader(file, strict=True))


@pytest.fixture(scope="module")
def passengers(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    path = tmp_path_factory.mktemp("sample") / "sample.csv"
    write_sample(path, rows=60_000, seed=1)
    return _read(path)


def _kind(row: Row) -> str:
    child = float(row["Age"]) < CHILD_BELOW_YEARS
    return {"male": ("man", "boy"), "female": ("woman", "girl")}[row["Sex"]][child]


class TestBytes:
    def test_same_seed_and_rows_give_the_bytes_of_every_python(self, tmp_path: Path) -> None:
        """The golden hash is the same on each Python; a change to it changes everybody's sample."""
        content = _write(tmp_path / "a.csv", rows=1_000)
        assert content == _write(tmp_path / "b.csv", rows=1_000)
        assert hashlib.sha256(content).hexdigest() == _GOLDEN_SHA256

    def test_other_seeds_give_other_bytes(self, tmp_path: Path) -> None:
        contents = {_write(tmp_path / "a.csv", rows=100, seed=seed) for seed in (0, 1, -1, 1912)}
        assert len(contents) == 4

    def test_shorter_list_is_the_beginning_of_a_longer_one(self, tmp_path: Path) -> None:
        longer = _write(tmp_path / "longer.csv", rows=5_000)
        assert longer.startswith(_write(tmp_path / "shorter.csv", rows=891))

    @pytest.mark.parametrize("rows", [0, 1, 891, 2_000, 2_001])
    def test_has_the_header_and_as_many_lines_as_asked_for(self, tmp_path: Path, rows: int) -> None:
        content = _write(tmp_path / "sample.csv", rows=rows)
        assert content.startswith(
            b"PassengerId,Survived,Pclass,Name,Sex,Age,SibSp,Parch,Ticket,Fare,Cabin,Embarked\n"
        )
        assert content.count(b"\n") == rows + 1
        assert content.endswith(b"\n")
        assert b"\r" not in content
        ids = [row["PassengerId"] for row in _read(tmp_path / "sample.csv")]
        assert ids == [str(number) for number in range(1, rows + 1)]

    def test_memory_does_not_grow_with_the_rows(self, tmp_path: Path) -> None:
        def peak_bytes(rows: int) -> int:
            tracemalloc.start()
            try:
                write_sample(tmp_path / "sample.csv", rows=rows, seed=1)
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        peak_bytes(1)  # what is allocated once and stays
        assert peak_bytes(50_000) < 1.1 * peak_bytes(5_000)


class TestHistory:
    def test_class_sex_and_age_shares_follow_the_table(self, passengers: list[Row]) -> None:
        total = sum(aboard for kinds in ABOARD.values() for aboard, _ in kinds.values())
        assert total == 2_201 - 862 - 23
        for pclass, kinds in ABOARD.items():
            of_class = [row for row in passengers if row["Pclass"] == str(pclass)]
            in_class = sum(aboard for aboard, _ in kinds.values())
            assert len(of_class) / len(passengers) == pytest.approx(in_class / total, abs=0.01)
            # Within a class, whether the age is missing does not depend on it.
            dated = [row for row in of_class if row["Age"]]
            found = Counter(_kind(row) for row in dated)
            for kind, (aboard, _) in kinds.items():
                assert found[kind] / len(dated) == pytest.approx(aboard / in_class, abs=0.015)

    def test_survival_follows_the_table(self, passengers: list[Row]) -> None:
        survived: dict[tuple[int, str], list[int]] = defaultdict(list)
        for row in passengers:
            if row["Age"]:
                survived[int(row["Pclass"]), _kind(row)].append(int(row["Survived"]))
        for pclass, kinds in ABOARD.items():
            for kind, (aboard, alive) in kinds.items():
                outcomes = survived[pclass, kind]
                share = sum(outcomes) / len(outcomes)
                assert share == pytest.approx(alive / aboard, abs=0.04), (pclass, kind)

    def test_missing_values_are_as_frequent_as_in_reality(self, passengers: list[Row]) -> None:
        missing = {
            column: sum(not row[column] for row in passengers) / len(passengers)
            for column in COLUMNS
        }
        assert missing.pop("Age") == pytest.approx(0.20, abs=0.02)
        assert missing.pop("Cabin") == pytest.approx(0.77, abs=0.02)
        assert missing.pop("Embarked") == pytest.approx(0.002, abs=0.001)
        assert set(missing.values()) == {0.0}
        cabins = Counter(row["Pclass"] for row in passengers if row["Cabin"])
        assert cabins["1"] > 0.8 * cabins.total()

    def test_values_are_what_the_columns_promise(self, passengers: list[Row]) -> None:
        for row in passengers:
            assert row["Survived"] in ("0", "1")
            assert row["Embarked"] in ("S", "C", "Q", "")
            assert 0 <= float(row["Fare"]) < 1_000
            assert 0 < float(row["Age"] or 1) < 81
        assert any(row["Age"].endswith(".5") for row in passengers)
        assert any(0 < float(row["Age"] or 1) < 1 for row in passengers)

    def test_first_class_pays_most(self, passengers: list[Row]) -> None:
        means = []
        for pclass in "123":
            fares = [float(row["Fare"]) for row in passengers if row["Pclass"] == pclass]
            means.append(sum(fares) / len(fares))
        assert means[0] > 3 * means[1]
        assert means[1] > means[2]


class TestPeople:
    def test_names_with_commas_and_quotes_read_back(self, passengers: list[Row]) -> None:
        for row in passengers:
            assert None not in row
            surname, given = row["Name"].split(", ")
            title = given.partition(". ")[0]
            assert surname
            assert (title in ("Mrs", "Miss")) == (row["Sex"] == "female")
            if row["Age"]:
                assert (title == "Master") == (_kind(row) == "boy")
        names = [row["Name"] for row in passengers]
        assert 0.1 < sum("(" in name for name in names) / len(names) < 0.2
        assert 0.01 < sum(name.count('"') == 2 for name in names) / len(names) < 0.1

    def test_families_share_surname_ticket_fare_and_class(self, passengers: list[Row]) -> None:
        parties = defaultdict(list)
        for row in passengers:
            parties[row["Ticket"]].append(row)
        complete = 0
        for party in parties.values():
            shared = {(row["Name"].split(",")[0], row["Fare"], row["Pclass"]) for row in party}
            assert len(shared) == 1
            sizes = {1 + int(row["SibSp"]) + int(row["Parch"]) for row in party}
            assert len(sizes) == 1
            size = sizes.pop()
            assert len(party) <= size
            complete += len(party) == size
        # Only the families that the end of the list cuts are incomplete.
        assert complete > 0.98 * len(parties)

    def test_children_travel_with_somebody(self, passengers: list[Row]) -> None:
        for row in passengers:
            if row["Age"] and float(row["Age"]) < CHILD_BELOW_YEARS:
                assert int(row["Parch"]) in (1, 2)

    def test_nobody_bears_the_surname_of_a_real_passenger(self, passengers: list[Row]) -> None:
        if not _REAL_FILE.exists():
            pytest.skip(f"no {_REAL_FILE.name} beside the checkout")
        real = {row["Name"].split(",")[0] for row in _read(_REAL_FILE)}
        assert real.isdisjoint(row["Name"].split(",")[0] for row in passengers)


class TestFailures:
    def test_negative_rows_are_refused_with_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"^rows is -1: give 0 or a greater number of pass"):
            write_sample(tmp_path / "sample.csv", rows=-1, seed=1)
        assert list(tmp_path.iterdir()) == []

    def test_folder_in_the_place_of_the_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is not a regular file: name a file"):
            write_sample(tmp_path, rows=1, seed=1)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
    )
    def test_interruption_keeps_the_old_file_and_nothing_else(
        self, tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "sample.csv"
        path.write_text("old")

        def passengers(_: object) -> Iterator[str]:
            yield from ["line\n"] * 1_000
            raise error

        monkeypatch.setattr("synapse_assets.sample._passengers", passengers)
        with pytest.raises(type(error)) as caught:
            write_sample(path, rows=10_000, seed=1)
        assert caught.value is error
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_link_is_followed_and_kept(self, tmp_path: Path) -> None:
        link = tmp_path / "link.csv"
        link.symlink_to(tmp_path / "sample.csv")
        write_sample(link, rows=1, seed=1)
        assert link.is_symlink()
        assert len(_read(tmp_path / "sample.csv")) == 1
