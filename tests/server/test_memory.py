"""What a node tells the allocator: see `lifecycle._tune_malloc`."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from raftkv_node.server import lifecycle

if sys.argv[1] == "tuned":
    lifecycle._tune_malloc()
before = 0
for number in range(60):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [bytes(1 << 20)] * 10
    held = [b"".join(parts), b"".join(parts)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the system had to provide for fifty large answers, each in two copies."""
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_the_memory_of_a_large_answer_is_kept_for_the_next_one() -> None:
    plain, tuned = faults("plain"), faults("tuned")
    assert tuned < 6000, "the pages of one answer, once; all fifty need more than a hundred thousand"
    assert tuned < plain or plain < 6000, "where the allocator keeps them anyway there is nothing to win"
