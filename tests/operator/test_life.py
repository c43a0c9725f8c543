"""Whole lives of a cluster, with the real loop on a world in memory."""

from __future__ import annotations

import asyncio
import pickle
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from operator_fakes import FakeMembers
from operator_world import NAME, OperatorCrash, ViolationError, World, raft_voters, sample, settled
from raftkv_operator import loop as loop_module
from raftkv_operator.api import constants
from raftkv_operator.decide import Wait
from raftkv_operator.observe.cache import CHILDREN, Cache
from raftkv_operator.observe.seams import (
    CLAIMS,
    CLUSTERS,
    DISRUPTION_BUDGETS,
    NODES,
    PODS,
    SECRETS,
    SERVICES,
    STATEFUL_SETS,
    KubeError,
    MemberError,
    Resource,
)
from raftkv_operator.observe.zones import LABEL_ZONE, Zones


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
    (raft,) = world.clusters.values()
    most = 0
    for _ in range(200):
        given_up = [m for m in world.status["identity"]["members"] if m.get("condemned")]
        votes = [m for m in given_up if int(m["memberID"], 16) in raft_voters(raft)]
        assert len(votes) <= 1, "one voter at a time: its vote is to be somebody else's first"
        most = max(most, len(votes))
        world.step(loop)
    assert most == 1
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
    restarts = [w.removeprefix(f"evict {NAME}-").removesuffix("-0") for w in world.writes if "evict" in w]
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
    for resource in (CLUSTERS, *CHILDREN):
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


@pytest.mark.parametrize("resource", [SERVICES, DISRUPTION_BUDGETS], ids=lambda one: one.kind)
def test_a_shared_object_that_a_watch_shows_deleted_is_made_again_at_once(resource: Resource) -> None:
    world = settled(3)
    cache = Cache(lambda _: None)
    loop = world.operator(cache=cache)
    _fill(cache, world)
    world.settle(loop)
    (lost, *_) = world.of(resource)
    del world.objects[resource.plural, lost["metadata"]["name"]]
    world.step(loop)  # the watch has not shown it yet
    assert world.get(resource, lost["metadata"]["name"]) is None
    cache.feed(resource, lost, deleted=True)
    world.step(loop)
    assert world.get(resource, lost["metadata"]["name"]) is not None


def test_a_watch_that_shows_no_shared_object_costs_no_requests_at_rest() -> None:
    world = settled(3)
    cache = Cache(lambda _: None)
    loop = world.operator(cache=cache)
    for kind in (CLUSTERS, STATEFUL_SETS, PODS, CLAIMS):
        for body in world.of(kind):
            cache.feed(kind, body, deleted=False)
    world.settle(loop)
    asked = world.requests
    for _ in range(10):
        world.step(loop)
    assert world.requests == asked


def test_an_hour_of_rest_costs_a_cluster_few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts, not times: the clock is a number. One full read is eight requests."""
    now = [1000.0]
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    world = settled(3)
    cache = Cache(lambda _: None)
    loop = world.operator(cache=cache)
    _fill(cache, world)
    world.settle(loop)
    asked, writes = world.requests, world.side_effects
    passes = int(3600 / loop_module.RESYNC_SECONDS)
    for _ in range(passes):
        now[0] += loop_module.RESYNC_SECONDS
        world.step(loop)
    assert 8 * 4 <= world.requests - asked <= 8 * 8
    assert world.side_effects == writes


# --- zones and the leader's place ---


def zones_of(world: World) -> dict[str, str]:
    """What the members were told: member's name to zone."""
    (raft,) = world.clusters.values()
    return {raft.members[member][0].name: zone for member, zone in raft.settings.zones if member in raft.members}


def hosts_of(world: World) -> dict[str, str]:
    """The zone of each pod's host, by the member's name."""
    labels = {node["metadata"]["name"]: node["metadata"]["labels"] for node in world.of(NODES)}
    return {
        pod["metadata"]["name"].removesuffix("-0"): labels[pod["spec"]["nodeName"]][LABEL_ZONE]
        for pod in world.of(PODS)
        if pod["spec"].get("nodeName")
    }


def test_m7_members_are_told_the_zones_of_their_hosts() -> None:
    world = settled(5)
    assert len(zones_of(world)) == 5
    assert zones_of(world) == hosts_of(world)
    world.scale(7)
    loop = world.settle()
    assert zones_of(world) == hosts_of(world)
    world.scale(3)
    world.settle(loop)
    assert zones_of(world) == hosts_of(world)


def test_a_member_that_is_gone_keeps_its_zone_and_one_that_has_moved_gets_another() -> None:
    world = settled(3)
    before = zones_of(world)
    node = world.get(PODS, f"{NAME}-2-0")
    assert node is not None
    world.objects.pop(("pods", f"{NAME}-2-0"))
    loop = world.operator()
    world.step(loop)
    assert zones_of(world) == before
    loop = world.settle(world.operator())
    label = world.get(NODES, hosts_by_member(world)[f"{NAME}-2"])
    assert label is not None
    label["metadata"]["labels"][LABEL_ZONE] = "zone-x"
    world.settle(world.operator())
    assert zones_of(world)[f"{NAME}-2"] == "zone-x"


def hosts_by_member(world: World) -> dict[str, str]:
    return {pod["metadata"]["name"].removesuffix("-0"): pod["spec"]["nodeName"] for pod in world.of(PODS)}


def test_hosts_without_a_zone_and_without_leave_to_read_them_are_no_reason_to_stop() -> None:
    world = World(sample(3))
    for node in world.of(NODES):
        del node["metadata"]["labels"][LABEL_ZONE]
    world.settle()
    world.check_settled()
    assert zones_of(world) == {}

    class Forbidding:
        async def get(self, *_: object) -> None:
            raise KubeError(403, "Forbidden", "nodes")

    kube: Any = Forbidding()
    assert asyncio.run(Zones(kube).of(["n1", "n2"])) == {}


def test_where_the_leader_is_wished_is_told_and_changed_without_a_restart() -> None:
    spec = sample(3)
    world = World({**spec, "consensus": {**spec.get("consensus", {}), "leaderPreference": ["zone-b", "Writers"]}})
    loop = world.settle()
    (raft,) = world.clusters.values()
    assert raft.settings.leader_preference == ("zone-b", "Writers")
    pods = {pod["metadata"]["uid"] for pod in world.of(PODS)}
    world.apply({**world.cluster["spec"], "consensus": {"leaderPreference": []}})
    world.settle(loop)
    assert raft.settings.leader_preference == ()
    assert pods == {pod["metadata"]["uid"] for pod in world.of(PODS)}


@pytest.mark.parametrize("way", ["paused", "waiting"])
def test_a_cluster_that_only_waits_is_not_read_anew_in_each_pass(way: str) -> None:
    world = settled(3)
    cache = Cache(lambda _: None)
    loop = world.operator(cache=cache)
    if way == "paused":
        world.apply({**world.cluster["spec"], "paused": True})
    else:
        world.dead_hosts.add(world.of(PODS)[0]["spec"]["nodeName"])
    for _ in range(5):
        _fill(cache, world)
        result = world.step(loop)
    assert isinstance(result.decision, Wait)
    asked = world.requests
    for _ in range(5):
        world.step(loop)
    assert world.requests == asked
    world.scale(5)  # the watch shows what a person does, whatever is awaited
    _fill(cache, world)
    world.step(loop)
    assert world.requests > asked
