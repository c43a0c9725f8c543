"""What must hold for production members, against an obvious model of the key space, at every step.

- The committed log is one sequence. The model applies each entry once, when the first member calls it committed. Every
  member's results, revisions and, where they have applied the same, hashes of the key space must be the model's.
- What a message promises is durable when it leaves; what a backend has committed is durable in the member's own log.
"""

from __future__ import annotations

from typing import Any

from adr_invariants import ACKNOWLEDGED_IMPLIES_DURABLE
from raftkv_node.pb import rpc_pb2
from raftkv_node.pb.kv_pb2 import KeyValue
from raftkv_node.raft import Configuration, Entry, EntryType, Message, MessageType, Ready
from raftkv_node.store import Batch, EtcdError, commands
from raftkv_node.store.store import ApplyResult
from simulation_checks import Checks
from simulation_member import MemberNode
from store_model import Model

REQUESTS: dict[int, tuple[Any, Any]] = {
    commands.PUT: (rpc_pb2.PutRequest, rpc_pb2.PutResponse),
    commands.DELETE_RANGE: (rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse),
    commands.TXN: (rpc_pb2.TxnRequest, rpc_pb2.TxnResponse),
    commands.COMPACT: (rpc_pb2.CompactionRequest, rpc_pb2.CompactionResponse),
}


def plain(answer: Any) -> Any:
    """An answer without what depends on who gives it."""
    if hasattr(answer, "header"):
        copy = type(answer)()
        copy.CopyFrom(answer)
        copy.header.CopyFrom(rpc_pb2.ResponseHeader(revision=answer.header.revision))
        return copy
    return answer


class MemberChecks(Checks):
    """What must hold for production members, beyond what must hold for any."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.data: list[bytes] = [b""]
        """The committed entries' data, by index."""
        self.expected: list[list[Any]] = [[]]
        """What each request of an entry is answered, by index."""
        self.revisions: list[tuple[int, int]] = [(1, -1)]
        """Revision and compaction after each entry."""
        self.configurations: list[tuple[int, bytes]] = []
        """The committed configurations, by index."""
        self.answers: dict[bytes, Any] = {}
        """The answer to each request that stands in the log, by its (unique) bytes."""
        self.seen: dict[int, tuple[int, int, int]] = {}
        """Each member's incarnation, and the revision and compaction that it had come to."""
        self.batches: dict[tuple[int, int], int] = {}
        self.refused: set[bytes] = set()
        self.hashes: dict[int, bytes] = {}
        self.members: tuple[frozenset[int], ...] = ()

    # -- every step -------------------------------------------------------------------------------------------------

    def turn(self, node: Any, ready: Ready, nodes: Any) -> None:
        super().turn(node, ready, nodes)
        member = node.member
        store, log = member.store, member.log
        if not member.replica.installing:  # then the state is about to be replaced, and what is durable is ahead of it
            ends = (log.first_index - 1, store.committed_index, store.applied_index, node.raft.commit_index)
            detail = f"{node.id}: released, in the backend, applied, committed are {ends}"
            self.demand("INDEXES_IN_ORDER", list(ends) == sorted(ends), detail)
        revision, compacted = store.revision, store.compact_revision
        incarnation, known, known_compacted = self.seen.get(node.id, (0, 0, 0))
        if incarnation == node.incarnation:
            detail = f"{node.id}: revision {known} to {revision}, compacted {known_compacted} to {compacted}"
            self.demand("KEYS_MONOTONIC", revision >= known and compacted >= known_compacted, detail)
        self.seen[node.id] = (node.incarnation, revision, compacted)

    def acknowledged(self, node: MemberNode, payload: bytes) -> None:
        """A write is answered: it is committed, so that it was durable on a quorum (COMMITTED_ON_QUORUM, at commit)."""
        known = payload in self.answers
        self.demand(
            ACKNOWLEDGED_IMPLIES_DURABLE, known, f"{node.id} acknowledges {payload!r}, which no log has committed"
        )

    # -- log -----------------------------------------------------------------------------------------------------------

    def applied(self, node: Any, entries: Any) -> None:
        """Every member applies the same entries; the model applies each of them once."""
        for entry in entries:
            known = self.chains.setdefault(entry.index, entry.term)
            self.demand("STATE_MACHINE_SAFETY", known == entry.term, f"index {entry.index} at {node.id}")
            if entry.index < len(self.data):
                same = self.data[entry.index] == entry.data
                self.demand("STATE_MACHINE_SAFETY", same, f"index {entry.index} at {node.id} has other data")
                continue
            self.demand("STATE_MACHINE_SAFETY", entry.index == len(self.data), f"{node.id} skips to {entry.index}")
            self._commit(entry)

    def _commit(self, entry: Entry) -> None:
        expected: list[Any] = []
        if entry.type == EntryType.CONFIG:
            self._reconfigured(Configuration.decode(entry.data))
        if entry.type == EntryType.NORMAL and entry.data:
            batch = commands.decode_batch(entry.data)
            first = self.batches.setdefault((batch.origin, batch.first_seq), entry.index)
            self.demand("M16_APPLIED_ONCE", first == entry.index, f"one batch at {first} and {entry.index}")
            expected = [self._model(kind, payload) for kind, payload in zip(batch.kinds, batch.payloads, strict=True)]
        if entry.type == EntryType.CONFIG:
            self.configurations.append((entry.index, entry.data))
        self.data.append(entry.data)
        self.expected.append(expected)
        self.revisions.append((self.model.revision, self.model.compacted))

    def _reconfigured(self, configuration: Configuration) -> None:
        """A configuration is committed: a change of the membership is one that ends with other members or roles."""
        members = (configuration.voters, configuration.learners, configuration.standbys)
        if not configuration.joint and members != self.members:
            self.members = members
            self.count("membership changes")

    def _model(self, kind: int, payload: bytes) -> Any:
        self.demand("M16_REJECTED", payload not in self.refused, f"{payload!r} was refused, but is in the log")
        if kind == commands.MEMBER_ATTRIBUTES:
            return None
        if kind in (commands.PUT, commands.TXN):
            self.demand("M16_APPLIED_ONCE", payload not in self.answers, f"{payload!r} is in the log twice")
        answer = self.model.apply(REQUESTS[kind][0].FromString(payload))
        self.answers[payload] = answer
        return answer

    # -- store ---------------------------------------------------------------------------------------------------------

    def was_applied(self, node: MemberNode, index: int, term: int, batch: Batch, result: ApplyResult) -> None:
        """A member has applied an entry: its answers and revision are the model's."""
        known = index < len(self.data) and self.chains[index] == term
        self.demand("STATE_MACHINE_SAFETY", known, f"{node.id} applies ({term},{index}), which is not committed")
        revision, compacted = self.revisions[index]
        store = node.member.store
        same = result.revision == revision and store.compact_revision == compacted
        detail = f"{node.id} is at {result.revision} after {index}, compacted at {store.compact_revision}, "
        self.demand("STATE_MACHINE_SAFETY", same, f"{detail}not at {revision} and {compacted}")
        results = result.results or []
        for kind, answer, expected in zip(batch.kinds, results, self.expected[index], strict=False):
            if isinstance(answer, bytes) and kind in REQUESTS:
                found = plain(REQUESTS[kind][1].FromString(answer))
                self.demand("STATE_MACHINE_SAFETY", found == expected, f"{node.id} at {index}: {found} not {expected}")
            elif isinstance(answer, EtcdError):
                self.demand("STATE_MACHINE_SAFETY", answer == expected, f"{node.id} at {index}: {answer}")

    def installed(self, node: MemberNode) -> None:
        """A member has put a snapshot into the place of its state: the state is the model's, and what it was told of
        the membership is all that was committed up to there, whoever was removed included (M4)."""
        self.state(node)
        index = node.member.store.applied_index
        known = [data for at, data in self.configurations if at <= index]
        if known:
            removed = node.raft.committed_configuration[1].removed
            expected = Configuration.decode(known[-1]).removed
            detail = f"{node.id} installs a snapshot at {index}: removed are {sorted(removed)}, not {sorted(expected)}"
            self.demand("M4_REMOVED_SET", removed >= expected, detail)
        self.count("snapshots installed")

    def state(self, node: MemberNode) -> None:
        """A member's whole state is the model's, and so is, between members, its hash."""
        store = node.member.store
        index = store.applied_index
        read = store.start_range(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"))
        found = rpc_pb2.RangeResponse.FromString(read if isinstance(read, bytes) else read.run())
        self.demand("STATE_MACHINE_SAFETY", index < len(self.data), f"{node.id} has applied {index}")
        self.contents(f"{node.id} at {index}", found, self.revisions[index][0], b"\0", b"\0")
        known = self.hashes.setdefault(index, node.hash_kv())
        self.demand("STATE_MACHINE_SAFETY", known == node.hash_kv(), f"{node.id} at {index} has another hash")
        self.count("states compared")

    def contents(self, who: str, found: rpc_pb2.RangeResponse, revision: int, key: bytes, end: bytes) -> None:
        """What was read is what the model has at that revision."""
        there = revision < len(self.model.history) and found.header.revision == revision
        self.demand("STATE_MACHINE_SAFETY", there, f"{who} shows revision {found.header.revision}, not {revision}")
        state = self.model.history[revision]
        expected: list[KeyValue] = [state[one] for one in self.model.keys(state, key, end)]
        detail = f"{who}: {[kv.key for kv in found.kvs]}, expected {[kv.key for kv in expected]} at {revision}"
        self.demand("STATE_MACHINE_SAFETY", list(found.kvs) == expected, detail)

    def store_committed(self, node: MemberNode) -> None:
        """D14: a backend commit never passes what is durable in the member's own log."""
        index = node.committed_index = node.member.store.committed_index
        kept = f"{node.id} has committed {index}, its log begins at {node.member.log.first_index}"
        replaced = node.member.replica.installing  # then a snapshot that is durable explains the gap (D15)
        self.demand("D14_SEGMENTS_KEPT", replaced or node.member.log.first_index <= index + 1, kept)
        self.demand("FAILED", node.member.store.failed is None, f"{node.member.store.failed}")
        if index and not replaced:
            durable = node.log.durable_term(index)
            detail = f"{node.id} has committed up to {index}, in its log is {durable}, not {self.chains[index]}"
            self.demand("D14_COMMIT_BEHIND_LOG", durable == self.chains[index], detail)
            self.count("backend commits")

    def opened(self, node: MemberNode) -> None:
        """D13, D15: at every start."""
        store, log = node.member.store, node.member.log
        flags = store.backend.env.flags()
        self.demand("D13_SYNCED", bool(flags["sync"] and flags["metasync"]), f"{flags}")
        gap = f"{node.id}: log {log.first_index} to {log.last_index}, applied {store.applied_index}"
        self.demand("D15_NO_GAP", log.first_index - 1 <= store.applied_index <= log.last_index, gap)
        lost = f"{node.id} had committed {node.committed_index}, now it has applied {store.applied_index}"
        self.demand("D13_SYNCED", store.applied_index >= node.committed_index, lost)
        if log.first_index > 1:
            self.count("recovered without released segments")
        self.state(node)
        self.count(f"recovered by row {node.member.recovered.row}")
        if node.member.recovered.torn_tail_bytes:
            self.count("torn tails")

    # -- messages ------------------------------------------------------------------------------------------------------

    def promised(self, node: MemberNode, message: Message) -> None:
        """D4: what a vote or acknowledgement promises is durable when it leaves. M5: who takes no part has none."""
        if message.term != node.raft.term or message.reject:
            return
        if message.type in (MessageType.VOTE, MessageType.VOTE_RESPONSE, MessageType.APPEND_RESPONSE):
            self.demand("M5_TAKES_PART", node.member.may_vote, f"{node.id} sends {message} before it takes part")
        if message.type in (MessageType.VOTE, MessageType.VOTE_RESPONSE):
            vote = node.id if message.type == MessageType.VOTE else message.to
            found = node.log.durable.hard_state[:2]
            self.demand("D4_VOTE_DURABLE", found == (message.term, vote), f"{node.id} sends {message}, has {found}")
        elif message.type == MessageType.APPEND_RESPONSE and message.index:
            durable = node.log.durable_term(message.index)
            term = node.raft.term_at(message.index)
            detail = f"{node.id} acknowledges ({term},{message.index}), durable is {durable}"
            self.demand("D4_ACK_DURABLE", term in (-1, durable), detail)
