"""Who this member is to the others, and who they are to it: hellos, disks, and when it may take part.

A connection begins with a hello (hello.py). Whoever speaks is judged by what is known of its disk: the one that the
configuration or an earlier hello binds to its id (M4, M6), and the newest opening of it that anybody has stored (M5,
openings.py). In turn this member learns from the others what they have stored of its own opening: that an older disk
of it was shown before (then it ends for good), or that theirs suffices to take part (gate.py). Until then nothing of
the others' consensus reaches this member, and it stands for no election.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from time import monotonic
from types import MappingProxyType
from typing import Protocol

from raftkv_node.adr import Log, Recovered, Refusal, Refused
from raftkv_node.raft import Configuration, Raft
from raftkv_node.server import identity as identities
from raftkv_node.server.gate import Electorate, Gate, Reason
from raftkv_node.server.hello import BOOTSTRAPPED, OLDER_DISK, REMOVED, RUNS_TWICE, Hello, HelloKind, Judge
from raftkv_node.server.identity import Identity
from raftkv_node.server.log import Logger
from raftkv_node.server.log import member as shown
from raftkv_node.server.members import bindings
from raftkv_node.server.openings import Openings, Told
from raftkv_node.server.peers import members_frame


class Surroundings(Protocol):
    """What a member has beside its introductions, once all of it is there."""

    identity: Identity
    """As it is kept on disk."""

    def keep(self, identity: Identity) -> None:
        """Keep it so, durably, before anything depends on it. Raises OSError."""

    @property
    def connected(self) -> Collection[int]:
        """Members that can be told something."""

    def tell(self, to: int, openings: bytes) -> None:
        """Tell one of them."""

    def receipt(self, member: int) -> tuple[int, int]:
        """The newest (term, index) that a member has promised since its last hello; (0, 0): none."""

    def forget_receipt(self, member: int) -> None:
        """The member has said hello with another opening."""

    def was_removed(self) -> None:
        """A member says that this one was removed."""


class Introductions:
    """See the module's text. For the turn."""

    def __init__(
        self,
        identity: Identity,
        founding: Configuration,
        *,
        patience_seconds: float,
        openings: Openings,
        log: Log,
        recovered: Recovered,
        raft: Raft,
        surroundings: Surroundings,
        logger: Logger,
    ) -> None:
        self._log = log
        self._raft = raft
        self._surroundings = surroundings
        self._logger = logger
        self._founders = frozenset(founding.members) - {identity.member_id} if not identity.operated else frozenset()
        self._founds = bool(self._founders) and (recovered.fresh or not self._founders <= identity.bindings.keys())
        self._founders_shown = not self._founders
        self._openings = openings
        self._told = Told()
        self._heard: dict[int, int] = {}
        self._bindings: Mapping[int, bytes] = MappingProxyType({})
        self._gate = Gate(identity.member_id, recovered.ring_proof, patience_seconds)
        self._opened_at = raft.term, raft.durable_index

    @property
    def _identity(self) -> Identity:
        return self._surroundings.identity

    @property
    def may_vote(self) -> bool:
        """M5, M6: whether this member takes part in consensus at all."""
        return self._gate.is_open and self._founders_known

    @property
    def _founders_known(self) -> bool:
        """M6: a founder by hand takes part once all founders have shown their disks."""
        if not self._founders_shown:  # asked in every turn, and what was bound stays bound
            self._founders_shown = self._founders <= self._identity.bindings.keys()
        return self._founders_shown

    @property
    def generations(self) -> dict[int, int]:
        """The newest opening of each member's log that was heard of, the own one among them."""
        heard = {one: generation for one, (generation, _) in self._openings.known.items()}
        return {**heard, self._identity.member_id: self._log.generation}

    def configured(self, configuration: Configuration) -> None:
        """Another configuration is in force: its bindings hold beside those that were kept by hand."""
        self._bindings = MappingProxyType({**self._identity.bindings, **bindings(configuration)})

    def forget(self, removed: Collection[int]) -> None:
        """These members are gone for good."""
        self._openings.forget(removed)

    def tick(self, now: float) -> None:
        """One heartbeat interval has passed."""
        self._openings.write()
        if not self._gate.is_open:
            self.look_at_gate(now)
            self.tell_openings(asks=True)

    # -- hellos -------------------------------------------------------------------------------------------------------

    def hello(self, to_id: int) -> Hello:
        """The own hello, for this member."""
        return Hello(
            HelloKind.MEMBER,
            self._identity.cluster_id,
            self._identity.member_id,
            to_id,
            self._identity.disk_uuid,
            self._log.generation,
            self._nonce,
            self._identity.peer_url,
            *self._opened_at,
        )

    def refusal(self, hello: Hello) -> str | None:
        """Why the speaker is not heard, or None; an accepted hello is remembered."""
        if hello.to_id == 0:
            hello = replace(hello, to_id=self._identity.member_id)
        judge = Judge(
            self._identity.cluster_id,
            self._identity.member_id,
            self._raft.committed_configuration[1].removed,
            self._bindings,
            self._openings.known,
            {one: (since, *self._surroundings.receipt(one)) for one, since in self._heard.items()},
        )
        reason = judge.refusal(hello)
        if reason is None and not self._identity.operated and hello.from_id not in self._bindings:
            reason = self._bind(hello)
        if reason is None:
            if self._heard.get(hello.from_id) != hello.generation:
                self._heard[hello.from_id] = hello.generation
                self._surroundings.forget_receipt(hello.from_id)
            self._openings.note(hello.from_id, hello.generation, hello.nonce)
        return reason

    def _bind(self, hello: Hello) -> str | None:
        """M6: keep the disk uuid that a member has shown, before anything depends on it; why that cannot be, if so.

        By hand nobody else writes it down. A member that lost its disk finds its id again by its URL, but not its
        votes: with another disk it must be added again.
        """
        waiting = not self._founders_known
        known = {**self._identity.bindings, hello.from_id: hello.disk_uuid}
        try:
            self._surroundings.keep(replace(self._identity, bindings=MappingProxyType(known)))
        except OSError as error:
            # a disk that is full, say, ends no member for it: whoever speaks will try again
            self._logger.warn("a member's disk cannot be noted", id=shown(hello.from_id), reason=error.strerror)
            return f"member {self._identity.member_id:x} cannot note that disk now ({error.strerror}): try again"
        self._bindings = MappingProxyType({**self._bindings, hello.from_id: hello.disk_uuid})
        if waiting and self._founders_known:
            self._logger.info("all founders have shown their disks", members=len(self._founders) + 1)
        return None

    def rejected(self, by: int, reason: str) -> None:
        """A member does not hear this one. M5: whoever has an older disk than one that it has shown ends for good.
        M4: a member that was removed learns it here, for the entry does not reach it.

        Raises :class:`Refused` for the former.
        """
        if OLDER_DISK in reason or RUNS_TWICE in reason:
            self._surroundings.keep(replace(self._identity, disowned=True))
            raise Refused(Refusal.MISMATCH, f"{identities.DISOWNED} (member {by:x} says: {reason})")
        if BOOTSTRAPPED in reason and self._founds:
            raise Refused(
                Refusal.MISMATCH,
                f"{reason} (says member {by:x}): this disk is new, but the cluster runs; remove the member, add it "
                "again, and start it with --initial-cluster-state existing",
            )
        if REMOVED in reason:
            self._surroundings.was_removed()

    def members_frame(self) -> bytes | None:
        """Cluster id and configuration for a node that asks for its own id."""
        configuration = self._raft.committed_configuration[1]
        return members_frame(self._identity.cluster_id, configuration.encode()) if configuration.members else None

    # -- openings (openings.py, gate.py) ------------------------------------------------------------------------------

    def openings(self, asks: bool = False) -> bytes:
        """What this member has stored of the others' disks, for them to know."""
        index, committed = self._raft.committed_configuration
        return Told(asks, index, committed.voters, committed.voters_outgoing, self._openings.stored).encode()

    def tell_openings(self, asks: bool = False) -> None:
        """Tell all who are connected, and ask for theirs."""
        frame = self.openings(asks)
        for one in self._surroundings.connected:
            self._surroundings.tell(one, frame)

    def told(self, by: int, data: bytes) -> None:
        """A member says what it has stored. Raises :class:`Refused` when that shows that this disk is an older one."""
        told = Told.decode(data)
        own = self._identity.member_id
        current = self._log.generation, self._nonce
        said = told.openings.get(own)
        if said is not None and said[0] >= current[0] and said != current:
            words = OLDER_DISK if said[0] > current[0] else RUNS_TWICE
            self.rejected(by, f"member {own:x} {words} {said[0]}")
        if said == current:
            self._gate.stored_by.add(by)
        if told.configuration_index >= self._told.configuration_index and told.voters:
            self._told = told
        removed = self._raft.committed_configuration[1].removed
        for one, (generation, nonce) in told.openings.items():
            if one != own and one not in removed and generation > self._openings.known.get(one, (0, 0))[0]:
                self._openings.note(one, generation, nonce)
        if told.asks:
            self._surroundings.tell(by, self.openings())
        self.look_at_gate(monotonic())

    @property
    def _nonce(self) -> int:
        return int.from_bytes(self._log.nonce[:8], "little")

    def look_at_gate(self, now: float) -> None:
        """M5, M6: open the gate when enough others have stored this opening."""
        if self._gate.is_open or not self._founders_known:
            return
        if self._founds and not self._founders <= self._gate.stored_by:
            return
        known: Configuration | Told = self._raft.configuration
        if self._told.configuration_index > self._raft.configuration_index or not known.voters:
            known = self._told
        if not self._gate.look(Electorate(known.voters, known.voters_outgoing), now):
            return
        say = self._logger.warn if self._gate.reason == Reason.PATIENCE else self._logger.info
        say("takes part", reason=self._gate.reason)
