"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engine_harness import Harness


@pytest.fixture(params=["thread", "inline"])
def launch(request: pytest.FixtureRequest) -> Iterator[Callable[..., Harness]]:
    """Makes harnesses (not started) that are closed after the test; sockets are served by a thread, or by poll()."""
    made: list[Harness] = []

    def make(**options: Any) -> Harness:
        made.append(Harness(**{"rounds": request.param, **options}))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


@pytest.fixture
def server(launch: Callable[..., Harness]) -> Harness:
    """A started engine with default bounds."""
    return launch().start()
