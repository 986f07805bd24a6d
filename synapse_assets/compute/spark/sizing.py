"""How large a batch is, whether a Synapse pool can hold it, and what it costs.

The sizes of nodes are Microsoft's, as published in "Apache Spark pool configurations in Azure
Synapse Analytics" (learn.microsoft.com/azure/synapse-analytics/spark/
apache-spark-pool-configurations). A batch that is refused here would be refused by the service,
or would wait for executors that never come. Where the service's rule is not published the check
lets the batch pass.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from synapse_assets.compute.spark.options import SparkOptions
from synapse_assets.errors import ConfigurationError

# What Spark takes on YARN when nothing is said, and Livy adds nothing to it. SynapseSparkStep had
# no defaults: it demanded all five.
_UNSAID = SparkOptions(
    driver_cores=1, driver_memory="1g", executor_cores=1, executor_memory="1g", num_executors=2
)

# A container is the heap and an overhead; these are Spark's defaults for the overhead.
_OVERHEAD_SHARE = 0.1
_MIN_OVERHEAD_MB = 384

_MB_PER_UNIT = {"k": 1 / 1024, "m": 1, "g": 1024, "t": 1024**2}
_SIZE = re.compile(r"([0-9]+)([kmgt]?)b?", re.IGNORECASE)


@dataclass(frozen=True)
class NodeSize:
    """The size of a pool's nodes.

    Attributes:
        vcores: vCores of a node.
        memory_gb: Memory of a node, as published.
        heap_gb: Largest heap that a driver or executor may ask for: what is left to it when the
            node's system and the overhead have their part.
    """

    vcores: int
    memory_gb: int
    heap_gb: int

    @property
    def container_mb(self) -> int:
        """Memory for the containers of a node: that of the largest heap and its overhead."""
        return self.heap_gb * 1024 + _default_overhead_mb(self.heap_gb * 1024)


# The heaps are those that Microsoft Fabric takes for nodes of these sizes; Azure ML's documentation
# has 28 GB with 4 cores. That of XXXLarge (isolated compute) is published nowhere: it is what
# Spark's own overhead leaves of the node.
NODE_SIZES: Mapping[str, NodeSize] = {
    "Small": NodeSize(vcores=4, memory_gb=32, heap_gb=28),
    "Medium": NodeSize(vcores=8, memory_gb=64, heap_gb=56),
    "Large": NodeSize(vcores=16, memory_gb=128, heap_gb=112),
    "XLarge": NodeSize(vcores=32, memory_gb=256, heap_gb=224),
    "XXLarge": NodeSize(vcores=64, memory_gb=432, heap_gb=400),
    "XXXLarge": NodeSize(vcores=80, memory_gb=504, heap_gb=458),
}


class _Container:
    """What one driver or executor takes of a node."""

    def __init__(self, options: SparkOptions, role: Literal["driver", "executor"]) -> None:
        key = f"spark.{role}.memoryOverhead"
        conf = options.conf or {}
        asked = options.over(_UNSAID)
        self.role = role
        self.cores: int = getattr(asked, f"{role}_cores")
        self.memory: str = getattr(asked, f"{role}_memory")
        self.heap_mb = _megabytes(self.memory)
        self.overhead_mb = (
            _megabytes(conf[key], name=key) if key in conf else _default_overhead_mb(self.heap_mb)
        )
        self.mb = self.heap_mb + self.overhead_mb

    def check(self, node: NodeSize, size: str) -> None:
        """Raise a ConfigurationError if a node is too small."""
        role = self.role
        if self.cores > node.vcores:
            raise ConfigurationError(
                f"{role}_cores is {self.cores}, more than the {node.vcores} vCores of a {size} "
                "node: ask for less, or use a pool of larger nodes."
            )
        if self.heap_mb > node.heap_gb * 1024:
            raise ConfigurationError(
                f"{role}_memory is {self.memory}, more than the {node.heap_gb}g that a {size} node "
                f"({node.memory_gb} GB) has for one {role}: ask for less, or use a pool of larger "
                "nodes."
            )
        if self.mb > node.container_mb:
            raise ConfigurationError(
                f"{role}_memory ({self.memory}) and {self.overhead_mb} MB of overhead are "
                f"{self.mb} MB, more than the {node.container_mb} MB that a {size} node has for "
                f"them: lower {role}_memory or spark.{role}.memoryOverhead, or use a pool of "
                "larger nodes."
            )

    def count_in(self, *, vcores: int, mb: int) -> int:
        """Return how many of these a node has room for."""
        return max(0, min(vcores // self.cores, mb // self.mb))


def count_vcores(options: SparkOptions) -> int:
    """Return the vCores that a batch asks for: the driver's and those of all its executors."""
    asked = options.over(_UNSAID).set_values()
    return int(asked["driver_cores"] + asked["num_executors"] * asked["executor_cores"])


def check_size(options: SparkOptions, node_size: str, max_nodes: int | None = None) -> None:
    """Check that a pool can hold a batch, before anything is sent.

    Args:
        options: The options of the batch.
        node_size: Size of the pool's nodes.
        max_nodes: How many nodes the pool has or may grow to; None leaves that unchecked.

    Raises:
        ConfigurationError: A driver or executor is larger than a node, all of them together are
            larger than the pool, or a value is not as it must be.
    """
    options.check()
    if node_size not in NODE_SIZES:
        known = ", ".join(NODE_SIZES)
        raise ConfigurationError(f"The node size {node_size!r} is none of: {known}.")
    node, executors = NODE_SIZES[node_size], options.over(_UNSAID).num_executors or 0
    driver, executor = _Container(options, "driver"), _Container(options, "executor")
    for container in (driver, executor):
        container.check(node, node_size)
    if max_nodes is None:
        return
    beside_driver = executor.count_in(
        vcores=node.vcores - driver.cores, mb=node.container_mb - driver.mb
    )
    per_node = executor.count_in(vcores=node.vcores, mb=node.container_mb)
    room = beside_driver + (max_nodes - 1) * per_node
    if executors > room:
        raise ConfigurationError(
            f"The pool's {max_nodes} {node_size} nodes hold the driver ({driver.cores} vCores, "
            f"{driver.memory}) and {room} executors ({executor.cores} vCores, {executor.memory}): "
            f"{beside_driver} beside the driver and {per_node} on each other node; the batch asks "
            f"for {executors}, in all {driver.cores} + {executors} * {executor.cores} = "
            f"{count_vcores(options)} of {max_nodes * node.vcores} vCores: lower num_executors or "
            "the executors' size, or give the pool more nodes."
        )


def _default_overhead_mb(heap_mb: int) -> int:
    return max(int(heap_mb * _OVERHEAD_SHARE), _MIN_OVERHEAD_MB)


def _megabytes(text: str, *, name: str = "memory") -> int:
    """Return a size in MB; a number without a unit is in MB already."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{name} is {text!r}; write a whole number of MB, or as '2g'.")
    return int(int(match[1]) * _MB_PER_UNIT[match[2].lower() or "m"])
