"""From a member's host name to what the engine connects to.

``dns``: the engine resolves names itself, off the turn, again for each attempt to connect. ``hosts-file:PATH``: names
come from a file in the form of ``/etc/hosts``, which is read again when it has changed; a name that it lacks has no
address yet. (The playground's pods find each other so.)
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

HOSTS_FILE_MAX_BYTES = 4 << 20


class Resolver:
    """Resolves by the system's names: hands the name on to the engine."""

    def address(self, host: str) -> str | None:
        """What to connect to for this name, or None when it has no address yet."""
        return host


class HostsFileResolver(Resolver):
    """Resolves by a hosts file. A stat of the file per call; meant for the tick, not for each message."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._addresses: dict[str, str] = {}

    def address(self, host: str) -> str | None:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            self._refresh()
            return self._addresses.get(host.lower())
        return host

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp == self._stamp or status.st_size > HOSTS_FILE_MAX_BYTES:
                return
            text = self._path.read_text(errors="replace")
        except OSError:
            return
        self._addresses = parse_hosts(text)
        self._stamp = stamp


def parse_hosts(text: str) -> dict[str, str]:
    """Names (lower case) to addresses; the first line that has a name counts."""
    addresses: dict[str, str] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        for name in words[1:]:
            addresses.setdefault(name.lower(), words[0])
    return addresses


def make_resolver(text: str) -> Resolver:
    """The resolver that ``--resolver`` names."""
    prefix = "hosts-file:"
    return HostsFileResolver(Path(text[len(prefix) :])) if text.startswith(prefix) else Resolver()
