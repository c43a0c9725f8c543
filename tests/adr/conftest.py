from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from adr_crash import laboratory
from adr_harness import Machine, Member


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory: these tests sync a lot, and what a sync does is modelled, not measured."""
    made = laboratory()
    yield made
    shutil.rmtree(made)


@pytest.fixture
def member(folder: Path) -> Member:
    """A member with a ring at level power."""
    return Member(folder, Machine()).make()


@pytest.fixture(params=["ring", "disk"])
def either(folder: Path, request: pytest.FixtureRequest) -> Member:
    """A member in ring mode, and one in disk mode."""
    return Member(folder, Machine(), ring=request.param == "ring").make()
