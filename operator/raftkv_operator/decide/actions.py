"""The side effects that the operator knows, each a value that can describe itself.

A decision is one of: an ``Action`` (exactly one side effect), ``Wait`` (something must happen that the operator cannot
make happen), ``Stall`` (a person must act) or ``Rest`` (all is as wished). ``describe()`` gives the words that stand in
the log, in the Event and in ``status.currentOperation``. ``event`` names the Event that the action leaves when it
succeeded; empty for the small steps that nobody wants to read about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from raftkv_operator.api.types import Latch, hex_id
from raftkv_operator.observe.views import NodeIdentity, NotedConfiguration, Retirement, Settings


@dataclass(frozen=True, slots=True)
class Rest:
    """All is as wished."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something changes; ``kind`` and ``member`` say in one word each what for, ``text`` in one
    sentence."""

    kind: str
    text: str
    member: str = ""

    def describe(self) -> str:
        """One sentence."""
        return self.text


@dataclass(frozen=True, slots=True)
class Stall:
    """Only a person can go on; ``reason`` is the condition's."""

    reason: str
    text: str

    def describe(self) -> str:
        """One sentence."""
        return self.text


@dataclass(frozen=True, slots=True)
class Action:
    """One side effect."""

    event: ClassVar[str] = ""
    warning: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        """The action's name in metrics and in ``status.currentOperation.type``."""
        return type(self).__name__

    @property
    def subject(self) -> str:
        """The member that it is about, or an empty string."""
        return ""

    def describe(self) -> str:
        """One sentence without the full stop."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class MemberAction(Action):
    """One side effect about one member."""

    number: int
    member: str

    @property
    def subject(self) -> str:
        """The member's name."""
        return self.member


# --- the latch: written by compare-and-swap on the resourceVersion that the decision was made on (M2) ---

Step = Literal[
    "IssueIdentity",
    "AdoptIdentity",
    "RecallMember",
    "ReserveNumbers",
    "BindMember",
    "OpenCluster",
    "CondemnMember",
    "ReleaseNumber",
    "ForgetMember",
    "Hibernate",
    "Wake",
]


@dataclass(frozen=True, slots=True)
class WriteLatch(Action):
    """Replaces the latch, if the custom resource is still as it was read."""

    step: Step
    latch: Latch
    words: str
    member: str = ""

    @property
    def kind(self) -> str:
        """The step's name."""
        return self.step

    @property
    def subject(self) -> str:
        """The member's name, if the step is about one."""
        return self.member

    def describe(self) -> str:
        """One sentence."""
        return self.words


# --- Kubernetes objects ---


@dataclass(frozen=True, slots=True)
class ApplyShared(Action):
    """Creates or puts right one of the objects that the members share."""

    key: str

    def describe(self) -> str:
        """One sentence."""
        return f"putting {self.key} in place"


@dataclass(frozen=True, slots=True)
class DeleteShared(Action):
    """Deletes one of the objects that the members share."""

    key: str

    def describe(self) -> str:
        """One sentence."""
        return f"deleting {self.key}"


@dataclass(frozen=True, slots=True)
class CreateClaim(MemberAction):
    """Creates the claim for a member's disk."""

    def describe(self) -> str:
        """One sentence."""
        return f"claiming the disk of {self.member}"


@dataclass(frozen=True, slots=True)
class StampClaim(MemberAction):
    """Writes the identity that a disk is about to get onto its claim (M3)."""

    claim_uid: str
    cluster_id: int
    member_id: int
    disk_uuid: str

    def describe(self) -> str:
        """One sentence."""
        return f"writing the identity of {self.member} on its claim"


@dataclass(frozen=True, slots=True)
class NoteConfiguration(MemberAction):
    """Writes the members and voters of the cluster onto a claim (M3)."""

    claim_uid: str
    configuration: NotedConfiguration

    def describe(self) -> str:
        """One sentence."""
        return f"writing the configuration on the claim of {self.member}"


@dataclass(frozen=True, slots=True)
class CreateStatefulSet(MemberAction):
    """Creates a member's StatefulSet."""

    def describe(self) -> str:
        """One sentence."""
        return f"starting {self.member}"


@dataclass(frozen=True, slots=True)
class UpdateStatefulSet(MemberAction):
    """Brings a StatefulSet's template, number of pods, host and halt mark to what they should be, if it is still as it
    was read: a decision that has grown old must not stop a member that has come back since."""

    resource_version: str
    replicas: int
    host: str
    halted: str
    why: str

    def describe(self) -> str:
        """One sentence."""
        return f"{self.why} {self.member}"


@dataclass(frozen=True, slots=True)
class TicketWish:
    """What the leader is asked before a live member is restarted (M11)."""

    address: str
    decided_at: int
    member_id: int


@dataclass(frozen=True, slots=True)
class RestartMember(MemberAction):
    """Ends this very pod, so that it comes back from the current template: a live member by eviction under a ticket
    from the leader, one that does not run (no ``wish``) by deletion."""

    event: ClassVar[str] = "MemberRestarted"
    pod_uid: str
    why: str
    wish: TicketWish | None = None

    def describe(self) -> str:
        """One sentence."""
        return f"restarting {self.member}: {self.why}"


@dataclass(frozen=True, slots=True)
class DeleteStatefulSet(MemberAction):
    """Deletes the StatefulSet of this very uid."""

    name: str
    uid: str

    def describe(self) -> str:
        """One sentence."""
        return f"stopping {self.member} for good"


@dataclass(frozen=True, slots=True)
class DeleteClaim(MemberAction):
    """Deletes the claim of this very uid."""

    name: str
    uid: str

    def describe(self) -> str:
        """One sentence."""
        return f"deleting the disk of {self.member}"


# --- members ---


@dataclass(frozen=True, slots=True)
class Bootstrap(MemberAction):
    """Makes the founder the first voter of the cluster."""

    event: ClassVar[str] = "ClusterBootstrapped"
    address: str
    identity: NodeIdentity
    settings: Settings

    def describe(self) -> str:
        """One sentence."""
        return f"bootstrapping cluster {hex_id(self.identity.cluster_id)} on {self.member}"


@dataclass(frozen=True, slots=True)
class Join(MemberAction):
    """Gives an added member's node its identity."""

    address: str
    identity: NodeIdentity
    peers: tuple[NodeIdentity, ...]

    def describe(self) -> str:
        """One sentence."""
        return f"letting {self.member} join"


@dataclass(frozen=True, slots=True)
class AddMember(MemberAction):
    """Adds a learner to the configuration."""

    event: ClassVar[str] = "MemberAdded"
    address: str
    decided_at: int
    identity: NodeIdentity

    def describe(self) -> str:
        """One sentence."""
        return f"adding {self.member} ({hex_id(self.identity.member_id)})"


@dataclass(frozen=True, slots=True)
class RemoveMember(MemberAction):
    """Removes a member that has no vote any more, or burns an id that never was added (M10)."""

    event: ClassVar[str] = "MemberRemoved"
    address: str
    decided_at: int
    member_id: int

    def describe(self) -> str:
        """One sentence."""
        return f"removing {self.member} ({hex_id(self.member_id)})"


@dataclass(frozen=True, slots=True)
class SetSettings(Action):
    """Tells the leader what is wished; it changes the roles."""

    address: str
    decided_at: int
    settings: Settings

    def describe(self) -> str:
        """One sentence."""
        wish = self.settings
        leaving = f", taking the vote of {', '.join(hex_id(i) for i in wish.leaving)}" if wish.leaving else ""
        return f"setting {wish.replicas} members with at most {wish.max_voters} voters{leaving}"


@dataclass(frozen=True, slots=True)
class MoveLeader(MemberAction):
    """Hands leadership to this member."""

    event: ClassVar[str] = "LeaderMoved"
    address: str
    target_id: int

    def describe(self) -> str:
        """One sentence."""
        return f"moving the leadership to {self.member}"


@dataclass(frozen=True, slots=True)
class Retire(MemberAction):
    """Lets a removed member, or one of a deleted cluster, wipe its ring and disk."""

    address: str
    retirement: Retirement

    def describe(self) -> str:
        """One sentence."""
        return f"wiping the disk and log buffer of {self.member}"


Decision = Rest | Wait | Stall | Action
