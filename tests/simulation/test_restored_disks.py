"""M5 in whole clusters: one member is stopped clean, goes on, and later its disk of that day is restored.

Whatever the network does meanwhile, the restored disk must end as *mismatch* before it votes or acknowledges anything:
no vote twice, no acknowledged write lost, which the world's checks would tell of. Patience is off, so that the rule
needs no assumption about time (docs/decisions/0005-openings.md). The planted bug, a clean old disk that votes again, is
found.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from raftkv_node import adr
from raftkv_node.adr import Refusal, Refused
from raftkv_node.server import hello as hello_module
from raftkv_node.server import introductions as introductions_module
from raftkv_node.server.gate import Gate
from simulation_checks import Violation
from simulation_cluster import MemberWorld
from simulation_member import MemberNode
from simulation_setup import Faults, Setup
from simulation_truth import Durable, Truth

SEEDS = range(6)
PLANTED_SEEDS = range(20)
APART = 600
"""Units between the day of the copy and its return."""


class Believing(Truth):
    """The truth about a log whose disk was restored: whatever is found."""

    def __init__(self, former: Truth) -> None:
        super().__init__()
        self._former = former

    def holds(self, index: int, term: int) -> bool:
        """What was durable until the disk was lost counts for what was answered: no quorum outlives its disks."""
        return super().holds(index, term) or self._former.holds(index, term)

    def recovered(self, found: adr.Recovered) -> None:
        entries = [(one.term, one.payload) for one in found.entries]
        membership = (0, 0, b"") if found.configuration is None else tuple(found.configuration)
        self.durable = Durable(tuple(found.hard_state), entries, membership)
        self.pending.clear()


class RestorableNode(MemberNode):
    """A member whose disk can be copied after a clean stop, and put back."""

    restored = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._config = dataclasses.replace(self._config, newest_disk_patience=0.0)

    def stop(self) -> None:
        """A clean end, and a copy of the disk."""
        self.member.close(clean=True)
        self._open = []
        shutil.copytree(self.place.folder / "data", self.place.folder / "copy")

    def restore(self) -> None:
        """The copy takes the disk's place; the process does not run."""
        shutil.rmtree(self.place.folder / "data")
        (self.place.folder / "copy").rename(self.place.folder / "data")
        self.place.disk = self.place.all_certain()
        self.place._uncertain = {}
        self.log = Believing(self.log)
        self.committed_index = 0
        self.restored = True


class RestoringWorld(MemberWorld):
    """One member's disk is copied, and later restored."""

    def __init__(self, seed: int, planted: Mapping[Any, Mapping[str, Any]] = MappingProxyType({})) -> None:
        faults = Faults(
            lose=0.05, late=0.1, crash=0.0, partition=0.4, sleep=0.1, change=0.0, transfer=0.3, power=0.0,
            fault_every=80, restart=60,
        )  # fmt: skip
        setup = Setup(3, slow_disks=True, faults=faults, duration=4000, clients=8)
        super().__init__(seed, setup, node_class=RestorableNode, planted=planted)
        self.victim = 1 + seed % 3
        self.copied_at = 0
        self.found = False

    def released(self) -> int:
        return 0

    def fault(self) -> None:
        super().fault()
        node: Any = self.nodes[self.victim]
        if not self.faulty or not node.up or not node.member.may_vote or self.now < 300:
            return
        if not self.copied_at:
            self.copied_at = self.now
            self.note(f"{node.id} is stopped, and its disk copied")
            self.guard(node, node.stop)
            self.crash(node)
        elif not node.restored and self.now > self.copied_at + APART:
            self.note(f"{node.id} gets its old disk back")
            self.crash(node)
            node.restore()

    def guard(self, node: Any, action: Callable[..., None], *arguments: Any) -> None:
        try:
            super().guard(node, action, *arguments)
        except Violation as violation:
            cause = violation.__cause__
            if not (isinstance(cause, Refused) and cause.kind == Refusal.MISMATCH and node.restored):
                raise
            self.note(f"{node.id} is found out: {cause}")
            self.found = True
            self.gone.add(node.id)
            node.crash()


def run(world: RestoringWorld) -> RestoringWorld:
    try:
        world.run()
    except Violation as violation:
        story = "\n".join(world.trace[-30:])
        raise AssertionError(f"seed {world.seed}: {violation}\n{story}") from violation
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_m5_a_restored_clean_disk_is_found_out_before_it_promises_anything(seed: int) -> None:
    world = run(RestoringWorld(seed))
    node: Any = world.nodes[world.victim]
    assert node.restored, "the disk was never restored"
    assert world.found, "nobody found it out"
    assert world.acknowledged > 20


BLIND = {
    introductions_module: {"Gate": lambda own, ring_proof, patience: Gate(own, True, patience)},
    hello_module.Judge: {"refusal": lambda self, hello: None},
    introductions_module.Introductions: {"told": lambda self, by, data: None},
}
"""No gate, and peers that know nothing of openings."""


@pytest.mark.interpreted("plants a bug")
def test_m5_planted_a_clean_old_disk_voting_again_is_found() -> None:
    rules = set()
    for seed in PLANTED_SEEDS:
        try:
            RestoringWorld(seed, planted=BLIND).run()
        except Violation as violation:
            rules.add(violation.rule)
            break
    assert rules & {"M15_LOST_LOG", "VOTE_ONCE", "LEADER_COMPLETENESS", "ELECTION_SAFETY", "STATE_MACHINE_SAFETY"}, (
        rules
    )
