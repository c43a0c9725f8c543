"""One client's puts on clusters that run at the same time: etcd without fsync, RaftKV interpreted, RaftKV compiled.

    make compiled && python tests/perf/side_by_side.py [--rounds 20]

Where a machine's speed changes from minute to minute, measuring one cluster after the other compares minutes. Here all
are up, and bursts of puts go to each in turn; a ratio is the median over the rounds' own ratios. Data and rings are on
tmpfs. All those processes share the caches, so that each figure is worse than that of one cluster alone. The last
cluster is like the second: how far its ratio is from that one is the noise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from clusters import Cluster, EtcdCluster, RaftKVCluster, end_as_interrupted
from debian import unpacked
from loader import run_plan
from raftkv_node.bench import loads
from stages import look_at_fresh, wait_for_rest

KEYS = 50_000
BURST = 1_000
TMPFS = Path("/dev/shm")
COMPILED = Path(__file__).parents[2] / "build" / "compiled"
KINDS = ("etcd, no fsync", "interpreted", "compiled", "interpreted, again")


def started(kind: str, stack: ExitStack) -> Cluster:
    """Five members of a kind, with keys."""
    os.environ.pop("PYTHONPATH", None)
    made: Cluster
    if kind.startswith("etcd"):
        binaries = unpacked(("etcd-server", "etcd-client"))
        made = EtcdCluster(5, binaries, TMPFS, ("--unsafe-no-fsync",))
    else:
        made = RaftKVCluster(5, TMPFS, TMPFS)
    if kind == "compiled":
        os.environ["PYTHONPATH"] = str(COMPILED)
    cluster = stack.enter_context(made)
    os.environ.pop("PYTHONPATH", None)
    look_at_fresh(cluster)
    target = cluster.target(leader_only=True)
    run_plan(target, loads.put(), in_flight=1000, requests=KEYS, existing_keys=0, new_per_mille=1000)
    run_plan(target, loads.put(), in_flight=1, requests=2 * BURST, existing_keys=KEYS)
    return cluster


def burst(cluster: Cluster, seed: int) -> tuple[float, float]:
    """Mean latency of a put, and processor time of all members for it, in microseconds."""
    before = sum(member.cpu_seconds() for member in cluster.members)
    target = cluster.target(leader_only=True)
    result = run_plan(
        target, loads.put(), in_flight=1, requests=BURST, existing_keys=KEYS, new_per_mille=500, seed=seed
    )
    return result.mean_us, (sum(member.cpu_seconds() for member in cluster.members) - before) / BURST * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    end_as_interrupted()
    if not any((COMPILED / "raftkv_node" / "raft").glob("core.*.so")):
        sys.exit("there is no compiled build: make compiled")
    with ExitStack() as stack:
        clusters = {kind: started(kind, stack) for kind in KINDS}
        for cluster in clusters.values():
            wait_for_rest(cluster)
        seen = [{kind: burst(cluster, seed) for kind, cluster in clusters.items()} for seed in range(rounds)]
    print("| | mean, us | CPU of all members, us | mean over interpreted | CPU over interpreted | mean over etcd |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind in KINDS:
        figures = [statistics.median(one[kind][figure] for one in seen) for figure in (0, 1)]
        ratios = [
            statistics.median(one[kind][figure] / one[base][figure] for one in seen)
            for base, figure in ((KINDS[1], 0), (KINDS[1], 1), (KINDS[0], 0))
        ]
        cells = [f"{one:,.0f}" for one in figures] + [f"{one:.2f}x" for one in ratios]
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
