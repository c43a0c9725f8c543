"""The picture that a decision is made on: typed views of one cluster's objects and members.

``Observed`` is a value: everything that ``decide`` may look at, also the time and the random ids it may hand out, so
that a decision depends on nothing else. The constructors read plain Kubernetes objects and forget what no decision
needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Self, TypeVar

from raftkv_operator.api import constants
from raftkv_operator.api.types import Latch, Object, hex_id

MESSAGE_LIMIT_CHARACTERS = 300
"""Longest sentence taken over from a node's termination message."""


def parse_time(text: str | None) -> datetime | None:
    """An API timestamp; None for None and for what is none."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None


def format_time(moment: datetime) -> str:
    """A timestamp as the API writes it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


V = TypeVar("V", "ClaimView", "StatefulSetView", "PodView")


class NodePhase(Enum):
    """How far a node has come (``raftkv.admin.v1.Phase``)."""

    WAITING = 1
    LATCHED = 2
    OPENED = 3
    RETIRED = 4


class Role(Enum):
    """A member's role in the configuration (``raftkv.admin.v1.Role``)."""

    VOTER = 1
    LEARNER = 2
    STANDBY = 3


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """The identity that a member carries, as the administration API states it."""

    cluster_id: int
    member_id: int
    number: int
    disk_uuid: str
    name: str
    peer_url: str
    client_urls: tuple[str, ...]
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that the operator sets and the leader acts upon (M7)."""

    replicas: int
    max_voters: int
    promote_after_milliseconds: int
    leaving: tuple[int, ...] = ()
    opened: bool = False
    leader_preference: tuple[str, ...] = ()
    zones: tuple[tuple[int, str], ...] = ()
    """Member id and zone, sorted."""

    def zone(self, member_id: int) -> str:
        """Where a member was last known to run; empty if that is not known."""
        return dict(self.zones).get(member_id, "")


@dataclass(frozen=True, slots=True)
class Retirement:
    """Which node is to wipe itself, and on what ground: removed as of a configuration, or its cluster deleted (M10)."""

    cluster_id: int
    member_id: int
    disk_uuid: str
    configuration_index: int = 0
    cluster_deleted: bool = False


@dataclass(frozen=True, slots=True)
class RestartTicket:
    """The leader's answer to the wish to restart a member (M11)."""

    granted: bool
    reason: str = ""
    """Why not, in one sentence."""
    valid_seconds: float = 0.0
    """The restart must have begun within so long after the request was sent."""
    sole_voter: bool = False


@dataclass(frozen=True, slots=True)
class NodeView:
    """What a node says of itself (Describe): local knowledge, never proof of anything about the cluster."""

    phase: NodePhase
    number: int
    disk_uuid: str
    cluster_id: int = 0
    member_id: int = 0
    leader_id: int = 0
    term: int = 0
    role: Role | None = None
    version: str = ""
    durability: str = ""
    medium: str = ""
    host: str = ""


@dataclass(frozen=True, slots=True)
class MemberState:
    """A member in the committed configuration, as the leader sees it."""

    member_id: int
    number: int
    role: Role
    disk_uuid: str = ""
    match_index: int = 0
    recent_active: bool = False
    caught_up: bool = False


@dataclass(frozen=True, slots=True)
class Configuration:
    """The committed configuration by a linearizable read (GetConfiguration)."""

    cluster_id: int
    index: int
    changing: bool
    leader_id: int
    term: int
    members: tuple[MemberState, ...]
    removed: frozenset[int]
    settings: Settings

    def member(self, member_id: int) -> MemberState | None:
        """The member of this id, if it is one."""
        return next((m for m in self.members if m.member_id == member_id), None)

    @property
    def voters(self) -> tuple[MemberState, ...]:
        """The members that vote."""
        return tuple(m for m in self.members if m.role is Role.VOTER)

    @property
    def quorum(self) -> int:
        """How many voters a decision needs."""
        return len(self.voters) // 2 + 1

    @property
    def live_voters(self) -> int:
        """Voters that answered the leader within its last election timeout, itself included."""
        return sum(1 for m in self.voters if m.recent_active or m.member_id == self.leader_id)


@dataclass(frozen=True, slots=True)
class NotedConfiguration:
    """What is written on each claim of a cluster, so that the claims alone can tell (M3) how many disks make a quorum
    and which numbers were issued: ``NEXT INDEX VOTERS OTHERS``, ids with commas."""

    next_number: int
    index: int
    voters: frozenset[int]
    members: frozenset[int]

    def encode(self) -> str:
        """As it stands in the annotation; ``-`` where there are no others."""
        groups = (self.voters, self.members - self.voters)
        ids = (",".join(hex_id(one) for one in sorted(group)) or "-" for group in groups)
        return " ".join([str(self.next_number), str(self.index), *ids])

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """What ``encode`` wrote; None for anything else, since a person can edit an annotation."""
        try:
            number, index, voters, others = text.split(" ")
            first = frozenset(int(one, 16) for one in voters.split(","))
            second = frozenset(int(one, 16) for one in others.split(",")) if others != "-" else frozenset()
            return cls(int(number), int(index), first, first | second)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class ClaimView:
    """A claim of a member's disk."""

    name: str
    uid: str
    number: int
    cluster_id: int = 0
    member_id: int = 0
    disk_uuid: str = ""
    issued_for: str = ""
    """The uid of the custom resource that issued the identity."""
    configuration: NotedConfiguration | None = None
    deleting: bool = False

    @property
    def stamped(self) -> bool:
        """Whether it carries an identity (M3)."""
        return self.cluster_id != 0

    @classmethod
    def read(cls, raw: Object) -> Self | None:
        """From the API's object; None if it carries no number of ours."""
        meta = raw["metadata"]
        number = _number(meta)
        if number is None:
            return None
        notes: Mapping[str, str] = meta.get("annotations") or {}
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            number=number,
            cluster_id=int(notes.get(constants.ANNOTATION_CLUSTER_ID, "0"), 16),
            member_id=int(notes.get(constants.ANNOTATION_MEMBER_ID, "0"), 16),
            disk_uuid=notes.get(constants.ANNOTATION_DISK_UUID, ""),
            issued_for=notes.get(constants.ANNOTATION_ISSUED_FOR, ""),
            configuration=NotedConfiguration.parse(notes.get(constants.ANNOTATION_CONFIGURATION, "")),
            deleting="deletionTimestamp" in meta,
        )


@dataclass(frozen=True, slots=True)
class StatefulSetView:
    """A member's StatefulSet."""

    name: str
    uid: str
    number: int
    owner_uid: str
    replicas: int
    cluster_id: int
    template: str
    resource_version: str = ""
    host: str = ""
    halted: str = ""
    deleting: bool = False

    @classmethod
    def read(cls, raw: Object) -> Self | None:
        """From the API's object; None if it carries no number of ours."""
        meta = raw["metadata"]
        number = _number(meta)
        if number is None:
            return None
        notes: Mapping[str, str] = meta.get("annotations") or {}
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            resource_version=meta.get("resourceVersion", ""),
            number=number,
            owner_uid=controller_uid(raw),
            replicas=int(raw["spec"].get("replicas", 1)),
            cluster_id=int((meta.get("labels") or {}).get(constants.LABEL_CLUSTER_ID, "0"), 16),
            template=notes.get(constants.ANNOTATION_TEMPLATE, ""),
            host=notes.get(constants.ANNOTATION_HOST, ""),
            halted=notes.get(constants.ANNOTATION_HALTED, ""),
            deleting="deletionTimestamp" in meta,
        )


@dataclass(frozen=True, slots=True)
class PodView:
    """A member's pod."""

    name: str
    uid: str
    number: int
    host: str = ""
    ip: str = ""
    ready: bool = False
    running: bool = False
    deleting: bool = False
    template: str = ""
    restarts: int = 0
    exit_code: int | None = None
    """Of the container's last end, if it has ended and is not up and ready since."""
    exit_message: str = ""

    @classmethod
    def read(cls, raw: Object) -> Self | None:
        """From the API's object; None if it carries no number of ours."""
        meta, status = raw["metadata"], raw.get("status") or {}
        number = _number(meta)
        if number is None:
            return None
        container: Mapping[str, Any] = next(iter(status.get("containerStatuses") or ()), {})
        state: Mapping[str, Any] = container.get("state") or {}
        ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
        ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ())
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            number=number,
            host=(raw.get("spec") or {}).get("nodeName") or "",
            ip=status.get("podIP") or "",
            ready=ready,
            running="running" in state,
            deleting="deletionTimestamp" in meta,
            template=(meta.get("annotations") or {}).get(constants.ANNOTATION_TEMPLATE, ""),
            restarts=int(container.get("restartCount", 0)),
            exit_code=None if ready else ended.get("exitCode"),
            exit_message="" if ready else last_sentence(ended.get("message") or ""),
        )


@dataclass(frozen=True, slots=True)
class Operation:
    """``status.currentOperation``: what was being done, and since when."""

    type: str
    member: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Observed:
    """One cluster at one moment."""

    now: datetime
    name: str
    namespace: str
    uid: str
    generation: int
    resource_version: str
    latch: Latch | None
    has_status: bool = True
    deleting_since: datetime | None = None
    claims: Mapping[int, ClaimView] = field(default_factory=dict)
    sets: Mapping[int, StatefulSetView] = field(default_factory=dict)
    pods: Mapping[int, PodView] = field(default_factory=dict)
    nodes: Mapping[int, NodeView] = field(default_factory=dict)
    configuration: Configuration | None = None
    drift: tuple[str, ...] = ()
    """Shared objects that are missing or differ from what they should be, in the order in which to put them right."""
    shared: tuple[str, ...] = ()
    """Shared objects of ours that exist; looked up only while the cluster is being deleted."""
    zones: Mapping[str, str] = field(default_factory=dict)
    """Hosts whose zone is known, and their zones."""
    name_conflict: str = ""
    """A sentence about an object of our name with another owner, if there is one that cannot be avoided."""
    taken_numbers: frozenset[int] = frozenset()
    """Numbers at which creating an object met one of another owner."""
    template: str = ""
    """The hash that the members' templates should have."""
    unready_since: Mapping[int, datetime] = field(default_factory=dict)
    """Since when a number has not been ready, as the status recorded it."""
    operation: Operation | None = None
    fresh_ids: tuple[int, ...] = ()
    """Random 64-bit ids, none of them 0, to hand out."""

    def unready_for(self, number: int) -> timedelta:
        """How long a number has not been ready; 0 if it is, or if that has not been recorded yet."""
        since = self.unready_since.get(number)
        return self.now - since if since is not None else timedelta(0)

    def operating_for(self, kind: str, member: str) -> timedelta:
        """How long this very operation has been under way according to the status; 0 if it is another one."""
        current = self.operation
        if current is None or (current.type, current.member) != (kind, member):
            return timedelta(0)
        return self.now - current.started_at


def by_number(views: Iterable[V | None]) -> dict[int, V]:
    """Views keyed by number, those without one left out."""
    return {view.number: view for view in views if view is not None}


def controller_uid(raw: Object) -> str:
    """The uid of the object's controller, or an empty string."""
    for owner in raw["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return str(owner.get("uid", ""))
    return ""


def last_sentence(text: str) -> str:
    """The last line that says something, cut to ``MESSAGE_LIMIT_CHARACTERS``."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:MESSAGE_LIMIT_CHARACTERS] if lines else ""


def _number(meta: Object) -> int | None:
    text = (meta.get("labels") or {}).get(constants.LABEL_NUMBER, "")
    return int(text) if text.isdigit() else None
