"""Threads beside the turn, by names that the kernel knows, and how those that only catch up come after the others.

What drains of the log buffer and commits of the backend do is wanted soon, but nobody waits for it. They share their
processors with the turn, and after a stall of the disks there is much of both. The kernel knows how to share: a thread
that is nicer gets a ninth of the time of one that is not, and all of it when nobody else wants any. That holds among
the threads of one control group: of one pod, or of all members that are started by hand. Where they fall behind for
good, what they work off is bounded (ring, buffered bytes), and the turn, which then waits for them, leaves them its own
time.

A nicer thread may hold a lock, the interpreter's above all, while the kernel lets another process run, and the turn
waits for both. Measured, that costs less than it brings (docs/performance.md).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

_NAME_BYTES = 15
"""The kernel keeps so much of a thread's name (proc(5))."""
NICE = 10
"""What is added to the nice value of the process."""


def be_nice() -> None:
    """Has the calling thread come after the others. Linux only: elsewhere a thread has no nice value of its own."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):  # it would be no reason not to drain
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICE)


def daemon(name: str, target: Callable[[], None]) -> threading.Thread:
    """A thread, not started yet, that the process does not wait for at its end. `top -H` and profilers see its name, as
    with Python from 3.14 on; otherwise all threads of a node would be called alike."""

    def run() -> None:
        with contextlib.suppress(OSError):  # not Linux, or no /proc
            comm = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
            comm.write_bytes(name.encode()[:_NAME_BYTES])
        target()

    return threading.Thread(target=run, name=name, daemon=True)
