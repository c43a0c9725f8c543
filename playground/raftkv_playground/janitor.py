"""Cleans up after a playground that had no chance to: ``python -m raftkv_playground.janitor MARKER DIRECTORY...``.

The supervisor starts it in a session of its own and holds the other end of its standard input. When that closes (the
supervisor ended, be it by SIGKILL), the janitor kills every process that carries the playground's marker in its
environment, and removes the directories. The kernel has killed the direct children by then (parent-death signals);
this is for what they started.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

MARKER = "RAFTKV_PLAYGROUND"
KILL_ROUNDS = 20
ROUND_SECONDS = 0.1


def marked(marker: str) -> list[int]:
    """Processes (but this one) whose environment has the marker."""
    wanted = f"{MARKER}={marker}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in variables:
            found.append(int(entry.name))
    return found


def kill_marked(marker: str) -> None:
    """Until none is left, for at most ``KILL_ROUNDS``: a process that forks may need more than one round."""
    for _ in range(KILL_ROUNDS):
        left = marked(marker)
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(ROUND_SECONDS)


def main() -> None:
    marker, directories = sys.argv[1], sys.argv[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin.buffer.read(1):
        pass
    kill_marked(marker)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
