"""The short form of `make fuzz` for the engine as it runs: each attack at least once, a new seed each time."""

from __future__ import annotations

import random

from live_engine import ATTACKS, run

SECONDS = 4.0


def test_whatever_a_client_does_the_next_call_is_answered() -> None:
    seed = random.randrange(1 << 31)
    print("seed", seed)
    connections, calls = run(SECONDS, seed)
    assert connections >= len(ATTACKS) and calls > 3
