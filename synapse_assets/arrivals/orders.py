"""What somebody told a sensor by hand: which arrivals to ask for again, which to leave alone.

Only the command line writes it, so no tick can overwrite what was told while it ran.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from synapse_assets.arrivals.ledger import FOLDER, Entry
from synapse_assets.arrivals.listing import Arrival
from synapse_assets.datastore import Datastore


@dataclass(frozen=True)
class Orders:
    """What a sensor was told.

    Attributes:
        replay: Arrivals to ask for once more, whatever their content: the change that was handed
            over last when it was told, -1 if none was. A later change shows that it is done.
        ignored: Arrivals to leave alone, and the content that they have.
    """

    replay: Mapping[str, int] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, datastore: Datastore, sensor: str) -> "Orders":
        """Return what a sensor was told.

        Raises:
            StorageError: The store refused to read it, or could not be reached.
        """
        content = datastore.storage().read_bytes(datastore.uri(FOLDER, sensor, "orders"))
        return cls(**json.loads(content or b"{}"))

    def write(self, datastore: Datastore, sensor: str) -> None:
        """Tell it a sensor.

        Raises:
            StorageError: The store refused to write it, or could not be reached.
        """
        content = json.dumps(asdict(self)).encode()
        datastore.storage().write_atomically(datastore.uri(FOLDER, sensor, "orders"), content)

    def is_open(self, arrival: str, handed_over: Entry | None) -> bool:
        """Tell whether an arrival is still to be asked for once more."""
        told = self.replay.get(arrival)
        return told is not None and (handed_over is None or handed_over.change <= told)

    def open_replays(self, handed_over: Callable[[str], Entry | None]) -> dict[str, int]:
        """Return what is left of `replay`, if that was handed over last of each arrival."""
        return {n: told for n, told in self.replay.items() if self.is_open(n, handed_over(n))}

    def is_done(self, arrival: Arrival, handed_over: Entry | None) -> bool:
        """Tell whether nothing is to be asked for an arrival: it was, or is to be left alone."""
        if self.ignored.get(arrival.name) == arrival.content:
            return True
        return (
            handed_over is not None
            and handed_over.content == arrival.content
            and not self.is_open(arrival.name, handed_over)
        )


NO_ORDERS = Orders()
