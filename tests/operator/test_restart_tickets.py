"""M11: a live member is restarted by an eviction under a ticket from the leader, however old the decision is."""

from __future__ import annotations

import asyncio

import pytest
from operator_fakes import FakeKube, FakeMembers
from operator_world import NAME, ViolationError, World, sample, settled
from raftkv_operator.act.executor import Executor, NotNowError
from raftkv_operator.decide import decide
from raftkv_operator.decide.actions import RestartMember
from raftkv_operator.observe.seams import CLAIMS, PODS, KubeError
from raftkv_operator.observe.views import RestartTicket


def decided(world: World) -> tuple[Executor, RestartMember]:
    """The first restart that an operator decides on, and does not do yet."""
    world.apply({**world.cluster["spec"], "version": "0.1.1"})

    async def look() -> tuple[Executor, RestartMember] | None:
        operator = world.operator()
        for _ in range(2):
            objects = await operator._fresh_objects()
            assert objects is not None
            spec, seen = await operator._observe(objects, fresh=True)
        assert spec is not None
        action = decide(spec, seen)
        executor = Executor(world.kube, FakeMembers(world), spec, seen)
        if isinstance(action, RestartMember):
            return executor, action
        assert not isinstance(action, type(None))
        await executor.run(action)  # type: ignore[arg-type]
        return None

    for _ in range(20):
        found = asyncio.run(look())
        if found is not None:
            return found
        world.tick()
    raise AssertionError("no restart was decided on")


def lose_another_voter(world: World, action: RestartMember) -> None:
    claim = next(
        one
        for one in world.of(CLAIMS)
        if one["metadata"]["name"] not in (f"data-{action.member}", f"data-{NAME}-{world_leader(world)}")
    )
    world.refusals[claim["metadata"]["uid"]] = (137, "killed")
    world.tick()


def world_leader(world: World) -> int:
    (raft,) = world.clusters.values()
    return raft.members[raft.leader][0].number


def test_m11_a_live_member_is_evicted_under_a_ticket() -> None:
    world = settled(3)
    executor, action = decided(world)
    world.writes.clear()
    asyncio.run(executor.run(action))
    assert [write.split(" ")[0] for write in world.writes] == ["ticket", "evict"]
    assert world.get(PODS, f"{action.member}-0") is None


def test_m11_a_decision_that_has_grown_old_is_refused_by_the_leader() -> None:
    world = settled(3)
    executor, action = decided(world)
    lose_another_voter(world, action)
    with pytest.raises(NotNowError, match="another voter is missing"):
        asyncio.run(executor.run(action))
    assert world.get(PODS, f"{action.member}-0") is not None


def test_m11_planted_a_restart_without_a_ticket_costs_the_quorum(monkeypatch: pytest.MonkeyPatch) -> None:
    async def leave_for_all(*_: object) -> RestartTicket:
        return RestartTicket(True, valid_seconds=30.0)

    world = settled(3)
    executor, action = decided(world)
    lose_another_voter(world, action)
    monkeypatch.setattr(FakeMembers, "restart_ticket", leave_for_all)
    with pytest.raises(ViolationError, match="would cost the quorum"):
        asyncio.run(executor.run(action))


def test_m11_a_ticket_that_came_too_late_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def late(*_: object) -> RestartTicket:
        return RestartTicket(True, valid_seconds=0.0)

    world = settled(3)
    executor, action = decided(world)
    monkeypatch.setattr(FakeMembers, "restart_ticket", late)
    with pytest.raises(NotNowError, match="too late"):
        asyncio.run(executor.run(action))
    assert world.get(PODS, f"{action.member}-0") is not None


def test_m11_a_disruption_budget_is_heeded_and_the_status_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forbid(*_: object) -> None:
        raise KubeError(429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.")

    world = settled(3)
    loop = world.operator()
    world.apply({**world.cluster["spec"], "version": "0.1.1"})
    with monkeypatch.context() as patched:
        patched.setattr(FakeKube, "evict", forbid)
        for _ in range(10):
            world.step(loop)
    assert "a disruption budget forbids it" in world.status["message"]
    assert len(world.of(PODS)) == 3
    world.settle(loop)
    world.check_settled()


def test_m11_a_sole_voter_restarts_with_words_that_say_so() -> None:
    world = settled(1)
    world.apply({**sample(1), "version": "0.1.1"})
    world.settle()
    told = [event["message"] for event in world.events if event["reason"] == "MemberRestarted"]
    assert len(told) == 1 and "only voter" in told[0]
