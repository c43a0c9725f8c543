"""Runs the load generator of ``raftkv bench`` within the benchmarks' own process."""

from __future__ import annotations

from dataclasses import dataclass

from raftkv_node.bench import loads
from raftkv_node.bench.loads import LoadPlan
from raftkv_node.bench.report import summary
from raftkv_node.bench.running import Outcome, Size, run
from raftkv_node.bench.target import Target, parse_endpoints
from raftkv_node.bench.templates import Shape

PREFIX = b"/bench/"
KEY_BYTES = 23
VALUE_BYTES = 256
_CALLS_PER_CONNECTION = 20


@dataclass(frozen=True)
class Result:
    """What one run of the load generator measured; latencies in microseconds."""

    ok: int
    seconds: float
    per_second: float
    mean_us: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    stddev_us: float
    generator_cpu_seconds: float
    outcome: Outcome


def target_of(endpoints: str) -> Target:
    """Plain HTTP to ``HOST:PORT[,...]``."""
    return Target(parse_endpoints(endpoints)[0])


def run_plan(
    target: Target,
    plan: LoadPlan,
    *,
    in_flight: int,
    requests: int,
    existing_keys: int,
    new_per_mille: int = 0,
    value_bytes: int = VALUE_BYTES,
    rate: float | None = None,
    seed: int = 7,
    look_seconds: float = 1.0,
    connections: int | None = None,
    key_bytes: int = KEY_BYTES,
) -> Result:
    """One run with up to ``in_flight`` calls under way; raises when a call fails.

    Up to 20 calls share a connection, as with a client library that multiplexes, unless it is told how many there are.
    """
    size = Size(
        clients=in_flight,
        connections=connections or max(1, in_flight // _CALLS_PER_CONNECTION),
        total=requests,
        key_space=max(1, existing_keys),
        new_keys=new_per_mille / 1000,
        rate=rate,
        call_timeout_seconds=60.0,
        seed=seed,
    )
    outcome = run(target, plan, size, Shape(PREFIX, key_bytes, value_bytes), look_seconds=look_seconds)
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.errors or outcome.snapshot.failure:
        first = outcome.snapshot.failure or outcome.snapshot.errors[0][2]
        raise RuntimeError(f"{outcome.errors} calls of a load failed: {first}")
    latencies, seconds = outcome.all_latencies(), outcome.snapshot.elapsed_seconds
    return Result(
        ok=latencies.count,
        seconds=seconds,
        per_second=latencies.count / seconds,
        mean_us=latencies.sum_ns / latencies.count / 1000,
        p50_us=latencies.percentile(50) / 1000,
        p90_us=latencies.percentile(90) / 1000,
        p99_us=latencies.percentile(99) / 1000,
        p999_us=latencies.percentile(99.9) / 1000,
        max_us=latencies.max_ns / 1000,
        stddev_us=summary(latencies, seconds)["stddev_seconds"] * 1e6,
        generator_cpu_seconds=outcome.cpu_seconds,
        outcome=outcome,
    )


def run_load(
    endpoints: str,
    *,
    in_flight: int,
    requests: int,
    existing_keys: int = 0,
    new_per_mille: int = 500,
    value_bytes: int = VALUE_BYTES,
    seed: int = 7,
) -> Result:
    """Puts in a closed loop."""
    return run_plan(
        target_of(endpoints),
        loads.put(),
        in_flight=in_flight,
        requests=requests,
        existing_keys=existing_keys,
        new_per_mille=new_per_mille,
        value_bytes=value_bytes,
        seed=seed,
    )
