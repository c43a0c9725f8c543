"""Clusters of production members under all faults, with clients whose histories are checked exactly.

`MemberWorld` is a `ClientWorld` with `MemberNode`s: the same network, deaths, sleeps, splits and changes of the
membership, and power cuts, of one machine or all. Every step is checked by `Checks` (election safety, log matching,
leader completeness, state-machine safety, durable quorums) and by `MemberChecks`; every answer, and in the end the
history of all clients, by `ClientWorld`.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adr_crash import laboratory
from raftkv_node.adr import LogError
from raftkv_node.api.methods import Method
from raftkv_node.pb import admin_pb2, rpc_pb2
from raftkv_node.raft import (
    Configuration,
    ConfigurationChange,
    Raft,
    decode_message,
    initial_configuration,
)
from raftkv_node.server.member import Failure
from raftkv_node.server.members import encode_attributes, encode_settings
from raftkv_node.server.replica import Replica
from raftkv_node.store.errors import StoreError
from simulation_checks import Violation
from simulation_clients import ClientWorld
from simulation_installed import Clock, installed
from simulation_member import MemberNode
from simulation_member_checks import MemberChecks
from simulation_node import CrashError
from simulation_pieces import SimStore
from simulation_setup import Faults, Setup
from simulation_storage import ModelLog

FRAGILE = frozenset(("in ring append", "in ring header", "after records", "after truncate"))
INSTALLING = frozenset(
    (
        *("in snapshot chunk", "after snapshot sync", "before install mark", "after install mark", "before swap"),
        "after swap",
    )
)
"""Points while a snapshot is taken in and installed: rare, so that a death there is made likely."""
INSTALLING_DEATHS = 0.2


class MemberWorld(ClientWorld):
    """A run with production members, in files below `folder`."""

    def __init__(
        self,
        seed: int,
        setup: Setup,
        raft_class: Callable[..., Raft] = Raft,
        replica_class: type[Replica] = Replica,
        store_class: type[SimStore] = SimStore,
        node_class: type[MemberNode] = MemberNode,
        planted: Mapping[Any, Mapping[str, Any]] = MappingProxyType({}),
    ) -> None:
        self.folder: Path = laboratory()
        self.planted = planted
        self.replica_class, self.store_class = replica_class, store_class
        self.member_class = node_class
        self.starting: MemberNode
        self.clock = Clock(self)
        self.last_writes: set[bytes] = set()
        self.blackouts = 0
        super().__init__(seed, replace(setup, members=0), raft_class, log_class=ModelLog)
        self.setup = setup
        self.skipped = frozenset(setup.skip)
        self.checks: MemberChecks = MemberChecks()
        self.settings = self.wished_settings()
        self.zone_losses = 0
        self.next_id = setup.members + 1

    def run(self) -> MemberWorld:
        """Both phases; the files are gone afterwards."""
        try:
            with installed(self):
                self._run()
        finally:
            for node in self.nodes.values():
                node.crash()
            shutil.rmtree(self.folder)
        return self

    def _run(self) -> None:
        founding = self.founding()
        for member in range(1, self.setup.members + 1):
            self.add_node(member, founding)
        super().run()
        for node in self.nodes.values():
            if node.up:
                self.checks.state(self.member(node))
        self.check_history()

    def founding(self) -> Configuration:
        """All vote; where roles are the leader's to change, one does, and the leader makes the others voters."""
        members = {one: self.attributes_of(one) for one in range(1, self.setup.members + 1)}
        if not self.setup.operated:
            return initial_configuration(members, self.settings)
        first, *rest = members
        return Configuration(
            voters=frozenset({first}), learners=frozenset(rest), members=members, settings=self.settings
        )

    def attributes_of(self, member: int) -> bytes:
        """What the configuration knows of a member."""
        if not self.setup.zones:
            return b""
        return encode_attributes(admin_pb2.Identity(member_id=member, number=member, zone=self.zone_of(member)))

    def wished_settings(self, **changed: Any) -> bytes:
        """The replicated settings that the operator wishes."""
        setup = self.setup
        fields: dict[str, Any] = {"max_voters": setup.max_voters, "opened": True}
        if setup.leader_preference:
            fields.update(leader_preference=setup.leader_preference)
        if setup.operated:
            fields.update(replicas=setup.members, promote_after_milliseconds=round(1000 * setup.promote_after))
        return encode_settings(admin_pb2.Settings(**{**fields, **changed}))

    # -- what members ask of their world -------------------------------------------------------------------------------

    def seconds(self) -> float:
        return self.now * self.setup.unit_milliseconds / 1000

    def reach(self, node: Any, point: str) -> None:
        """A point where the process may die: most of all where something is half written, and then by a power cut."""
        self.points[point] = self.points.get(point, 0) + 1
        faults = self.setup.faults
        fragile = point in FRAGILE or point in INSTALLING
        chance = faults.crash * (faults.fragile if fragile else 1)
        if point in INSTALLING and faults.crash:
            chance = INSTALLING_DEATHS / (1 if point != "in snapshot chunk" else 3)
        if self.faulty and self.rng.random() < chance and self.dies():
            self.note(f"{node.id} dies {point}")
            if fragile and self.rng.random() < self.setup.faults.power:
                self.member(node).dies_of_power = True
            raise CrashError(point)

    def post(self, sender: int, to: int, what: str, *arguments: Any) -> None:
        """Hand something to the network that is not Raft's: late, or lost."""
        if self.faulty and self.rng.random() < self.setup.faults.lose:
            self.checks.count("messages lost")
            return
        life = self.nodes[sender].incarnation
        self.at(self.delay(sender, to), self.posted, sender, life, to, what, arguments)

    def posted(self, sender: int, life: int, to: int, what: str, arguments: tuple[Any, ...]) -> None:
        """It comes on a connection, which ends with the process that has sent it: what an earlier life has said of
        itself must not make its receiver believe that it is connected with the present one."""
        node = self.nodes.get(to)
        if self.nodes[sender].incarnation != life:
            return
        if node is not None and node.up and self.passes(sender, to):
            self.act(node, getattr(self.member(node), what), *arguments)

    def later(self, node: Any, low: int, high: int, action: Callable[..., None], *arguments: Any) -> None:
        self.at(self.rng.randint(low, high), self.act_in, node, node.incarnation, action, arguments)

    def forgotten(self, node: Any) -> None:
        super().forgotten(node)
        for other in self.nodes.values():
            if other.up:
                self.member(other).hung_up(node.id)

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def add_node(self, member: int, configuration: Configuration) -> None:
        rng = random.Random(self.rng.getrandbits(64))
        node: Any = self.member_class(member, self, self.folder / str(member), configuration, rng)
        self.nodes[member] = node
        self.start(node)

    def guard(self, node: Any, action: Callable[..., None], *arguments: Any) -> None:
        try:
            super().guard(node, action, *arguments)
        except (LogError, StoreError, Failure, OSError, ValueError, AssertionError) as error:
            raise Violation("FAILED", f"{node.id}: {type(error).__name__}: {error}") from error

    def step(self, node: Any, data: bytes) -> None:
        self.member(node).receive(decode_message(data))

    def tick_now(self, node: Any) -> None:
        self.member(node).tick()

    def faults(self) -> None:
        if self.strikes("blackout", self.setup.faults.blackout):
            self.note("the power of all machines is cut")
            self.blackouts += 1
            self.cut_power(self.nodes)
        if self.setup.zones and self.strikes("zone", self.setup.faults.zone_loss):
            self.lose_zone(self.zone_of(self.rng.choice(sorted(self.nodes))))
        super().faults()

    def cut_power(self, members: Iterable[int]) -> None:
        """These machines lose their power at once."""
        for one in list(members):
            node = self.nodes[one]
            self.member(node).dies_of_power = True
            if node.up:
                self.crash(node)
            else:
                node.crash()

    def in_zone(self, zone: str) -> list[int]:
        """The members that stand there."""
        return [one for one in sorted(self.nodes) if self.zone_of(one) == zone]

    def lose_zone(self, zone: str, for_good: bool = False) -> None:
        """A whole zone loses its power; its members come back one by one, or never."""
        self.note(f"{zone} is lost")
        self.zone_losses += 1
        self.cut_power(self.in_zone(zone))
        if for_good:
            self.gone |= set(self.in_zone(zone))

    # -- the operator --------------------------------------------------------------------------------------------------

    def wish(self, configuration: Configuration) -> ConfigurationChange | None:
        change = super().wish(configuration)
        if change is not None and change.add_learners:
            return replace(change, add_learners={one: self.attributes_of(one) for one in change.add_learners})
        if change is not None and change.settings is not None:
            # something that differs each time, and that no decision depends on
            number = 1000 + self.now
            after = {} if self.setup.operated else {"promote_after_milliseconds": number}
            leaving = {"leaving": [1 << 32 | number]} if self.setup.operated else {}
            return ConfigurationChange(settings=self.wished_settings(**after, **leaving))
        return change

    # -- liveness ------------------------------------------------------------------------------------------------------

    def written(self) -> bool:
        if any(payload in self.checks.answers for payload in self.last_writes):
            return True
        for leader in self.leaders():
            request = rpc_pb2.PutRequest(key=b"last", value=self.unique())
            self.last_writes.add(request.SerializeToString())
            self.call(leader, [(Method.PUT, request)])
        return False


# -- shapes of runs ----------------------------------------------------------------------------------------------------


def storms(rng: random.Random) -> Setup:
    """Processes die and machines lose their power at every corner; the network is good."""
    faults = Faults(
        lose=0.0, double=0.0, late=0.0, crash=0.012, partition=0.0, change=0.0, sleep=0.05, restart=60,
        power=0.7, blackout=0.3,
    )  # fmt: skip
    return Setup(
        rng.choice((1, 3, 3)),
        rng.random() < 0.5,
        faults=faults,
        clients=rng.choice((6, 20)),
        duration=2000,
        flush=rng.choice((40, 200)),
    )


def everything(rng: random.Random) -> Setup:
    """A bit of all: bad network, splits, sleeps, changes of members, deaths, power cuts."""
    faults = Faults(
        lose=rng.choice((0.0, 0.05)),
        double=rng.choice((0.0, 0.1)),
        late=rng.choice((0.0, 0.1)),
        crash=rng.choice((0.001, 0.003)),
        partition=rng.choice((0.0, 0.4)),
        sleep=rng.choice((0.0, 0.2)),
        change=rng.choice((0.0, 0.5)),
        transfer=0.1,
        power=0.5,
        blackout=0.1,
        restart=150,
    )
    return Setup(3, rng.random() < 0.5, faults=faults, clients=6, duration=2500)


def torrents(rng: random.Random) -> Setup:
    """Slow disks under load, and power cuts in the middle of their writes: torn tails."""
    faults = replace(storms(rng).faults, crash=0.002, fragile=150.0, power=0.9)
    return Setup(rng.choice((1, 3)), True, faults=faults, clients=20, duration=1500, flush=200)


def absences(rng: random.Random) -> Setup:
    """Members are away for so long that the log does not reach back to where they were: snapshots, in all weathers."""
    faults = Faults(
        lose=rng.choice((0.0, 0.02, 0.1)),
        double=rng.choice((0.0, 0.1)),
        late=rng.choice((0.0, 0.1)),
        crash=rng.choice((0.0002, 0.0008)),
        partition=rng.choice((0.0, 0.2)),
        sleep=rng.choice((0.0, 0.2)),
        change=rng.choice((0.0, 0.1, 0.3)),
        transfer=0.1,
        power=0.5,
        blackout=rng.choice((0.0, 0.05)),
        fragile=rng.choice((10.0, 60.0)),
        restart=150,
        away=0.9,
        fault_every=70,
    )
    return Setup(
        rng.choice((3, 3, 5)),
        rng.random() < 0.5,
        faults=faults,
        clients=20,
        duration=4000,
        retention_entries=rng.choice((1, 3, 8)),
        segment_bytes=2 << 10,
        window_entries=6,
    )


SHAPES = (storms, everything, torrents, absences)


def run_of(seed: int, **classes: Any) -> MemberWorld:
    """The run of a seed."""
    return MemberWorld(seed, SHAPES[seed % len(SHAPES)](random.Random(seed ^ 0x5EED)), **classes)
