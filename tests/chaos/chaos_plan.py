"""Which fault, when, for how long and on whom: all drawn from a seed, before anything runs.

A seed gives the same schedule again: kinds, moments, durations and draws of targets. What it cannot give again is the
timing of processes and the kernel; and "the leader" is whoever leads at that moment.

Faults are dealt out like cards, so that each kind comes up equally often, and their moments are spread over the round
without regard to each other: several overlap nearly all the time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

SETTLE_SECONDS = 1.0
"""A round begins with so much time without faults."""


class Kind(StrEnum):
    """The faults, as the table names them."""

    KILL_ONE = "kill one member"
    KILL_SEVERAL = "kill several members"
    KILL_ALL = "kill all members at once"
    STOP_LEADER = "stop the leader for longer than an election"
    STOP_FOLLOWERS = "stop followers"
    DISK_FULL = "full disk"
    DISK_SLOW = "slow flushes"
    DISK_FAILING = "failing flushes"
    DISK_STALLED = "stalled flushes"
    LINK_CUT = "cut a member off"
    LINK_ONE_WAY = "cut one direction"
    LINK_RESET = "break and refuse connections"
    LINK_SLOW = "slow links"
    LINK_LOSSY = "lossy links"
    RING_LOST = "ring lost, member replaced"
    CLOCK = "wall clock shifted"


DISK_KINDS = frozenset({Kind.DISK_FULL, Kind.DISK_SLOW, Kind.DISK_FAILING, Kind.DISK_STALLED})
SECONDS: dict[Kind, tuple[float, float]] = {
    Kind.KILL_ONE: (0.2, 4.0),
    Kind.KILL_SEVERAL: (0.2, 4.0),
    Kind.KILL_ALL: (0.0, 1.0),
    Kind.STOP_LEADER: (2.5, 5.0),
    Kind.STOP_FOLLOWERS: (0.3, 4.0),
    Kind.DISK_FULL: (2.0, 6.0),
    Kind.DISK_SLOW: (2.0, 8.0),
    Kind.DISK_FAILING: (0.5, 3.0),
    Kind.DISK_STALLED: (1.0, 5.0),
    Kind.LINK_CUT: (1.0, 6.0),
    Kind.LINK_ONE_WAY: (1.0, 6.0),
    Kind.LINK_RESET: (0.5, 4.0),
    Kind.LINK_SLOW: (2.0, 8.0),
    Kind.LINK_LOSSY: (2.0, 8.0),
    Kind.RING_LOST: (0.2, 1.0),
    Kind.CLOCK: (2.0, 8.0),
}
"""How long each stands before it is healed, at least and at most."""


@dataclass(frozen=True)
class Planned:
    """One fault of a round. Whatever else it needs to decide comes from its own seed."""

    kind: Kind
    at_seconds: float
    seconds: float
    seed: str


@dataclass(frozen=True)
class Epoch:
    """One cluster, from its founding to its end: several rounds with one history."""

    size: int
    rings: bool
    rounds: int

    def __str__(self) -> str:
        return f"{self.size} members, {'ADR log' if self.rings else 'log on disk'}"


EPOCHS = (Epoch(5, True, 5), Epoch(3, False, 3), Epoch(3, True, 4))
"""They take turns."""


class Deck:
    """Deals kinds out so that all come up equally often."""

    def __init__(self, rng: random.Random, kinds: list[Kind]) -> None:
        self._rng, self._kinds, self._left = rng, kinds, list[Kind]()

    def deal(self) -> Kind:
        if not self._left:
            self._left = list(self._kinds)
            self._rng.shuffle(self._left)
        return self._left.pop()


def usable_kinds(epoch: Epoch, only: frozenset[Kind], disks: bool) -> list[Kind]:
    """What can be done to such a cluster on this machine."""
    return [
        kind
        for kind in Kind
        if (not only or kind in only)
        and (disks or kind not in DISK_KINDS)
        and (epoch.rings or kind is not Kind.RING_LOST)
    ]


def plan_round(seed: str, deck: Deck, seconds: float, faults: int) -> list[Planned]:
    """The faults of one round in the order of their moments; the last third of a round is left for them to stand."""
    rng = random.Random(seed)
    planned = []
    for number in range(faults):
        kind = deck.deal()
        at = SETTLE_SECONDS + rng.random() * (seconds * 0.8 - SETTLE_SECONDS)
        planned.append(Planned(kind, at, rng.uniform(*SECONDS[kind]), f"{seed}/{number}"))
    return sorted(planned, key=lambda one: one.at_seconds)
