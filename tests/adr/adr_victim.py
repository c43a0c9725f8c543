"""A process that appends to a log as fast as it can and says what was acknowledged, until it is killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from raftkv_node.adr import Identity, Level, Log, LogOptions, RingFull, entry, hard_state


def main() -> None:
    data, ring = Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None
    log, recovered = Log.open(
        LogOptions(
            data_dir=data,
            adr_path=ring,
            adr_size_bytes=4 << 20,
            drain_interval_seconds=0.01,
            segment_size_bytes=1 << 20,
            identity=Identity(1, 2, 3, b"v" * 16),
            minimum_durability=Level.PROCESS,
        )
    )
    index, term = recovered.last_index, recovered.hard_state.term + 1
    print(f"opened {index}", flush=True)
    while True:
        batch = [entry(term, index + n, 0, b"%d" % (index + n) * 40) for n in range(1, 8)]
        try:
            lsn = log.append([hard_state(term, 2, index), *batch])
        except RingFull:
            time.sleep(0.001)
            continue
        while log.durable_lsn < lsn:
            time.sleep(0.0002)
        index += len(batch)
        # One line per acknowledged batch; a pipe takes so few bytes whole.
        print(index, flush=True)


if __name__ == "__main__":
    main()
