"""What tests and benchmarks ask this machine for: free ports, and what its processes use."""

from __future__ import annotations

import socket
import time
from pathlib import Path

# The low bits of the clock id that clock_getcpuclockid(3) gives for a process: /proc counts in hundredths of a second.
_CPU_CLOCK = 2


def free_ports(count: int) -> list[int]:
    """Ports on the loopback address that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    return time.clock_gettime((~pid << 3) | _CPU_CLOCK)


def memory_bytes(pid: int | None, *kinds: str) -> int:
    """Memory of a process (None: of this one) now: the sum of some lines of its status (VmRSS, RssAnon, ...)."""
    lines = Path(f"/proc/{pid or 'self'}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(fields[kind].split()[0]) << 10 for kind in kinds)
