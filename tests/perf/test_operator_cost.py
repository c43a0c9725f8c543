"""What the operator asks the API server for, counted there: numbers that repeat on any machine, unlike times.

Where a limit is passed on purpose, `make bench-operator` says what it costs; then write the new number here.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import operator_cost
from operator_cost import Size, at_rest, bench, edits, marginal, verdict

CLUSTERS = 3
EDITS = 6
REQUESTS_PER_EDIT = 20
"""Two fresh reads of eight requests each, before and after the one action; the status; Events."""
REQUESTS_AT_REST = 7
"""By the whole operator while nothing happens: at most one new connection for each of kopf's watches."""
REST_SECONDS = 25.0
"""Two resyncs of each cluster."""


def test_requests_at_rest_and_per_edit(tmp_path: Path) -> None:
    async def scenario() -> tuple[int, float]:
        async with bench(tmp_path, members=3) as found:
            await found.grow(CLUSTERS)
            await asyncio.sleep(2)
            resting, _ = await at_rest(found, REST_SECONDS)
            _, asked, _ = await edits(found, EDITS)
            return resting.total(), asked.total() / EDITS

    resting, per_edit = asyncio.run(scenario())
    assert resting <= REQUESTS_AT_REST
    assert 0 < per_edit <= REQUESTS_PER_EDIT + 2


def _size(clusters: int, memory: int) -> Size:
    return Size(clusters, [0.1], [0.2], 20.0, {"list pods": 2.0 * clusters}, 1.0 * clusters, memory)


def test_the_verdict_tells_flat_from_growing() -> None:
    flat = [_size(n, 1000_000 + 50_000 * n) for n in (1, 50, 200)]
    square = [_size(n, 1000_000 + 1_000 * n * n) for n in (1, 50, 200)]
    assert marginal(flat, "memory_bytes") == [50_000, 50_000]
    assert verdict(flat, "memory_bytes", 1.0) == "1.00x, flat"
    assert verdict(square, "memory_bytes", 1.0) == "4.90x, GROWS"
    assert verdict(flat[:2], "memory_bytes", 1.0) == "-"
    assert "GROWS" in operator_cost.table(square)
    assert "GROWS" not in operator_cost.table(flat)
