"""Random lives: edits, failing and lost members, operators that crash or act on what they saw long ago.

The world (``operator_world``) raises at every call that must never happen; whatever is done to the cluster, it must
come to rest as wished once it is left alone.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operator_fakes import FakeMembers
from operator_world import NAME, OperatorCrash, World, quorum, sample, settled
from raftkv_operator.act.executor import Executor, NameTakenError, NotNowError
from raftkv_operator.api import constants
from raftkv_operator.decide import Action, decide
from raftkv_operator.loop import ClusterLoop
from raftkv_operator.observe.seams import CLAIMS, PODS, KubeError, MemberError

MEMBER = st.integers(0, 6)
OPERATIONS = st.one_of(
    st.tuples(st.just("pass"), st.integers(1, 12)),
    st.tuples(st.just("scale"), st.integers(1, 5)),
    st.tuples(st.just("hibernate"), st.just(0)),
    st.tuples(st.just("lose_status"), st.just(0)),
    st.tuples(st.just("kill_pod"), MEMBER),
    st.tuples(st.just("fail"), MEMBER),
    st.tuples(st.just("heal"), MEMBER),
    st.tuples(st.just("lose"), MEMBER),
    st.tuples(st.just("edit"), st.integers(1, 3)),
    st.tuples(st.just("crash_before"), st.integers(1, 6)),
    st.tuples(st.just("crash_after"), st.integers(1, 6)),
    st.tuples(st.just("look"), st.just(0)),
    st.tuples(st.just("act_late"), st.just(0)),
    st.tuples(st.just("request_fails"), st.integers(1, 3)),
)


@dataclass
class Life:
    """One world, the operator in charge, and what a second one saw but has not done yet."""

    world: World
    loop: ClusterLoop
    late: tuple[Executor, Action] | None = None

    def do(self, operation: tuple[str, int]) -> None:
        """One operation of a person, of fate, or of time."""
        name, value = operation
        getattr(self, f"_{name}")(value)

    def _pass(self, times: int) -> None:
        for _ in range(times):
            try:
                self.world.step(self.loop)
            except OperatorCrash:
                self.world.crash_at = None
                self.loop = self.world.operator()

    def _scale(self, replicas: int) -> None:
        self.world.scale(replicas)

    def _hibernate(self, _: int) -> None:
        self.world.scale(0)

    def _lose_status(self, _: int) -> None:
        """A restored custom resource has no status; before the opening there is nothing to go on from."""
        if self.world.status.get("identity", {}).get("phase") == "Opened":
            self.world.cluster.pop("status")
            self.world.touch(self.world.cluster)

    def _edit(self, patch: int) -> None:
        self.world.apply({**self.world.cluster["spec"], "version": f"0.1.{patch}"})

    def _kill_pod(self, which: int) -> None:
        pods = self.world.of(PODS)
        if pods:
            self.world.objects.pop(("pods", pods[which % len(pods)]["metadata"]["name"]))

    def _claim_uid(self, which: int) -> str | None:
        claims = self.world.of(CLAIMS)
        return claims[which % len(claims)]["metadata"]["uid"] if claims else None

    def _fail(self, which: int) -> None:
        uid = self._claim_uid(which)
        if uid is not None:
            self.world.refusals.setdefault(uid, (137, "killed"))

    def _heal(self, which: int) -> None:
        failing = [uid for uid, (code, _) in self.world.refusals.items() if code == 137]
        if failing:
            self.world.refusals.pop(failing[which % len(failing)])

    def _lose(self, which: int) -> None:
        """A ring is proven lost for ever; only where a quorum of intact voters stays, or nothing could be done."""
        world, uid = self.world, self._claim_uid(which)
        disk = world.disks.get(uid or "")
        if uid is None or disk is None or disk.identity is None or not world.clusters:
            return
        raft = world.clusters[disk.identity.cluster_id]
        lost = {
            d.identity.member_id
            for u, d in world.disks.items()
            if d.identity and world.refusals.get(u, (0, ""))[0] == constants.EXIT_PROVEN_LOST
        }
        # A change of voters may be decided but not made: any member may be needed then.
        if raft.settings.opened and len(raft.members) - len(lost) - 1 >= max(quorum(raft), len(raft.members) // 2 + 1):
            world.refusals[uid] = (constants.EXIT_PROVEN_LOST, "raftkv: lost")

    def _crash_before(self, at: int) -> None:
        self.world.crash_at = (self.world.side_effects + at, "before")

    def _crash_after(self, at: int) -> None:
        self.world.crash_at = (self.world.side_effects + at, "after")

    def _request_fails(self, times: int) -> None:
        self.world.fail_next = [KubeError(500, "InternalError", "x")] * times

    def _look(self, _: int) -> None:
        """Another operator looks and decides, and is then stopped (SIGSTOP)."""
        other = self.world.operator()

        async def look() -> None:
            objects = await other._fresh_objects()
            if objects is None:
                return
            spec, seen = await other._observe(objects, fresh=True)
            spec, seen = await other._observe(objects, fresh=True)  # with the token that the first look found
            assert spec is not None
            decision = decide(spec, seen)
            if isinstance(decision, Action):
                self.late = (Executor(self.world.kube, FakeMembers(self.world), spec, seen), decision)

        asyncio.run(look())

    def _act_late(self, _: int) -> None:
        """It goes on, much later."""
        if self.late is None:
            return
        executor, action = self.late
        self.late = None
        try:
            asyncio.run(executor.run(action))
        except (KubeError, MemberError, NameTakenError, NotNowError):
            pass
        except OperatorCrash:
            self.world.crash_at = None

    def leave_alone(self) -> None:
        """Nothing more happens to the cluster: it must come to rest as wished."""
        self._act_late(0)
        world = self.world
        world.crash_at, world.fail_next = None, []
        for uid, (code, _) in list(world.refusals.items()):
            if code == 137:
                world.refusals.pop(uid)
        if not world.spec.replicas:
            world.scale(3)
        self.loop = self._settle_or_adopt()
        world.settle(self.loop)
        world.check_settled()

    def _settle_or_adopt(self) -> ClusterLoop:
        """Where the claims do not prove enough a person says that it is this cluster (M3)."""
        world = self.world
        for _ in range(20):
            self._pass(1)
        stalled = [c for c in world.status.get("conditions", ()) if c["type"] == "Stalled" and c["status"] == "True"]
        if stalled and stalled[0]["reason"] == "IdentityConflict":
            (cluster_id,) = world.clusters
            world.apply({**world.cluster["spec"], "bootstrap": {"identity": f"Adopt {cluster_id:016x}"}})
        return world.settle(self.loop)


def _live(operations: list[tuple[str, int]], replicas: int, created: bool) -> World:
    world = settled(replicas) if created else World(sample(replicas))
    life = Life(world, world.operator())
    for operation in operations:
        life.do(operation)
    life.leave_alone()
    return world


SETTINGS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


@settings(max_examples=40, **SETTINGS)
@given(st.lists(OPERATIONS, max_size=25), st.integers(1, 5))
def test_a_cluster_converges_whatever_happens_to_it(operations: list[tuple[str, int]], replicas: int) -> None:
    _live(operations, replicas, created=True)


@settings(max_examples=40, **SETTINGS)
@given(st.lists(OPERATIONS, max_size=25), st.integers(1, 5))
def test_a_cluster_converges_whatever_happens_while_it_is_created(
    operations: list[tuple[str, int]], replicas: int
) -> None:
    _live(operations, replicas, created=False)


@settings(max_examples=20, **SETTINGS)
@given(st.lists(OPERATIONS, max_size=15), st.booleans())
def test_a_deletion_leaves_nothing_whatever_happens(operations: list[tuple[str, int]], created: bool) -> None:
    world = settled(3) if created else World(sample(3))
    life = Life(world, world.operator())
    for operation in operations:
        life.do(operation)
    if world.of(CLAIMS) and "identity" not in world.status:
        life.leave_alone()  # what has no identity deletes no disk: it is adopted first
    world.delete_cluster()
    world.crash_at, world.fail_next = None, []
    world.refusals.clear()
    life.late = None
    world.settle(life.loop)
    assert not [o for (plural, name), o in world.objects.items() if plural != "raftkvclusters" and NAME in name]
    assert not [d for d in world.disks.values() if d.identity is not None and _on_a_claim(world, d)]


def _on_a_claim(world: World, disk: object) -> bool:
    return any(world.disks.get(c["metadata"]["uid"]) is disk for c in world.of(CLAIMS))
