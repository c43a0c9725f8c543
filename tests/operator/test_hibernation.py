"""M17: hibernation removes no member and deletes no claim; waking wakes all first, then scales."""

from __future__ import annotations

from datetime import timedelta

import pytest
from operator_world import NAME, World, sample, settled
from raftkv_operator.decide import hibernation
from raftkv_operator.observe.seams import CLAIMS, PODS, STATEFUL_SETS


def asleep(replicas: int) -> World:
    """A cluster that was put to sleep and has come to rest."""
    world = settled(replicas)
    world.scale(0)
    world.settle()
    return world


def test_m17_sleep_stops_every_member_and_removes_nothing() -> None:
    world = settled(5)
    (raft,) = world.clusters.values()
    before = (dict(raft.members), set(raft.removed), world.status["identity"]["members"])
    claims = {claim["metadata"]["uid"] for claim in world.of(CLAIMS)}
    leader = raft.members[raft.leader][0].number
    world.writes.clear()
    world.scale(0)
    world.settle()
    assert not world.of(PODS)
    assert {body["spec"]["replicas"] for body in world.of(STATEFUL_SETS)} == {0}
    assert claims == {claim["metadata"]["uid"] for claim in world.of(CLAIMS)}
    assert before == (raft.members, raft.removed, world.status["identity"]["members"])
    stops = [write for write in world.writes if write.startswith("replace StatefulSet")]
    assert len(stops) == 5
    assert not any(stop.endswith(f"{NAME}-{leader}") for stop in stops[:3]), "the leader, while there is one, goes last"
    assert world.status["phase"] == "Hibernated"
    assert world.condition("Ready")["status"] == "True" and world.condition("Available")["reason"] == "Hibernated"
    assert world.condition("Degraded")["status"] == "False"


def test_m17_a_cluster_at_rest_in_its_sleep_causes_no_write() -> None:
    world = asleep(3)
    loop = world.operator()
    world.step(loop)
    before = world.side_effects
    for _ in range(10):
        world.now += timedelta(hours=1)
        world.step(loop)
    assert world.side_effects == before


@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_m17_waking_wakes_all_members_first_and_then_scales(replicas: int) -> None:
    world = asleep(3)
    world.now += timedelta(days=30)
    late = world.of(CLAIMS)[0]["metadata"]["uid"]
    world.refusals[late] = (137, "killed")  # its host is slow
    world.writes.clear()
    world.scale(replicas)
    loop = world.operator()
    for _ in range(30):
        world.step(loop)
    assert world.status["phase"] == "Waking"
    assert world.status["currentOperation"]["type"] in ("Wake", "Recovery")
    done = [write for write in world.writes if not write.startswith(("merge", "create Event"))]
    assert all(write.startswith(("replace StatefulSet", "latch")) for write in done), done
    (raft,) = world.clusters.values()
    assert len(raft.members) == 3 and len(world.status["identity"]["members"]) == 3
    world.refusals.pop(late)
    world.settle(loop)
    world.check_settled()


def test_m17_a_member_that_does_not_wake_is_missed_from_the_waking_on() -> None:
    """The patience with a missing member is not used up by the sleep, and it ends the waiting."""
    world = asleep(3)
    world.now += timedelta(days=30)
    lost = world.of(CLAIMS)[2]["metadata"]["uid"]
    world.refusals[lost] = (65, "raftkv: the log buffer is on host n3")
    world.scale(3)
    loop = world.operator()
    for _ in range(30):
        world.step(loop)
    assert {m["number"] for m in world.status["identity"]["members"]} == {1, 2, 3}, "still waited for"
    world.now += timedelta(minutes=11)
    world.settle(loop)
    world.check_settled()
    assert {m["number"] for m in world.status["identity"]["members"]} == {1, 2, 4}


def test_m17_a_cluster_created_asleep_is_nothing_yet() -> None:
    world = World(sample(0))
    world.settle()
    assert not world.of(STATEFUL_SETS) and not world.of(CLAIMS) and "identity" not in world.status
    assert world.status["phase"] == "Hibernated"
    world.scale(3)
    world.settle()
    world.check_settled()


def test_m17_a_cluster_put_to_sleep_while_it_is_created_goes_on_when_it_wakes() -> None:
    for passes in range(0, 60, 4):
        world = World(sample(3))
        loop = world.operator()
        for _ in range(passes):
            world.step(loop)
        world.scale(0)
        world.settle(loop)
        assert not world.of(PODS)
        world.scale(3)
        world.settle(loop)
        world.check_settled()


def test_m17_a_cluster_can_be_deleted_in_its_sleep() -> None:
    world = asleep(3)
    world.delete_cluster()
    world.settle()
    assert not world.of(CLAIMS) and not world.of(STATEFUL_SETS)


def test_m17_planted_waking_without_the_mark_scales_among_the_sleeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mark the members that wake last look unhealthy, and go first."""
    monkeypatch.setattr(hibernation, "ASLEEP", (hibernation.stop,))
    with pytest.raises(AssertionError):
        test_m17_waking_wakes_all_members_first_and_then_scales(1)
