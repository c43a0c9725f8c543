"""Every story in `scripts/` ends as it is told there. `RAFT_REWRITE=1` writes what was seen instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from raft_script import run_script

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_script(path: Path) -> None:
    told = path.read_text()
    seen = run_script(told)
    if os.environ.get("RAFT_REWRITE"):
        path.write_text(seen)
        return
    assert seen == told
