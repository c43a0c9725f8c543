"""Addresses of services: cluster IPs from one network, and node ports."""

from __future__ import annotations

import ipaddress
import random

from raftkv_playground.apiserver.errors import Failure, bad_request, invalid, invalid_value
from raftkv_playground.apiserver.store import Store

NODE_PORTS = range(30000, 32768)
ATTEMPTS = 1000


class Addresses:
    """Free addresses are found by looking at the services that exist; there is no second record to go stale."""

    def __init__(self, store: Store, network: str) -> None:
        self._store = store
        self._network = ipaddress.ip_network(network)

    def _used(self) -> set[str]:
        return {str(s["spec"].get("clusterIP")) for s in self._store.scan(("", "services"))}

    def allocate(self) -> str:
        """A random free address of the network. 500 when none was found in ``ATTEMPTS`` tries."""
        used = self._used()
        first, size = int(self._network.network_address), self._network.num_addresses
        for _ in range(ATTEMPTS):
            address = str(ipaddress.ip_address(first + random.randrange(1, size - 1)))
            if address not in used:
                return address
        raise Failure(500, "InternalError", "failed to allocate a serviceIP: range is full")

    def claim(self, address: str, name: str) -> None:
        """Check an address that a client chose."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            text = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            raise invalid("Service", "", name, [invalid_value("spec.clusterIPs[0]", address, text)]) from None
        if parsed not in self._network:
            text = (
                f"failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. "
                f"The range of valid IPs is {self._network}"
            )
            raise invalid("Service", "", name, [invalid_value("spec.clusterIPs", [address], text)])
        if address in self._used():
            text = f"failed to allocate IP {address}: provided IP is already allocated"
            raise invalid("Service", "", name, [invalid_value("spec.clusterIPs", [address], text)])

    def node_port(self) -> int:
        used = {p.get("nodePort") for s in self._store.scan(("", "services")) for p in s["spec"].get("ports") or []}
        free = [p for p in NODE_PORTS if p not in used]
        if not free:
            raise bad_request("failed to allocate a nodePort: range is full")
        return random.choice(free)
