"""Quorum arithmetic against definitions that are slow and obvious."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st
from raftkv_node.raft.quorum import (
    NO_LIMIT,
    VoteResult,
    agreed_value,
    count_votes,
    has_majority,
    joint_agreed_value,
    joint_count_votes,
    majority,
)

voter_sets = st.frozensets(st.integers(1, 9), max_size=7)
nonempty = st.frozensets(st.integers(1, 9), min_size=1, max_size=7)
match_maps = st.dictionaries(st.integers(1, 9), st.integers(0, 6))
vote_maps = st.dictionaries(st.integers(1, 9), st.booleans())


def quorums(voters: frozenset[int]) -> list[set[int]]:
    """All sets of more than half of the voters."""
    sizes = range(len(voters) // 2 + 1, len(voters) + 1)
    return [set(chosen) for size in sizes for chosen in combinations(sorted(voters), size)]


def naive_agreed(voters: frozenset[int], values: dict[int, int]) -> int:
    """The best that the worst member of some quorum has reached."""
    if not voters:
        return NO_LIMIT
    return max(min(values.get(voter, 0) for voter in quorum) for quorum in quorums(voters))


def naive_won(voters: frozenset[int], votes: dict[int, bool]) -> bool:
    return not voters or any(all(votes.get(voter) is True for voter in quorum) for quorum in quorums(voters))


def naive_can_win(voters: frozenset[int], votes: dict[int, bool]) -> bool:
    return naive_won(voters, {**dict.fromkeys(voters, True), **votes})


@given(voter_sets, match_maps)
def test_agreed_value_is_that_of_the_best_quorum(voters: frozenset[int], values: dict[int, int]) -> None:
    assert agreed_value(voters, values) == naive_agreed(voters, values)


@given(nonempty, voter_sets, match_maps)
def test_joint_agreement_needs_both(voters: frozenset[int], outgoing: frozenset[int], values: dict[int, int]) -> None:
    expected = min(naive_agreed(voters, values), naive_agreed(outgoing, values))
    assert joint_agreed_value(voters, outgoing, values) == expected


@given(nonempty, voter_sets, vote_maps)
def test_votes(voters: frozenset[int], outgoing: frozenset[int], votes: dict[int, bool]) -> None:
    won = naive_won(voters, votes) and naive_won(outgoing, votes)
    can_win = naive_can_win(voters, votes) and naive_can_win(outgoing, votes)
    expected = VoteResult.WON if won else VoteResult.PENDING if can_win else VoteResult.LOST
    assert joint_count_votes(voters, outgoing, votes) == expected


@given(nonempty, nonempty)
def test_any_two_quorums_meet(voters: frozenset[int], present: frozenset[int]) -> None:
    """A majority and its complement are never both majorities: the ground that everything stands on."""
    assert not (has_majority(voters, present) and has_majority(voters, voters - present))


def test_nobody_decides_without_voters() -> None:
    assert joint_agreed_value((), (), {1: 5}) == 0
    assert joint_count_votes((), (), {1: True}) == VoteResult.LOST
    assert count_votes((), {}) == VoteResult.WON  # as the outgoing half of a configuration that is not joint


def test_majority_sizes() -> None:
    assert [majority(size) for size in range(10)] == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5]
