"""Tests that cannot run on compiled modules say so; `make test-compiled` leaves them out.

The compiled classes cannot be patched or subclassed, and take no stand-ins for each other.
"""

from __future__ import annotations

import os

import pytest
from raftkv_node import compiled

CORE = compiled("raftkv_node.raft.core")


def pytest_configure() -> None:
    """What is asked for is what is tested: without compiled modules the sources would be, and nobody would notice."""
    wanted = os.environ.get("TEST_COMPILED", "")
    found = "all" if compiled() else "core" if CORE else ""
    if wanted != found:
        raise pytest.UsageError(f"TEST_COMPILED is {wanted!r}, but what would be tested is {found!r}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what cannot run."""
    for item in items if CORE else ():
        mark = item.get_closest_marker("interpreted")
        if mark is not None:
            item.add_marker(pytest.mark.skip(reason=f"needs interpreted modules: {mark.args[0]}"))
