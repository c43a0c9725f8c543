"""Runs that a test leads through a story, in place of a seed's faults; every step is checked all the same."""

from __future__ import annotations

from collections import Counter

from raftkv_node.raft import Configuration
from simulation_cluster import MemberWorld
from simulation_setup import Faults

CALM = Faults(lose=0.0, double=0.0, late=0.0, crash=0.0, partition=0.0, sleep=0.0, change=0.0, transfer=0.0)
"""Nothing goes wrong but what the test does."""


class StoryWorld(MemberWorld):
    """A run of which `story` is the safety phase."""

    def _run(self) -> None:
        founding = self.founding()
        for member in range(1, self.setup.members + 1):
            self.add_node(member, founding)
        for client in range(self.setup.clients):
            self.at(self.rng.randint(1, 30), self.client, client)
        self.at(self.setup.faults.fault_every, self.fault)
        self.story()
        self.liveness()
        for node in self.nodes.values():
            if node.id not in self.gone:
                self.checks.state(self.member(node))
        self.check_history()

    def story(self) -> None:
        """What the test does."""

    def configuration(self) -> Configuration:
        """The committed configuration, as the leader has it."""
        return self.leaders()[0].raft.committed_configuration[1]

    def spread(self) -> list[int]:
        """Voters in each zone, the fullest first."""
        return sorted(Counter(self.zone_of(one) for one in self.configuration().voters).values(), reverse=True)

    def leader_is(self, *members: int) -> bool:
        """Whether one of these leads, alone."""
        leaders = self.leaders()
        return len(leaders) == 1 and leaders[0].id in members
