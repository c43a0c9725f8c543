"""Fifteen members over three zones, of which five vote (M7 to M9, M12 to M14), as simulated production members.

The members begin as one voter and fourteen learners; the leader itself makes five voters of them, spread over the
zones, and standbys of the rest. Then a zone is lost for good, or comes and goes. All along, `MemberChecks` looks at
every step and every answer: no acknowledged write may be lost.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from raftkv_node.server.roles import CALM_FACTOR, Cause
from simulation_cluster import MemberWorld
from simulation_node import Timing
from simulation_setup import Faults, Setup
from simulation_story import CALM, StoryWorld

PROMOTE_AFTER_SECONDS = 2.0
UNITS_PER_SECOND = 100


def fifteen(faults: Faults = CALM, promote_after: float = PROMOTE_AFTER_SECONDS) -> Setup:
    return Setup(
        members=15,
        clients=3,
        duration=6000,
        faults=faults,
        timing=Timing(election_ticks=10, heartbeat_ticks=1),
        zones=3,
        max_voters=5,
        promote_after=promote_after,
    )


class LargeWorld(StoryWorld):
    """What the stories ask."""

    def formed(self) -> bool:
        """Five voters, and standbys only beside them."""
        if not self.settled():
            return False
        configuration = self.configuration()
        return len(configuration.voters) == 5 and not configuration.learners

    def living_voters(self) -> bool:
        return self.formed() and not self.configuration().voters & self.gone

    def acknowledged_beyond(self, number: int) -> bool:
        return self.acknowledged >= number


class LostZone(LargeWorld):
    """The zone of the leader, with one vote or two, is lost for good."""

    votes_lost = 0

    def story(self) -> None:
        self.wait_for("five voters over three zones", self.formed)
        assert self.spread() == [2, 2, 1]
        zone = self.zone_of(self.leaders()[0].id)
        self.votes_lost = len(self.configuration().voters & set(self.in_zone(zone)))
        before = self.acknowledged
        self.lose_zone(zone, for_good=True)
        self.wait_for("five voters among the living", self.living_voters)
        assert self.spread() == [3, 2]
        after = self.acknowledged
        assert after > before, "nothing was served while the votes moved"
        self.wait_for("more writes", lambda: self.acknowledged_beyond(after + 20))


class ZoneReturns(LargeWorld):
    """A zone is lost for a while; when it is back the votes are spread over the zones again, once all is calm."""

    def story(self) -> None:
        self.wait_for("five voters over three zones", self.formed)
        zone = self.zone_of(self.leaders()[0].id)
        self.lose_zone(zone, for_good=True)
        self.wait_for("five voters among the living", self.living_voters)
        assert self.spread() == [3, 2]
        self.gone.clear()
        for member in self.in_zone(zone):
            self.start(self.nodes[member])
        began = self.now
        self.wait_for("votes in all zones", lambda: self.formed() and self.spread() == [2, 2, 1])
        waited = (self.now - began) / UNITS_PER_SECOND
        calm = CALM_FACTOR * self.setup.promote_after
        assert waited >= 0.6 * calm, "not before all was calm (clocks run unevenly)"
        voters = self.configuration().voters
        self.run_until(self.now + round(1.5 * calm * UNITS_PER_SECOND))
        assert self.configuration().voters == voters, "and then they stay"


class LostVoters(LargeWorld):
    """Voters die for good, one after the other, until only five of fifteen members are left."""

    def story(self) -> None:
        for left in range(14, 4, -1):
            self.wait_for("five living voters", self.living_voters)
            victim = self.rng.choice(sorted(self.configuration().voters))
            self.gone.add(victim)
            self.cut_power([victim])
            assert len(self.nodes.keys() - self.gone) == left
        self.wait_for("the last five vote", self.living_voters)


def promotions(world: MemberWorld) -> int:
    return world.checks.counts["automatic promotions"]


@pytest.mark.parametrize("seed", range(2))
def test_m7_m8_m14_a_lost_zone_is_replaced_by_standbys(seed: int) -> None:
    world = LostZone(seed, fifteen())
    world.run()
    assert world.votes_lost in (1, 2)
    assert promotions(world) > world.votes_lost, "one change at least made five voters, and one for each vote lost"


def test_m14_votes_return_to_a_zone_that_has_returned() -> None:
    world = ZoneReturns(1, fifteen(promote_after=1.0)).run()
    causes = [cause for node in world.nodes.values() for cause in world.member(node).member.changes.promotions]
    assert Cause.SPREAD in causes


def test_m7_m9_voters_are_replaced_until_the_last_five_members() -> None:
    assert promotions(LostVoters(2, fifteen(promote_after=1.0)).run()) >= 11


@pytest.mark.parametrize("seed", range(2))
def test_large_clusters_survive_everything_at_once(seed: int) -> None:
    """Zones come and go, processes die, the network loses and splits, members are added and removed."""
    faults = Faults(
        lose=0.02, double=0.02, late=0.03, crash=0.0002, partition=0.1, sleep=0.1, change=0.2, transfer=0.1,
        power=0.5, zone_loss=0.2, restart=400, fault_every=250,
    )  # fmt: skip
    setup = fifteen(faults, promote_after=1.0)
    world = MemberWorld(seed, replace(setup, slow_disks=bool(seed % 2), duration=3000)).run()
    assert world.acknowledged
    assert world.zone_losses
    assert promotions(world) > 1
