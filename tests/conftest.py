"""Tests that cannot run on compiled modules say so; `make test-compiled` leaves them out.

The compiled classes cannot be patched or subclassed, and take no stand-ins for each other.
"""

from __future__ import annotations

import pytest
from raftkv_node import compiled


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not compiled():
        return
    for item in items:
        mark = item.get_closest_marker("interpreted")
        if mark is not None:
            item.add_marker(pytest.mark.skip(reason=f"needs interpreted modules: {mark.args[0]}"))
