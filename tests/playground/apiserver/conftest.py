"""Fixtures of the API server's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apiserver_harness import Scenario, cluster


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Run an async scenario against a fresh server."""

    def runner(scenario: Scenario, **options: Any) -> None:
        async def main() -> None:
            async with cluster(tmp_path / "state", **options) as found:
                await asyncio.wait_for(scenario(found), 60)

        asyncio.run(main())

    return runner
