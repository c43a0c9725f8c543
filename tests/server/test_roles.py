"""The leader's decision about roles (M7, M8, M12, M14)."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from raftkv_node.server.roles import Candidate, RoleSettings, largest_odd, wished_number, wished_voters

LONG_AGO = 1e9


def settings(replicas: int, *, max_voters: int = 5, leaving: Iterable[int] = (), after: float = 0.0) -> RoleSettings:
    return RoleSettings(replicas, max_voters, after, frozenset(leaving))


def members(
    voters: Iterable[int], ready: Iterable[int] = (), late: Iterable[int] = (), silent: Iterable[int] = ()
) -> list[Candidate]:
    silent = set(silent)

    def one(member: int, voter: bool, caught_up: bool) -> Candidate:
        return Candidate(member, member, voter, caught_up, 60.0 if member in silent else 0.0)

    return (
        [one(member, True, True) for member in voters]
        + [one(member, False, True) for member in ready]
        + [one(member, False, False) for member in late]
    )


def wish(one: RoleSettings, candidates: list[Candidate], leader: int = 1) -> set[int] | None:
    voters = wished_voters(one, candidates, leader, LONG_AGO)
    return None if voters is None else set(voters)


def test_from_one_to_three_is_one_step_once_both_have_caught_up() -> None:
    assert wish(settings(3), members([1], ready=[2], late=[3])) is None
    assert wish(settings(3), members([1], ready=[2, 3])) == {1, 2, 3}


def test_from_three_to_five_is_one_step() -> None:
    assert wish(settings(5), members([1, 2, 3], ready=[4], late=[5])) is None
    assert wish(settings(5), members([1, 2, 3], ready=[4, 5])) == {1, 2, 3, 4, 5}


def test_from_five_to_three_the_leaving_lose_their_vote_together() -> None:
    assert wish(settings(3, leaving=[2, 5]), members([1, 2, 3, 4, 5])) == {1, 3, 4}


def test_from_three_to_one() -> None:
    assert wish(settings(1, leaving=[2, 3]), members([1, 2, 3])) == {1}
    assert wish(settings(1, leaving=[1, 2]), members([1, 2, 3])) == {3}


def test_a_fourth_member_waits_as_a_standby() -> None:
    assert wish(settings(4), members([1, 2, 3], ready=[4])) is None


def test_max_voters_bounds_the_voters() -> None:
    assert wish(settings(7, max_voters=3), members([1, 2, 3], ready=[4, 5, 6, 7])) is None
    assert wish(settings(7, max_voters=3), members([1, 2, 3, 4, 5], ready=[6, 7])) == {1, 2, 3}


def test_a_leaving_voter_keeps_its_vote_until_somebody_can_take_it() -> None:
    assert wish(settings(3, leaving=[3]), members([1, 2, 3], late=[4])) is None
    assert wish(settings(3, leaving=[3]), members([1, 2, 3], ready=[4])) == {1, 2, 4}


def test_the_leader_and_those_heard_of_stay_when_places_get_fewer() -> None:
    assert wish(settings(3), members([1, 2, 3, 4, 5], silent=[2]), leader=5) == {5, 1, 3}


def test_roles_by_hand_are_left_alone() -> None:
    assert wish(settings(0), members([1], ready=[2, 3])) is None


def test_a_live_voter_is_never_swapped() -> None:
    """M14."""
    assert wish(settings(3, after=30), members([1, 2, 3], ready=[4])) is None


def test_a_silent_voter_is_swapped_for_a_standby_one_at_a_time() -> None:
    """M14."""
    candidates = members([1, 2, 3], ready=[4, 5], silent=[2, 3])
    assert wish(settings(3, after=30), candidates) == {1, 2, 4}
    assert wished_voters(settings(3, after=30), candidates, 1, 29.0) is None
    assert wish(settings(3, after=90), candidates) is None
    assert wish(settings(3, after=30), members([1, 2, 3], late=[4], silent=[2])) is None


@given(st.data())
def test_what_is_wished_is_odd_and_of_members_that_are_fit(data: st.DataObject) -> None:
    ids = st.sets(st.integers(1, 12), max_size=9)
    voters = data.draw(ids.filter(bool))
    ready = data.draw(ids) - voters
    late = data.draw(ids) - voters - ready
    silent = data.draw(ids)
    wanted = settings(
        data.draw(st.integers(0, 9)),
        max_voters=data.draw(st.sampled_from([1, 3, 5, 7, 9])),
        leaving=data.draw(ids),
        after=data.draw(st.sampled_from([0.0, 30.0])),
    )
    candidates = members(voters, ready, late, silent)
    leader = min(voters)
    result = wished_voters(wanted, candidates, leader, LONG_AGO)
    if result is None:
        return
    assert len(result) % 2 == 1
    assert result <= voters | ready
    assert len(result) <= wished_number(wanted, voters | ready | late)
    assert not (result - voters) & wanted.leaving
    after = [Candidate(one.member_id, one.number, one.member_id in result, one.caught_up, 0.0) for one in candidates]
    assert wished_voters(wanted, after, leader, 0.0) is None, "one step is enough"


def test_largest_odd() -> None:
    assert [largest_odd(number) for number in range(7)] == [0, 1, 1, 3, 3, 5, 5]
