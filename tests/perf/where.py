"""Where a put's time goes: the stages that the leader itself measures, and the processor time of leader and followers.

    python tests/perf/where.py [--size 5] [--folder /dev/shm]

Five members with their rings on tmpfs; one client, then 100 and 1,000 puts in flight, on the same machine. What the
stages add up to and what the client sees differ by the way between the two: sockets, wake-ups, and waiting for a
processor.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from clusters import Member, RaftKVCluster, end_as_interrupted
from loader import run_plan
from raftkv_node.bench import loads
from raftkv_node.server.metrics import STAGES
from stages import look_at_fresh, wait_for_rest

KEYS = 50_000
_SAMPLE = re.compile(r'^raftkv_commit_duration_seconds_sum\{.*?stage="(\w+)".*?\} (\S+)$', flags=re.MULTILINE)
_TURNS = re.compile(r"^raftkv_turns_total (\S+)$", flags=re.MULTILINE)


@dataclass(frozen=True)
class Look:
    """What the members have counted so far."""

    stages: dict[str, float]
    cpu: dict[str, float]
    turns: dict[str, float]


def look(cluster: RaftKVCluster, leader: Member) -> Look:
    """Now. Reading the pages costs the members some processor time, which is not in it."""
    cpu = {member.name: member.cpu_seconds() for member in cluster.members}
    pages = {member.name: cluster.get(member, "/metrics").decode() for member in cluster.members}
    sums = {stage: float(value) for stage, value in _SAMPLE.findall(pages[leader.name])}
    turns = {name: float(_TURNS.findall(page)[0]) for name, page in pages.items()}
    return Look(sums, cpu, turns)


def measure(cluster: RaftKVCluster, in_flight: int, calls: int) -> None:
    """One load, and its rows."""
    leader = cluster.leader()
    before = look(cluster, leader)
    result = run_plan(
        cluster.target(leader_only=True),
        loads.put(),
        in_flight=in_flight,
        requests=calls,
        existing_keys=KEYS,
        new_per_mille=500,
        seed=in_flight,
    )
    after = look(cluster, leader)
    per_put = {stage: (after.stages[stage] - before.stages[stage]) / calls * 1e6 for stage in STAGES}
    used = {name: (after.cpu[name] - before.cpu[name]) / calls * 1e6 for name in after.cpu}
    turns = {name: (after.turns[name] - before.turns[name]) / calls for name in after.turns}
    followers = [name for name in used if name != leader.name]
    print(f"{in_flight} in flight: {result.per_second:,.0f} puts/s, mean {result.mean_us:,.0f} us at the client")
    print("  stages, us: " + ", ".join(f"{stage} {per_put[stage]:.0f}" for stage in STAGES), end="; ")
    print(f"together {sum(per_put.values()):.0f}")
    print(f"  leader:     {used[leader.name]:.0f} us of processor time and {turns[leader.name]:.2f} turns a put")
    mean_used = sum(used[name] for name in followers) / len(followers)
    mean_turns = sum(turns[name] for name in followers) / len(followers)
    print(f"  a follower: {mean_used:.0f} us and {mean_turns:.2f} turns; all: {sum(used.values()):.0f} us", flush=True)


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=5, help="members")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the rings are")
    options = parser.parse_args()
    end_as_interrupted()
    with RaftKVCluster(options.size, adr_folder=options.folder) as cluster:
        look_at_fresh(cluster)
        target = cluster.target(leader_only=True)
        run_plan(target, loads.put(), in_flight=1000, requests=KEYS, existing_keys=0, new_per_mille=1000)
        run_plan(target, loads.put(), in_flight=1, requests=1000, existing_keys=KEYS)
        wait_for_rest(cluster)  # one client alone: without what is left to do of the puts before
        for in_flight, calls in ((1, 5_000), (100, 60_000), (1000, 120_000)):
            measure(cluster, in_flight, calls)


if __name__ == "__main__":
    main()
