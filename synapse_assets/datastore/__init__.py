"""Where datasets lie: one root location, and what each library needs to reach it."""

from synapse_assets.datastore.datastore import Datastore

__all__ = ["Datastore"]
