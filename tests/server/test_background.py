"""What only catches up comes after what clients wait for, in the kernel's eyes, too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import NodeProcess, free_ports, wait_until
from raftkv_node.background import NICE


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    client, peer = free_ports(2)
    made = NodeProcess("n1", tmp_path / "n1", client, peer)
    made.arguments = ["--initial-cluster", f"n1={made.peer_url}", "--minimum-durability", "process"]
    yield made
    made.kill()


def niceness(node: NodeProcess) -> list[int]:
    """Of each thread, by its id: the main thread's is the first."""
    assert node.process is not None
    threads = sorted(Path(f"/proc/{node.process.pid}/task").iterdir(), key=lambda one: int(one.name))
    found = []
    for one in threads:
        with contextlib.suppress(OSError):  # one that has ended meanwhile
            found.append(int((one / "stat").read_text().rsplit(") ", 1)[1].split()[16]))
    return found


@pytest.mark.parametrize(("ring", "nicer"), [(True, 2), (False, 1)])
def test_drain_and_commits_are_nicer_than_the_turn_and_the_flusher_is_not(
    node: NodeProcess, tmp_path: Path, ring: bool, nicer: int
) -> None:
    """With a ring both only catch up. In disk mode the log's thread is what an acknowledgement waits for."""
    base = os.getpriority(os.PRIO_PROCESS, 0)
    if base + NICE > 19:
        pytest.skip("these tests run at a high nice value themselves")
    if ring:
        node.arguments += ["--adr-path", str(tmp_path)]
    node.start()
    wait_until("healthy member", node.healthy)
    wait_until("nicer threads", lambda: niceness(node).count(base + NICE) == nicer)
    values = niceness(node)
    assert values[0] == base and values.count(base) == len(values) - nicer
