"""Loopback addresses for pods (Linux answers on all of 127.0.0.0/8 without any set-up)."""

from __future__ import annotations

import ipaddress


class AddressPool:
    """Addresses of one block, each given out once at a time. A freed address comes round again last, so that a pod that
    comes back has a new one, as on a cluster."""

    RESERVED = 10
    """The first addresses of a block are kept for nodes."""

    def __init__(self, block: str) -> None:
        self._network = ipaddress.IPv4Network(block)
        self._holders: dict[str, str] = {}
        self._next = self.RESERVED

    def host(self, number: int) -> str:
        """One of the reserved addresses."""
        return str(self._network[number])

    def take(self, uid: str, preferred: str | None = None) -> str:
        """An address for ``uid``: the one it has, ``preferred`` if that is free, or the next. Raises RuntimeError if
        none is left."""
        for address, holder in self._holders.items():
            if holder == uid:
                return address
        if preferred and preferred not in self._holders and ipaddress.IPv4Address(preferred) in self._network:
            self._holders[preferred] = uid
            return preferred
        last = self._network.num_addresses - 1
        for _ in range(self.RESERVED, last):
            address = str(self._network[self._next])
            self._next = self._next + 1 if self._next + 1 < last else self.RESERVED
            if address not in self._holders:
                self._holders[address] = uid
                return address
        raise RuntimeError(f"all addresses of {self._network} are taken")

    def release(self, uid: str) -> None:
        for address in [address for address, holder in self._holders.items() if holder == uid]:
            del self._holders[address]
