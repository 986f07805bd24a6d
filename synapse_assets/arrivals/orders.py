"""What somebody told a sensor by hand: which arrivals to ask for again, which to leave alone.

Only the command line writes it, so no tick can overwrite what was told while it ran.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from synapse_assets.arrivals.ledger import Entry
from synapse_assets.arrivals.listing import Arrival
from synapse_assets.datastore.storage import Storage


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
    def read(cls, storage: Storage, uri: str) -> "Orders":
        """Return what lies in a file; nothing if it is not there.

        Raises:
            StorageError: The store refused to read it, or could not be reached.
        """
        return cls(**json.loads(storage.read_bytes(uri) or b"{}"))

    def write(self, storage: Storage, uri: str) -> None:
        """Write it to a file.

        Raises:
            StorageError: The store refused it, or could not be reached.
        """
        storage.write_atomically(uri, json.dumps(asdict(self)).encode())

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
