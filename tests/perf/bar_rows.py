"""The bars: which figures of which kinds of clusters are compared, and what is wanted of them.

A row that needs another stage or another kind of cluster (a disk with a chosen flush cost, say) is added here, and its
stage in ``stages.py``: the runner knows neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import stages
from clusters import Cluster, EtcdCluster, RaftKVCluster
from slow_disk import NoSlowDisk, SlowDisk
from stages import Figures, Wanted

_TMPFS = Path("/dev/shm")
_NO_FSYNC = ("--unsafe-no-fsync",)
_FIVE = 5


@dataclass(frozen=True)
class Setup:
    """What this machine offers."""

    etcd: Path
    """The folder of etcd's programs."""
    disk: Path | None
    """A folder on the plain disk; None: the temporary one."""
    slow: SlowDisk | None = None
    """A disk with flushes as slow as one likes."""

    def slow_disk(self) -> SlowDisk:
        """The slow disk.

        Raises:
            NoSlowDisk: when there is none.
        """
        if self.slow is None:
            raise NoSlowDisk("there is no slow disk")
        return self.slow


@dataclass(frozen=True)
class Column:
    """A kind of cluster, and what a write that it acknowledged survives."""

    title: str
    durability: str
    """A level, as RaftKV's members are to find it themselves; "nothing" where nothing is promised."""
    make: Callable[[Setup], Cluster]


COLUMNS: dict[str, Column] = {
    "etcd": Column("etcd", "power", lambda s: EtcdCluster(_FIVE, s.etcd, s.disk)),
    "adr": Column("RaftKV, ring on tmpfs", "process", lambda s: RaftKVCluster(_FIVE, s.disk, _TMPFS)),
    "adr-large": Column(
        "RaftKV, ring on tmpfs, quota of 8 GiB",
        "process",
        lambda s: RaftKVCluster(_FIVE, s.disk, _TMPFS, ("--quota-backend-bytes", str(8 << 30))),
    ),
    "disk": Column("RaftKV, disk mode", "power", lambda s: RaftKVCluster(_FIVE, s.disk)),
    "etcd-nofsync": Column("etcd, no fsync, tmpfs", "nothing", lambda s: EtcdCluster(_FIVE, s.etcd, _TMPFS, _NO_FSYNC)),
    "etcd-tls": Column("etcd, TLS", "power", lambda s: EtcdCluster(_FIVE, s.etcd, s.disk, tls=True)),
    "etcd-tls-nofsync": Column(
        "etcd, no fsync, tmpfs, TLS", "nothing", lambda s: EtcdCluster(_FIVE, s.etcd, _TMPFS, _NO_FSYNC, tls=True)
    ),
    "adr-tls": Column(
        "RaftKV, ring on tmpfs, TLS", "process", lambda s: RaftKVCluster(_FIVE, s.disk, _TMPFS, tls=True)
    ),
    "etcd-slow": Column("etcd, slow disk", "power", lambda s: EtcdCluster(_FIVE, s.etcd, s.slow_disk().folder)),
    "adr-slow": Column(
        "RaftKV, ring on tmpfs, slow disk",
        "process",
        lambda s: RaftKVCluster(_FIVE, s.slow_disk().folder, _TMPFS),
    ),
    "disk-slow": Column(
        "RaftKV, disk mode, slow disk",
        "power",
        lambda s: RaftKVCluster(_FIVE, s.slow_disk().folder, extra=("--minimum-durability", "process")),
    ),
    "etcd-1": Column("etcd, one member", "power", lambda s: EtcdCluster(1, s.etcd, s.disk)),
    "etcd-1-nofsync": Column(
        "etcd, one member, no fsync, tmpfs", "nothing", lambda s: EtcdCluster(1, s.etcd, _TMPFS, _NO_FSYNC)
    ),
    "adr-1": Column("RaftKV, one member, ring on tmpfs", "process", lambda s: RaftKVCluster(1, s.disk, _TMPFS)),
}


@dataclass(frozen=True)
class Stage:
    """Figures that are measured on one start of a cluster. Without a cluster: on this machine alone."""

    measure: Callable[[Setup], Callable[[Cluster, Wanted], Figures]] | None = None
    alone: Callable[[Setup], Figures] | None = None
    rounds: int | None = None
    """So many at most; None: as the caller says."""
    slow: bool = False
    """Whether it needs the slow disk."""


def _plain(measure: Callable[[Cluster, Wanted], Figures], rounds: int | None = None) -> Stage:
    return Stage(lambda setup: measure, rounds=rounds)


STAGES: dict[str, Stage] = {
    "writes": _plain(stages.writes),
    "slow-5ms": Stage(lambda setup: stages.slow_flushes(setup.slow_disk(), 5), rounds=2, slow=True),
    "stall": Stage(lambda setup: stages.stall(setup.slow_disk()), rounds=2, slow=True),
    "large-range": _plain(stages.large_range, 2),
    "range-stream": _plain(stages.range_stream, 1),
    "watch-latency": _plain(stages.watch_latency, 2),
    "watch-events": _plain(stages.watch_events, 2),
    "memory-100000": _plain(stages.memory(100_000), 1),
    "memory-1000000": _plain(stages.memory(1_000_000), 1),
    "restart": _plain(stages.restart, 1),
    "cpu-growth": _plain(stages.cpu_growth(10_000, 100_000, 1_000_000), 1),
    "cpu-growth-5m": _plain(stages.cpu_growth(10_000, 5_000_000), 1),
    "check-perf-l": Stage(lambda setup: stages.check_perf(setup.etcd / "etcdctl", "l"), rounds=1),
    "check-perf-xl": Stage(lambda setup: stages.check_perf(setup.etcd / "etcdctl", "xl"), rounds=1),
    "paced": _plain(stages.paced, 1),
    "ring-recovery": Stage(alone=lambda setup: stages.ring_recovery(setup.disk, _TMPFS), rounds=3),
}


@dataclass(frozen=True)
class Row:
    """One bar. ``bar`` is a ratio to ``base``, or an absolute figure where there is no base."""

    name: str
    title: str
    stage: str
    figure: str
    unit: str
    subject: str
    base: str | None
    bar: float
    more_is_better: bool
    by_default: bool = True
    note: str = ""
    beside: str | None = None
    """A column that is shown beside an absolute figure, and not judged."""
    unsynced: str | None = None
    """A column of etcd without fsync, measured in the same stage and shown, not judged: like a ring on tmpfs, it loses
    what it acknowledged when the power goes."""

    @property
    def columns(self) -> list[str]:
        """All that are to be measured."""
        every = (self.base, self.beside, self.unsynced, self.subject)
        return [column for column in every if column is not None]

    @property
    def floor(self) -> float:
        """Two thirds of the way from 1.0x to the bar; absolute bars, and those that allow worse, have no way."""
        worse = self.bar < 1 if self.more_is_better else self.bar > 1
        return self.bar if self.base is None or worse else 1 + (self.bar - 1) * 2 / 3

    def verdict(self, value: float) -> str:
        """What a ratio (or an absolute figure) means: met, two thirds, missed."""

        def reaches(bar: float) -> bool:
            return value >= bar if self.more_is_better else value <= bar

        if reaches(self.bar):
            return "met"
        return "two thirds" if reaches(self.floor) else "missed"


_L = "linearizable"
_PACED = "8,000 puts/s as check perf l asks for, from a steady client"


def _rate(name: str, title: str, figure: str, subject: str, base: str, bar: float, *, stage: str = "writes") -> Row:
    return Row(name, title, stage, figure, "/s", subject, base, bar, True)


def _time(name: str, title: str, figure: str, subject: str, base: str, bar: float, *, stage: str = "writes") -> Row:
    return Row(name, title, stage, figure, "ms", subject, base, bar, False)


def _growth(name: str, keys: str, stage: str, column: str = "adr") -> Row:
    title, figure = f"CPU per put with {keys} keys over that with 10,000", f"cpu-growth-{keys.replace(',', '')}"
    return Row(name, title, stage, figure, "x", column, None, 1.5, False, by_default=False)


def _stall(name: str, title: str, figure: str, unit: str, bar: float) -> Row:
    return Row(name, title, "stall", figure, unit, "adr-slow", None, bar, False, beside="etcd-slow")


def _paced(
    name: str, title: str, figure: str, unit: str, bar: float, subject: str = "adr", *, more_is_better: bool = False
) -> Row:
    """What ``etcdctl check perf`` asks for: nine tenths of the rate, the slowest and the deviation below a limit."""
    return Row(name, title, "paced", figure, unit, subject, None, bar, more_is_better, beside="etcd")


_WITHOUT_RING = "without the pages of the rings: with persistent memory they are no memory of the system's"

_ROWS: list[Row] = [
    _rate("puts-1000", "puts/s, 1,000 in flight", "puts-1000", "adr", "etcd", 2.5),
    _rate("puts-1000-nofsync", "the same, over etcd without fsync", "puts-1000", "adr", "etcd-nofsync", 2.5),
    _rate("puts-100", "puts/s, 100 in flight", "puts-100", "adr", "etcd", 3.5),
    _rate("puts-100-nofsync", "the same, over etcd without fsync", "puts-100", "adr", "etcd-nofsync", 3.5),
    _time("one-client", "one client, mean put latency", "one-client", "adr", "etcd", 0.35),
    _time("one-client-nofsync", "the same, over etcd without fsync", "one-client", "adr", "etcd-nofsync", 0.5),
    _rate("disk-1000", "disk mode, puts/s, 1,000 in flight", "puts-1000", "disk", "etcd", 2.0),
    _rate("disk-100", "disk mode, puts/s, 100 in flight", "puts-100", "disk", "etcd", 2.0),
    _rate("slow-100", "5 ms flush, puts/s, 100 in flight", "puts-100", "adr-slow", "etcd-slow", 6.0, stage="slow-5ms"),
    _time("slow-one", "5 ms flush, one client", "one-client", "adr-slow", "etcd-slow", 0.08, stage="slow-5ms"),
    _rate("slow-ring-100", "the same, ring over disk mode", "puts-100", "adr-slow", "disk-slow", 2.5, stage="slow-5ms"),
    _time(
        "slow-ring-one", "the same, ring over disk mode", "one-client", "adr-slow", "disk-slow", 0.1, stage="slow-5ms"
    ),
    _rate(
        "slow-disk-100", "the same, disk mode over etcd", "puts-100", "disk-slow", "etcd-slow", 2.0, stage="slow-5ms"
    ),
    _time(
        "slow-disk-one", "the same, disk mode over etcd", "one-client", "disk-slow", "etcd-slow", 1.0, stage="slow-5ms"
    ),
    _stall("stall-p99", "all disks stall for 2 s at half load: p99 over p99 before", "stall-p99", "x", 1.5),
    _stall("stall-slowest", "the same: slowest put", "stall-slowest", "ms", 50.0),
    _stall("stall-elections", "the same: changes of the leader", "stall-elections", "", 0.0),
    _rate("tls-1000", "TLS and client certificates, puts/s, 1,000 in flight", "puts-1000", "adr-tls", "etcd-tls", 2.0),
    _rate("tls-100", "TLS and client certificates, puts/s, 100 in flight", "puts-100", "adr-tls", "etcd-tls", 2.0),
    Row("cpu", "CPU per put, all members, 1,000 in flight", "writes", "cpu", "us", "adr", "etcd", 0.45, False),
    _rate("one-member", "one member, puts/s, 1,000 in flight", "puts-1000", "adr-1", "etcd-1", 1.5),
    _rate("reads-l", f"{_L} single-key reads/s, 1,000 in flight", "reads-l", "adr", "etcd", 1.3),
    _rate("reads-s", "serializable single-key reads/s, 1,000 in flight", "reads-s", "adr", "etcd", 1.3),
    _rate("mixed", f"1 put to 9 {_L} reads, calls/s, 1,000 in flight", "mixed", "adr", "etcd", 2.0),
    _time("range-10000", "a Range of 10,000 keys of 1 KiB", "range-10000", "adr", "etcd", 1.0, stage="large-range"),
    _time(
        "range-stream",
        "RangeStream of 100,000 keys of 1 KiB, over etcd's Range",
        "range-stream",
        "adr",
        "etcd",
        1.0,
        stage="range-stream",
    ),
    Row(
        "range-stream-memory",
        "the same: what the member's memory grows by",
        *("range-stream", "range-stream-memory", "MiB", "adr", None, 32.0, False),
        beside="etcd",
    ),
    _time("watch-p50", "put to event, 1,000 watchers, p50", "watch-p50", "adr", "etcd", 1.0, stage="watch-latency"),
    _time("watch-p99", "put to event, 1,000 watchers, p99", "watch-p99", "adr", "etcd", 1.0, stage="watch-latency"),
    _rate("watch-events", "events/s, 10,000 watchers", "watch-events", "adr", "etcd", 1.0, stage="watch-events"),
    Row(
        "memory-100000",
        "resident memory of all members, 100,000 keys",
        *("memory-100000", "memory-100000", "MiB", "adr", "etcd", 1.0, False),
        note=_WITHOUT_RING,
    ),
    Row(
        "memory-100000-ring",
        "the same with the pages of the rings, of 64 MiB each",
        *("memory-100000", "memory-100000-ring", "MiB", "adr", "etcd", 1.0, False),
        note="a ring on tmpfs is memory",
    ),
    Row(
        "memory-100000-disk",
        "the same in disk mode",
        *("memory-100000", "memory-100000", "MiB", "disk", "etcd", 1.0, False),
    ),
    Row(
        "memory-1000000",
        "resident memory of all members, 1,000,000 keys",
        *("memory-1000000", "memory-1000000", "MiB", "adr", "etcd", 1.0, False),
        by_default=False,
        note=_WITHOUT_RING,
    ),
    Row(
        "restart",
        "restart of one member with 1,000,000 keys, to serving",
        *("restart", "restart", "s", "adr-1", "etcd-1", 2.5, False),
        by_default=False,
    ),
    Row("ring-recovery", "recovery of a full 64 MiB ring", "ring-recovery", "ring-recovery", "s", "", None, 2.0, False),
    Row(
        "check-perf-l",
        "etcdctl check perf, l (1: PASS)",
        *("check-perf-l", "check-perf-l", "", "adr", None, 1.0, True),
        beside="etcd",
    ),
    _paced("paced-rate", f"{_PACED}: puts/s", "paced-rate", "/s", 7_200.0, more_is_better=True),
    _paced("paced-slowest", "the same: slowest put", "paced-slowest", "ms", 500.0),
    _paced("paced-stddev", "the same: standard deviation", "paced-stddev", "ms", 100.0),
    _paced("paced-disk-rate", "the same, disk mode: puts/s", "paced-rate", "/s", 7_200.0, "disk", more_is_better=True),
    _paced("paced-disk-slowest", "the same, disk mode: slowest put", "paced-slowest", "ms", 500.0, "disk"),
    _paced("paced-disk-stddev", "the same, disk mode: standard deviation", "paced-stddev", "ms", 100.0, "disk"),
    Row(
        "check-perf-xl",
        "etcdctl check perf, xl, puts/s",
        *("check-perf-xl", "check-perf-xl-rate", "/s", "adr", "etcd", 1.0, True),
        by_default=False,
    ),
    _growth("cpu-growth-100000", "100,000", "cpu-growth"),
    _growth("cpu-growth", "1,000,000", "cpu-growth"),
    _growth("cpu-growth-5m", "5,000,000", "cpu-growth-5m", "adr-large"),
]

_UNSYNCED = {
    "etcd": "etcd-nofsync",
    "etcd-slow": "etcd-nofsync",
    "etcd-tls": "etcd-tls-nofsync",
    "etcd-1": "etcd-1-nofsync",
}
"""etcd with fsync, and the column of the same without."""


def _with_unsynced(row: Row) -> Row:
    """A row that shows a ring on tmpfs over or beside etcd that syncs, with etcd that does not beside it, too."""
    of_etcd = row.base or row.beside or ""
    return replace(row, unsynced=_UNSYNCED.get(of_etcd)) if row.subject.startswith("adr") else row


ROWS: list[Row] = [_with_unsynced(row) for row in _ROWS]


def chosen(names: str) -> list[Row]:
    """The rows of these names (comma-separated; "" are those by default, "all" is all).

    Raises:
        ValueError: names one that is not there.
    """
    if not names:
        return [row for row in ROWS if row.by_default]
    if names == "all":
        return list(ROWS)
    known = {row.name: row for row in ROWS}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise ValueError(f"no row is called {name!r}; there are: {', '.join(known)}")
    return [known[name] for name in wanted]
