"""Fail when a tracked file names a package registry's host or a path of one machine.

A lock with a registry's host ties every user to that host; a path below somebody's home folder
works on one machine. The patterns are joined from halves so that this file does not find itself.
"""

import re
import subprocess
import sys
from pathlib import Path

_HOSTS = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "npm" + "js.com",
    "maven" + ".org",
    "deb.deb" + "ian.org",
    "crates" + ".io",
    "proxy.go" + "lang.org",
]
_HOMES = ["root", "work", "farm", "home/[a-z][a-z0-9_-]*", "Users/[A-Za-z]+"]

_FORBIDDEN = {
    "a package registry's host": re.compile("|".join(map(re.escape, _HOSTS))),
    "a package registry's address": re.compile(
        r"(index-url|registry)[\"']?\s*[=:]\s*[\"']?https?://|https?://\S+\.(whl|tgz|jar|crate)\b"
    ),
    "a path of one machine": re.compile(rf"(?<![\w.$}}*:/-])/({'|'.join(_HOMES)})/|\.py" + "env/"),
}


def find_forbidden(path: Path) -> list[str]:
    """Return one line per place in the file that does not belong in the repository."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return []  # a picture
    return [
        f"{path}:{number}: {what}: {line.strip()[:100]}"
        for number, line in enumerate(text.splitlines(), start=1)
        for what, pattern in _FORBIDDEN.items()
        if pattern.search(line)
    ]


def main() -> int:
    """Check every file that git tracks or would add."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listing.returncode != 0:
        print("The check of tracked files needs a git checkout.", file=sys.stderr)
        return 1
    paths = [Path(name) for name in listing.stdout.decode().split("\0") if name]
    found = [line for path in paths if path.is_file() for line in find_forbidden(path)]
    print("\n".join(found) or f"{len(paths)} files name no registry and no path of this machine")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
