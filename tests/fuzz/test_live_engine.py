"""The short form of `make fuzz` for the engine as it runs: each attack at least once, a new seed each time."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

from live_engine import ATTACKS

SECONDS = 4.0


def test_whatever_a_client_does_the_next_call_is_answered() -> None:
    # In a process of its own: the peak of memory that it is held to would else be that of any test before.
    command = [
        sys.executable,
        str(Path(__file__).with_name("live_engine.py")),
        str(SECONDS),
        str(random.randrange(1 << 31)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    found = re.search(r"connections (\d+) calls (\d+)", done.stdout)
    assert found and int(found[1]) >= len(ATTACKS) and int(found[2]) > 3, done.stdout
