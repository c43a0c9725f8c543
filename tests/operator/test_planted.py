"""Planted mistakes: each breaks one rule in the production code, and the world must find it.

So that the watchers of ``operator_world`` are known to bark, and the clause that each mistake removes to be needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from operator_world import NAME, ViolationError, World, sample, settled
from raftkv_operator.act.executor import Executor
from raftkv_operator.api.types import Latch
from raftkv_operator.decide import actions, decide, formation, identity, membership, upkeep
from raftkv_operator.decide.picture import Member, Picture
from raftkv_operator.observe.seams import CLAIMS, CLUSTERS
from raftkv_operator.observe.views import Retirement

# The package exports the function under the module's name.
decide_module = sys.modules["raftkv_operator.decide.decide"]


def _with_rule(monkeypatch: pytest.MonkeyPatch, rule: Callable[[Picture], Any]) -> None:
    monkeypatch.setattr(decide_module, "RULES", (rule, *decide_module.RULES))


def _scale_in() -> World:
    world = settled(5)
    world.scale(3)
    return world


def test_m10_a_member_destroyed_before_its_id_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def eager(picture: Picture) -> actions.Action | None:
        for m in picture.leaving:
            if m.set is not None:
                return actions.DeleteStatefulSet(m.number, m.name, m.set.name, m.set.uid)
        return None

    _with_rule(monkeypatch, eager)
    with pytest.raises(ViolationError, match="before its id was removed"):
        _scale_in().settle()


def test_m10_a_disk_wiped_before_its_id_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def eager(picture: Picture) -> actions.Action | None:
        for m in picture.leaving:
            ground = Retirement(picture.latch.cluster_id, m.entry.member_id, m.entry.disk_uuid)
            return actions.Retire(m.number, m.name, m.address, ground)
        return None

    _with_rule(monkeypatch, eager)
    with pytest.raises(ViolationError, match="wiped before it was removed"):
        _scale_in().settle()


def test_m7_a_voter_removed_by_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    def eager(picture: Picture) -> actions.Action | None:
        conf = picture.configuration
        for m in picture.leaving:
            if conf is not None and picture.leader is not None:
                return actions.RemoveMember(m.number, m.name, picture.leader.address, conf.index, m.entry.member_id)
        return None

    _with_rule(monkeypatch, eager)
    with pytest.raises(ViolationError, match="a voter was removed"):
        _scale_in().settle()


def test_m2_a_latch_written_by_merge_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    async def careless(self: Executor, latch: Latch) -> None:
        patch = {"status": {"identity": latch.to_status()}}
        await self.kube.merge(CLUSTERS, self.seen.namespace, self.seen.name, patch, "status")

    monkeypatch.setattr(Executor, "_write_latch", careless)
    with pytest.raises(ViolationError, match="merge patch"):
        World(sample(3)).settle()


def test_m2_a_latch_replaced_after_the_cluster_was_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers: what was promised to clients is still on the disks, and a new cluster would forget it."""

    def anew(picture: Picture) -> actions.Action | None:
        if picture.latch.phase != "Opened" or picture.configuration is not None:
            return None
        latch = replace(picture.latch, cluster_id=picture.latch.cluster_id ^ 1, phase="Latched")
        return actions.WriteLatch("Form", latch, "forming the cluster anew")

    world = settled(3)
    _with_rule(monkeypatch, anew)
    world.settle()  # while a quorum answers the mistake does not show
    for number in (1, 2, 3):
        claim = world.get(CLAIMS, f"data-{NAME}-{number}")
        assert claim is not None
        world.refusals[claim["metadata"]["uid"]] = (137, "killed")
    with pytest.raises(ViolationError, match="the latch was replaced"):
        world.settle()


def test_m10_a_member_destroyed_by_a_decision_that_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator decides while fewer members are wished, is stopped, and acts when more are wished again."""
    decided: list[actions.Action] = []
    scaled_back = False

    def late(picture: Picture) -> actions.Action | None:
        if not decided:
            decided.extend(
                actions.DeleteStatefulSet(m.number, m.name, m.set.name, m.set.uid)
                for m in picture.leaving
                if m.set is not None
            )
        return decided[0] if decided and scaled_back else None

    _with_rule(monkeypatch, late)
    world = settled(5)
    world.scale(3)
    world.step(world.operator())
    assert decided
    world.scale(5)
    scaled_back = True
    with pytest.raises(ViolationError, match="before its id was removed"):
        world.settle()


def test_m3_a_second_identity_after_the_status_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_witnesses", lambda seen: ())
    world = settled(3)
    world.cluster.pop("status")
    with pytest.raises(ViolationError, match="a second cluster was bootstrapped"):
        world.settle()


def test_m3_an_identity_given_before_it_stands_on_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Member, "stamped", property(lambda self: True))
    with pytest.raises(ViolationError, match="before it stood on the claim"):
        World(sample(3)).settle()


def test_m1_a_number_issued_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    right = formation.numbers

    def reuse(picture: Picture) -> Any:
        answer = right(picture)
        if isinstance(answer, actions.WriteLatch) and answer.step == "ReserveNumbers":
            fresh = type(picture.latch.members[0])(1) if picture.latch.members else None
            if fresh is not None and picture.latch.member(1) is None:
                latch = type(picture.latch)(
                    picture.latch.cluster_id,
                    picture.latch.phase,
                    picture.latch.next_number,
                    picture.latch.founder,
                    (*picture.latch.members, fresh),
                )
                return actions.WriteLatch("ReserveNumbers", latch, "reusing a number")
        return answer

    monkeypatch.setattr(decide_module, "RULES", tuple(reuse if r is right else r for r in decide_module.RULES))
    world = settled(3)
    claim = world.get(CLAIMS, f"data-{NAME}-1")
    assert claim is not None
    world.refusals[claim["metadata"]["uid"]] = (66, "raftkv: lost")
    loop = world.settle()
    world.scale(4)
    with pytest.raises(ViolationError, match="a number was issued twice"):
        world.settle(loop)


def test_m11_a_restart_that_costs_the_quorum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_well", lambda member: True)
    monkeypatch.setattr(upkeep, "_dead", lambda member, known: known)
    world = settled(3)
    claim = world.get(CLAIMS, f"data-{NAME}-2")
    assert claim is not None
    world.refusals[claim["metadata"]["uid"]] = (137, "killed")
    world.tick()
    world.apply({**sample(3), "version": "0.1.1"})
    with pytest.raises(ViolationError, match="would cost the quorum"):
        world.settle()


def test_without_a_mistake_the_same_lives_pass() -> None:
    assert callable(decide)
    assert membership.remove in decide_module.RULES
    world = _scale_in()
    world.settle()
    world.check_settled()
