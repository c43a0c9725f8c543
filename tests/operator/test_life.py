"""Whole lives of a cluster, with the real loop on a world in memory."""

from __future__ import annotations

import pickle
from datetime import timedelta

import pytest
from operator_fakes import FakeMembers
from operator_world import NAME, OperatorCrash, ViolationError, World, raft_voters, sample, settled
from raftkv_operator.api import constants
from raftkv_operator.observe.cache import Cache
from raftkv_operator.observe.seams import (
    CLAIMS,
    CLUSTERS,
    PODS,
    SECRETS,
    SERVICES,
    STATEFUL_SETS,
    KubeError,
    MemberError,
)


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 5, 7])
def test_creates_a_cluster(replicas: int) -> None:
    world = World(sample(replicas))
    world.settle()
    world.check_settled()
    assert world.condition("Available")["status"] == "True"
    assert world.status["quorum"] == ("Critical" if replicas < 3 else "Safe")
    assert {s["metadata"]["name"] for s in world.of(SERVICES)} == {NAME, f"{NAME}-peers"}


def test_scales_out_and_in_and_reuses_no_number() -> None:
    world = settled(3)
    loop = world.operator()
    for replicas in (5, 3, 1, 7, 3):
        world.scale(replicas)
        world.settle(loop)
        world.check_settled()
    numbers = [m["number"] for m in world.status["identity"]["members"]]
    assert world.status["identity"]["nextNumber"] == 12
    assert max(numbers) < 12
    assert len(world.of(CLAIMS)) == 3


def test_scaling_in_moves_the_leader_away_and_removes_the_newest() -> None:
    world = settled(5)
    loop = world.operator()
    (raft,) = world.clusters.values()
    newest = max(raft.members, key=lambda m: raft.members[m][0].number)
    raft.leader = newest
    world.scale(3)
    world.settle(loop)
    world.check_settled()
    assert newest in raft.members, "a leader is not chosen to go while others can"
    assert {i.number for i, _ in raft.members.values()} == {1, 2, 5}


def test_scaling_in_takes_the_unhealthy_first() -> None:
    world = settled(5)
    loop = world.operator()
    claim = world.get(CLAIMS, f"data-{NAME}-2")
    assert claim is not None
    world.refusals[claim["metadata"]["uid"]] = (1, "out of memory")
    for _ in range(3):
        world.step(loop)
    world.scale(3)
    world.settle(loop)
    world.check_settled()
    (raft,) = world.clusters.values()
    assert 2 not in {i.number for i, _ in raft.members.values()}


def test_a_cancelled_scaling_out_leaves_nothing_behind() -> None:
    world = settled(3)
    loop = world.operator()
    world.scale(7)
    for _ in range(4):
        world.step(loop)
    world.scale(3)
    world.settle(loop)
    world.check_settled()
    assert len(world.of(CLAIMS)) == 3


def test_members_that_were_told_to_leave_go_first_even_if_the_wish_changes() -> None:
    world = settled(5)
    loop = world.operator()
    world.scale(3)
    while not any("settings" in words for words in world.writes[-2:]):
        world.step(loop)
    world.scale(4)
    world.settle(loop)
    world.check_settled()


@pytest.mark.parametrize("code", [constants.EXIT_PROVEN_LOST, constants.EXIT_CORRUPT])
def test_a_lost_member_is_replaced_at_once_under_a_new_number(code: int) -> None:
    world = settled(3)
    loop = world.operator()
    claim = world.get(CLAIMS, f"data-{NAME}-2")
    assert claim is not None
    world.refusals[claim["metadata"]["uid"]] = (code, "raftkv: the ring is lost")
    world.settle(loop)
    world.check_settled()
    assert [m["number"] for m in world.status["identity"]["members"]] == [1, 3, 4]
    kept = world.get(CLAIMS, f"data-{NAME}-2") is not None
    assert kept == (code == constants.EXIT_CORRUPT), "what was corrupt is kept"
    assert any(e["reason"] == "ReplacingMember" and e["type"] == "Warning" for e in world.events)


def test_two_members_lost_at_once_are_both_replaced() -> None:
    world = settled(5)
    loop = world.operator()
    for number in (1, 2):
        claim = world.get(CLAIMS, f"data-{NAME}-{number}")
        assert claim is not None
        world.refusals[claim["metadata"]["uid"]] = (constants.EXIT_PROVEN_LOST, "raftkv: the ring is lost")
    world.settle(loop)
    world.check_settled()
    assert [m["number"] for m in world.status["identity"]["members"]] == [3, 4, 5, 6, 7]


def test_a_replacement_that_is_lost_itself_is_replaced() -> None:
    world = settled(3)
    loop = world.operator()
    lost = world.get(CLAIMS, f"data-{NAME}-2")
    assert lost is not None
    world.refusals[lost["metadata"]["uid"]] = (constants.EXIT_PROVEN_LOST, "raftkv: lost")
    while world.writes[-1] != f"join {NAME}-4":
        world.step(loop)
    again = world.get(CLAIMS, f"data-{NAME}-4")
    assert again is not None
    world.refusals[again["metadata"]["uid"]] = (constants.EXIT_PROVEN_LOST, "raftkv: lost as well")
    world.settle(loop)
    world.check_settled()
    assert [m["number"] for m in world.status["identity"]["members"]] == [1, 3, 5]


def test_an_absent_ring_is_waited_for_and_then_replaced() -> None:
    world = World({**sample(3), "nodeLossPolicy": {"replaceAfter": "10m"}})
    loop = world.settle()
    claim = world.get(CLAIMS, f"data-{NAME}-2")
    assert claim is not None
    world.refusals[claim["metadata"]["uid"]] = (constants.EXIT_ABSENT, "raftkv: the ring is on host n9")
    for _ in range(60):
        world.step(loop)
    assert not any("condemned" in m for m in world.status["identity"]["members"])
    assert world.condition("LogBufferReady")["reason"] == "LogBufferAbsent"
    world.now += timedelta(minutes=10)
    world.settle(loop)
    world.check_settled()
    assert [m["number"] for m in world.status["identity"]["members"]] == [1, 3, 4]


def test_a_member_of_a_dead_host_is_replaced_after_the_patience() -> None:
    world = World({**sample(3), "nodeLossPolicy": {"replaceAfter": "2m"}})
    loop = world.settle()
    pod = world.get(PODS, f"{NAME}-2-0")
    assert pod is not None
    world.dead_hosts.add(pod["spec"]["nodeName"])
    world.objects.pop(("pods", f"{NAME}-2-0"))
    for _ in range(30):
        world.step(loop)
    assert 2 in {m["number"] for m in world.status["identity"]["members"]}
    world.now += timedelta(minutes=2)
    world.settle(loop)
    assert 2 not in {m["number"] for m in world.status["identity"]["members"]}


def test_a_process_that_merely_fails_is_never_replaced() -> None:
    world = World({**sample(3), "nodeLossPolicy": {"replaceAfter": "1s"}})
    loop = world.settle()
    claim = world.get(CLAIMS, f"data-{NAME}-2")
    assert claim is not None
    world.refusals[claim["metadata"]["uid"]] = (137, "")
    for _ in range(60):
        world.step(loop)
    assert [m["number"] for m in world.status["identity"]["members"]] == [1, 2, 3]
    assert world.condition("Degraded")["status"] == "True"


def test_nothing_is_destroyed_without_a_quorum() -> None:
    world = settled(3)
    loop = world.operator()
    for number in (2, 3):
        claim = world.get(CLAIMS, f"data-{NAME}-{number}")
        assert claim is not None
        world.refusals[claim["metadata"]["uid"]] = (constants.EXIT_PROVEN_LOST, "raftkv: lost")
    for _ in range(60):
        world.step(loop)
    assert world.status["quorum"] == "Lost"
    assert world.condition("Available")["reason"] == "QuorumLost"
    assert len(world.of(STATEFUL_SETS)) == 3
    assert any(e["reason"] == "QuorumLost" for e in world.events)


def test_too_weak_durability_halts_without_a_crash_loop_and_resumes_by_an_edit() -> None:
    world = World(sample(1))
    loop = world.operator()
    while world.get(CLAIMS, f"data-{NAME}-1") is None:
        world.step(loop)
    words = "raftkv: found level process, but --minimum-durability is power"
    claim = world.get(CLAIMS, f"data-{NAME}-1")
    assert claim is not None
    world.refusals[claim["metadata"]["uid"]] = (constants.EXIT_DURABILITY, words)
    for _ in range(20):
        world.step(loop)
    assert world.condition("LogBufferReady")["status"] == "False"
    assert world.condition("LogBufferReady")["reason"] == "DurabilityTooWeak"
    assert words in world.condition("LogBufferReady")["message"]
    assert world.condition("Stalled")["status"] == "True"
    assert not world.of(PODS), "a node that cannot start is not started for ever"
    warnings = [e for e in world.events if e["reason"] == "DurabilityTooWeak"]
    assert len(warnings) == 1
    world.refusals.clear()
    world.apply({**sample(1), "version": "0.1.1"})
    world.settle(loop)
    world.check_settled()


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
def test_deletion_leaves_nothing_but_what_the_policy_keeps(policy: str) -> None:
    world = World(sample(3, whenDeleted=policy))
    loop = world.settle()
    world.delete_cluster()
    world.settle(loop)
    assert not world.of(STATEFUL_SETS)
    assert not world.of(PODS)
    assert not world.of(SERVICES)
    assert not world.of(SECRETS)
    assert len(world.of(CLAIMS)) == (0 if policy == "Delete" else 3)
    identities = [d for d in world.disks.values() if d.identity is not None]
    assert len(identities) == (0 if policy == "Delete" else 3)


def test_deletion_in_the_middle_of_the_creation() -> None:
    for passes in range(0, 30, 3):
        world = World(sample(3))
        loop = world.operator()
        for _ in range(passes):
            world.step(loop)
        world.delete_cluster()
        world.settle(loop)
        assert not world.of(STATEFUL_SETS)
        assert not world.of(CLAIMS)


def test_a_cluster_created_again_over_kept_claims_stalls() -> None:
    world = World(sample(3, whenDeleted="Retain"))
    world.settle()
    world.delete_cluster()
    world.settle()
    world.objects.pop(("raftkvclusters", NAME))
    world.apply(sample(3))
    loop = world.operator()
    for _ in range(5):
        world.step(loop)
    assert world.condition("Stalled")["reason"] == "IdentityConflict"
    assert "identity" not in world.status
    assert not world.of(STATEFUL_SETS)


def test_a_cluster_that_lost_its_status_stalls() -> None:
    world = World(sample(3))
    world.settle()
    world.cluster.pop("status")
    loop = world.operator()
    for _ in range(5):
        world.step(loop)
    assert world.condition("Stalled")["reason"] == "IdentityConflict"
    assert "identity" not in world.status


def test_a_name_that_belongs_to_someone_else_is_skipped() -> None:
    world = World(sample(1))
    world.store(STATEFUL_SETS, {"metadata": {"name": f"{NAME}-1"}, "spec": {"replicas": 0}})
    loop = world.operator()
    for _ in range(60):
        try:
            world.step(loop)
        except KeyError:  # the world's own controllers do not know the stranger's object
            world.objects.pop(("statefulsets", f"{NAME}-1"))
    assert [m["number"] for m in world.status["identity"]["members"]] == [2]


def test_an_edit_restarts_members_one_by_one_and_the_leader_last() -> None:
    world = settled(3)
    loop = world.operator()
    (raft,) = world.clusters.values()
    first = world.get(PODS, f"{NAME}-1-0")
    assert first is not None
    leader = raft.members[raft.leader][0].number
    world.writes.clear()
    world.apply({**sample(3), "version": "0.1.1"})
    world.settle(loop)
    world.check_settled()
    restarts = [w.removeprefix(f"delete Pod {NAME}-").removesuffix("-0") for w in world.writes if "delete Pod" in w]
    assert len(restarts) == 3
    assert int(restarts[-1]) == leader
    assert any("move leader" in w for w in world.writes)
    assert world.condition("MembersUpdated")["status"] == "True"


def test_pause_stops_all_actions_and_says_so() -> None:
    world = settled(3)
    loop = world.operator()
    world.apply({**sample(5), "paused": True})
    for _ in range(10):
        world.step(loop)
    assert len(world.of(STATEFUL_SETS)) == 3
    assert world.status["phase"] == "Paused"
    world.apply(sample(5))
    world.settle(loop)
    world.check_settled()


def test_a_cluster_at_rest_causes_no_write_and_no_event() -> None:
    world = settled(3)
    loop = world.operator()
    world.writes.clear()
    events = len(world.events)
    for _ in range(20):
        world.step(loop)
    assert world.writes == []
    assert len(world.events) == events


def _before(replicas: int, then: int | None) -> World:
    """The world before a creation, or before a scaling."""
    if then is None:
        return World(sample(replicas))
    world = settled(replicas)
    world.scale(then)
    return world


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("replicas", "then"), [(3, None), (3, 5), (5, 3), (1, 3), (3, 1)])
def test_a_crash_at_any_side_effect_is_survived(replicas: int, then: int | None, when: str) -> None:
    undisturbed = _before(replicas, then)
    first = undisturbed.side_effects + 1
    undisturbed.settle()
    for at in range(first, undisturbed.side_effects + 1):
        world = _before(replicas, then)
        world.crash_at = (at, when)
        world.settle()
        world.check_settled()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_side_effect_of_a_deletion_is_survived(when: str) -> None:
    for at in range(1, 30):
        world = settled(3)
        loop = world.operator()
        world.crash_at = (world.side_effects + at, when)
        world.delete_cluster()
        world.settle(loop)
        assert not world.of(STATEFUL_SETS)
        assert not world.of(CLAIMS)
        assert not [d for d in world.disks.values() if d.identity is not None]


@pytest.mark.parametrize(
    "failure", [KubeError(0, "Unreachable", "x"), KubeError(500, "", "x"), KubeError(409, "Conflict", "x")], ids=str
)
def test_failing_requests_are_repeated(failure: KubeError) -> None:
    for at in range(12):
        world = World(sample(3))
        loop = world.operator()
        for _ in range(at):
            world.step(loop)
        world.fail_next = [failure] * 3
        world.settle(loop)
        world.check_settled()


def test_a_refusing_leader_is_told_only_when_it_lasts() -> None:
    world = settled(3)
    loop = world.operator()
    world.scale(5)
    world.fail_next = [MemberError("UNAVAILABLE", "etcdserver: unhealthy cluster")] * 1
    world.settle(loop)
    world.check_settled()
    assert not any("unhealthy" in e["message"] for e in world.events)


def test_the_world_itself_finds_violations() -> None:
    """A watcher that cannot bark guards nothing."""
    world = World(sample(3))
    world.settle()
    workload = world.of(STATEFUL_SETS)[0]
    import asyncio

    with pytest.raises(ViolationError):
        asyncio.run(
            world.kube.delete(STATEFUL_SETS, "default", workload["metadata"]["name"], workload["metadata"]["uid"])
        )
    (raft,) = world.clusters.values()
    leader = next(p for p in world.of(PODS) if raft.members[raft.leader][0].name in p["metadata"]["name"])
    voter = next(iter(raft_voters(raft)))
    with pytest.raises(ViolationError):
        asyncio.run(FakeMembers(world).remove_member(f"{leader['status']['podIP']}:2379", raft.index, voter))
    world.crash_at = (world.side_effects + 1, "before")
    with pytest.raises(OperatorCrash):
        asyncio.run(world.kube.create(SERVICES, "default", {"metadata": {"name": "x"}}))


def _fill(cache: Cache, world: World) -> None:
    for resource in (CLUSTERS, STATEFUL_SETS, PODS, CLAIMS):
        for body in world.of(resource):
            cache.feed(resource, pickle.loads(pickle.dumps(body)), deleted=False)


def test_at_rest_the_api_is_not_asked_and_a_stale_cache_never_acts() -> None:
    world = settled(3)
    dirty: list[tuple[str, str]] = []
    cache = Cache(dirty.append)
    loop = world.operator(cache=cache)
    _fill(cache, world)
    assert set(dirty) == {("default", NAME)}
    world.settle(loop)  # the first pass reads everything once
    asked = world.requests
    for _ in range(10):
        world.step(loop)
    assert world.requests == asked
    # The cache still shows a pod that is long gone, and an edit that was taken back: looked at twice, acted on never.
    stale = pickle.loads(pickle.dumps(world.cluster))
    stale["spec"]["replicas"] = 7
    cache.feed(CLUSTERS, stale, deleted=False)
    world.writes.clear()
    world.step(loop)
    assert world.requests > asked
    assert world.writes == []
    # An edit that the watch has delivered is acted on.
    world.scale(5)
    _fill(cache, world)
    world.settle(loop)
    world.check_settled()
    cache.feed(CLUSTERS, world.cluster, deleted=True)
    assert cache.cluster(("default", NAME)) is None
