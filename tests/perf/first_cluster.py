"""From ``kubectl apply`` to Available: five members as real processes on a playground that runs already."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from kube import SAMPLE, Kubectl, playground, wait_until
from raftkv_playground.client import ApiClient, Resource
from raftkv_playground.objects import condition_true

CLUSTERS: Final = Resource("raftkv.dev", "v1alpha1", "raftkvclusters", "RaftKVCluster")
NODES: Final = 5
BAR_SECONDS: Final = 10.0
START_SECONDS: Final = 120.0
MILESTONES: Final = ("applied", "all objects made", "bootstrapped", "a leader", "all vote", "Available", "Ready")
_WARM_SECONDS: Final = 3.0


def reached(item: Mapping[str, Any], before: Mapping[str, float]) -> set[str]:
    """The milestones that a cluster's status has come to, as far as it tells them by itself."""
    status = item.get("status") or {}
    doing = (status.get("currentOperation") or {}).get("type", "")
    found = set()
    if doing in ("BindMember", "StampClaim", "Bootstrap") and len(status.get("members", ())) == NODES:
        found.add("all objects made")
    if doing == "Bootstrap":
        found.add("bootstrapped")
    if status.get("votingMembers"):
        found.add("a leader")
    if status.get("votingMembers") == NODES:
        found.add("all vote")
    found |= {word for word in ("Available", "Ready") if condition_true(item, word)}
    return found - before.keys()


async def follow(kubeconfig: Path, name: str, began: float) -> dict[str, float]:
    """Seconds from ``began`` to each milestone, until the cluster is ready."""
    times = {"applied": time.monotonic() - began}
    async with ApiClient.from_kubeconfig(kubeconfig) as client, asyncio.timeout(START_SECONDS):
        item = await client.get(CLUSTERS, name, "default")
        times |= dict.fromkeys(reached(item, times), times["applied"])
        async for event in client.watch(CLUSTERS, "default", resource_version=item["metadata"]["resourceVersion"]):
            if event.object["metadata"].get("name") != name:
                continue
            times |= dict.fromkeys(reached(event.object, times), time.monotonic() - began)
            if "Ready" in times:
                return times
    raise TimeoutError(f"{name} is not ready")


def start(kubectl: Kubectl, name: str, folder: Path) -> dict[str, float]:
    """Applies one cluster, follows it, and takes it away again."""
    body = yaml.safe_load(SAMPLE.read_text())
    body["metadata"]["name"], body["spec"]["replicas"] = name, NODES
    manifest = folder / f"{name}.yaml"
    manifest.write_text(yaml.safe_dump(body))
    began = time.monotonic()
    kubectl.run("apply", "-f", str(manifest))
    try:
        return asyncio.run(follow(kubectl.kubeconfig, name, began))
    finally:
        kubectl.run("delete", "rkv", name, "--timeout=120s")


def starts(count: int) -> list[dict[str, float]]:
    """So many clusters, one after the other; the first one meets an operator that has not done anything yet."""
    with tempfile.TemporaryDirectory() as found:
        folder = Path(found)
        with playground(folder, "--nodes", str(NODES), "--ready-file", str(folder / "ready")) as kubectl:
            wait_until("the playground", (folder / "ready").exists, START_SECONDS)
            log = folder / "state" / "logs" / "operator.log"
            wait_until("the operator", lambda: "looking after" in log.read_text(), START_SECONDS)
            time.sleep(_WARM_SECONDS)
            return [start(kubectl, f"first-{i}", folder) for i in range(count)]


def report(found: Sequence[Mapping[str, float]]) -> str:
    """A row for each milestone: when it is reached, the median and the spread."""
    lines = [f"| {NODES} real members, seconds from kubectl apply | median | spread |", "| --- | --- | --- |"]
    for name in MILESTONES:
        times = [one[name] for one in found if name in one]
        if times:
            lines.append(f"| {name} | {statistics.median(times):.1f} | {min(times):.1f}..{max(times):.1f} |")
    middle = statistics.median(one["Available"] for one in found)
    word = "met" if middle < BAR_SECONDS else "missed"
    return "\n".join([*lines, f"\nAvailable within {BAR_SECONDS:.0f} s: {word}"])


def main() -> None:
    """Three starts, as a table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(report(starts(count)))


if __name__ == "__main__":
    main()
