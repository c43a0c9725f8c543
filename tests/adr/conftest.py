from __future__ import annotations

from pathlib import Path

import pytest
from adr_harness import Machine, Member


@pytest.fixture
def member(tmp_path: Path) -> Member:
    """A member with a ring at level power."""
    return Member(tmp_path, Machine()).make()


@pytest.fixture(params=["ring", "disk"])
def either(tmp_path: Path, request: pytest.FixtureRequest) -> Member:
    """A member in ring mode, and one in disk mode."""
    return Member(tmp_path, Machine(), ring=request.param == "ring").make()
