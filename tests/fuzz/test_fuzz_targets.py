"""The short form of `make fuzz` for the Python parsers: seeds, their mutations, and what an input may cost."""

from __future__ import annotations

import random
import time
import tracemalloc

import pytest
from fuzz_targets import BYTES_MORE, BYTES_PER_BYTE, TARGETS, Target, mutated

MUTATIONS = 300
#: Those that go through files and folders.
SLOW_MUTATIONS = {"segment_file": 40, "manifest_file": 40, "snapshot_stream": 60, "ring_file": 150}
#: Far more than any input of some KiB may take, far less than a hang.
PATIENCE_SECONDS = 20.0


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_do_no_harm(name: str) -> None:
    seed = random.randrange(1 << 31)
    rng = random.Random(seed)
    for data in (*TARGETS[name].seeds, b"", bytes(100), b"\xff" * 100):
        TARGETS[name].run(data)
    for _ in range(SLOW_MUTATIONS.get(name, MUTATIONS)):
        data = mutated(rng, TARGETS[name].seeds)
        try:
            TARGETS[name].run(data)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {data.hex()}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_an_input_takes_no_more_than_its_share_of_memory_and_time(name: str) -> None:
    """Long inputs that promise more than they hold: counts and lengths at their highest, and deep nesting."""
    target = TARGETS[name]
    for seed in target.seeds:
        for filler in (b"\xff", b"\0", seed[-40:] or b"x", b"\x0a\x80"):
            spend(target, (seed[: len(seed) // 2] + filler * (50_000 // len(filler)))[:50_000])


def spend(target: Target, data: bytes) -> None:
    began = time.monotonic()
    tracemalloc.start()
    try:
        target.run(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= BYTES_PER_BYTE * len(data) + BYTES_MORE, f"{peak} bytes for {len(data)}"
    assert time.monotonic() - began < PATIENCE_SECONDS


def test_a_target_that_trusts_a_count_is_found() -> None:
    def trusting(data: bytes) -> None:
        assert len([0] * (int.from_bytes(data[:4], "big") >> 12)) >= 0

    with pytest.raises(AssertionError, match="bytes for"):
        spend(Target(trusting, ()), b"\xff" * 50)
