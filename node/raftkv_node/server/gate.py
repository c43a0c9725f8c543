"""The gate before a member's votes and acknowledgements: has its disk been shown to be the newest? (M5)

A volume that was restored from a snapshot, or a copy of a disk, is a member with amnesia: it has forgotten votes and
entries, and must not vote or acknowledge again. `docs/decisions/0005-openings.md` has the argument and the traces; in
short a member takes part once one of these holds:

1. **Its ring proves it.** It recovered from a ring in use (not marked clean), in memory outside of its disk: the ring
   cannot be older than the disk, and rows 5 to 7 and 12 of the decision table show that the disk is not older either.
2. **It is the only voter**: nobody else has anything of its.
3. **A quorum of voters, itself not counted, has stored its opening** durably (where there are fewer others: all). Any
   earlier opening was stored by a quorum less one of the others at least; that many and a quorum are more than all
   others, so one of those who answer knows of a newer opening, if there ever was one, and refuses.
4. **Others are missing for good**, and it is asked to go on: for ``patience_seconds`` no quorum of the others could be
   had, and a quorum with itself has stored the opening. That is what a crash of this member needs while the cluster
   lives with as many members missing as it can bear; to go on is safe unless, beside those, this disk was restored,
   which is one failed disk more than the cluster is made for. Patience 0 waits for ever instead.

A member that does not vote needs a quorum of the voters: it may have voted before.

The gate is closed at each start, and once open stays open for the life of the process.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import NamedTuple

from raftkv_node.raft.quorum import majority


class Electorate(NamedTuple):
    """The voters that count; both sets while the change between them is under way."""

    voters: frozenset[int] = frozenset()
    voters_outgoing: frozenset[int] = frozenset()


class Reason(StrEnum):
    """Why a gate is open."""

    RING = "the log buffer proves that the disk is the newest"
    ALONE = "there is no other voter"
    STORED = "a quorum of the others has stored this opening"
    PATIENCE = "members are missing, and those that are there know of no newer disk"


def others_needed(own: int, voters: Collection[int]) -> int:
    """How many of the other voters must have stored an opening: a quorum, or all where they are fewer."""
    others = len(voters) - (own in voters)
    return min(majority(len(voters)), others)


def others_borne(own: int, voters: Collection[int]) -> int:
    """How many must at least, once members are given up: a quorum together with this member."""
    return majority(len(voters)) - (own in voters)


class Gate:
    """Whether this process may take part as its member."""

    def __init__(self, own: int, ring_proof: bool, patience_seconds: float) -> None:
        self._own = own
        self._patience = patience_seconds
        self._closed_since: float | None = None
        self.stored_by: set[int] = set()
        """Members that have said that they have stored this opening."""
        self.reason: Reason | None = Reason.RING if ring_proof else None

    @property
    def is_open(self) -> bool:
        return self.reason is not None

    def look(self, electorate: Electorate, now: float) -> bool:
        """Open the gate if it is time; whether it has just been opened. Without voters nothing is known yet."""
        if self.is_open or not electorate.voters:
            return False
        sets = [one for one in electorate if one]
        if self._closed_since is None:
            self._closed_since = now
        if all(one == {self._own} for one in sets):
            self.reason = Reason.ALONE
        elif all(self._stored(one) >= others_needed(self._own, one) for one in sets):
            self.reason = Reason.STORED
        elif (
            0 < self._patience <= now - self._closed_since
            # between two sets it must vote in one; in the other the quorum of others is what rule 3 asks for anyway
            and any(self._own in one for one in sets)
            and all(self._stored(one) >= others_borne(self._own, one) for one in sets)
        ):
            self.reason = Reason.PATIENCE
        return self.is_open

    def _stored(self, voters: Collection[int]) -> int:
        return sum(1 for one in voters if one in self.stored_by and one != self._own)
