"""This machine's clock against the store's."""

import time
from email.utils import parsedate_to_datetime

from synapse_assets.doctor.check import Finding, Subject, failed, ok, skipped, warning
from synapse_assets.doctor.clients import (
    RUN_AGAIN,
    first_line,
    hdfs_client,
    hdfs_path,
    open_service,
    probe_folder,
)

_LARGE_SKEW_SECONDS = 60
# A signature from further off is refused by Azure.
_MAX_SKEW_SECONDS = 15 * 60


def check_azure_clock(subject: Subject) -> Finding:
    """Compare this machine's clock with the service's, as its answers have it."""
    from azure.core.exceptions import AzureError

    dates: list[str] = []
    before = time.time()
    with open_service(subject.datastore, anonymous=True) as service:
        try:
            # Whatever it answers to a stranger has the time.
            service.get_account_information(
                raw_response_hook=lambda r: dates.append(r.http_response.headers.get("Date", ""))
            )
        except AzureError as e:
            if not any(dates):
                return failed(f"no answer to ask the time of: {first_line(e)}", RUN_AGAIN)
    if not any(dates):
        return skipped("the service's answers have no date")
    return _clock(parsedate_to_datetime(dates[-1]).timestamp(), before=before)


def check_hdfs_clock(subject: Subject) -> Finding:
    """Compare this machine's clock with the name node's, as it dates a new folder."""
    with probe_folder(subject.datastore) as uri:
        client, path = hdfs_client(subject.datastore), hdfs_path(uri)
        before = time.time()
        client.mkdirs(path, 0o755, True)
        return _clock(client.get_file_info(path).modification_time / 1000, before=before)


def _clock(theirs: float, *, before: float) -> Finding:
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
