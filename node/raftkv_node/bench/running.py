"""Runs a load: keys first, where it reads, then the load, with progress; Ctrl-C ends it early."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .._engine import Histogram, Load, LoadSnapshot
from . import loads
from .loads import LoadPlan
from .target import Target, TargetError
from .templates import Shape

_LOOK_SECONDS = 1.0
_FILL_CLIENTS = 200


@dataclass(frozen=True)
class Size:
    """How much of a load, and with how many clients."""

    clients: int = 100
    connections: int = 10
    total: int | None = 10_000
    duration_seconds: float | None = None
    rate: float | None = None
    key_space: int = 100_000
    sequential: bool = False
    """Keys in turn, not at random."""
    ordered: bool = False
    """Keys sort as their numbers do, and are not spread out."""
    new_keys: float = 0.0
    """Share of the puts that create a key."""
    call_timeout_seconds: float = 10.0
    seed: int = 0
    """0: another one each time."""


@dataclass(frozen=True)
class Interval:
    """A stretch of the time line."""

    at_seconds: float
    calls: int
    errors: int
    per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass
class Outcome:
    """What a load has measured."""

    plan: LoadPlan
    size: Size
    shape: Shape
    snapshot: LoadSnapshot
    interrupted: bool
    cpu_seconds: float
    """Processor time of this process during the load."""
    wall_seconds: float
    intervals: list[Interval] = field(default_factory=list)

    def all_latencies(self) -> Histogram:
        """The latencies of all successful calls."""
        return merged([one.latency for one in self.snapshot.operations])

    @property
    def errors(self) -> int:
        return sum(count for _, _, _, count in self.snapshot.errors)


Watching = Callable[[LoadSnapshot, Interval], None]


def merged(parts: list[Histogram]) -> Histogram:
    """One histogram of several."""
    whole = Histogram()
    for part in parts:
        whole.merge(part)
    return whole


def build(target: Target, plan: LoadPlan, size: Size, shape: Shape) -> Load:
    """The native load, not yet started.

    Raises:
        TargetError: when an endpoint cannot be reached.
        ValueError: when sizes do not go together.
    """
    load = Load(
        target.addresses(),
        connections=min(size.connections, size.clients),
        clients=size.clients,
        key_space=size.key_space,
        key_digits=shape.digits,
        total=size.total,
        duration=size.duration_seconds,
        rate=size.rate,
        tls=target.tls(),
        call_timeout=size.call_timeout_seconds,
        dial_timeout=target.timeout_seconds,
        sequential=size.sequential,
        ordered=size.ordered,
        fresh_per_mille=round(size.new_keys * 1000),
        seed=size.seed or random.SystemRandom().getrandbits(63) | 1,
    )
    loads.add_to(load, plan, shape)
    if plan.knows_revisions:
        found = target.revisions(shape.prefix, shape.end)
        numbered = ((shape.number(key, ordered=size.ordered), revision) for key, revision in found)
        load.remember([(n, revision) for n, revision in numbered if n is not None and n < size.key_space])
    return load


def run(
    target: Target,
    plan: LoadPlan,
    size: Size,
    shape: Shape,
    *,
    watching: Watching | None = None,
    look_seconds: float = _LOOK_SECONDS,
) -> Outcome:
    """Runs a load to its end, or to Ctrl-C; ``watching`` is told what happened in each interval."""
    load = build(target, plan, size, shape)
    intervals: list[Interval] = []
    interrupted = False
    cpu, began = time.process_time(), time.monotonic()
    load.start()
    try:
        _watch(load, look_seconds, intervals, watching)
    except KeyboardInterrupt:
        interrupted = True
        load.stop()
        load.wait(10)
    return Outcome(
        plan=plan,
        size=size,
        shape=shape,
        snapshot=load.snapshot(),
        interrupted=interrupted,
        cpu_seconds=time.process_time() - cpu,
        wall_seconds=time.monotonic() - began,
        intervals=intervals,
    )


def _watch(load: Load, look_seconds: float, intervals: list[Interval], watching: Watching | None) -> None:
    began = before = time.monotonic()
    errors_before = 0
    while not load.wait(look_seconds):
        snapshot = load.snapshot(take_lately=True)
        now = time.monotonic()
        errors = sum(count for _, _, _, count in snapshot.errors)
        lately = merged([one.lately for one in snapshot.operations])
        interval = Interval(
            at_seconds=now - began,
            calls=lately.count,
            errors=errors - errors_before,
            per_second=lately.count / (now - before),
            p50_ms=lately.percentile(50) / 1e6,
            p99_ms=lately.percentile(99) / 1e6,
            max_ms=lately.max_ns / 1e6,
        )
        before, errors_before = now, errors
        intervals.append(interval)
        if watching is not None:
            watching(snapshot, interval)


def fill(target: Target, size: Size, shape: Shape) -> int:
    """Puts each key of the key space that a load wants to read, unless they are there; how many were put."""
    if target.count(shape.prefix, shape.end) >= size.key_space:
        return 0
    filling = replace(
        size,
        clients=min(_FILL_CLIENTS, size.key_space),
        connections=10,
        total=size.key_space,
        duration_seconds=None,
        rate=None,
        sequential=True,
        new_keys=0.0,
    )
    outcome = run(target, loads.put(), filling, shape)
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.errors or outcome.snapshot.failure:
        first = outcome.snapshot.failure or outcome.snapshot.errors[0][2]
        raise TargetError(f"the key space could not be filled: {outcome.errors} puts failed: {first}")
    return size.key_space


class Progress:
    """A line about what is going on, on stderr."""

    def __init__(self, size: Size, *, in_place: bool) -> None:
        self._size = size
        self._in_place = in_place

    def __call__(self, snapshot: LoadSnapshot, interval: Interval) -> None:
        """Shows an interval."""
        done = sum(one.latency.count + one.failed for one in snapshot.operations)
        parts = [f"{done:,} calls"]
        if self._size.total:
            parts.insert(0, f"{min(100.0, 100 * done / self._size.total):5.1f}%")
        elif self._size.duration_seconds:
            parts.insert(0, f"{min(100.0, 100 * interval.at_seconds / self._size.duration_seconds):5.1f}%")
        if snapshot.phase == "connecting":
            parts.append(f"connecting ({snapshot.connected} up, {snapshot.ready_streams} streams ready)")
        else:
            parts.append(f"{interval.per_second:,.0f}/s, p99 {interval.p99_ms:.2f} ms")
        if snapshot.events_expected:
            parts.append(f"{snapshot.events.count:,} of {snapshot.events_expected:,} events")
        if snapshot.errors:
            parts.append(f"{sum(count for *_, count in snapshot.errors):,} errors")
        line = ", ".join(parts)
        print(
            f"\r{line:<100}" if self._in_place else line,
            end="" if self._in_place else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        """Leaves the line."""
        if self._in_place:
            print(f"\r{'':<100}\r", end="", file=sys.stderr, flush=True)
