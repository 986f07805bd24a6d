"""The vCores of a Spark pool as slots of a Dagster pool, one per vCore."""

import contextlib
import time
from collections.abc import Callable, Iterator

import dagster as dg

from synapse_assets.errors import ConfigurationError

_POLL_SECONDS = 1.0


@contextlib.contextmanager
def holding_vcores(
    instance: dg.DagsterInstance,
    pool: str,
    *,
    vcores: int,
    limit: int,
    run_id: str,
    step: str,
    say: Callable[[str], None],
) -> Iterator[None]:
    """Hold slots for as long as the block lasts; wait for them in the order of asking.

    Dagster's own pools give each step one slot, however large its batch is. These are held on top
    of that. They are seen under Deployment, Concurrency, and those of a run that has died are
    freed as those of its steps are.

    Args:
        instance: Keeps the slots.
        pool: Name of the Dagster pool; it is made with `limit` slots.
        vcores: How many are wanted.
        limit: How many there are in all.
        run_id: The run that holds them.
        step: The step of it.
        say: Takes a line where there is a wait.

    Raises:
        ConfigurationError: More are wanted than there are.
    """
    if vcores > limit:
        raise ConfigurationError(
            f"The batch asks for {vcores} vCores, and the resource lets all batches together have "
            f"{limit}. Ask for less, or raise vcore_limit."
        )
    storage = instance.event_log_storage
    turns = f"{pool}_turns"
    for key, slots in ((turns, 1), (pool, limit)):
        if storage.get_concurrency_info(key).slot_count != slots:
            storage.set_concurrency_slots(key, slots)
    turn = f"{step} asks for vCores"
    holders = [f"{step} vCore {number + 1} of {vcores}" for number in range(vcores)]

    def claim(key: str, holder: str) -> None:
        said = False
        while not storage.claim_concurrency_slot(key, run_id, holder).is_claimed:
            if not said:
                say(f"Waiting for {vcores} of {limit} vCores of {pool}.")
                said = True
            time.sleep(_POLL_SECONDS)

    try:
        # One at a time, so that no two hold a half each, and wait for each other's.
        claim(turns, turn)
        for holder in holders:
            claim(pool, holder)
        storage.free_concurrency_slot_for_step(run_id, turn)
        yield
    finally:
        for holder in (turn, *holders):
            storage.free_concurrency_slot_for_step(run_id, holder)
