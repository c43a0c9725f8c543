"""Where the leader should be: what must hold whatever the members and their writes are."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raftkv_node.server.preference import (
    MIN_SHARE,
    MIN_WRITES,
    WINDOWS,
    WRITERS,
    Heir,
    LeaderPreference,
    MoveCause,
    Origins,
    Steadiness,
    dominant_side,
    side_of,
    wished_leader,
)

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

SETTLE = 10.0
LEADER = 1
ZONES = ["a", "b", "c", ""]

heirs = st.lists(
    st.tuples(st.sampled_from(ZONES), st.sampled_from([0.0, 3.0, 10.0, 500.0]), st.integers(0, 100)),
    min_size=1,
    max_size=9,
).map(lambda those: [Heir(n, n, zone, steady, behind) for n, (zone, steady, behind) in enumerate(those, 1)])
preferences = st.builds(
    LeaderPreference,
    st.lists(st.sampled_from("abc"), unique=True, max_size=3).map(tuple),
    st.booleans(),
)
windows = st.lists(
    st.dictionaries(st.sampled_from(["a", "b", "c", "member 2"]), st.integers(0, 200), max_size=4), max_size=WINDOWS
)
Windows = list[Mapping[str, int]]


@given(preferences, heirs, windows)
def test_only_a_steady_leader_moves_and_only_to_a_steady_voter_of_a_zone_that_is_no_worse(
    preference: LeaderPreference, those: list[Heir], recent: Windows
) -> None:
    move = wished_leader(preference, those, LEADER, recent, SETTLE)
    if move is None:
        return
    by_id = {one.member_id: one for one in those}
    own, target = by_id[LEADER], by_id[move.target]
    assert target is not own
    assert own.steady_seconds >= SETTLE
    assert target.steady_seconds >= SETTLE
    before, after = preference.rank(own.zone), preference.rank(target.zone)
    if move.cause is MoveCause.ZONE:
        assert after < before
    else:
        assert preference.follow_writers
        assert after == before
        assert side_of(target.member_id, target.zone) == dominant_side(recent) != side_of(own.member_id, own.zone)


@given(preferences, heirs, windows)
def test_a_move_is_not_followed_by_another(preference: LeaderPreference, those: list[Heir], recent: Windows) -> None:
    """By the same writes and the same members the new leader stays, also once it has led for long."""
    move = wished_leader(preference, those, LEADER, recent, SETTLE)
    if move is not None:
        settled = [replace(one, steady_seconds=max(one.steady_seconds, SETTLE)) for one in those]
        ready = [now for one, now in zip(those, settled, strict=True) if one.steady_seconds >= SETTLE]
        assert wished_leader(preference, ready, move.target, recent, SETTLE) is None


@given(preferences, heirs, windows, st.randoms(use_true_random=False))
def test_the_order_of_the_members_does_not_matter(
    preference: LeaderPreference, those: list[Heir], recent: Windows, order: random.Random
) -> None:
    shuffled = list(those)
    order.shuffle(shuffled)
    first = wished_leader(preference, those, LEADER, recent, SETTLE)
    assert wished_leader(preference, shuffled, LEADER, recent, SETTLE) == first


@given(heirs, windows)
def test_without_a_preference_nothing_moves(those: list[Heir], recent: Windows) -> None:
    assert wished_leader(LeaderPreference(), those, LEADER, recent, SETTLE) is None


@given(windows)
def test_a_side_is_followed_only_if_it_sends_clearly_most_all_the_time(recent: Windows) -> None:
    side = dominant_side(recent)
    if side is not None:
        assert len(recent) == WINDOWS
        for window in recent:
            assert sum(window.values()) >= MIN_WRITES
            assert window[side] >= MIN_SHARE * sum(window.values())


def test_the_best_zone_that_has_a_steady_voter_is_taken() -> None:
    those = [Heir(1, 1, "c", 99.0), Heir(2, 2, "a", 3.0), Heir(3, 3, "b", 99.0, 7), Heir(4, 4, "b", 99.0, 2)]
    wish = LeaderPreference.parse(["a", "b"])
    assert wished_leader(wish, those, 1, [], SETTLE) == (4, MoveCause.ZONE)
    those[1] = replace(those[1], steady_seconds=SETTLE)
    assert wished_leader(wish, those, 1, [], SETTLE) == (2, MoveCause.ZONE)


def test_writers_decide_between_equally_good_zones() -> None:
    those = [Heir(1, 1, "c", 99.0), Heir(2, 2, "a", 99.0), Heir(3, 3, "b", 99.0)]
    from_b: Windows = [{"b": 90, "c": 30}] * WINDOWS
    assert wished_leader(LeaderPreference.parse([WRITERS]), those, 1, from_b, SETTLE) == (3, MoveCause.WRITERS)
    assert wished_leader(LeaderPreference.parse([WRITERS]), those, 1, from_b[1:], SETTLE) is None
    mixed: Windows = [*from_b[1:], {"b": 50, "c": 50}]
    assert wished_leader(LeaderPreference.parse([WRITERS]), those, 1, mixed, SETTLE) is None
    assert wished_leader(LeaderPreference.parse(["c", WRITERS]), those, 1, from_b, SETTLE) is None
    assert wished_leader(LeaderPreference.parse(["a", WRITERS]), those, 1, from_b, SETTLE) == (2, MoveCause.ZONE)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([WRITERS, "a"], "last"),
        ([WRITERS, WRITERS], "once"),
        (["a", "a"], "each once"),
        ([""], "characters"),
        (["z" * 64], "63"),
        ([f"z{one}" for one in range(17)], "at most 16"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_with_what_to_change(words: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LeaderPreference.parse(words)


def test_writes_are_counted_by_side_over_windows() -> None:
    origins = Origins()
    for window in range(5):
        origins.add(1, 10 * window)
        origins.add(2, 5)
        origins.add(3, 1)
        origins.add(99, 1000)
        for _ in range(4):
            origins.tick(4)
    counted = origins.by_side({1: "a", 2: "a", 3: ""})
    assert counted == [{"a": 25, "member 3": 1}, {"a": 35, "member 3": 1}, {"a": 45, "member 3": 1}]


def test_steadiness_begins_anew_with_a_break_and_with_a_term() -> None:
    steadiness = Steadiness()
    for _ in range(5):
        steadiness.tick(3, {1, 2})
    assert (steadiness.ticks(1), steadiness.ticks(2), steadiness.ticks(7)) == (4, 4, 0)
    steadiness.tick(3, {1})
    steadiness.tick(3, {1, 2})
    assert (steadiness.ticks(1), steadiness.ticks(2)) == (6, 0)
    steadiness.tick(4, {1, 2})
    assert (steadiness.ticks(1), steadiness.ticks(2)) == (0, 0)
