"""The pieces around a simulated member: links to peers, the engine that answers, workers, store and snapshot sink."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raftkv_node.raft import Message, MessageType, Snapshot
from raftkv_node.store import Batch, Store
from raftkv_node.store.snapshot import SnapshotSink
from raftkv_node.store.store import ApplyResult

if TYPE_CHECKING:
    from simulation_member import MemberNode


class SimPeers:
    """Links to the other members: messages go to the world's network as bytes.

    Introductions travel like messages, too, and are made again after each start of either end: hello, answer, and what
    both have stored of the members' disks. As on a connection, Raft's messages come after them, and are heard only from
    who was judged.
    """

    def __init__(self, node: MemberNode) -> None:
        self._node = node
        self.requests: list[Any] = []
        self.responses: list[Any] = []
        self.dropped: set[int] = set()
        self.judged: set[int] = set()
        """Who has introduced itself to this life of the member, and was not refused."""

    @property
    def connected(self) -> frozenset[int]:
        return self._node.world.linked(self._node.id) & self.judged

    def send(self, messages: Sequence[Message]) -> None:
        node = self._node
        for message in messages:
            if message.to not in self.judged:
                continue
            node.world.checks.promised(node, message)
            node.world.send(message)
            node.world.reach(node, f"after {MessageType(message.type).name}")

    def set_members(self, urls: Mapping[int, str]) -> None: ...
    def refuse_removed(self, removed: Any) -> None: ...

    def tick(self, now: float) -> None:
        """Introduce this member to those that it is not connected with."""
        member = self._node.member
        for other in sorted(member.configuration.ids - {self._node.id} - self.judged):
            self._node.world.post(
                self._node.id, other, "introduced", self._node.id, member.introductions.hello(other).encode(), True
            )

    def tell(self, to: int, openings: bytes) -> None:
        self._node.world.post(self._node.id, to, "told", self._node.id, openings)


class SimEngine:
    """The part of the engine that answers."""

    def __init__(self, node: MemberNode) -> None:
        self._node = node

    def reply(self, call_ids: Sequence[int], messages: Sequence[bytes]) -> None:
        for call_id, message in zip(call_ids, messages, strict=True):
            self._node.world.replied(self._node, call_id, message)
        self._node.world.reach(self._node, "after replies")

    def stream_send(self, messages: Sequence[tuple[int, bytes]]) -> list[int]:
        for call_id, message in messages:
            self._node.world.watched(call_id, message)
        self._node.world.reach(self._node, "after events")
        return [0] * len(messages)

    def stream_close(self, call_id: int, code: int, message: str) -> None:
        self._node.world.stream_ended(call_id)

    def flush(self) -> None:
        """Messages are on their way when they are sent here."""

    def reply_errors(self, errors: Sequence[tuple[int, int, str]]) -> None:
        for call_id, code, text in errors:
            self._node.world.failed(self._node, call_id, code, text)


class SimWorkers:
    """Jobs of a node, done some time later."""

    def __init__(self, node: MemberNode) -> None:
        self._node = node
        self.done: deque[Callable[[], None]] = deque()
        """What jobs want to be done in the turn."""

    def submit(self, job: Callable[[], None]) -> None:
        self._node.world.later(self._node, 1, 10, self._node.work, job)


class SimStore(Store):
    """The production store; what it applies is compared with the model at once."""

    node: MemberNode

    def apply(self, index: int, term: int, batch: Batch, *arguments: Any, **options: Any) -> ApplyResult:
        result = super().apply(index, term, batch, *arguments, **options)
        self.node.world.checks.was_applied(self.node, index, term, batch, result)
        self.node.world.reach(self.node, "after apply")
        return result

    def replace(self, other: Store) -> Any:
        old = super().replace(other)
        self.node.world.checks.installed(self.node)
        self.node.world.reach(self.node, "before swap")
        return old


class SimSink(SnapshotSink):
    """The production sink; the process may die before and after each of its transactions."""

    reach: Callable[[str], None]

    def _write(self) -> None:
        self.reach("in snapshot chunk")
        super()._write()
        self.reach("in snapshot chunk")

    def finish(self) -> Snapshot:
        snapshot = super().finish()
        self.reach("after snapshot sync")
        return snapshot


class StoreView:
    """What the world asks of a store."""

    def __init__(self, node: MemberNode) -> None:
        self._node = node

    @property
    def applied(self) -> int:
        return self._node.member.store.applied_index

    def digest(self) -> int:
        return hash(self._node.hash_kv())
