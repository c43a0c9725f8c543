"""M11: when the leader gives leave to restart a member."""

from __future__ import annotations

from dataclasses import replace

import pytest
from raftkv_node.pb import admin_pb2
from raftkv_node.raft import Configuration, MemberStatus
from raftkv_node.raft.progress import ProgressState
from raftkv_node.server.members import encode_settings, settings
from raftkv_node.server.tickets import HOLD_SECONDS, VALID_SECONDS, Scene, denial, keep_ticket

LEADER, SECOND, THIRD, STANDBY = 1, 2, 3, 9
LIVE = MemberStatus(100, 101, ProgressState.REPLICATE, 0, 0, 0, 0, 0)
SILENT = LIVE._replace(answered_ticks_ago=50)
NEVER_HEARD = LIVE._replace(answered_ticks_ago=None, ticks_behind=None)
BEHIND = LIVE._replace(entries_behind=5000)


def configuration(voters: int = 3, ticket: admin_pb2.Ticket | None = None) -> Configuration:
    wanted = admin_pb2.Settings(replicas=voters, max_voters=5, opened=True)
    if ticket is not None:
        wanted.restart.CopyFrom(ticket)
    ids = [*range(1, voters + 1), STANDBY]
    return Configuration(
        voters=frozenset(range(1, voters + 1)),
        standbys=frozenset({STANDBY}),
        members=dict.fromkeys(ids, b""),
        settings=encode_settings(wanted),
    )


SCENE = Scene(configuration(), LEADER, dict.fromkeys((1, 2, 3, STANDBY), LIVE), 10, {}, 0.0)


def with_states(**states: MemberStatus) -> Scene:
    return replace(SCENE, states={**SCENE.states, **{int(name[1:]): state for name, state in states.items()}})


def test_m11_a_follower_is_restarted_while_all_others_are_there() -> None:
    assert denial(SCENE, SECOND) is None


def test_m11_the_leader_hands_over_first() -> None:
    assert "leads" in str(denial(SCENE, LEADER))


@pytest.mark.parametrize("state", [SILENT, NEVER_HEARD, BEHIND])
def test_m11_no_restart_while_a_voter_is_missing(state: MemberStatus) -> None:
    scene = with_states(m3=state)
    assert "voter 3 is missing" in str(denial(scene, SECOND))
    assert denial(scene, THIRD) is None, "the missing one itself may be restarted: that takes nothing away"


def test_m11_a_quorum_of_live_voters_remains() -> None:
    """Two voters: without one of them there is no quorum."""
    two = replace(SCENE, configuration=configuration(2))
    assert "no quorum" in str(denial(two, SECOND))


def test_m11_a_standby_takes_nothing_away_but_waits_its_turn() -> None:
    scene = with_states(m3=SILENT)
    assert denial(scene, STANDBY) is None
    held = replace(scene, configuration=configuration(3, admin_pb2.Ticket(member_id=THIRD, generation=4, number=1)))
    assert "has a ticket" in str(denial(held, STANDBY))


def test_m11_a_sole_voter_may_restart() -> None:
    assert denial(replace(SCENE, configuration=configuration(1)), LEADER) is None


def test_m11_who_is_no_member_gets_no_ticket() -> None:
    assert "no member" in str(denial(SCENE, 77))


def test_m11_one_at_a_time_until_the_member_is_back() -> None:
    """Back is a later opening and a match within M12: neither alone, and not a process that merely still answers."""
    held = replace(SCENE, configuration=configuration(3, admin_pb2.Ticket(member_id=SECOND, generation=4, number=1)))
    assert "member 2 has a ticket" in str(denial(held, THIRD))
    assert denial(held, SECOND) is None, "whoever has it may ask again"
    still_there = replace(held, generations={SECOND: 4})
    assert denial(still_there, THIRD) is not None
    behind = replace(held, generations={SECOND: 5}, states={**held.states, SECOND: BEHIND})
    assert denial(behind, THIRD) is not None
    assert denial(replace(held, generations={SECOND: 5}), THIRD) is None


def test_m11_a_ticket_that_is_not_used_ends_by_time() -> None:
    assert VALID_SECONDS < HOLD_SECONDS
    held = replace(SCENE, configuration=configuration(3, admin_pb2.Ticket(member_id=SECOND, generation=4, number=1)))
    assert denial(replace(held, held_seconds=HOLD_SECONDS - 1), THIRD) is not None
    assert denial(replace(held, held_seconds=HOLD_SECONDS), THIRD) is None
    gone = replace(held, held_seconds=HOLD_SECONDS, states={**held.states, SECOND: SILENT})
    assert "voter 2 is missing" in str(denial(gone, THIRD))


def test_m11_the_ticket_of_a_removed_member_holds_nobody() -> None:
    ticket = admin_pb2.Ticket(member_id=77, generation=4, number=1)
    assert denial(replace(SCENE, configuration=configuration(3, ticket)), SECOND) is None


def test_m11_settings_keep_the_ticket_and_nobody_else_writes_it() -> None:
    ticket = admin_pb2.Ticket(member_id=SECOND, generation=4, number=8)
    wished = admin_pb2.Settings(replicas=5, restart=admin_pb2.Ticket(member_id=THIRD, number=99))
    kept = keep_ticket(wished, configuration(3, ticket).settings)
    assert (kept.replicas, kept.restart) == (5, ticket)
    assert not keep_ticket(wished, b"").HasField("restart")
    assert settings(encode_settings(kept)).restart == ticket
