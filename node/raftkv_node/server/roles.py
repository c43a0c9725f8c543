"""Who shall vote: the leader's decision about roles, as a pure function (M7, M8, M12, M14).

Membership is the operator's to change, roles are the leader's. From the replicated settings and from what the leader
knows of each member, :func:`wished_voters` yields the voters that it wants now. When they differ from the present ones
it proposes the difference as **one** joint change: 1 to 3, 3 to 5, 5 to 3 and 3 to 1 never pass through an even number
of voters.

The number of voters is the largest odd one within ``replicas``, ``max_voters`` and the members that are not leaving.
The places are filled in this order:

1. voters that stay (the leader first, then those heard of, then by number),
2. learners that have caught up, counted in entries and in time,
3. a voter that has been silent for ``promote_after``: at most one at a time loses its place so, and only to a learner
   that takes it (a live voter never does, whatever its lag),
4. voters that are leaving: they keep their vote only while nobody can take it.

Whoever is left over is a learner and waits as a standby.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RoleSettings:
    """The part of the replicated settings that roles depend on."""

    replicas: int
    """Members wished; 0: roles are changed by hand only."""
    max_voters: int
    promote_after_seconds: float
    leaving: frozenset[int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the leader knows of a member."""

    member_id: int
    number: int
    voter: bool
    caught_up: bool
    silent_seconds: float
    """Time since the member last answered the leader; 0 for the leader itself."""


def largest_odd(number: int) -> int:
    """The largest odd number that is not above ``number``; 0 where there is none."""
    return number if number % 2 else max(0, number - 1)


def wished_number(settings: RoleSettings, members: Collection[int]) -> int:
    """How many shall vote, as if every member were fit to."""
    staying = sum(1 for member in members if member not in settings.leaving)
    return largest_odd(min(settings.replicas, settings.max_voters, staying))


def wished_voters(
    settings: RoleSettings,
    candidates: Sequence[Candidate],
    leader_id: int,
    seconds_since_swap: float,
) -> frozenset[int] | None:
    """The voters that the leader wants now, or None where no change is due.

    ``seconds_since_swap`` is the time since a silent voter was last replaced (M14).
    """
    if settings.replicas <= 0:
        return None
    voters = [one for one in candidates if one.voter]
    swappable = _swappable(settings, voters, leader_id, seconds_since_swap)

    def place(one: Candidate) -> tuple[int, bool, float, int, int]:
        if one.member_id in settings.leaving:
            rank = 3
        elif not one.voter:
            rank = 1
        else:
            rank = 2 if one.member_id == swappable else 0
        return (rank, one.member_id != leader_id, round(one.silent_seconds), one.number, one.member_id)

    fit = [one for one in candidates if one.voter or (one.caught_up and one.member_id not in settings.leaving)]
    number = min(wished_number(settings, [one.member_id for one in candidates]), largest_odd(len(fit)))
    if number < 1:
        return None
    chosen = frozenset(one.member_id for one in sorted(fit, key=place)[:number])
    return None if chosen == frozenset(one.member_id for one in voters) else chosen


def _swappable(
    settings: RoleSettings, voters: Sequence[Candidate], leader_id: int, seconds_since_swap: float
) -> int | None:
    """The one voter that a learner may replace for its silence, if any."""
    after = settings.promote_after_seconds
    if after <= 0 or seconds_since_swap < after:
        return None
    silent = [
        one
        for one in voters
        if one.silent_seconds >= after and one.member_id != leader_id and one.member_id not in settings.leaving
    ]
    return max(silent, key=lambda one: (one.silent_seconds, one.member_id)).member_id if silent else None
