"""Patterns: which names of blobs form an arrival, and which are none."""

import pytest
from dagster._core.definitions.partitions.utils.base import INVALID_PARTITION_SUBSTRINGS

from synapse_assets.arrivals.pattern import ArrivalPatterns
from synapse_assets.arrivals.scan import is_partition_key
from synapse_assets.errors import ConfigurationError


@pytest.mark.parametrize(
    ("pattern", "name", "arrival"),
    [
        ("in/{arrival}/*.csv", "in/2026-11-24/a.csv", "2026-11-24"),
        ("in/{arrival}/*.csv", "in/2026-11-24/deep/a.csv", None),
        ("in/{arrival}/*.csv", "in/2026-11-24/a.parquet", None),
        ("in/{arrival}/**", "in/a/deep/b.parquet", "a"),
        ("in/{arrival}/**/*.csv", "in/a/deep/b.csv", "a"),
        ("in/{arrival}.csv", "in/a.b.csv", "a.b"),
        ("in/{arrival}.csv", "in/deep/a.csv", None),
        ("in/{arrival}.csv", "in/.csv", None),
        ("in/{arrival}.*", "in/a.b.csv", "a.b"),
        ("in/part-{arrival}.csv", "in/part-7.csv", "7"),
        ("in/part-{arrival}.csv", "in/7.csv", None),
        ("in/[x]+({arrival}.csv", "in/[x]+(1.csv", "1"),
        ("{arrival}/a.csv", "ü🚢 %20#?/a.csv", "ü🚢 %20#?"),
        ("in/{arrival}.csv", "in/two\nlines.csv", "two\nlines"),
        # The landing folder's own name may begin with anything.
        ("_in/.raw/{arrival}.csv", "_in/.raw/a.csv", "a"),
    ],
)
def test_arrival_is_read_from_a_name(pattern: str, name: str, arrival: str | None) -> None:
    assert ArrivalPatterns.parse([pattern]).match(name) == arrival


@pytest.mark.parametrize(
    "name", [".hidden", "_SUCCESS", "a.csv.tmp", "_tmp/a.csv", "b/.c/a.csv", "b/_d", "b/e.tmp"]
)
def test_hidden_and_unfinished_blobs_belong_to_none(name: str) -> None:
    patterns = ArrivalPatterns.parse(["in/{arrival}/**", "in/{arrival}.*", "in/{arrival}"])
    assert patterns.match(f"in/{name}") is None


def test_first_pattern_that_fits_names_the_arrival() -> None:
    patterns = ArrivalPatterns.parse(["in/{arrival}/**", "in/{arrival}.*", "in/{arrival}"])
    found = [patterns.match(name) for name in ("in/a/b.csv", "in/a.b.csv", "in/a", "out/a")]
    assert found == ["a", "a.b", "a", None]
    assert patterns.folder == "in"
    # Names of one arrival have no more than this in common.
    assert patterns.beginning("a") == "in/a"


def test_one_pattern_tells_the_beginning_up_to_its_wildcard() -> None:
    assert ArrivalPatterns.parse(["in/{arrival}/x-*.csv"]).beginning("a") == "in/a/x-"
    both = ArrivalPatterns.parse(["in/{arrival}/a/*", "in/{arrival}/b/*"])
    assert both.beginning("1") == "in/1/"


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["in/*.csv"], "exactly once"),
        (["in/{arrival}/{arrival}.csv"], "exactly once"),
        (["in/*/{arrival}.csv"], "must lie together"),
        (["/in/{arrival}.csv"], "must begin with a folder"),
        (["in/{arrival}.csv", "out/{arrival}.csv"], "make a sensor for each place"),
        ([], "at least one"),
    ],
)
def test_pattern_that_cannot_be_served_is_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ArrivalPatterns.parse(patterns)


def test_names_that_dagster_refuses_are_known() -> None:
    assert not any(is_partition_key(f"a{part}b") for part in INVALID_PARTITION_SUBSTRINGS)
    assert not is_partition_key("no text: \udcff")
    assert all(is_partition_key(name) for name in ("a", "..", "ü🚢", "a b%20", "*[x]", "a:b"))
