"""This machine's clock against the store's."""

import time

from synapse_assets.doctor.check import Finding, failed, ok, warning

_LARGE_SKEW_SECONDS = 60
# A signature from further off is refused by Azure.
_MAX_SKEW_SECONDS = 15 * 60


def compare_clocks(theirs: float, *, before: float) -> Finding:
    """Return how far apart two clocks are, the other of which was read since `before`."""
    now = time.time()
    # The other clock was read at some time in between, and in whole seconds.
    skew = 0.0 if before - 1 <= theirs <= now else theirs - (before if theirs < before else now)
    if abs(skew) <= _LARGE_SKEW_SECONDS:
        return ok(f"this clock and the service's are {abs(skew):.0f} s apart")
    behind = "behind" if skew > 0 else "ahead of"
    found = f"this machine's clock is {abs(skew):,.0f} s {behind} the service's"
    remedy = "Set the clock of this machine by NTP (Linux: `timedatectl set-ntp true`)."
    if abs(skew) <= _MAX_SKEW_SECONDS:
        return warning(found, remedy)
    return failed(f"{found}: it refuses what is signed or kept by that", remedy)
