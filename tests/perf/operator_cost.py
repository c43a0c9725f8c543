"""What the operator itself costs: with 1, 50 and 200 clusters, at rest and for one edit; and a first cluster's time.

The playground's API server and controllers and the operator's own process are real. Nodes and members are stand-ins
(``stand_in.py``): pods are reported ready without a process, and the administration API is answered without a member
behind it. Requests are counted by the API server, by who sends them: kopf's own are among them. Full reads, every ten
minutes, are rarer than a measurement is long, and computed. After that, real nodes: from ``kubectl apply`` to Available
for five members (``first_cluster.py``).

    make bench-operator                                  CLUSTERS=200, REST=125 (seconds), MEMBERS=3, STARTS=5
    python tests/perf/operator_cost.py --clusters 20 --rest 30 --starts 0

The results go to build/bench/operator.json, too.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from clusters import process_resident_bytes
from first_cluster import CLUSTERS, starts
from first_cluster import report as report_starts
from kube import playground
from machine import cpu_seconds
from raftkv_operator.loop import REPAIR_SECONDS
from raftkv_playground.client import ApiClient, Informer
from raftkv_playground.objects import condition_true
from stand_in import Fleet

ROOT: Final = Path(__file__).parents[2]
NAMESPACE: Final = "default"
OPERATOR: Final = "system:serviceaccount:raftkv-system:raftkv-operator"
FLEET_NODES: Final = 6
READY_SECONDS: Final = 600.0
EDIT_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 15.0
"""After the last cluster is ready: kopf ends what it keeps for an object 5 s after the object's last event."""
EDITS: Final = 30
AT_ONCE: Final = 16
"""Clusters that are created at a time."""
POLL_SECONDS: Final = 0.25
FLAT: Final = 1.25
"""A cluster may cost so much more among many than among few."""
HOUR: Final = 3600.0
FULL_READ_REQUESTS: Final = 8
FULL_READ_SECONDS: Final = REPAIR_SECONDS * 0.875
"""A cluster at rest is read anew in 0.75 to 1.0 of that time, longer than a measurement can be: those requests are
computed, and held by `test_an_hour_of_rest_costs_a_cluster_few_requests`."""
_LINE: Final = re.compile(r'^\w+\{user="([^"]*)",verb="([^"]*)",resource="([^"]*)"\} (\d+)$')

Requests = Counter[tuple[str, str]]
"""Requests by verb and resource."""


@dataclass
class Size:
    """The figures with so many clusters."""

    clusters: int
    edit_seen_seconds: list[float]
    """From an edit to ``status.observedGeneration``."""
    edit_done_seconds: list[float]
    """From an edit to ``Ready`` for its generation."""
    requests_per_edit: float
    requests_per_hour: dict[str, float]
    """At rest, by verb and resource."""
    cpu_seconds_per_hour: float
    memory_bytes: int

    @property
    def all_requests_per_hour(self) -> float:
        """At rest, of all kinds."""
        return sum(self.requests_per_hour.values())


class Operator:
    """The operator's process, from outside."""

    def __init__(self, client: ApiClient, state: Path) -> None:
        self._client = client
        self.pid = int((state / "pids" / "operator").read_text())

    async def requests(self) -> Requests:
        """What the API server has counted so far."""
        text = await self._client.request("GET", "/metrics")
        found: Requests = Counter()
        for line in text.splitlines():
            match = _LINE.match(line)
            if match and match[1] == OPERATOR:
                found[match[2], match[3] or "(discovery)"] = int(match[4])
        return found

    def cpu_seconds(self) -> float:
        """Processor time so far, in user and system mode."""
        return cpu_seconds(self.pid)

    def memory_bytes(self) -> int:
        """Resident memory."""
        return process_resident_bytes(self.pid)


class Bench:
    """A playground, its operator, and the clusters so far. Made by ``bench``."""

    def __init__(self, client: ApiClient, operator: Operator, members: int) -> None:
        self.client = client
        self.operator = operator
        self.clusters = 0
        self._members = members
        self._changed = asyncio.Event()
        self._informer = Informer(client, CLUSTERS, lambda *_: self._changed.set())
        self._informer.start()

    async def close(self) -> None:
        """Stops watching."""
        await self._informer.stop()

    async def grow(self, count: int) -> None:
        """Creates clusters up to so many, some at a time, and waits until all are ready (or for a TimeoutError)."""
        async with asyncio.timeout(READY_SECONDS):
            window = asyncio.Semaphore(AT_ONCE)
            await asyncio.gather(*(self._create(number, window) for number in range(self.clusters, count)))
        self.clusters = count

    async def edit(self, number: int, seconds: int) -> tuple[float, float]:
        """Changes a setting of one cluster; seconds until the status speaks of it, and until it is carried out."""
        name, began = f"c{number}", time.monotonic()
        patch = {"spec": {"consensus": {"promoteAfter": f"{seconds}s"}}}
        generation = (await self.client.patch(CLUSTERS, name, NAMESPACE, patch))["metadata"]["generation"]
        async with asyncio.timeout(EDIT_SECONDS):
            await self._until(lambda: self._observed(number) >= generation)
            seen = time.monotonic()
            await self._until(lambda: self._observed(number) >= generation and self._ready(number))
        return seen - began, time.monotonic() - began

    def _observed(self, number: int) -> int:
        item = self._informer.get(f"c{number}", NAMESPACE) or {}
        return int((item.get("status") or {}).get("observedGeneration", 0))

    def _ready(self, number: int) -> bool:
        item = self._informer.get(f"c{number}", NAMESPACE)
        return (
            item is not None
            and condition_true(item, "Ready")
            and self._observed(number) == item["metadata"]["generation"]
        )

    async def _create(self, number: int, window: asyncio.Semaphore) -> None:
        spec = {"replicas": self._members, "consensus": {"promoteAfter": "30s"}}
        body = {"metadata": {"name": f"c{number}"}, "spec": spec}
        async with window:
            await self.client.create(CLUSTERS, body, NAMESPACE)
            while not self._ready(number):
                await asyncio.sleep(POLL_SECONDS)

    async def _until(self, true: Any) -> None:
        while not true():
            self._changed.clear()
            await self._changed.wait()


@asynccontextmanager
async def bench(folder: Path, members: int) -> AsyncIterator[Bench]:
    """Everything that runs; RuntimeError at the end if the stand-ins had failures."""
    with playground(folder, "--no-kubelet", "--ready-file", str(folder / "ready")) as kubectl:
        while not (folder / "ready").exists():
            await asyncio.sleep(0.1)
        async with ApiClient.from_kubeconfig(kubectl.kubeconfig) as client, Fleet(client, FLEET_NODES) as fleet:
            found = Bench(client, Operator(client, folder / "state"), members)
            try:
                yield found
            finally:
                await found.close()
            if fleet.failures:
                raise RuntimeError("; ".join(fleet.failures[:5]))


async def at_rest(found: Bench, seconds: float) -> tuple[Requests, float]:
    """What the operator asks and how much processor time it takes, within so many seconds in which nothing happens."""
    requests, cpu = await found.operator.requests(), found.operator.cpu_seconds()
    await asyncio.sleep(seconds)
    return await found.operator.requests() - requests, found.operator.cpu_seconds() - cpu


async def edits(found: Bench, count: int) -> tuple[list[tuple[float, float]], Requests, float]:
    """One edit after the other, spread over the clusters: seconds of each, requests of all, and seconds of all."""
    requests, began, taken = await found.operator.requests(), time.monotonic(), []
    for i in range(count):
        taken.append(await found.edit(i * max(1, found.clusters // count) % found.clusters, 31 + i))
    return taken, await found.operator.requests() - requests, time.monotonic() - began


async def measure(found: Bench, clusters: int, rest_seconds: float) -> Size:
    """The figures with so many clusters."""
    began = time.monotonic()
    await found.grow(clusters)
    print(f"{clusters} clusters are ready ({time.monotonic() - began:.0f} s); at rest ...", file=sys.stderr, flush=True)
    await asyncio.sleep(SETTLE_SECONDS)
    requests, cpu = await at_rest(found, rest_seconds)
    memory = found.operator.memory_bytes()
    taken, asked, seconds = await edits(found, EDITS)
    meanwhile = requests.total() / rest_seconds * seconds
    return Size(
        clusters=clusters,
        edit_seen_seconds=[seen for seen, _ in taken],
        edit_done_seconds=[done for _, done in taken],
        requests_per_edit=(asked.total() - meanwhile) / EDITS,
        requests_per_hour={" ".join(k): n / rest_seconds * HOUR for k, n in sorted(requests.items())},
        cpu_seconds_per_hour=cpu / rest_seconds * HOUR,
        memory_bytes=memory,
    )


def share(values: Sequence[float], part: float) -> float:
    """A percentile, by the nearest rank."""
    found = sorted(values)
    return found[min(len(found) - 1, int(len(found) * part))]


def marginal(sizes: Sequence[Size], figure: str) -> list[float]:
    """What each further cluster adds to a figure, between one size and the next."""
    steps = itertools.pairwise(sizes)
    return [(getattr(b, figure) - getattr(a, figure)) / (b.clusters - a.clusters) for a, b in steps]


def verdict(sizes: Sequence[Size], figure: str, noise: float) -> str:
    """Whether a cluster costs the same among many as among few; ``noise`` is what cannot be told from nothing."""
    if len(sizes) < 3:
        return "-"
    few, many = marginal(sizes, figure)[-2:]
    ratio = max(many, noise) / max(few, noise)
    return f"{ratio:.2f}x, {'flat' if ratio <= FLAT else 'GROWS'}"


def table(sizes: Sequence[Size]) -> str:
    """All figures, a column for each size."""
    rows: list[tuple[str, list[str], str]] = []
    for name, figure in (("status speaks of it", "edit_seen_seconds"), ("carried out", "edit_done_seconds")):
        for label, part in (("p50", 0.5), ("p99", 0.99)):
            values = [f"{share(getattr(s, figure), part) * 1000:.0f}" for s in sizes]
            rows.append((f"one edit, {name}, {label}, ms", values, "-"))
    rows.append(("requests per edit", [f"{s.requests_per_edit:.1f}" for s in sizes], "-"))
    for kind in sorted({kind for s in sizes for kind in s.requests_per_hour}):
        rows.append((f"at rest per hour: {kind}", [f"{s.requests_per_hour.get(kind, 0):.0f}" for s in sizes], "-"))
    full = [f"{s.clusters * FULL_READ_REQUESTS * HOUR / FULL_READ_SECONDS:.0f}" for s in sizes]
    rows.append(("at rest per hour: full reads (computed, see above)", full, "-"))
    for label, figure, scale, noise in (
        ("at rest per hour: all requests seen", "all_requests_per_hour", 1, 5.0),
        ("at rest per hour: CPU seconds", "cpu_seconds_per_hour", 1, 0.2),
        ("resident memory, MiB", "memory_bytes", 1 << 20, 32 << 10),
    ):
        values = [f"{getattr(s, figure) / scale:.1f}" for s in sizes]
        rows.append((label, values, verdict(sizes, figure, noise)))
        each = [f"{value / scale:.2f}" for value in marginal(sizes, figure)]
        rows.append((f"{label}, each further cluster", ["-", *each], "-"))
    head = ["figure", *(f"{s.clusters} clusters" for s in sizes), "a cluster among many over one among few"]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join([*lines, *("| " + " | ".join([name, *values, word]) + " |" for name, values, word in rows)])


def sizes_of(most: int) -> list[int]:
    """1, a quarter, all."""
    return sorted({1, max(1, most // 4), most})


async def run(options: argparse.Namespace, folder: Path) -> list[Size]:
    """All sizes, the smallest first, on one operator."""
    async with bench(folder, options.members) as found:
        sizes = []
        for count in sizes_of(options.clusters):
            sizes.append(await measure(found, count, options.rest))
            print(table(sizes), file=sys.stderr, flush=True)
        return sizes


def main() -> int:
    """0 if all is flat."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clusters", type=int, default=200, help="the most of them; 0 leaves this part out")
    parser.add_argument("--members", type=int, default=3, help="of each cluster")
    parser.add_argument("--rest", type=float, default=125.0, help="seconds of rest that are measured")
    parser.add_argument("--starts", type=int, default=5, help="how often a cluster of real nodes is started")
    options = parser.parse_args()
    result: dict[str, Any] = {"options": vars(options), "load": os.getloadavg()}
    text = []
    if options.clusters:
        with tempfile.TemporaryDirectory() as folder:
            sizes = asyncio.run(run(options, Path(folder)))
        result["sizes"] = [asdict(size) for size in sizes]
        text.append(table(sizes))
    if options.starts:
        found = starts(options.starts)
        result["starts"] = found
        text.append(report_starts(found))
    (ROOT / "build" / "bench").mkdir(parents=True, exist_ok=True)
    (ROOT / "build" / "bench" / "operator.json").write_text(json.dumps(result, indent=1))
    print("\n\n".join(text))
    return 1 if "GROWS" in "".join(text) else 0


if __name__ == "__main__":
    sys.exit(main())
