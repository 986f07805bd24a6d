"""Real storage services on the developer's machine, on the loopback interface only.

`downloads` fetches them once, `azurite` and `hdfs` start and stop them, `supervisor` is what
`synapse-assets services` does. Nothing here is needed to use a datastore: it is for trying one, and
for the tests.
"""

from synapse_assets.services.azurite import Azurite
from synapse_assets.services.downloads import (
    abfs_jars_folder,
    fetch_abfs_jars,
    fetch_azurite,
    fetch_hdfs_jars,
)
from synapse_assets.services.hdfs import Hdfs

# The container that `synapse-assets services` makes.
CONTAINER = "synapse-assets"

__all__ = [
    "CONTAINER",
    "Azurite",
    "Hdfs",
    "abfs_jars_folder",
    "fetch_abfs_jars",
    "fetch_azurite",
    "fetch_hdfs_jars",
]
