"""Clusters on hardware that fails, with an operator that replaces what is lost: the world of the long soaks.

To what `MemberWorld` does to its members, `HardWorld` adds rings that are lost for ever, pods that come up on a host
without their ring, bytes that rot, disks that fail and stall, and clocks that jump. What must follow is known
beforehand, without the decision table:

- A member whose manifest said *dirty* when it died does not come up without its ring (NO_VOTE_TWICE_AFTER_RING_LOSS);
  it refuses as absent, and comes up on the host where the ring is.
- A member ends by an error of its disk only if that very error is the cause, and only by one that it may end by
  (`simulation_faulty_disk`).
- A member whose bytes rotted refuses as corrupt, or the bytes did not matter: then it has all that was durable
  (ACKNOWLEDGED_IMPLIES_DURABLE), as every start is checked.
- No other start is ever refused.

What refused for good is gone; the operator adds a new member under a new id, the leader gives it the vote of the one
that is silent, and the old id is removed. Only as many are lost as every configuration in force can bear.
"""

from __future__ import annotations

import random
from typing import Any

from adr_invariants import NO_VOTE_TWICE_AFTER_RING_LOSS
from raftkv_node.adr import Refusal, Refused
from raftkv_node.adr.errors import LogError
from raftkv_node.raft import Configuration, ConfigurationChange
from raftkv_node.server.member import Failure
from simulation_checks import Violation
from simulation_cluster import MemberWorld
from simulation_hardware import HardNode, Loss
from simulation_node import Timing
from simulation_setup import Faults, Setup

REPAIR_EVERY = 80
ROT_IS_TOLD_AS = {
    "records": (Refusal.CORRUPT,),
    "ring": (Refusal.CORRUPT,),
    "header": (Refusal.CORRUPT, Refusal.ABSENT),
}
"""How a member must refuse when it does not come up. A ring without a header (the other copy was torn) is none."""


class HardWorld(MemberWorld):
    """See the module's text."""

    def __init__(self, seed: int, setup: Setup, **classes: Any) -> None:
        super().__init__(seed, setup, **{"node_class": HardNode, **classes})

    def hard(self, node: Any) -> HardNode:
        assert isinstance(node, HardNode)
        return node

    def _run(self) -> None:
        self.at(REPAIR_EVERY, self.repair)
        super()._run()

    # -- starts and ends -----------------------------------------------------------------------------------------------

    def start(self, node: Any) -> None:
        hard = self.hard(node)
        ringless = not node.up and node.id not in self.gone and hard.loss is Loss.RING
        if ringless:
            hard.was_dirty = hard.needs_its_ring
        super().start(node)
        if ringless and not hard.was_dirty:
            # It was not refused: it needed none, and makes, or has half made, a new one.
            self.checks.count("started without a ring that was not needed")
            hard.loss = Loss.NOTHING

    def guard(self, node: Any, action: Any, *arguments: Any) -> None:
        """A refusal that had to come is none of the product's faults; one that had not is."""
        hard = self.hard(node)
        try:
            super().guard(node, action, *arguments)
        except Violation as violation:
            cause = violation.__cause__
            if isinstance(cause, Refused) and not hard.up:
                self.refused(hard, cause, violation)
            else:
                self.ended(hard, violation)
        else:
            if hard.up and hard.loss is not Loss.NOTHING:
                self.came_up(hard)
            if hard.up:
                hard.home = hard.host

    def ended(self, node: HardNode, violation: Violation) -> None:
        """It has ended by itself: one of its disk's errors is the cause, and is one that it may end by."""
        cause = violation.__cause__
        error = node.errors.tied(cause)
        if error is None or not isinstance(cause, LogError | Failure | OSError):
            raise violation
        detail = f"{node.id} ends by what it must survive: {error}: {cause}"
        self.checks.demand("DISK_ERROR_SURVIVED", node.errors.may_end(error), detail)
        self.note(f"{node.id} ends after a disk error: {cause}")
        self.checks.count(f"ended by a disk error ({error.phase.name.lower()})")
        self.crash(node, self.rng.randint(20, 200))

    def came_up(self, node: HardNode) -> None:
        """It runs: then it had all that it needs, and what rotted did not matter. The opening has read all of it."""
        if node.loss is Loss.RING:
            self.checks.demand(
                NO_VOTE_TWICE_AFTER_RING_LOSS,
                not node.was_dirty,
                f"{node.id} came up without the ring that it had promised on",
            )
        elif node.loss is Loss.OLD_DISK:
            raise Violation("M5_OLD_DISK", f"{node.id} came up with an old disk beside its ring")
        else:
            self.checks.count("came up with rot that did not matter")
            node.loss = Loss.NOTHING

    def refused(self, node: HardNode, refusal: Refused, violation: Violation) -> None:
        kind = refusal.kind
        if node.loss is Loss.RING and kind is Refusal.ABSENT and node.was_dirty:
            self.lost(node, "rings lost")
        elif node.loss is Loss.ROT and kind in ROT_IS_TOLD_AS[node.rotten]:
            self.lost(node, "corrupt records refused" if node.rotten == "records" else "corrupt rings refused")
        elif node.loss is Loss.OLD_DISK and kind is Refusal.MISMATCH:
            self.lost(node, "restored disks refused")
        elif node.host != node.home and kind is Refusal.ABSENT and node.loss is not Loss.RING:
            self.checks.count("moved pods refused")
            node.move(node.home)
            self.crash(node)
        else:
            raise violation

    def lost(self, node: HardNode, what: str) -> None:
        """Gone for ever: the operator is to replace it."""
        self.checks.count(what)
        self.note(f"{node.id} is lost: {what}")
        node.crash()
        self.gone.add(node.id)

    # -- faults --------------------------------------------------------------------------------------------------------

    def faults(self) -> None:
        faults = self.setup.faults
        for kind in ("ring_loss", "rot", "restore", "move", "stop", "stall", "full", "broken", "clock"):
            if self.strikes(kind, getattr(faults, kind)):
                getattr(self, f"fault_{kind}")(self.hard(self.nodes[self.rng.choice(sorted(self.nodes))]))
        if self.setup.zones and self.strikes("zone_gone", faults.zone_gone):
            self.fault_zone_gone()
        super().faults()

    def fault_zone_gone(self) -> None:
        zone = self.zone_of(self.rng.choice(sorted(self.nodes)))
        if "zones lost for good" not in self.checks.counts and self.bears_the_loss_of(*self.in_zone(zone)):
            self.checks.count("zones lost for good")
            self.lose_zone(zone, for_good=True)

    def fault_ring_loss(self, node: HardNode) -> None:
        if not node.disk_mode and self.bears_the_loss_of(node.id):
            self.end(node)
            node.lose_ring()
            self.checks.ringless.add(node.id)
            self.note(f"{node.id} loses its ring")

    def fault_rot(self, node: HardNode) -> None:
        if self.bears_the_loss_of(node.id):
            self.end(node)
            if node.rot():
                self.note(f"{node.id} has a bit that flipped")

    def fault_restore(self, node: HardNode) -> None:
        """A snapshot is taken of a member's volume; or the volume is restored from it."""
        if node.disk_mode or node.id in self.gone or node.host != node.home or node.loss is not Loss.NOTHING:
            return
        if node.copy is None:
            stops = node.clean_stops
            self.end(node, well=True)
            if node.clean_stops > stops:
                node.copy_disk(self.folder / f"copy-{node.id}")
        elif node.up and node.went_on and self.bears_the_loss_of(node.id):
            self.end(node)
            node.restore_disk()
            self.note(f"{node.id} gets an old disk back")
            self.checks.count("disks restored")

    def fault_move(self, node: HardNode) -> None:
        if node.id in self.gone or node.loss is not Loss.NOTHING or node.disk_mode:
            return
        self.end(node, well=self.rng.random() < 0.5)
        node.move("b" if node.host == "a" else "a")
        self.note(f"{node.id} moves to host {node.host}")

    def fault_stop(self, node: HardNode) -> None:
        self.end(node, well=True)

    def fault_stall(self, node: HardNode) -> None:
        node.stalled_until = self.now + self.rng.randint(100, 800)
        self.checks.count("disk stalls")

    def fault_full(self, node: HardNode) -> None:
        node.full_until = self.now + self.rng.randint(50, 400)
        self.note(f"{node.id} has no room on its disk until {node.full_until}")
        self.checks.count("full disks")

    def fault_broken(self, node: HardNode) -> None:
        node.broken_until = self.now + self.rng.randint(10, 60)
        self.note(f"the disk of {node.id} fails until {node.broken_until}")
        self.checks.count("broken disks")

    def fault_clock(self, node: HardNode) -> None:
        # Forward only: members look at the monotonic clock alone, which no kernel sets back.
        node.clock_offset += self.rng.choice((0.5, 5.0, 60.0, 3600.0))
        self.checks.count("clock jumps")

    def end(self, node: HardNode, well: bool = False) -> None:
        """The process ends, and starts again some time later."""
        if node.id in self.gone:
            return
        if well and node.up and self.asleep.get(node.id, 0) <= self.now:
            stops = node.clean_stops
            self.guard(node, node.stop_well)
            if node.clean_stops > stops:
                self.checks.count("stopped well")
                self.at(self.rng.randint(5, self.setup.faults.restart), self.start, node)
        elif node.up:
            self.crash(node)

    def bears_the_loss_of(self, *members: int) -> bool:
        """Whether every configuration that any member knows keeps a quorum of members that are whole."""
        broken = self.gone | {n.id for n in map(self.hard, self.nodes.values()) if n.loss is not Loss.NOTHING}
        if broken.issuperset(members):
            return False
        broken |= set(members)
        for node in self.nodes.values():
            if node.id in self.gone or not hasattr(node, "member"):
                continue
            for _, configuration in node.raft._configurations:
                for voters in (configuration.voters, configuration.voters_outgoing):
                    if voters and len(voters - broken) < len(voters) // 2 + 1:
                        return False
        return True

    # -- the operator --------------------------------------------------------------------------------------------------

    def repair(self) -> None:
        """Add a member for each that is gone; remove those that are gone and have no vote any more."""
        self.at(REPAIR_EVERY, self.repair)
        for node in self.leaders():
            index, configuration = node.raft.committed_configuration
            if node.raft.configuration_index != index or configuration.joint:
                continue
            change = self.repair_of(configuration)
            if change is not None:
                self.act(node, self.change_now, node, change, index)

    def repair_of(self, configuration: Configuration) -> ConfigurationChange | None:
        living = configuration.ids - self.gone
        if len(living) < self.setup.members:
            member, self.next_id = self.next_id, self.next_id + 1
            self.add_node(member, Configuration())
            return ConfigurationChange(add_learners={member: self.attributes_of(member)})
        useless = sorted((configuration.ids & self.gone) - configuration.voters)
        return ConfigurationChange(remove=frozenset(useless[:1])) if useless else None

    def settled(self) -> bool:
        """In the end what is gone has been replaced, too: nobody's vote is with the dead."""
        if not super().settled():
            return False
        return not self.leaders()[0].raft.configuration.voters & self.gone


# -- shapes of runs ----------------------------------------------------------------------------------------------------


def losses(rng: random.Random) -> Setup:
    """Rings are lost and bytes rot; the leader gives votes away, the operator replaces; the power fails everywhere."""
    faults = Faults(
        lose=rng.choice((0.0, 0.03)), double=0.0, late=rng.choice((0.0, 0.05)), partition=rng.choice((0.0, 0.2)),
        crash=0.0015, sleep=0.05, change=0.0, transfer=0.05, power=0.6, blackout=0.25, restart=80, fault_every=60,
        ring_loss=0.35, rot=0.15, restore=0.15, move=0.1, stop=0.1, stall=0.1, clock=0.1,
        disk_error=rng.choice((0.0, 0.01)), one_way=rng.choice((0.0, 0.2)), full=0.03,
    )  # fmt: skip
    return Setup(
        rng.choice((5, 5, 6, 7)), False, faults=faults, clients=4, duration=4000, promote_after=2.0,
        max_voters=rng.choice((3, 5)), drain=0.15,
    )  # fmt: skip


def failing_disks(rng: random.Random) -> Setup:
    """Disks fail and stall under load, with and without a ring."""
    faults = Faults(
        lose=0.0, double=rng.choice((0.0, 0.1)), late=0.0, partition=0.1, crash=0.001, sleep=0.0, change=0.0, power=0.6,
        blackout=0.15, restart=60, fault_every=60, stop=0.1, stall=0.2, disk_error=0.02, full=0.2, broken=0.2,
        fragile=20.0,
    )  # fmt: skip
    return Setup(
        rng.choice((1, 3, 3)), rng.random() < 0.4, faults=faults, clients=10, duration=2500, flush=80, drain=0.3
    )


def zones(rng: random.Random) -> Setup:
    """Fifteen members over three zones, few of which vote: zones lose their power, and one is lost for good."""
    faults = Faults(
        lose=rng.choice((0.0, 0.02)), double=0.02, late=0.03, crash=0.0003, partition=0.15, one_way=0.15, sleep=0.1,
        change=0.0, transfer=0.1, power=0.6, blackout=0.1, restart=120, fault_every=90, zone_loss=0.25, zone_gone=0.15,
        ring_loss=0.1, rot=0.03, move=0.05, stop=0.05, stall=0.05, full=0.02, clock=0.05, disk_error=0.002,
    )  # fmt: skip
    return Setup(
        15, False, faults=faults, clients=3, duration=2500, zones=3, promote_after=1.0, drain=0.15,
        max_voters=rng.choice((5, 5, 7)), timing=Timing(election_ticks=10, heartbeat_ticks=1),
    )  # fmt: skip
