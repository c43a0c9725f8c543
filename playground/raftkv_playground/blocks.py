"""Loopback blocks: several playgrounds on one machine must not use the same addresses.

A block number is held by binding an abstract Unix socket (Linux), which the kernel frees when its holder dies.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

BLOCKS = 16
"""127.77.0.0/16 and 127.78.0.0/16 in blocks of 4,096 addresses: so many playgrounds fit on one machine."""


@dataclass(slots=True)
class Block:
    """A claim on one block of pod addresses and one of Service addresses, for as long as ``holder`` is open."""

    number: int
    holder: socket.socket

    @property
    def pods(self) -> str:
        return f"127.77.{self.number * 16}.0/20"

    @property
    def services(self) -> str:
        return f"127.78.{self.number * 16}.0/20"

    def release(self) -> None:
        self.holder.close()


def claim_block() -> Block:
    """The first free block. Raises RuntimeError when all are held."""
    for number in range(BLOCKS):
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            holder.bind(f"\0raftkv-playground-block-{number}")
        except OSError:
            holder.close()
            continue
        return Block(number, holder)
    raise RuntimeError(f"{BLOCKS} playgrounds run on this machine already: no free block of loopback addresses")
