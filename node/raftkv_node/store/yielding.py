"""Lets other threads run in the middle of long compiled loops.

Never compiled (`docs/architecture.md`): compiled code keeps the interpreter until it waits or calls something
interpreted, which this is. It costs some ten nanoseconds where no other thread wants to run.
"""

from typing import Final

YIELD_EVERY: Final = 128
"""Steps of a loop, of a few microseconds each."""


def give_way() -> None:
    """Between the caller's instructions and this function's, another thread may have the interpreter."""
