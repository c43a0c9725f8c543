"""The curves of docs/performance.md: puts per second and latency over the number of clients, latency percentiles, also
over what a flush of the disk costs, and a time line through a stall of all disks.

    make bench-plots                          measures (about eight minutes) and draws into docs/images
    python tests/perf/plots.py --draw FILE    draws again what was measured before

Every kind of cluster is started afresh in each round, in turn; a point is the median over rounds, its bar the spread.
Slow and stalled disks are seen once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from bar_rows import COLUMNS, Setup
from bars import this_machine
from clusters import end_as_interrupted
from debian import PackageUnavailable, unpacked
from slow_disk import NoSlowDisk, SlowDisk
from stages import STALL_AFTER_SECONDS, STALL_SECONDS, Session, Wanted, look_at_fresh, run_through_stall
from svg import Axis, Line, chart

_ROOT = Path(__file__).parents[2]
_COLUMNS = ("etcd", "adr", "disk", "etcd-nofsync")
_SLOW_COLUMNS = ("etcd-slow", "disk-slow", "adr-slow", "etcd-nofsync")
_FLUSH_MS = (0, 1, 2, 5, 10)
_FLUSH_PERCENTILES = (50.0, 99.0)
_FLUSH_CALLS = 6_000
_STALL_COLUMNS = ("etcd-slow", "disk-slow", "adr-slow", "etcd-nofsync")
_CLIENTS = {1: 800, 10: 5_000, 100: 20_000, 1000: 40_000}
"""Calls in flight, and how many calls."""
_PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
_OF_PERCENTILES = 100
"""Calls in flight of the chart of percentiles."""

Samples = dict[str, dict[str, list[dict[str, float]]]]
"""By column and calls in flight, one for each round: puts per second, and latencies in milliseconds by percentile."""


def _short(column: str) -> str:
    """The title of a kind of cluster where all have the same disk."""
    return COLUMNS[column].title.removesuffix(", slow disk")


def measure(setup: Setup, rounds: int, scale: float) -> Samples:
    """Puts with every number of clients, on every kind of cluster."""
    samples: Samples = {column: {str(clients): [] for clients in _CLIENTS} for column in _COLUMNS}
    for number in range(rounds):
        for column in _COLUMNS:
            print(f"round {number + 1} of {rounds}: {column}", file=sys.stderr, flush=True)
            with COLUMNS[column].make(setup) as cluster:
                look_at_fresh(cluster)
                session = Session(cluster, Wanted(frozenset(), scale))
                session.fill(50_000)
                for clients, calls in _CLIENTS.items():
                    if clients == 1:
                        session.settle()  # alone is alone: without what is left to do of the puts before
                    result = session.puts(clients, calls, seed=43 + clients)
                    latencies = result.outcome.all_latencies()
                    found = {f"{p:g}": latencies.percentile(p) / 1e6 for p in _PERCENTILES}
                    samples[column][str(clients)].append({"per_second": result.per_second, **found})
    return samples


FlushCosts = dict[str, dict[str, dict[str, float]]]
"""By column and what a flush takes longer, in milliseconds: latencies in milliseconds by percentile."""


def measure_flushes(setup: Setup) -> FlushCosts:
    """Puts while each flush of the disk takes so much longer, on every kind of cluster."""
    costs: FlushCosts = {}
    for column in _SLOW_COLUMNS:
        print(f"flushes: {column}", file=sys.stderr, flush=True)
        with COLUMNS[column].make(setup) as cluster:
            session = Session(cluster, Wanted(frozenset()))
            session.fill(20_000)
            costs[column] = {}
            for milliseconds in _FLUSH_MS:
                with setup.slow_disk().flushes_take(milliseconds):
                    result = session.puts(_OF_PERCENTILES, _FLUSH_CALLS, seed=59 + milliseconds)
                latencies = result.outcome.all_latencies()
                costs[column][str(milliseconds)] = {f"{p:g}": latencies.percentile(p) / 1e6 for p in _FLUSH_PERCENTILES}
    return costs


def draw_flushes(costs: FlushCosts) -> str:
    """The chart of the percentiles over the cost of a flush."""
    lines = [
        Line(f"{_short(column)}, {p:g}%", [(float(ms), found[f"{p:g}"]) for ms, found in by_cost.items()])
        for column, by_cost in costs.items()
        for p in _FLUSH_PERCENTILES
    ]
    return chart(
        f"Put latency, five members, {_OF_PERCENTILES} in flight",
        Axis("a flush takes longer by, milliseconds"),
        Axis("milliseconds", logarithmic=True),
        lines,
    )


TimeLines = dict[str, list[tuple[float, float]]]
"""By column: seconds, and the slowest put that was answered in the tenth of a second before, in milliseconds."""


def measure_stall(setup: Setup) -> TimeLines:
    """One run through a stall for each kind of cluster."""
    lines: TimeLines = {}
    for column in _STALL_COLUMNS:
        print(f"stall: {column}", file=sys.stderr, flush=True)
        with COLUMNS[column].make(setup) as cluster:
            seen = run_through_stall(cluster, Wanted(frozenset()), setup.slow_disk())
        intervals = seen.during.outcome.intervals
        lines[column] = [(one.at_seconds, one.max_ms) for one in intervals if one.calls]
    return lines


def draw_stall(lines: TimeLines) -> str:
    """The chart of the time lines."""
    begin, end = STALL_AFTER_SECONDS, STALL_AFTER_SECONDS + STALL_SECONDS
    return chart(
        f"Five members at half load, all disks stalled from {begin:g} s to {end:g} s",
        Axis("seconds"),
        Axis("slowest put, milliseconds", logarithmic=True),
        [Line(_short(column), points) for column, points in lines.items()],
    )


def _line(title: str, at: list[float], samples: list[list[float]]) -> Line:
    points = [(x, statistics.median(values)) for x, values in zip(at, samples, strict=True)]
    return Line(title, points, [(min(values), max(values)) for values in samples])


def draw(samples: Samples) -> dict[str, str]:
    """The charts by name of their files."""
    clients = [float(n) for n in _CLIENTS]

    def over_clients(figure: str) -> list[Line]:
        return [
            _line(COLUMNS[c].title, clients, [[one[figure] for one in samples[c][str(n)]] for n in _CLIENTS])
            for c in _COLUMNS
        ]

    places = [float(n) for n in range(len(_PERCENTILES))]
    percentiles = [
        _line(
            COLUMNS[c].title,
            places,
            [[one[f"{p:g}"] for one in samples[c][str(_OF_PERCENTILES)]] for p in _PERCENTILES],
        )
        for c in _COLUMNS
    ]
    names = [(place, f"{p:g}%") for place, p in zip(places, _PERCENTILES, strict=True)]
    in_flight = Axis("puts in flight", logarithmic=True)
    milliseconds = Axis("milliseconds", logarithmic=True)
    return {
        "bench-throughput.svg": chart(
            "Puts per second, five members", in_flight, Axis("puts/s"), over_clients("per_second")
        ),
        "bench-latency.svg": chart("Median put latency, five members", in_flight, milliseconds, over_clients("50")),
        "bench-percentiles.svg": chart(
            f"Put latency, five members, {_OF_PERCENTILES} in flight",
            Axis("percentile of the puts", names=names),
            milliseconds,
            percentiles,
        ),
    }


def main() -> int:
    """Measures, unless it is given what was measured, and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", type=Path, help="a file of earlier samples")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="below 1: a trial")
    parser.add_argument("--disk", type=Path, help="a folder on the plain disk (default: the temporary one)")
    parser.add_argument("--images", type=Path, default=_ROOT / "docs" / "images", help="where the charts go")
    parser.add_argument("--into", type=Path, default=_ROOT / "build" / "bench", help="where the samples go")
    options = parser.parse_args()
    end_as_interrupted()
    if options.draw:
        document = json.loads(options.draw.read_text())
    else:
        try:
            setup = Setup(unpacked(("etcd-server", "etcd-client")), options.disk)
        except PackageUnavailable as error:
            print(f"bench-plots: {error}", file=sys.stderr)
            return 2
        document = {
            "machine": this_machine(),
            "clients": measure(setup, options.rounds, options.scale),
            "stall": {},
            "flushes": {},
        }
        try:
            with SlowDisk(options.disk) as slow:
                document["flushes"] = measure_flushes(replace(setup, slow=slow))
                document["stall"] = measure_stall(replace(setup, slow=slow))
        except NoSlowDisk as error:
            print(f"no curves of slow disks: {error}", file=sys.stderr)
        options.into.mkdir(parents=True, exist_ok=True)
        path = options.into / f"plots-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
        path.write_text(json.dumps(document, indent=1))
        print(f"samples in {path}")
    drawn = draw(document["clients"])
    if document["flushes"]:
        drawn["bench-flushes.svg"] = draw_flushes(document["flushes"])
    if document["stall"]:
        drawn["bench-stall.svg"] = draw_stall(document["stall"])
    options.images.mkdir(parents=True, exist_ok=True)
    for name, text in drawn.items():
        (options.images / name).write_text(text)
        print(options.images / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
