"""Microseconds per batch append: ring and disk mode. Run: .venv/bin/python tests/perf/adr_bench.py [--folder DIR]

A batch is what one turn appends: records of 300 bytes and a hard state. Ring mode: until `append` returns (one fence);
disk mode: until the covering fdatasync is done. Draining goes on beside it, to the folder given.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

from raftkv_node.adr import Identity, Level, Log, LogOptions, RingFull, entry, hard_state

PAYLOAD_BYTES = 300
BATCHES = (1, 30, 300)
SECONDS = 2.0


def measure(folder: Path, adr_path: Path | None, size: int) -> str:
    """Appends batches of `size` for a while; a line of figures."""
    with tempfile.TemporaryDirectory(dir=folder) as data:
        log, _ = Log.open(
            LogOptions(
                data_dir=Path(data),
                adr_path=adr_path,
                identity=Identity(1, 1, 1, bytes(16)),
                minimum_durability=Level.PROCESS,
            )
        )
        durable = threading.Event()
        log.on_durable = lambda lsn: durable.set()
        payload = bytes(PAYLOAD_BYTES)
        index, waits, taken = 0, 0, []
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            batch = [entry(1, index + n, 0, payload) for n in range(1, size + 1)]
            batch.append(hard_state(1, 1, index))
            began = time.perf_counter_ns()
            try:
                durable.clear()
                lsn = log.append(batch)
                while log.durable_lsn < lsn:
                    durable.wait(1)
                    durable.clear()
            except RingFull:
                waits += 1
                time.sleep(0.001)
                continue
            taken.append((time.perf_counter_ns() - began) / 1000)
            index += size
        log.release(index)
        log.retire()
    taken.sort()
    p99 = taken[int(len(taken) * 0.99)]
    return (
        f"{size:4d} records: median {statistics.median(taken):8.1f} us, 99% {p99:8.1f} us, "
        f"{statistics.median(taken) / size:6.2f} us/record, {index / SECONDS:10,.0f} records/s"
        + (f", {waits} waits for the drain" if waits else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where segments go")
    parser.add_argument("--ring", type=Path, default=Path("/dev/shm"), help="where the ring goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.ring) as ring:
        print(f"ring in {options.ring}, drained to {options.folder}")
        for size in BATCHES:
            print("  " + measure(options.folder, Path(ring), size))
    print(f"disk mode in {options.folder}")
    for size in BATCHES:
        print("  " + measure(options.folder, None, size))


if __name__ == "__main__":
    main()
