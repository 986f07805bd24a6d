from typing import Any

import pytest

from synapse_assets.compute.spark.options import SparkOptions
from synapse_assets.compute.spark.sizing import NODE_SIZES, check_size, count_vcores
from synapse_assets.errors import ConfigurationError

# What the how-to asks for.
HOW_TO = SparkOptions(
    driver_memory="7g", driver_cores=4, executor_memory="7g", executor_cores=4, num_executors=1
)


def sized(**values: Any) -> SparkOptions:
    """Return the how-to's options with some of them changed."""
    return SparkOptions(**values).over(HOW_TO)


def test_how_to_takes_eight_vcores() -> None:
    assert count_vcores(HOW_TO) == 8


def test_missing_options_count_as_spark_takes_them() -> None:
    assert count_vcores(SparkOptions()) == 1 + 2 * 1
    assert count_vcores(SparkOptions(driver_cores=4, num_executors=0)) == 4


@pytest.mark.parametrize("name", NODE_SIZES)
def test_largest_heap_fits_its_node(name: str) -> None:
    node = NODE_SIZES[name]
    largest = SparkOptions(
        driver_memory=f"{node.heap_gb}g",
        driver_cores=node.vcores,
        executor_memory=f"{node.heap_gb}g",
        executor_cores=node.vcores,
        num_executors=2,
    )
    check_size(largest, name, 3)
    with pytest.raises(ConfigurationError, match="hold the driver"):
        check_size(largest, name, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"driver_cores": 8}, r"driver_cores is 8, more than the 4 vCores of a Small node"),
        ({"executor_cores": 5}, r"executor_cores is 5, more than the 4 vCores"),
        (
            {"executor_memory": "29g"},
            r"executor_memory is 29g, more than the 28g that a Small node \(32 GB\) has",
        ),
        ({"driver_memory": "28673m"}, r"driver_memory is 28673m, more than the 28g"),
        (
            {"executor_memory": "28g", "conf": {"spark.executor.memoryOverhead": "4g"}},
            r"executor_memory \(28g\) and 4096 MB of overhead are 32768 MB, more than the 31539 MB",
        ),
        ({"conf": {"spark.driver.memoryOverhead": "much"}}, r"memoryOverhead is 'much'"),
        ({"driver_memory": "7"}, r"driver_memory is '7'"),
    ],
)
def test_what_no_node_can_hold_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_size(sized(**values), "Small")


def test_overhead_in_megabytes_is_read_as_spark_reads_it() -> None:
    check_size(sized(conf={"spark.executor.memoryOverhead": "2048"}), "Small", 3)


def test_pool_that_is_too_small_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_size(sized(num_executors=9), "Small", 3)
    assert str(caught.value) == (
        "The pool's 3 Small nodes hold the driver (4 vCores, 7g) and 2 executors (4 vCores, 7g): "
        "0 beside the driver and 1 on each other node; the batch asks for 9, in all 4 + 9 * 4 = "
        "40 of 12 vCores: lower num_executors or the executors' size, or give the pool more nodes."
    )


def test_executors_share_nodes_with_each_other_and_with_the_driver() -> None:
    # A Medium node has 8 vCores: two executors each, and one beside the driver.
    check_size(sized(num_executors=5), "Medium", 3)
    with pytest.raises(ConfigurationError, match="5 executors"):
        check_size(sized(num_executors=6), "Medium", 3)


def test_memory_and_its_overhead_limit_a_node_too() -> None:
    # Two of 30 GB and their 10 % are more than a Medium node has, though the vCores would do.
    options = sized(executor_memory="30g", executor_cores=2, driver_memory="30g", num_executors=2)
    check_size(options, "Medium", 3)
    with pytest.raises(ConfigurationError, match="hold the driver"):
        check_size(SparkOptions(num_executors=3).over(options), "Medium", 3)


def test_unknown_node_size_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'Tiny' is none of: Small, Medium"):
        check_size(HOW_TO, "Tiny")
