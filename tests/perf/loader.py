"""Runs the load generator (``tests/perf/loader``, Rust), building it at the first call."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_CRATE = Path(__file__).parent / "loader"


@dataclass(frozen=True)
class Result:
    """What one run of the loader measured; latencies in microseconds."""

    ok: int
    errors: int
    seconds: float
    per_second: float
    in_flight: int
    mean_us: float
    p50_us: int
    p90_us: int
    p99_us: int
    p999_us: int
    max_us: int


@cache
def _binary() -> Path:
    subprocess.run(["cargo", "build", "--quiet", "--release", "--locked"], cwd=_CRATE, check=True)
    return _CRATE / "target" / "release" / "raftkv-loader"


def run_load(
    endpoints: str,
    *,
    in_flight: int,
    requests: int,
    operation: str = "put",
    existing_keys: int = 0,
    new_per_mille: int = 500,
    value_bytes: int = 256,
    seed: int = 7,
) -> Result:
    """One closed-loop run with ``in_flight`` calls under way; raises when a call fails.

    Up to 20 calls share a connection, as with a client library that multiplexes.
    """
    connections = max(1, in_flight // 20)
    streams = in_flight // connections
    arguments = {
        "endpoints": endpoints,
        "operation": operation,
        "connections": connections,
        "streams": streams,
        "requests": requests,
        "existing-keys": existing_keys,
        "new-per-mille": new_per_mille,
        "value-bytes": value_bytes,
        "seed": seed,
    }
    command = [str(_binary()), *(part for name, value in arguments.items() for part in (f"--{name}", str(value)))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the loader failed: {done.stderr.strip()}")
    return Result(**json.loads(done.stdout))
