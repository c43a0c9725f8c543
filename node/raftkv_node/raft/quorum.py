"""Quorum arithmetic: pure functions over voter sets (Raft, sections 5.2, 5.3 and 6).

A joint configuration has two voter sets, and whatever needs agreement needs a majority of each. An empty set agrees
with everything, so that a plain configuration is the joint one whose outgoing set is empty.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Final

NO_LIMIT: Final = (1 << 64) - 1
"""What an empty voter set has agreed on: everything."""


class VoteResult(Enum):
    """Outcome of counting votes."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(size: int) -> int:
    """Members needed out of `size`; 0 for an empty set."""
    return size // 2 + 1 if size else 0


def agreed_value(voters: Collection[int], values: dict[int, int]) -> int:
    """Return the largest value that a majority of `voters` has reached; a voter without a value stands at 0."""
    if not voters:
        return NO_LIMIT
    if len(voters) == 1:
        (only,) = voters
        return values.get(only, 0)
    reached = [values.get(voter, 0) for voter in voters]
    reached.sort()
    return reached[len(reached) - majority(len(reached))]


def joint_agreed_value(voters: Collection[int], outgoing: Collection[int], values: dict[int, int]) -> int:
    """Return the largest value that majorities of both sets have reached; 0 when there is no voter at all."""
    if not voters:
        return 0
    agreed = agreed_value(voters, values)
    return min(agreed, agreed_value(outgoing, values)) if outgoing else agreed


def count_votes(voters: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """Count the votes of one set; votes of others are not looked at."""
    needed = majority(len(voters))
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    if granted >= needed:
        return VoteResult.WON
    denied = sum(1 for voter in voters if votes.get(voter) is False)
    return VoteResult.LOST if len(voters) - denied < needed else VoteResult.PENDING


def joint_count_votes(voters: Collection[int], outgoing: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """Count votes under a joint configuration: won when both are won, lost when either is."""
    if not voters:
        return VoteResult.LOST
    results = (count_votes(voters, votes), count_votes(outgoing, votes))
    if VoteResult.LOST in results:
        return VoteResult.LOST
    return VoteResult.WON if results == (VoteResult.WON, VoteResult.WON) else VoteResult.PENDING


def has_majority(voters: Collection[int], present: Collection[int]) -> bool:
    """Whether a majority of `voters` is in `present`."""
    return sum(1 for voter in voters if voter in present) >= majority(len(voters))
