"""What must hold for the cluster as a whole, checked at every step. Names are those of `raftkv_node.raft.Invariant`,
and of the rules of the contracts.

The checks know more than any member: every log, every disk, every vote that was ever sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from adr_invariants import NO_VOTE_TWICE_AFTER_RING_LOSS
from raftkv_node.raft import Configuration, Entry, EntryType, Message, MessageType, Ready, Role
from raftkv_node.raft.quorum import has_majority
from simulation_node import SimNode


class Violation(Exception):
    """A rule does not hold."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


class Seen(NamedTuple):
    """An entry that exists, and the term of the one before it: by induction the whole log up to it."""

    previous_term: int
    type: int
    data: bytes


class Marks(NamedTuple):
    """How far a member had come when it was last looked at."""

    incarnation: int = 0
    commit: int = 0
    term: int = 0
    applied: int = 0


class Checks:
    """Knows everything that ever happened."""

    def __init__(self) -> None:
        self.leaders: dict[int, int] = {}
        self.votes: dict[tuple[int, int], int] = {}
        self.entries: dict[tuple[int, int], Seen] = {}
        self.committed: list[int] = [0]  # term by index
        self.committed_in: list[int] = [0]  # term of the leader that committed it, by index
        self.chains: dict[int, int] = {}
        self.requests: dict[str, int] = {}
        self.rejected: set[str] = set()
        self.marks: dict[int, Marks] = {}
        self.ringless: set[int] = set()
        """Members that have lost a ring."""
        self.counts: dict[str, int] = {}
        self.steps = 0

    def count(self, what: str, times: int = 1) -> None:
        """Something happened that a table is to tell of."""
        self.counts[what] = self.counts.get(what, 0) + times

    def demand(self, rule: str, condition: bool, detail: str) -> None:
        if not condition:
            raise Violation(rule, detail)

    # -- a turn's output -------------------------------------------------------------------------------------

    def turn(self, node: SimNode, ready: Ready, nodes: dict[int, SimNode]) -> None:
        """Look at a member after its turn."""
        self.steps += 1
        raft = node.raft
        self.entries_match(node, ready.entries)
        if raft.role == Role.LEADER:
            self.leader(node)
            self.changes_follow_own_term(node, ready.entries)
        self.committed_entries(node, nodes)
        self.monotonic(node)

    def leader(self, node: SimNode) -> None:
        """At most one leader in a term, and it has every entry that was committed in earlier terms."""
        raft = node.raft
        known = self.leaders.get(raft.term)
        if known is None:
            self.leaders[raft.term] = node.id
            for index in range(raft.window_base_index, len(self.committed)):
                if index and self.committed_in[index] < raft.term:
                    has = raft.term_at(index) == self.committed[index]
                    detail = f"leader {node.id} of term {raft.term} has {raft.term_at(index)} at {index}, committed is "
                    self.demand("LEADER_COMPLETENESS", has, f"{detail}{self.committed[index]}")
        else:
            self.demand("ELECTION_SAFETY", known == node.id, f"term {raft.term}: {known} and {node.id}")

    def entries_match(self, node: SimNode, entries: Iterable[Entry]) -> None:
        """The same (term, index) is the same entry after the same log."""
        for entry in entries:
            previous = node.raft.term_at(entry.index - 1)
            seen = Seen(previous, entry.type, entry.data)
            known = self.entries.setdefault((entry.term, entry.index), seen)
            self.demand("LOG_MATCHING", known == seen, f"({entry.term},{entry.index}): {known} and {seen} at {node.id}")

    def changes_follow_own_term(self, node: SimNode, entries: Iterable[Entry]) -> None:
        """M8: a leader appends a configuration only after an entry of its own term is committed."""
        raft = node.raft
        for entry in entries:
            if entry.type == EntryType.CONFIG and entry.term == raft.term:
                committed = min(raft.commit_index, len(self.committed) - 1)
                own = committed and (raft.term_at(raft.commit_index) == raft.term)
                detail = f"leader {node.id} of term {raft.term} appends at {entry.index}, commit {raft.commit_index}"
                self.demand("OWN_TERM_BEFORE_CHANGE", bool(own), detail)

    def committed_entries(self, node: SimNode, nodes: dict[int, SimNode]) -> None:
        """What one member calls committed nobody calls otherwise; what a leader commits is durable on a quorum."""
        raft = node.raft
        for index in range(
            max(raft.window_base_index + 1, self.marks.get(node.id, Marks()).commit), raft.commit_index + 1
        ):
            term = raft.term_at(index)
            if index < len(self.committed):
                detail = f"index {index}: term {self.committed[index]} was committed, {node.id} has {term}"
                self.demand("COMMITTED_IMMUTABLE", self.committed[index] == term, detail)
                continue
            self.demand("COMMIT_MONOTONIC", index == len(self.committed), f"{node.id} commits {index} out of order")
            self.on_quorum(node, nodes, index, term)
            own = raft.role != Role.LEADER or raft.term_at(raft.commit_index) == raft.term
            self.demand("COMMIT_OWN_TERM", own, f"leader {node.id} of term {raft.term} commits up to term {term}")
            self.committed.append(term)
            self.committed_in.append(raft.term)

    def on_quorum(self, node: SimNode, nodes: dict[int, SimNode], index: int, term: int) -> None:
        """D4: an entry that is committed is durable on a majority of the voters it was committed by."""
        holders = {member for member, its in nodes.items() if its.log.durable_term(index) == term}
        configuration = node.raft.configuration
        held = has_majority(configuration.voters, holders) and has_majority(configuration.voters_outgoing, holders)
        if not held and index > 1:
            # the configuration may have changed with this very turn: it was committed under the one before
            before = node.raft.committed_configuration[1]
            held = self.held_by(before, holders)
        self.demand("COMMITTED_ON_QUORUM", held, f"index {index} of term {term} is durable on {sorted(holders)} only")

    @staticmethod
    def held_by(configuration: Configuration, holders: set[int]) -> bool:
        """Whether a quorum of a configuration holds an entry."""
        return has_majority(configuration.voters, holders) and has_majority(configuration.voters_outgoing, holders)

    def monotonic(self, node: SimNode) -> None:
        """Term, commit and applied index of one incarnation never go back, and stand in their order."""
        raft = node.raft
        now = Marks(node.incarnation, raft.commit_index, raft.term, raft.applied_index)
        before = self.marks.get(node.id, Marks())
        if before.incarnation == node.incarnation:
            self.demand("TERM_MONOTONIC", now.term >= before.term, f"{node.id}: {before.term} to {now.term}")
            self.demand("COMMIT_MONOTONIC", now.commit >= before.commit, f"{node.id}: {before.commit} to {now.commit}")
            detail = f"{node.id}: {before.applied} to {now.applied}"
            self.demand("APPLIED_MONOTONIC", now.applied >= before.applied, detail)
        detail = f"{node.id} has applied {now.applied}, committed {now.commit}, its log ends at {raft.last_index}"
        self.demand("INDEXES_IN_ORDER", now.applied <= now.commit <= raft.last_index, detail)
        self.marks[node.id] = now

    def started(self, node: SimNode) -> None:
        """A member has recovered: look at all it calls committed again."""
        self.marks.pop(node.id, None)

    # -- messages --------------------------------------------------------------------------------------------

    def sent(self, message: Message) -> None:
        """A member votes once in a term, whatever happens to it."""
        if message.type == MessageType.VOTE:
            self.vote(message.sender, message.term, message.sender)
        elif message.type == MessageType.VOTE_RESPONSE and not message.reject:
            self.vote(message.sender, message.term, message.to)

    def vote(self, voter: int, term: int, candidate: int) -> None:
        known = self.votes.setdefault((voter, term), candidate)
        rule = NO_VOTE_TWICE_AFTER_RING_LOSS if voter in self.ringless else "VOTE_ONCE"
        self.demand(rule, known == candidate, f"{voter} in term {term}: {known} and {candidate}")

    # -- what is applied -------------------------------------------------------------------------------------

    def applied(self, node: SimNode, entries: Iterable[Entry]) -> None:
        """Every member applies the same entries; every request once, and never one that was refused."""
        for entry in entries:
            known = self.chains.setdefault(entry.index, entry.term)
            self.demand("STATE_MACHINE_SAFETY", known == entry.term, f"index {entry.index} at {node.id}")
            if entry.type or not entry.data:
                continue
            for request in entry.data.decode().split("|"):
                first = self.requests.setdefault(request, entry.index)
                self.demand("M16_APPLIED_ONCE", first == entry.index, f"{request} at {first} and {entry.index}")
                self.demand("M16_REJECTED", request not in self.rejected, f"{request} was refused, but is applied")
