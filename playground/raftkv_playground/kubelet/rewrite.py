"""Mount paths in arguments and environment, replaced by the directories behind them.

Without a mount namespace a container's ``/data`` would be the host's ``/data``. So a mount path is replaced where it
stands as a whole path (followed by the end, ``/`` or a separator) at the start of a value or after one of ``= , :
;``, white space or a quote: ``--data-dir=/data/x``, ``a=/data,b=/log``, ``hosts-file:/etc/x``. ``http://host/data``
and ``/database`` are left alone. The longest mount path wins. Paths that a program has built in cannot be caught:
that is this kubelet's limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_BEFORE = r"(?:(?<=^)|(?<=[=,:;\s'\"]))"
_AFTER = r"(?=$|[/,:;\s'\"])"
_UNSPECIFIED = re.compile(r"(?:(?<![\d.])0\.0\.0\.0|\[::\])(?=$|[/,:;\s'\"])")


class Rewriter:
    """``mounts`` maps mount paths to host paths, both absolute; ``pod_ip`` replaces the unspecified address."""

    def __init__(self, mounts: Mapping[str, str], pod_ip: str = "") -> None:
        self._pod_ip = pod_ip
        self._mounts = {path.rstrip("/"): host for path, host in mounts.items() if path.rstrip("/")}
        longest_first = sorted(self._mounts, key=len, reverse=True)
        paths = "|".join(map(re.escape, longest_first))
        self._pattern = re.compile(f"{_BEFORE}(?:{paths}){_AFTER}") if paths else None

    def __call__(self, value: str) -> str:
        if self._pod_ip:
            value = _UNSPECIFIED.sub(self._pod_ip, value)
        if self._pattern is None:
            return value
        return self._pattern.sub(lambda match: self._mounts[match[0]], value)

    def host_path(self, path: str) -> str | None:
        """The host path of a path inside the container; None if no mount covers it."""
        best = max(
            (mount for mount in self._mounts if path == mount or path.startswith(mount + "/")), key=len, default=None
        )
        return None if best is None else self._mounts[best] + path[len(best) :]
