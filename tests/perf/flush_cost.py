"""What segments in disk mode win by zeros that are written ahead of the records, on this machine's disk.

    python tests/perf/flush_cost.py [--folder DIR]

Five processes at a time (as many as a cluster of the benches has members) write batches to a segment each, by the log's
own code, and make each durable. The times are of both together, over all processes.
Then one process alone, and what the device beneath the folder counts meanwhile (``/proc/diskstats``): a flush of a file
that grows takes a commit of the file system's journal besides the data. The device counts what others write, too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from raftkv_node.adr import Files
from raftkv_node.adr.segments import Generation, Segments
from raftkv_node.adr.table import Member

PROCESSES = 5
CALLS = 1_500
CALLS_ALONE = 300
BATCH_BYTES = (450, 20_000)
"""What a lone put appends, and what a turn with many does."""
AHEAD_BYTES = (0, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
_DISKSTATS = Path("/proc/diskstats")
_WRITES_FIELD, _FLUSHES_FIELD = 7, 18
"""Of a line: writes completed, flushes completed (Linux 5.5 on)."""

_FORK = multiprocessing.get_context("fork")
_READY = _FORK.Barrier(PROCESSES)
"""Where the processes, which inherit it, wait for each other."""


@dataclass(frozen=True)
class Counted:
    """What a device has completed since the system started."""

    writes: int
    flushes: int


def device_counts(folder: Path) -> Counted | None:
    """Of the device beneath a folder; None where it is not found, or does not count flushes."""
    device = folder.stat().st_dev
    wanted = [str(os.major(device)), str(os.minor(device))]
    for line in _DISKSTATS.read_text().splitlines():
        fields = line.split()
        if fields[:2] == wanted and len(fields) > _FLUSHES_FIELD:
            return Counted(int(fields[_WRITES_FIELD]), int(fields[_FLUSHES_FIELD]))
    return None


def append(folder: Path, batch_bytes: int, ahead_bytes: int, calls: int) -> list[float]:
    """Batches at the end of a new segment, each made durable. Microseconds that each took."""
    batch = b"r" * batch_bytes
    taken = []
    with tempfile.TemporaryDirectory(dir=folder) as made:
        segments = Segments(Files(), Path(made), Member(1, 1, 1, bytes(16)))
        segments.zero_ahead_bytes = ahead_bytes
        segments.start(Generation(1, bytes(16), bytes(16)), 0)
        for end in range(batch_bytes, batch_bytes * calls + 1, batch_bytes):
            began = time.perf_counter_ns()
            segments.write(batch, end - batch_bytes, 0)
            segments.sync(end)
            taken.append((time.perf_counter_ns() - began) / 1e3)
        segments.close()
    return taken


def _append_together(folder: Path, batch_bytes: int, ahead_bytes: int, calls: int) -> list[float]:
    _READY.wait()
    return append(folder, batch_bytes, ahead_bytes, calls)


def together(folder: Path, batch_bytes: int, ahead_bytes: int, calls: int) -> list[float]:
    """The same in five processes that begin at the same moment; what all of them saw."""
    with _FORK.Pool(PROCESSES) as pool:
        each = pool.starmap(_append_together, [(folder, batch_bytes, ahead_bytes, calls)] * PROCESSES, chunksize=1)
    return [one for taken in each for one in taken]


def alone(folder: Path, batch_bytes: int, ahead_bytes: int, calls: int) -> tuple[str, str]:
    """Writes and flushes of the device for each fdatasync of one process; "-" where nobody counts them."""
    before = device_counts(folder)
    append(folder, batch_bytes, ahead_bytes, calls)
    after = device_counts(folder)
    if before is None or after is None:
        return "-", "-"
    return f"{(after.writes - before.writes) / calls:.2f}", f"{(after.flushes - before.flushes) / calls:.2f}"


def row(folder: Path, batch_bytes: int, ahead_bytes: int, calls: int, calls_alone: int) -> str:
    """One line of the table."""
    taken = together(folder, batch_bytes, ahead_bytes, calls)
    percentiles = statistics.quantiles(taken, n=100)
    times = [f"{value:,.0f}" for value in (statistics.mean(taken), percentiles[49], percentiles[98])]
    ahead = f"{ahead_bytes >> 10:,} KiB" if ahead_bytes else "nothing"
    cells = [f"{batch_bytes:,}", ahead, *times, *alone(folder, batch_bytes, ahead_bytes, calls_alone)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk that is meant (default: the temporary folder)")
    parser.add_argument("--calls", type=int, default=CALLS, help="of each process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flush-cost-", dir=options.folder) as made:
        print("| batch, bytes | zeros ahead | mean, us | p50, us | p99, us | device: writes | device: flushes |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for batch_bytes in BATCH_BYTES:
            for ahead_bytes in AHEAD_BYTES:
                line = row(Path(made), batch_bytes, ahead_bytes, options.calls, min(options.calls, CALLS_ALONE))
                print(line, flush=True)


if __name__ == "__main__":
    main()
