"""The stages of the comparison: what is measured on a running cluster, and how. Rows pick their figures from here.

A stage is a function that takes a cluster and the names of the figures that somebody wants, and returns those. Each
kind of member goes through the same stage with the same calls, keys and seeds. Times are seconds, sizes bytes, CPU
microseconds.
"""

from __future__ import annotations

import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from clusters import Cluster
from loader import VALUE_BYTES, Result, run_plan
from raftkv_node.bench import loads
from raftkv_node.bench.loads import LoadPlan, Watchers
from raftkv_node.bench.target import Target
from slow_disk import SlowDisk

Figures = dict[str, float]
REST_DEADLINE_SECONDS = 240.0
_LOOK_SECONDS = 1.0
_IDLE_LOOKS = 7
"""So many looks in a row must find the members idle: what they do now and then is done, too."""
_IDLE_PROCESSORS = 0.04
"""Members are idle if together they use less than this beyond what they did before they were given anything: one that
collapses memory uses 0.05."""
_FRESH_LOOKS = 5
STALL_AFTER_SECONDS = 1.5
STALL_SECONDS = 2.0
_LOOP_SECONDS = 5.0
_PACED_PER_SECOND = 8_000.0
_PACED_CONNECTIONS = 500
_PACED_SECONDS = 60.0
_PACED_KEY_BYTES = 276
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """The figures that are wanted of a stage, and how much of everything (1: the full run)."""

    figures: frozenset[str]
    scale: float = 1.0
    notes: list[str] = field(default_factory=list)
    """What is to be told of the run, beside its figures."""

    def any(self, names: Iterable[str]) -> bool:
        """Whether one of them is wanted."""
        return bool(self.figures.intersection(names))

    def calls(self, full: int) -> int:
        """A number of calls, scaled."""
        return max(50, int(full * self.scale))


@dataclass
class Session:
    """A cluster in a stage: its leader, and the keys that it has."""

    cluster: Cluster
    wanted: Wanted
    target: Target = field(init=False)
    keys: int = 0

    def __post_init__(self) -> None:
        self.target = self.cluster.target(leader_only=True)

    def load(self, plan: LoadPlan, in_flight: int, calls: int, *, seed: int, **more: int | float) -> Result:
        """A load over the keys that are there."""
        return run_plan(
            self.target,
            plan,
            in_flight=in_flight,
            requests=self.wanted.calls(calls),
            existing_keys=self.keys,
            seed=seed,
            **more,  # type: ignore[arg-type]
        )

    def puts(self, in_flight: int, calls: int, *, seed: int) -> Result:
        """Puts, half of them to new keys, all others uniform over what is there."""
        return self.load(loads.put(), in_flight, calls, seed=seed, new_per_mille=500)

    def fill(self, keys: int, *, value_bytes: int = VALUE_BYTES) -> None:
        """New keys only."""
        keys = self.wanted.calls(keys)
        run_plan(
            self.target,
            loads.put(),
            in_flight=1000,
            requests=keys,
            existing_keys=self.keys,
            new_per_mille=1000,
            value_bytes=value_bytes,
        )
        self.keys += keys

    def settle(self) -> None:
        """Wait until the members have nothing left to do of what they were given; they were looked at when fresh."""
        if not wait_for_rest(self.cluster, REST_DEADLINE_SECONDS * self.wanted.scale):
            self.wanted.notes.append("not at rest when it was to be measured")


def look_at_fresh(cluster: Cluster) -> None:
    """See what members use that were given nothing yet: heartbeats and timers, which cost more on a slower host."""
    cluster.fresh_processors = statistics.median(_processors(cluster) for _ in range(_FRESH_LOOKS))


def _processors(cluster: Cluster) -> float:
    """What the members use together while one looks."""
    before = cluster.cpu_seconds()
    time.sleep(_LOOK_SECONDS)
    return (cluster.cpu_seconds() - before) / _LOOK_SECONDS


def wait_for_rest(cluster: Cluster, deadline_seconds: float = REST_DEADLINE_SECONDS) -> bool:
    """Wait until the members have nothing left to do of what they were given: drains, commits, memory. False, with a
    line on stderr: they still have after so many seconds.

    Raises:
        RuntimeError: nobody has looked at them while they were fresh.
    """
    if cluster.fresh_processors is None:
        raise RuntimeError(f"what {cluster.kind} uses at rest is not known: look_at_fresh comes first")
    deadline = time.monotonic() + deadline_seconds
    limit, idle = cluster.fresh_processors + _IDLE_PROCESSORS, 0
    while idle < _IDLE_LOOKS and time.monotonic() < deadline:
        idle = idle + 1 if _processors(cluster) < limit else 0
    if idle < _IDLE_LOOKS:
        print(f"{cluster.kind} was not at rest when it was to be measured", file=sys.stderr)
    return idle >= _IDLE_LOOKS


def writes(cluster: Cluster, wanted: Wanted) -> Figures:
    """Puts over 50,000 keys and growing, with 1,000, 100 and one in flight; reads and a mix over the same keys."""
    if wanted.any(["one-client"]):
        look_at_fresh(cluster)
    session = Session(cluster, wanted)
    session.fill(50_000)
    found: Figures = {}
    if wanted.any(["puts-1000", "p99-1000", "cpu"]):
        before = cluster.cpu_seconds()
        result = session.puts(1000, 60_000, seed=11)
        found["cpu"] = (cluster.cpu_seconds() - before) / result.ok * 1e6
        found["puts-1000"], found["p99-1000"] = result.per_second, result.p99_us / 1e6
    if wanted.any(["puts-100"]):
        found["puts-100"] = session.puts(100, 30_000, seed=13).per_second
    if wanted.any(["one-client"]):
        session.settle()  # alone is alone: without what is left to do of the puts before
        found["one-client"] = session.puts(1, 1_500, seed=17).mean_us / 1e6
    for name, serializable in (("reads-l", False), ("reads-s", True)):
        if wanted.any([name]):
            plan = loads.read(serializable=serializable, limit=1)
            found[name] = session.load(plan, 1000, 100_000, seed=19).per_second
    if wanted.any(["mixed"]):
        found["mixed"] = session.load(loads.mixed(1, 9, serializable=False), 1000, 60_000, seed=23).per_second
    return found


def slow_flushes(disk: SlowDisk, milliseconds: int) -> Callable[[Cluster, Wanted], Figures]:
    """The writes of `writes`, with 100 and one in flight, while each flush of the disk takes so much longer. In between
    the members come to rest, which slow flushes would only draw out."""

    def measure(cluster: Cluster, wanted: Wanted) -> Figures:
        look_at_fresh(cluster)
        session = Session(cluster, wanted)
        session.fill(20_000)
        with disk.flushes_take(milliseconds):
            together = session.puts(100, 20_000, seed=13).per_second
        session.settle()
        with disk.flushes_take(milliseconds):
            alone = session.puts(1, 400, seed=17).mean_us / 1e6
        return {"puts-100": together, "one-client": alone}

    return measure


@dataclass(frozen=True)
class Stalled:
    """An open loop before all disks stalled, and one in which they did; changes of the leader in the second."""

    rate: float
    before: Result
    during: Result
    elections: int
    ended_at: float
    """When the stall did, of the clock that never goes back."""


def run_through_stall(cluster: Cluster, wanted: Wanted, disk: SlowDisk) -> Stalled:
    """An open loop at half of what the cluster takes with 100 in flight, for five seconds; then the same while no flush
    returns for two of them. Latencies count from when a put was due."""
    look_at_fresh(cluster)
    session = Session(cluster, wanted)
    session.fill(20_000)
    rate = session.puts(100, 20_000, seed=13).per_second / 2
    calls = int(rate * _LOOP_SECONDS / wanted.scale)
    session.settle()  # or what is left of the puts before would be part of what the stall is held against
    before = session.load(loads.put(), 1000, calls, seed=47, rate=rate, look_seconds=0.1)
    elections = cluster.leader_changes()
    ends: list[float] = []

    def trouble() -> None:
        time.sleep(STALL_AFTER_SECONDS)
        with disk.stalled():
            time.sleep(STALL_SECONDS)
            ends.append(time.monotonic())

    stalling = threading.Thread(target=trouble)
    stalling.start()
    during = session.load(loads.put(), 1000, calls, seed=53, rate=rate, look_seconds=0.1)
    stalling.join()
    return Stalled(rate, before, during, cluster.leader_changes() - elections, ends[0])


def stall(disk: SlowDisk) -> Callable[[Cluster, Wanted], Figures]:
    """What a stall of all disks costs."""

    def measure(cluster: Cluster, wanted: Wanted) -> Figures:
        seen = run_through_stall(cluster, wanted, disk)
        return {
            "stall-p99": seen.during.p99_us / seen.before.p99_us,
            "stall-p99-before": seen.before.p99_us / 1e6,
            "stall-p99-during": seen.during.p99_us / 1e6,
            "stall-slowest": seen.during.max_us / 1e6,
            "stall-slowest-before": seen.before.max_us / 1e6,
            "stall-elections": seen.elections,
            "stall-rate": seen.rate,
        }

    return measure


def large_range(cluster: Cluster, wanted: Wanted) -> Figures:
    """One client that reads 10,000 keys of 1 KiB in one Range."""
    look_at_fresh(cluster)
    session = Session(cluster, wanted)
    session.fill(10_000, value_bytes=1024)
    session.settle()
    result = session.load(loads.read(serializable=False, limit=0), 1, 30, seed=29)
    received = result.outcome.snapshot.operations[0].answer_bytes
    if received < result.ok * session.keys * 1024:
        raise RuntimeError(f"{received} bytes cannot be {result.ok} answers of {session.keys} keys")
    return {"range-10000": result.p50_us / 1e6}


def range_stream(cluster: Cluster, wanted: Wanted) -> Figures:
    """One client that reads 100,000 keys of 1 KiB: by RangeStream where there is one (etcd has it from 3.7 on), else by
    Range; and what the member's memory grew by meanwhile, at most."""
    look_at_fresh(cluster)
    session = Session(cluster, wanted)
    session.fill(100_000, value_bytes=1024)
    session.settle()
    leader = cluster.leader()
    leader.forget_peak()
    before = leader.resident_bytes()
    plan = loads.read(serializable=False, limit=0, stream=cluster.range_stream)
    result = session.load(plan, 1, 50, seed=29)
    received = result.outcome.snapshot.operations[0].answer_bytes
    if received < result.ok * session.keys * 1024:
        raise RuntimeError(f"{received} bytes cannot be {result.ok} answers of {session.keys} keys")
    return {"range-stream": result.p50_us / 1e6, "range-stream-memory": leader.peak_bytes() - before}


def watch_latency(cluster: Cluster, wanted: Wanted) -> Figures:
    """1,000 watchers on 50 streams see every put of an open loop of 20 per second."""
    session = Session(cluster, wanted)
    session.fill(1_000)
    result = session.load(loads.put(Watchers(1_000, 50)), 10, 200, seed=31, rate=20.0)
    events = _all_events(result)
    return {"watch-p50": events.percentile(50) / 1e9, "watch-p99": events.percentile(99) / 1e9}


def watch_events(cluster: Cluster, wanted: Wanted) -> Figures:
    """10,000 watchers on 100 streams see puts at full speed."""
    session = Session(cluster, wanted)
    session.fill(1_000)
    result = session.load(loads.put(Watchers(10_000, 100)), 20, 200, seed=37)
    snapshot = result.outcome.snapshot
    return {"watch-events": _all_events(result).count / snapshot.events_elapsed_seconds}


def _all_events(result: Result) -> loads.Histogram:
    snapshot = result.outcome.snapshot
    if snapshot.events.count != snapshot.events_expected:
        raise RuntimeError(f"{snapshot.events.count} of {snapshot.events_expected} events came")
    return snapshot.events


def memory(keys: int) -> Callable[[Cluster, Wanted], Figures]:
    """Resident memory of all members at rest with so many keys, without the pages of rings and with them."""

    def measure(cluster: Cluster, wanted: Wanted) -> Figures:
        look_at_fresh(cluster)
        session = Session(cluster, wanted)
        session.fill(keys)
        session.settle()
        return {
            f"memory-{keys}": cluster.resident_bytes(shared=not cluster.has_ring),
            f"memory-{keys}-ring": cluster.resident_bytes(),
        }

    return measure


def restart(cluster: Cluster, wanted: Wanted) -> Figures:
    """From the start of a stopped member with 1,000,000 keys to its first linearizable read."""
    Session(cluster, wanted).fill(1_000_000)
    (member,) = cluster.members
    cluster.stop(member)
    began = time.monotonic()
    cluster.start(member)
    cluster.wait_healthy()
    return {"restart": time.monotonic() - began}


def cpu_growth(*sizes: int) -> Callable[[Cluster, Wanted], Figures]:
    """CPU per put with so many keys, each over that with the fewest."""

    def measure(cluster: Cluster, wanted: Wanted) -> Figures:
        look_at_fresh(cluster)
        session = Session(cluster, wanted)
        found: Figures = {}
        for keys in sizes:
            session.fill(keys - session.keys)
            session.settle()
            before = cluster.cpu_seconds()
            result = session.load(loads.put(), 1000, 60_000, seed=41)
            found[f"cpu-{keys}"] = (cluster.cpu_seconds() - before) / result.ok * 1e6
            found[f"cpu-growth-{keys}"] = found[f"cpu-{keys}"] / found[f"cpu-{sizes[0]}"]
        return found

    return measure


def check_perf(etcdctl: Path, load: str) -> Callable[[Cluster, Wanted], Figures]:
    """``etcdctl check perf``: puts for a minute at a given rate. 1: PASS; the puts per second that it saw, the slowest
    and the standard deviation; and the processors that all members and etcdctl used."""

    def measure(cluster: Cluster, wanted: Wanted) -> Figures:
        command = [str(etcdctl), "check", "perf", f"--load={load}", f"--endpoints={cluster.endpoints()}"]
        own, members, began = resource.getrusage(resource.RUSAGE_CHILDREN), cluster.cpu_seconds(), time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        text = done.stdout + done.stderr
        if "PASS" not in text and "FAIL" not in text:
            raise RuntimeError(f"etcdctl check perf: {text[-500:]}")
        return {
            f"check-perf-{load}": float(re.search(r"^PASS$", text, flags=re.MULTILINE) is not None),
            f"check-perf-{load}-rate": _said(r"Throughput (?:is )?(?:too low: )?(\d+) writes/s", text),
            f"check-perf-{load}-slowest": _said(r"[Ss]lowest request took (?:too long: )?([\d.]+)s", text),
            f"check-perf-{load}-stddev": _said(r"Stddev (?:is|too high:) ([\d.]+)s", text),
            f"check-perf-{load}-members": (cluster.cpu_seconds() - members) / seconds,
            f"check-perf-{load}-etcdctl": (after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime) / seconds,
        }

    return measure


def _said(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"etcdctl check perf does not say {pattern}: {text[-500:]}")
    return float(found[1])


def paced(cluster: Cluster, wanted: Wanted) -> Figures:
    """The puts of ``etcdctl check perf --load=l`` from a generator that keeps its pace: new keys of 276 bytes with
    values of 1 KiB, for a minute, to all members, on 500 connections. A put's latency counts from when it was due.
    (etcdctl's waits for a token before each put, and can save up one at most: it cannot make up for being late.)"""
    session = Session(cluster, wanted)
    session.target = cluster.target()
    result = session.load(
        loads.put(),
        in_flight=_PACED_CONNECTIONS,
        calls=int(_PACED_PER_SECOND * _PACED_SECONDS),
        seed=59,
        rate=_PACED_PER_SECOND,
        connections=_PACED_CONNECTIONS,
        new_per_mille=1000,
        key_bytes=_PACED_KEY_BYTES,
        value_bytes=1024,
    )
    return {
        "paced-rate": result.per_second,
        "paced-slowest": result.max_us / 1e6,
        "paced-stddev": result.stddev_us / 1e6,
        "paced-p50": result.p50_us / 1e6,
        "paced-p99": result.p99_us / 1e6,
    }


_FILLER = """
import os, sys
from pathlib import Path
from raftkv_node.adr import Identity, Level, Log, LogOptions, RingFull, entry, hard_state
data, ring, fill = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "fill"
options = LogOptions(data_dir=data, adr_path=ring, identity=Identity(1, 1, 1, bytes(16)),
    minimum_durability=Level.PROCESS, drain_interval_seconds=3600, drain_size_bytes=1 << 40, begun=not fill)
import time
began = time.perf_counter()
log, recovered = Log.open(options)
taken = time.perf_counter() - began
payload, index = bytes(300), 0
while fill:
    try:
        log.append([entry(1, index + n, 0, payload) for n in range(1, 301)] + [hard_state(1, 1, index)])
    except RingFull:
        break
    index += 300
print(taken, index, recovered.replayed, recovered.last_index, flush=True)
os._exit(0)
"""


def ring_recovery(disk: Path | None, ring: Path) -> Figures:
    """Opening a log whose 64 MiB ring is full of records that are nowhere else, after a crash."""
    with tempfile.TemporaryDirectory(dir=disk) as data, tempfile.TemporaryDirectory(dir=ring) as place:

        def run(what: str) -> list[float]:
            command = [sys.executable, "-c", _FILLER, data, place, what]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
            return [float(part) for part in done.stdout.split()]

        _, written, _, _ = run("fill")
        taken, _, replayed, last = run("open")
        if last != written or replayed * 300 < 48 * _MEBIBYTE:
            raise RuntimeError(f"the ring was not full: {written} written, {last} recovered, {replayed} replayed")
        return {"ring-recovery": taken}
