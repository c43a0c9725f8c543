"""Five members of RaftKV against five of etcd: one machine, one run, one load generator, in turn.

The load is the one that hurts honestly: distinct keys, uniform over what exists, half of the puts new, 256-byte values.
Every figure is a ratio of medians within this run; absolute figures stand beside it for orientation only. What an
acknowledged write survives is named for each column, since only equals may be compared.

    make bench                       the comparison that docs/performance.md quotes
    python tests/perf/compare.py -h  all options
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from clusters import Cluster, EtcdCluster, RaftKVCluster
from debian import PackageUnavailable, unpacked
from loader import run_load

_TMPFS = Path("/dev/shm")


@dataclass(frozen=True)
class Contender:
    """One column of the comparison."""

    name: str
    durability: str
    make: Callable[[], Cluster]


@dataclass
class Figures:
    """Medians are taken over rounds."""

    puts_1000: list[float]
    puts_100: list[float]
    latency_1_us: list[float]
    p99_1000_us: list[float]
    cpu_per_put_us: list[float]
    resident_mib: list[float]


def _measure(contender: Contender, figures: Figures, requests: int, keys: int) -> None:
    with contender.make() as cluster:
        endpoint = cluster.endpoints(leader_only=True)
        run_load(endpoint, in_flight=1000, requests=keys // 2, new_per_mille=1000)
        existing = keys // 2
        cpu = cluster.cpu_seconds()
        thousand = run_load(endpoint, in_flight=1000, requests=requests, existing_keys=existing, seed=11)
        figures.cpu_per_put_us.append((cluster.cpu_seconds() - cpu) / thousand.ok * 1e6)
        figures.puts_1000.append(thousand.per_second)
        figures.p99_1000_us.append(thousand.p99_us)
        hundred = run_load(endpoint, in_flight=100, requests=requests // 2, existing_keys=existing, seed=13)
        figures.puts_100.append(hundred.per_second)
        one = run_load(endpoint, in_flight=1, requests=max(200, requests // 50), existing_keys=existing, seed=17)
        figures.latency_1_us.append(one.mean_us)
        figures.resident_mib.append(cluster.resident_bytes() / 2**20)


def _contenders(etcd: Path, members: int, disk: Path | None) -> list[Contender]:
    return [
        Contender("etcd", "power (disk)", lambda: EtcdCluster(members, etcd, disk)),
        Contender("RaftKV adr", "process (ring on tmpfs)", lambda: RaftKVCluster(members, disk, _TMPFS)),
        Contender("RaftKV disk", "power (disk)", lambda: RaftKVCluster(members, disk)),
        Contender("etcd no fsync", "none (tmpfs)", lambda: EtcdCluster(members, etcd, _TMPFS, ("--unsafe-no-fsync",))),
    ]


_ROWS: list[tuple[str, Callable[[Figures], list[float]], str]] = [
    ("puts/s, 1,000 in flight", lambda f: f.puts_1000, "{:,.0f}"),
    ("puts/s, 100 in flight", lambda f: f.puts_100, "{:,.0f}"),
    ("one client, mean put latency (us)", lambda f: f.latency_1_us, "{:,.0f}"),
    ("p99 put latency, 1,000 in flight (us)", lambda f: f.p99_1000_us, "{:,.0f}"),
    ("CPU per put, all members, 1,000 in flight (us)", lambda f: f.cpu_per_put_us, "{:,.0f}"),
    ("resident memory, all members (MiB)", lambda f: f.resident_mib, "{:,.0f}"),
]


def _print_table(names: list[str], results: dict[str, Figures]) -> None:
    print("| figure | " + " | ".join(names) + " |")
    print("| --- |" + " --- |" * len(names))
    for title, pick, form in _ROWS:
        base = statistics.median(pick(results[names[0]]))
        cells = []
        for name in names:
            values = pick(results[name])
            median = statistics.median(values)
            spread = f"{form.format(min(values))}..{form.format(max(values))}"
            cells.append(f"{form.format(median)} ({spread}) {median / base:.2f}x")
        print(f"| {title} | " + " | ".join(cells) + " |")


def main() -> int:
    """Prints the table; the exit code tells whether the bar of ``--bar`` is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="each contender so many times, in turn")
    parser.add_argument("--requests", type=int, default=100_000, help="puts with 1,000 in flight per round")
    parser.add_argument("--keys", type=int, default=100_000, help="half of them exist before the measurement")
    parser.add_argument(
        "--disk", type=Path, default=None, help="folder on the disk to use (default: the temporary one)"
    )
    parser.add_argument("--only", default="", help="comma-separated names of contenders")
    parser.add_argument("--bar", type=float, default=1.5, help="puts/s of RaftKV adr over etcd's at 1,000 in flight")
    options = parser.parse_args()
    try:
        etcd = unpacked(("etcd-server", "etcd-client"))
    except PackageUnavailable as error:
        print(f"bench: no etcd to compare with: {error}", file=sys.stderr)
        return 2
    contenders = _contenders(etcd, options.members, options.disk)
    if options.only:
        contenders = [c for c in contenders if c.name in options.only.split(",")]
    results = {c.name: Figures([], [], [], [], [], []) for c in contenders}
    for number in range(options.rounds):
        for contender in contenders:
            print(f"round {number + 1} of {options.rounds}: {contender.name}", file=sys.stderr, flush=True)
            _measure(contender, results[contender.name], options.requests, options.keys)
    for contender in contenders:
        print(f"{contender.name}: an acknowledged write survives: {contender.durability}")
    names = [c.name for c in contenders]
    _print_table(names, results)
    if not {"etcd", "RaftKV adr"} <= set(names):
        return 0
    ratio = statistics.median(results["RaftKV adr"].puts_1000) / statistics.median(results["etcd"].puts_1000)
    print(f"RaftKV adr over etcd, puts/s at 1,000 in flight: {ratio:.2f}x (bar {options.bar}x)")
    return 0 if ratio >= options.bar else 1


if __name__ == "__main__":
    sys.exit(main())
