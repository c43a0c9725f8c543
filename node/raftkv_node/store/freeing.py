"""Frees a large state in small steps, on a thread of its own.

To free millions of keys at once would stop all threads for as long as that takes. This module is never compiled
(`docs/architecture.md`): only between interpreted instructions can another thread have the interpreter.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from raftkv_node.threads import daemon

from .keyorder import KeyOrder


class Lifetime:
    """Held by a state and by nothing else: gone as soon as the last reader of that state is."""

    __slots__ = ("__weakref__",)


def free_after(lifetime: Lifetime, tables: Sequence[dict[bytes, Any]], orders: Sequence[KeyOrder]) -> None:
    """Have a thread take these apart once `lifetime` is over; at the end of the process nothing needs to be."""
    weakref.finalize(lifetime, _free_slowly, tables, orders).atexit = False


def _free_slowly(tables: Sequence[dict[bytes, Any]], orders: Sequence[KeyOrder]) -> None:
    def free() -> None:
        for order in orders:
            order.take_apart()
        for table in tables:
            while table:
                table.popitem()

    daemon("store-free", free).start()
