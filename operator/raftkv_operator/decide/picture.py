"""Spec and observation joined per member: the vocabulary in which the rules are written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from raftkv_operator.api import constants
from raftkv_operator.api.types import ClusterSpec, Latch, LatchedMember, Names
from raftkv_operator.observe.views import (
    ClaimView,
    Configuration,
    MemberState,
    NodeIdentity,
    NodePhase,
    NodeView,
    Observed,
    PodView,
    Role,
    Settings,
    StatefulSetView,
)


@dataclass(frozen=True, slots=True)
class Member:
    """One number in use, with all that is seen of it."""

    entry: LatchedMember
    name: str
    claim: ClaimView | None
    set: StatefulSetView | None
    pod: PodView | None
    node: NodeView | None
    state: MemberState | None
    removed: bool

    @property
    def number(self) -> int:
        """Its number."""
        return self.entry.number

    @property
    def address(self) -> str:
        """Where its client port is; empty without a pod that has an address."""
        return f"{self.pod.ip}:{constants.CLIENT_PORT}" if self.pod is not None and self.pod.ip else ""

    @property
    def empty(self) -> bool:
        """Whether its node waits for the identity that is meant for it, on the very disk that it is bound to."""
        node = self.node
        return (
            node is not None
            and node.phase is NodePhase.WAITING
            and self.entry.bound
            and node.disk_uuid == self.entry.disk_uuid
        )

    @property
    def other_disk(self) -> bool:
        """Whether its node waits on another disk than the one it is bound to: absent by M1."""
        node = self.node
        return (
            node is not None
            and node.phase is NodePhase.WAITING
            and self.entry.bound
            and node.disk_uuid != self.entry.disk_uuid
        )

    @property
    def carries_identity(self) -> bool:
        """Whether its node runs as the member that was issued."""
        node = self.node
        return (
            node is not None
            and node.phase in (NodePhase.LATCHED, NodePhase.OPENED)
            and node.member_id == self.entry.member_id
            and node.disk_uuid == self.entry.disk_uuid
        )

    @property
    def active(self) -> bool:
        """Whether the leader has heard it within the last election timeout."""
        return self.state is not None and self.state.recent_active

    @property
    def stamped(self) -> bool:
        """Whether its claim carries its identity (M3)."""
        claim = self.claim
        return claim is not None and (claim.member_id, claim.disk_uuid) == (self.entry.member_id, self.entry.disk_uuid)


@dataclass(frozen=True)
class Picture:
    """A cluster with an identity, as the rules see it."""

    spec: ClusterSpec
    seen: Observed
    latch: Latch

    @cached_property
    def names(self) -> Names:
        """The names of its objects."""
        return Names(self.seen.namespace, self.seen.name)

    @cached_property
    def configuration(self) -> Configuration | None:
        """The committed configuration, if its leader answered; never another cluster's."""
        conf = self.seen.configuration
        return conf if conf is not None and conf.cluster_id == self.latch.cluster_id else None

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """All numbers in use, in their order."""
        return tuple(self._member(entry) for entry in sorted(self.latch.members, key=lambda e: e.number))

    @cached_property
    def present(self) -> tuple[Member, ...]:
        """The members whose removal is not committed."""
        return tuple(m for m in self.members if not m.removed)

    @cached_property
    def sound(self) -> tuple[Member, ...]:
        """The present members that are not condemned: those that count for ``spec.replicas``."""
        return tuple(m for m in self.present if not m.entry.condemned)

    @cached_property
    def leader(self) -> Member | None:
        """The leader, if the configuration is known and it is one of ours."""
        if self.configuration is None:
            return None
        wanted = self.configuration.leader_id
        return next((m for m in self.members if m.entry.member_id == wanted and m.address), None)

    @cached_property
    def leaving(self) -> tuple[Member, ...]:
        """The members that should go: surplus ones, and condemned ones whose replacement has caught up.

        Surplus: those that never joined, those already told to leave, the unhealthy, then the newest; the leader last.
        A condemned voter keeps its vote until another member can take it, so that a replacement is one swap and the
        number of voters never shrinks on the way; one without a vote goes at once.
        """
        conf = self.configuration
        if conf is None:
            return ()
        going = [m for m in self.sound if m.entry.bound]
        surplus = max(0, len(self.sound) - self.spec.replicas)
        told = set(conf.settings.leaving)

        def key(m: Member) -> tuple[bool, bool, bool, bool, int]:
            return (
                m.state is not None,
                m.entry.member_id not in told,
                m.entry.member_id == conf.leader_id,
                m.active,
                -m.number,
            )

        chosen = sorted(going, key=key)[:surplus]
        fit = sum(1 for m in self.sound if _votes(m) or (m.active and m.state is not None and m.state.caught_up))
        for m in self.present:
            if not m.entry.condemned or not m.entry.bound:
                continue
            if not _votes(m) or m.entry.member_id in told or fit >= self.spec.wished_voters:
                chosen.append(m)
        return tuple(sorted(chosen, key=lambda m: m.number))

    @cached_property
    def staying(self) -> tuple[Member, ...]:
        """The sound members that are not leaving."""
        going = {m.number for m in self.leaving}
        return tuple(m for m in self.sound if m.number not in going)

    @cached_property
    def settings(self) -> Settings | None:
        """The settings that should be in the configuration now; None without a configuration.

        A larger ``replicas`` is set only when all members it counts have been added, so that the leader fills vacancies
        with members that exist; a smaller one at once.
        """
        conf = self.configuration
        if conf is None:
            return None
        replicas = self.spec.replicas
        if replicas > conf.settings.replicas and any(m.state is None for m in self.staying):
            replicas = conf.settings.replicas
        return Settings(
            replicas=replicas,
            max_voters=self.spec.max_voters,
            promote_after_milliseconds=self.spec.promote_after_milliseconds,
            leaving=tuple(sorted(m.entry.member_id for m in self.leaving if m.state is not None)),
            opened=self.latch.phase == "Opened",
            leader_preference=self.spec.leader_preference,
            zones=self._zones(conf),
        )

    def _zones(self, conf: Configuration) -> tuple[tuple[int, str], ...]:
        """The zones of the members: of the hosts their pods run on; the last one known where there is none now."""
        found = {}
        for member in self.present:
            if member.state is None:
                continue
            host = member.pod.host if member.pod is not None else ""
            zone = self.seen.zones.get(host) or conf.settings.zone(member.entry.member_id)
            if zone:
                found[member.entry.member_id] = zone
        return tuple(sorted(found.items()))

    def identity(self, member: Member) -> NodeIdentity:
        """The identity that a bound member gets; the same words every time."""
        host = self.names.host(member.number)
        return NodeIdentity(
            cluster_id=self.latch.cluster_id,
            member_id=member.entry.member_id,
            number=member.number,
            disk_uuid=member.entry.disk_uuid,
            name=member.name,
            peer_url=f"http://{host}:{constants.PEER_PORT}",
            client_urls=(f"http://{host}:{constants.CLIENT_PORT}",),
            # its zone may change, and is in the settings
        )

    def _member(self, entry: LatchedMember) -> Member:
        seen, conf, number = self.seen, self.configuration, entry.number
        return Member(
            entry=entry,
            name=self.names.member(number),
            claim=seen.claims.get(number),
            set=seen.sets.get(number),
            pod=seen.pods.get(number),
            node=seen.nodes.get(number),
            state=conf.member(entry.member_id) if conf is not None and entry.bound else None,
            removed=conf is not None and entry.bound and entry.member_id in conf.removed,
        )


def _votes(member: Member) -> bool:
    return member.state is not None and member.state.role is Role.VOTER


def may_lead(member: Member) -> bool:
    """Whether a member could take over the leadership now."""
    state = member.state
    return state is not None and state.role is Role.VOTER and state.recent_active and state.caught_up
