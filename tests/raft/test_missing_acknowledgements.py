"""A leader may let acknowledgements wait for each other as long as too few are there to commit anything.

`missing_acknowledgements` says how many are too few; were it too high, a commit would wait for nothing.
"""

from __future__ import annotations

import random

import pytest
from raft_script import World
from raftkv_node.raft import Message, MessageType, Raft

STEPS = 400


class Watched:
    """A group of five whose messages arrive in any order, and what its leader says and does."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World()
        for line in ("cluster 1 2 3 4 5", "node 6", "campaign 1", "run silent", "change 1 add=6", "run silent"):
            self.world.execute(line)
        self.commits = self.least = 0
        self.joint_commits = 0
        self._look()

    @property
    def raft(self) -> Raft:
        return self.world.nodes[1].raft

    def _look(self) -> None:
        """What the leader says now counts until something other than an acknowledgement reaches it."""
        self.missing = self.raft.missing_acknowledgements()
        self.commit = self.raft.commit_index
        self.heard: set[int] = set()

    def act(self) -> None:
        """One step of anybody."""
        choice = self.random.randrange(12)
        if choice == 0:
            self.world.execute("propose 1 x")
        elif choice == 1:
            self.world.execute(f"change 1 voters={self.random.choice(('1,2,3,4,5', '1,2,6', '1,3,4,5,6'))}")
        elif choice < 6:
            self.world.process(self.random.randint(1, 6))
        elif self.world.queue:
            self._deliver(self.world.queue.pop(self.random.randrange(len(self.world.queue))))
            return
        self._look()

    def _deliver(self, message: Message) -> None:
        self.world.hand_over(message)
        if message.to != 1:
            return
        if message.type != MessageType.APPEND_RESPONSE:
            self._look()
            return
        self.heard.add(message.sender)
        if self.raft.commit_index > self.commit:
            self.commits += 1
            self.joint_commits += bool(self.raft.configuration.voters_outgoing)
            assert self.missing <= len(self.heard), f"{self.missing} were missing, {self.heard} sufficed"
            self.least += self.missing == len(self.heard)
            self._look()


@pytest.mark.parametrize("seed", range(20))
def test_fewer_acknowledgements_than_are_missing_commit_nothing(seed: int) -> None:
    watched = Watched(seed)
    for _ in range(STEPS):
        watched.act()
    assert watched.commits >= 5
    assert watched.least, "the number is not so low that it never says anything"


def test_commits_in_joint_configurations_are_among_them() -> None:
    groups = [Watched(seed) for seed in range(20)]
    for group in groups:
        for _ in range(STEPS):
            group.act()
    assert sum(group.joint_commits for group in groups) >= 5
