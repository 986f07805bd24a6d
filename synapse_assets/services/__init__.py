"""Real services on the developer's machine, on the loopback interface only.

`downloads` fetches them once; `azureml`, `azurite`, `hdfs`, `livy` and `synapse` start and stop
them; `supervisor` is what `synapse-assets services` and `synapse-assets emulator` do. Nothing here
is needed to use a datastore or a cluster: it is for trying one, and for the tests.
"""

from synapse_assets.services.azureml import (
    ML_RESOURCE_GROUP,
    ML_SUBSCRIPTION,
    ML_WORKSPACE,
    AzureMLStandIn,
)
from synapse_assets.services.azurite import Azurite
from synapse_assets.services.downloads import ABFS_JARS
from synapse_assets.services.hdfs import Hdfs
from synapse_assets.services.livy import Livy, spark_conf_for
from synapse_assets.services.synapse import SYNAPSE_POOL, SYNAPSE_PORT, SynapseEmulator

# The container that `synapse-assets services` makes.
CONTAINER = "synapse-assets"

__all__ = [
    "ABFS_JARS",
    "CONTAINER",
    "ML_RESOURCE_GROUP",
    "ML_SUBSCRIPTION",
    "ML_WORKSPACE",
    "SYNAPSE_POOL",
    "SYNAPSE_PORT",
    "AzureMLStandIn",
    "Azurite",
    "Hdfs",
    "Livy",
    "SynapseEmulator",
    "spark_conf_for",
]
