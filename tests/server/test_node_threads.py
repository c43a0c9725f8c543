"""The kernel knows the threads by their names, and what only catches up comes after what clients wait for."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import NodeProcess, free_ports, wait_until
from raftkv_node.threads import NICE


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    client, peer = free_ports(2)
    made = NodeProcess("n1", tmp_path / "n1", client, peer)
    made.arguments = ["--initial-cluster", f"n1={made.peer_url}", "--minimum-durability", "process"]
    yield made
    made.kill()


def niceness(node: NodeProcess) -> dict[str, set[int]]:
    """Of all threads, by the names that the kernel has for them."""
    assert node.process is not None
    found: dict[str, set[int]] = defaultdict(set)
    for one in Path(f"/proc/{node.process.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # one that has ended meanwhile
            before, after = (one / "stat").read_text().rsplit(") ", 1)
            found[before.split("(", 1)[1]].add(int(after.split()[16]))
    return found


@pytest.mark.parametrize(
    ("ring", "nicer", "flusher"),
    [(True, {"adr-drain", "store-backend"}, set()), (False, {"store-backend"}, {"adr-flush"})],
)
def test_drain_and_commits_are_nicer_than_the_turn_and_the_flusher_is_not(
    node: NodeProcess, tmp_path: Path, ring: bool, nicer: set[str], flusher: set[str]
) -> None:
    """With a ring both only catch up. In disk mode the log's thread is what an acknowledgement waits for."""
    base = os.getpriority(os.PRIO_PROCESS, 0)
    if base + NICE > 19:
        pytest.skip("these tests run at a high nice value themselves")
    if ring:
        node.arguments += ["--adr-path", str(tmp_path)]
    node.start()
    wait_until("healthy member", node.healthy)
    wait_until(
        "nicer threads", lambda: {name for name, nice in niceness(node).items() if nice == {base + NICE}} == nicer
    )
    others = {name: nice for name, nice in niceness(node).items() if name not in nicer}
    assert all(nice == {base} for nice in others.values())
    assert others.keys() >= {"raftkv", "engine-io", "worker-0"} | flusher
