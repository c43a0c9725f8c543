"""In which zone a host is: a label of the cluster's Node objects, which pods cannot see themselves.

A pod learns the name of its node from the downward API, but never the node's labels. So the operator looks them up once
a pod is bound, and hands the zone to the members with the replicated settings (M7).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from raftkv_operator.observe.seams import NODES, Kube, KubeError

LABEL_ZONE: Final = "topology.kubernetes.io/zone"
KEEP_SECONDS: Final = 600.0
"""A host's zone is looked up again after so long. It never changes but by a person's hand."""
KEEP_UNKNOWN_SECONDS: Final = 60.0
"""And one that could not be looked up (no such Node, no leave to read it)."""
MAX_HOSTS: Final = 1000
"""Hosts that are kept in mind; beyond, all are looked up again."""


class Zones:
    """The zones of hosts, as far as they are known."""

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._clock = clock
        self._known: dict[str, tuple[str, float]] = {}

    async def of(self, hosts: Iterable[str]) -> Mapping[str, str]:
        """Zones by host. A host without the label, or that cannot be read, is left out: zones are a help, no need."""
        found = {}
        for host in sorted(set(hosts)):
            zone = await self._of(host)
            if zone:
                found[host] = zone
        return found

    async def _of(self, host: str) -> str:
        now = self._clock()
        zone, until = self._known.get(host, ("", 0.0))
        if now < until:
            return zone
        keep = KEEP_SECONDS
        try:
            node = await self._kube.get(NODES, "", host)
            zone = ((node or {}).get("metadata", {}).get("labels") or {}).get(LABEL_ZONE, "")
        except KubeError:
            keep = KEEP_UNKNOWN_SECONDS
        if len(self._known) >= MAX_HOSTS:
            self._known.clear()
        self._known[host] = (zone, now + (keep if zone else KEEP_UNKNOWN_SECONDS))
        return zone
