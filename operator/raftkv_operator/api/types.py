"""The custom resource as typed values: what a person wishes (``ClusterSpec``) and what was issued once (``Latch``).

``ClusterSpec`` reads a spec that the API server has validated and defaulted; it repeats the defaults, since an object
stored under an older CRD may lack a field. ``Latch`` is the part of the status that is state and not a report (M1, M2):
cluster id, phase, the next number, and for each number the member id and the disk it is bound to. It is written by
compare-and-swap only. 64-bit ids are 16 hexadecimal digits in JSON, where a number would lose digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self

Object = dict[str, Any]
"""A Kubernetes object as the API gives it."""

LatchPhase = Literal["Latched", "Opened"]
Condemned = Literal["", "Absent", "ProvenLost", "Corrupt", "Gone"]

_DURATION: Final = re.compile(r"([0-9]+)(ms|s|m|h)")
_UNIT_MILLISECONDS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


def milliseconds(text: str) -> int:
    """A duration such as ``100ms``, ``1s``, ``1m30s`` or ``10m`` in milliseconds. ``ValueError`` for anything else."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"not a duration: {text!r}")
    return sum(int(number) * _UNIT_MILLISECONDS[unit] for number, unit in parts)


def hex_id(value: int) -> str:
    """A 64-bit id as it stands in JSON and labels: 16 hexadecimal digits."""
    return f"{value:016x}"


@dataclass(frozen=True)
class ClusterSpec:
    """What ``spec`` of a ``RaftKVCluster`` says; durations in milliseconds where the name says so."""

    replicas: int = 3
    """Members wished; 0: hibernation, in which no member runs and nothing is removed (M17)."""
    version: str = "0.1.0"
    image_repository: str = "ghcr.io/raftkv/raftkv"
    image_pull_policy: str = "IfNotPresent"
    paused: bool = False
    bootstrap_identity: str = ""
    """``New`` or ``Adopt CLUSTER-ID``: a person's word on whose data stands under this name (M3); empty: none."""
    max_voters: int = 5
    promote_after_milliseconds: int = 30_000
    leader_preference: tuple[str, ...] = ()
    heartbeat_milliseconds: int = 100
    election_milliseconds: int = 1000
    medium: str = "Disk"
    ring_size: str = "64Mi"
    minimum_durability: str = "power"
    drain_milliseconds: int = 100
    drain_size: str = "8Mi"
    ring_host_path: str | None = None
    storage_size: str = "1Gi"
    storage_class: str | None = None
    when_deleted: str = "Retain"
    when_scaled: str = "Delete"
    replace_after_milliseconds: int = 600_000
    resources: Object = field(default_factory=dict)
    anti_affinity: str = "Required"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Object, ...] = ()

    @classmethod
    def parse(cls, spec: Mapping[str, Any]) -> Self:
        """Reads a validated ``spec``. ``ValueError``, ``KeyError`` or ``TypeError`` if it was never validated."""
        consensus: Mapping[str, Any] = spec.get("consensus", {})
        buffer: Mapping[str, Any] = spec.get("logBuffer", {})
        storage: Mapping[str, Any] = spec.get("storage", {})
        retention: Mapping[str, Any] = storage.get("retentionPolicy", {})
        scheduling: Mapping[str, Any] = spec.get("scheduling", {})
        image: Mapping[str, Any] = spec.get("image", {})
        return cls(
            replicas=int(spec["replicas"]),
            version=spec.get("version", cls.version),
            image_repository=image.get("repository", cls.image_repository),
            image_pull_policy=image.get("pullPolicy", cls.image_pull_policy),
            paused=bool(spec.get("paused", False)),
            bootstrap_identity=spec.get("bootstrap", {}).get("identity", cls.bootstrap_identity),
            max_voters=int(consensus.get("maxVoters", cls.max_voters)),
            promote_after_milliseconds=milliseconds(consensus.get("promoteAfter", "30s")),
            leader_preference=tuple(consensus.get("leaderPreference", ())),
            heartbeat_milliseconds=milliseconds(consensus.get("heartbeatInterval", "100ms")),
            election_milliseconds=milliseconds(consensus.get("electionTimeout", "1s")),
            medium=buffer.get("medium", cls.medium),
            ring_size=buffer.get("size", cls.ring_size),
            minimum_durability=buffer.get("minimumDurability", cls.minimum_durability),
            drain_milliseconds=milliseconds(buffer.get("drain", {}).get("interval", "100ms")),
            drain_size=buffer.get("drain", {}).get("size", cls.drain_size),
            ring_host_path=buffer.get("source", {}).get("hostPath", {}).get("path"),
            storage_size=storage.get("size", cls.storage_size),
            storage_class=storage.get("storageClassName"),
            when_deleted=retention.get("whenDeleted", cls.when_deleted),
            when_scaled=retention.get("whenScaled", cls.when_scaled),
            replace_after_milliseconds=milliseconds(spec.get("nodeLossPolicy", {}).get("replaceAfter", "10m")),
            resources=dict(spec.get("resources", {})),
            anti_affinity=scheduling.get("antiAffinity", cls.anti_affinity),
            node_selector=dict(scheduling.get("nodeSelector", {})),
            tolerations=tuple(scheduling.get("tolerations", ())),
        )

    @property
    def wished_voters(self) -> int:
        """The largest odd number not above ``min(replicas, maxVoters)`` (M7)."""
        most = min(self.replicas, self.max_voters)
        return most if most % 2 else max(0, most - 1)

    @property
    def hibernates(self) -> bool:
        """Whether no member shall run (M17)."""
        return self.replicas == 0

    @property
    def adopt(self) -> int | None:
        """The cluster id that a person wants adopted, if one does (M3)."""
        word, _, cluster_id = self.bootstrap_identity.partition(" ")
        return int(cluster_id, 16) if word == "Adopt" else None

    @property
    def image(self) -> str:
        """The node's image reference."""
        return f"{self.image_repository}:{self.version}"


@dataclass(frozen=True, slots=True)
class LatchedMember:
    """One number ever issued and still in use; unbound until its node has shown its disk's uuid."""

    number: int
    member_id: int = 0
    disk_uuid: str = ""
    condemned: Condemned = ""

    @property
    def bound(self) -> bool:
        """Whether a member id is tied to a disk for this number, for ever (M1)."""
        return self.member_id != 0


@dataclass(frozen=True, slots=True)
class Latch:
    """The identity of a cluster as issued: ``status.identity`` (M1, M2)."""

    cluster_id: int
    phase: LatchPhase
    next_number: int
    founder: int = 0
    """The number that is bootstrapped, 0 until it is chosen. It never changes."""
    members: tuple[LatchedMember, ...] = ()
    asleep: bool = False
    """Whether the members were put to sleep and have not all been seen awake since (M17)."""
    superseded: tuple[int, ...] = ()
    """Other cluster ids that stood on claims of this name when this one was issued or adopted, by a person's word or
    because this custom resource had issued this one (M3). Their claims are left alone, for ever."""

    def member(self, number: int) -> LatchedMember | None:
        """The entry of a number, if it is in use."""
        return next((entry for entry in self.members if entry.number == number), None)

    def with_member(self, changed: LatchedMember) -> Self:
        """A copy with the entry of this number replaced."""
        return replace(self, members=tuple(changed if e.number == changed.number else e for e in self.members))

    def without(self, number: int) -> Self:
        """A copy without the entry of this number; the number is never issued again."""
        return replace(self, members=tuple(e for e in self.members if e.number != number))

    def to_status(self) -> Object:
        """As it stands in ``status.identity``."""
        return {
            "clusterID": hex_id(self.cluster_id),
            "phase": self.phase,
            "nextNumber": self.next_number,
            **({"founder": self.founder} if self.founder else {}),
            **({"asleep": True} if self.asleep else {}),
            **({"superseded": [hex_id(i) for i in self.superseded]} if self.superseded else {}),
            "members": [
                {
                    "number": e.number,
                    **({"memberID": hex_id(e.member_id), "diskUUID": e.disk_uuid} if e.bound else {}),
                    **({"condemned": e.condemned} if e.condemned else {}),
                }
                for e in self.members
            ],
        }

    @classmethod
    def parse(cls, status: Mapping[str, Any]) -> Self | None:
        """Reads ``status.identity``; None if none was issued."""
        raw: Mapping[str, Any] | None = status.get("identity")
        if raw is None:
            return None
        return cls(
            cluster_id=int(raw["clusterID"], 16),
            phase=raw["phase"],
            next_number=int(raw["nextNumber"]),
            founder=int(raw.get("founder", 0)),
            asleep=bool(raw.get("asleep", False)),
            superseded=tuple(int(i, 16) for i in raw.get("superseded", ())),
            members=tuple(
                LatchedMember(
                    number=int(e["number"]),
                    member_id=int(e.get("memberID", "0"), 16),
                    disk_uuid=e.get("diskUUID", ""),
                    condemned=e.get("condemned", ""),
                )
                for e in raw.get("members", ())
            ),
        )


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a cluster's objects; each is derived from the cluster's name and a number only."""

    namespace: str
    cluster: str

    @property
    def client_service(self) -> str:
        """The Service for clients."""
        return self.cluster

    @property
    def peer_service(self) -> str:
        """The headless Service that gives each pod its name."""
        return f"{self.cluster}-peers"

    @property
    def admin_secret(self) -> str:
        """The Secret with the token of the administration API."""
        return f"{self.cluster}-admin"

    @property
    def disruption_budget(self) -> str:
        """The PodDisruptionBudget."""
        return self.cluster

    def member(self, number: int) -> str:
        """A member's name, which is also its StatefulSet's."""
        return f"{self.cluster}-{number}"

    def pod(self, number: int) -> str:
        """A member's pod."""
        return f"{self.member(number)}-0"

    def claim(self, number: int) -> str:
        """A member's claim for its disk."""
        return f"data-{self.member(number)}"

    def host(self, number: int) -> str:
        """The name under which peers and clients reach a member."""
        return f"{self.pod(number)}.{self.peer_service}.{self.namespace}.svc"
