"""A store under test, driven as the node drives it, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_driver import Driver


@pytest.fixture
def make_driver(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Opens stores in folders of their own (or again in the same one), and closes them at the end."""
    opened: list[Driver] = []

    def make(name: str = "store", **options: Any) -> Driver:
        driver = Driver(tmp_path / name, **options)
        opened.append(driver)
        return driver

    yield make
    for driver in opened:
        driver.close()


@pytest.fixture
def driver(make_driver: Callable[..., Driver]) -> Driver:
    return make_driver()
