"""The Java that Spark runs on."""

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from synapse_assets.errors import ConfigurationError

MINIMUM_JAVA = 17
_PROBE_TIMEOUT_SECONDS = 30


@cache
def require_java() -> Path:
    """Return the home folder of the Java that Spark will use: JAVA_HOME's, or the PATH's.

    Raises:
        ConfigurationError: There is no Java, or it is older than 17.
    """
    home = os.environ.get("JAVA_HOME")
    found = str(Path(home, "bin", "java")) if home else shutil.which("java")
    where = f"JAVA_HOME={home}" if home else "PATH"
    remedy = (
        f"Install Java {MINIMUM_JAVA} or newer (Debian, Ubuntu: apt-get install "
        "openjdk-17-jre-headless; macOS: brew install openjdk@17) or point JAVA_HOME at one."
    )
    if found is None or not Path(found).exists():
        raise ConfigurationError(f"Spark needs Java, and {where} has none. {remedy}")
    try:
        probe = subprocess.run(
            [found, "-version"],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as e:
        raise ConfigurationError(f"'{found} -version' failed: {e}. {remedy}") from e
    match = re.search(r'version "(?:1\.)?(\d+)', probe.stderr + probe.stdout)
    if match is None or int(match[1]) < MINIMUM_JAVA:
        version = match[1] if match else "of an unknown version"
        raise ConfigurationError(f"Spark needs Java {MINIMUM_JAVA}; {found} is {version}. {remedy}")
    return Path(found).resolve().parent.parent
