"""Who uses the processors when a stall of all disks ends, and who waits for one.

    python tests/perf/after_stall.py [--rounds 3]

The load of the row `stall-p99` (`bars.py`): everything is on a disk that stalls but the rings, which are on tmpfs. The
kernel counts for each thread how long it ran and how long it was ready to run and did not (proc(5), `schedstat`). Both
are read twenty times a second and told as processors: 1.00 is one of them all the time; in wait there can be more than
the machine has. Below: the slowest put that was answered in each tenth of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from bar_rows import COLUMNS, Setup
from clusters import Cluster, Member, end_as_interrupted
from slow_disk import NoSlowDisk, SlowDisk
from stages import STALL_SECONDS, Stalled, Wanted, run_through_stall

_LOOK_SECONDS = 0.05
_SPANS = {
    "before": (-STALL_SECONDS - 1.1, -STALL_SECONDS - 0.2),
    "stalled": (-1.5, -0.1),
    "0-100 ms": (0.0, 0.1),
    "100-300": (0.1, 0.3),
    "300-600": (0.3, 0.6),
    "600-1000": (0.6, 1.0),
}
"""The columns: seconds since the end of the stall."""
_KINDS = {"raftkv": "turn", "engine-io": "engine", "adr-drain": "adr-drain", "store-backend": "store-backend"}
"""What threads of a member are called here, by the names that the kernel has for them."""
_SHOWN_TENTHS = 10
_TICKS = os.sysconf("SC_CLK_TCK")
_IDLE, _IOWAIT, _STEAL = 3, 4, 7
"""Fields of /proc/stat."""


@dataclass
class Look:
    """What was counted so far, in seconds, by kind of thread."""

    at: float
    ran: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    waited: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, pid: int, kinds: dict[str, str], other: str) -> None:
        """The threads of a process."""
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                kind = kinds.get((task / "comm").read_text().strip(), other)
                ran, waited, _ = (task / "schedstat").read_text().split()
                self.ran[kind] += int(ran) / 1e9
                self.waited[kind] += int(waited) / 1e9

    def add_machine(self) -> None:
        """What else ran: the kernel's own threads, interrupts, and the disk's process, whose threads come and go."""
        fields = [int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        busy = sum(fields) - fields[_IDLE] - fields[_IOWAIT] - fields[_STEAL]
        self.ran["disk and kernel"] = busy / _TICKS - sum(self.ran.values())
        self.ran["stolen by other machines"] = fields[_STEAL] / _TICKS


class Watcher:
    """Looks, in a thread of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self._members, self._leader = cluster.members, cluster.leader()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.looks: list[Look] = []

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self.looks.append(self._look())

    def _look(self) -> Look:
        look = Look(time.monotonic())
        for member in self._members:
            assert member.process is not None
            look.add(member.process.pid, self._kinds(member), "members' other threads")
        look.add(os.getpid(), {}, "load generator")
        look.add_machine()
        return look

    def _kinds(self, member: Member) -> dict[str, str]:
        role = "leader" if member is self._leader else "followers"
        return {name: f"{kind}, {role}" for name, kind in _KINDS.items()}

    def between(self, since: float, until: float) -> tuple[Look, Look]:
        """The first looks after two moments.

        Raises:
            RuntimeError: nobody looked in between.
        """
        moments = [look.at for look in self.looks]
        first, last = (min(bisect_left(moments, at), len(moments) - 1) for at in (since, until))
        if last <= first:
            raise RuntimeError(f"nobody looked between {since} and {until}")
        return self.looks[first], self.looks[last]


Table = dict[str, dict[str, tuple[float, float]]]
"""By kind of thread and span: processors that it used, and that it waited for."""


def table(watcher: Watcher, ended_at: float) -> Table:
    """Of one run."""
    found: Table = defaultdict(dict)
    for span, (since, until) in _SPANS.items():
        before, after = watcher.between(ended_at + since, ended_at + until)
        seconds = after.at - before.at
        for kind in after.ran:
            ran, waited = after.ran[kind] - before.ran[kind], after.waited[kind] - before.waited[kind]
            found[kind][span] = (ran / seconds, waited / seconds)
    return found


def show(tables: list[Table]) -> None:
    """Medians over the runs, and their sums."""
    print("| processors used (waited for) | " + " | ".join(_SPANS) + " |")
    print("| --- |" + " ---: |" * len(_SPANS))
    sums = {span: [0.0, 0.0] for span in _SPANS}
    for kind in tables[0]:
        cells = []
        for span in _SPANS:
            ran, waited = (statistics.median(one[kind][span][which] for one in tables) for which in (0, 1))
            cells.append(f"{ran:.2f} ({waited:.2f})" if waited else f"{ran:.2f}")
            sums[span][0] += ran
            sums[span][1] += waited
        print(f"| {kind} | " + " | ".join(cells) + " |")
    print("| together | " + " | ".join(f"{ran:.2f} ({waited:.2f})" for ran, waited in sums.values()) + " |")


def show_latency(seen: Stalled) -> None:
    """Of one run."""
    ratio = seen.during.p99_us / seen.before.p99_us
    print(f"{seen.rate:,.0f} puts/s: p99 {seen.before.p99_us / 1e3:.1f} -> {seen.during.p99_us / 1e3:.1f} ms, ", end="")
    print(f"{ratio:.2f}x; slowest {seen.before.max_us / 1e3:.1f} -> {seen.during.max_us / 1e3:.1f} ms")
    tenths = [one for one in seen.during.outcome.intervals if one.calls]
    print("  median/p99/slowest of each tenth of a second, ms: ", end="")
    print(", ".join(f"{one.at_seconds:.1f}s {one.p50_ms:.0f}/{one.p99_ms:.0f}/{one.max_ms:.0f}" for one in tenths))


def main() -> int:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    end_as_interrupted()
    tables: list[Table] = []
    try:
        for _ in range(options.rounds):
            with SlowDisk(None) as disk, COLUMNS["adr-slow"].make(Setup(Path(), None, disk)) as cluster:
                with Watcher(cluster) as watcher:
                    seen = run_through_stall(cluster, Wanted(frozenset()), disk)
                tables.append(table(watcher, seen.ended_at))
                show_latency(seen)
    except NoSlowDisk as error:
        print(f"no disk that stalls: {error}", file=sys.stderr)
        return 2
    show(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
