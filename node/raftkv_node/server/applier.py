"""Applying what is committed, and answering those of this member's clients who wait for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from time import monotonic
from typing import Final

from raftkv_node.api.methods import Method
from raftkv_node.raft import Configuration, Entry
from raftkv_node.raft.types import CONFIG
from raftkv_node.server.ahead import MAX_ENTRIES_AHEAD, Ahead
from raftkv_node.server.answers import Answers
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.replica import Replica
from raftkv_node.server.writes import NOBODY, Proposal, Writes
from raftkv_node.store import commands
from raftkv_node.store.errors import EtcdError
from raftkv_node.store.mvcc import RevisionEvents
from raftkv_node.store.store import PendingCompaction, Result, Store

METHOD_OF_KIND: Final = {
    commands.PUT: int(Method.PUT),
    commands.DELETE_RANGE: int(Method.DELETE_RANGE),
    commands.TXN: int(Method.TXN),
    commands.COMPACT: int(Method.COMPACT),
}


class Applier:
    """Applies entries in order, within the turn's budget."""

    def __init__(
        self,
        own_id: int,
        *,
        store: Store,
        replica: Replica,
        writes: Writes,
        answers: Answers,
        metrics: Metrics,
        ahead: Ahead,
        notify: Callable[[Sequence[RevisionEvents]], None],
        count_origin: Callable[[int, int], None],
    ) -> None:
        self._own_id = own_id
        self._store = store
        self._replica = replica
        self._writes = writes
        self._answers = answers
        self._metrics = metrics
        stages = metrics.stages
        self._queue, self._append, self._replicate = stages["queue"], stages["append"], stages["replicate"]
        self._quorum, self._applied, self._reply = stages["quorum"], stages["apply"], stages["reply"]
        self._ahead = ahead
        self._notify = notify
        self._count_origin = count_origin
        self._compactions: list[tuple[PendingCompaction, int]] = []
        self._removed: frozenset[int] = frozenset()

    def run(self, deadline: float) -> bool:
        """Applies until nothing is left, the budget is used or a value is not fetched yet; whether entries are left
        that may be applied at once.
        """
        committed = self._replica.committed
        store = self._store
        if not committed or self._replica.installing:
            return False
        started = now = monotonic()
        waits = False
        while committed and not store.backpressure:
            entry, committed_at = committed[0]
            if not self._ahead.ready(entry):
                # Look further while it waits, so that many such entries do not wait one after the other.
                self._ahead.look([one for one, _ in islice(committed, 1, MAX_ENTRIES_AHEAD)])
                waits = True
                break
            committed.popleft()
            self._apply(entry, committed_at)
            for call_id, error in self._writes.passed(entry.index, entry.term):
                if call_id != NOBODY:
                    self._answers.error(call_id, error)
            now = monotonic()
            if now >= deadline:
                break
        self._metrics.apply_duration.add(now - started)
        self._replica.applied(store.applied_index)
        return bool(committed) and not waits and not store.backpressure

    def restored(self, configuration: Configuration) -> None:
        """The store holds a snapshot now, with this configuration."""
        self._removed = configuration.removed

    def _apply(self, entry: Entry, committed_at: float) -> None:
        store = self._store
        if entry.type == CONFIG:
            removed = Configuration.decode(entry.data).removed
            store.apply_configuration(entry.index, entry.term, entry.data, sorted(removed - self._removed))
            self._removed = removed
            return
        if not entry.data:
            store.apply_empty(entry.index, entry.term)
            return
        needs, fetched = self._ahead.take(entry)
        decoded = needs.decoded if needs is not None else None
        origin, first_seq = commands.origin_of(entry.data)
        proposal = self._writes.settle(first_seq) if origin == self._own_id else None
        if proposal is None:
            batch = commands.decode_batch(entry.data)
            applied = store.apply(entry.index, entry.term, batch, decoded, False, fetched)
        else:
            batch = commands.Batch(origin, first_seq, proposal.kinds, proposal.payloads)
            applied = store.apply(entry.index, entry.term, batch, decoded, fetched=fetched)
        self._count_origin(origin, len(batch.kinds))
        if applied.events:
            self._notify(applied.events)
        if proposal is not None and applied.results is not None:
            self._answer(proposal, applied.results, committed_at)

    def _answer(self, proposal: Proposal, results: list[Result], committed_at: float) -> None:
        """Reply to the clients of an entry; the time of each stage counts for each of its requests."""
        applied_at = monotonic()
        call_ids = proposal.call_ids
        if all(type(result) is bytes for result in results) and NOBODY not in call_ids:
            self._answers.ok(call_ids, results)  # type: ignore[arg-type]  # all are bytes: just seen
        else:
            for call_id, kind, result in zip(call_ids, proposal.kinds, results, strict=True):
                self._answer_one(call_id, kind, result)
        for kind, method in METHOD_OF_KIND.items():
            number = proposal.kinds.count(kind)
            if number:
                self._metrics.handled(method, 0, number)
        self._count(proposal, committed_at, applied_at)

    def _answer_one(self, call_id: int, kind: int, result: Result) -> None:
        if call_id == NOBODY:
            return
        if isinstance(result, bytes):
            self._answers.ok((call_id,), (result,))
        elif isinstance(result, EtcdError):
            self._answers.error(call_id, result)
            self._metrics.handled(METHOD_OF_KIND[kind], 0, -1)
            self._metrics.handled(METHOD_OF_KIND[kind], result.grpc_code)
        else:
            self._compactions.append((result, call_id))

    def _count(self, proposal: Proposal, committed_at: float, applied_at: float) -> None:
        """Add the entry's times to the stages; stages that it did not pass here count as nothing."""
        weight = len(proposal.call_ids)
        logged = proposal.logged or proposal.proposed
        durable = max(logged, proposal.durable)
        acknowledged = max(durable, proposal.acknowledged)
        self._queue.add(logged - proposal.received, weight)
        self._append.add(durable - logged, weight)
        self._replicate.add(acknowledged - durable, weight)
        self._quorum.add(max(0.0, committed_at - acknowledged), weight)
        self._applied.add(applied_at - committed_at, weight)
        self._reply.add(monotonic() - applied_at, weight)
        self._metrics.commit.add(committed_at - proposal.received, weight)

    def finish_compactions(self) -> None:
        """Answer physical compactions whose purge is done."""
        if not self._compactions:
            return
        for done in self._store.finished_compactions():
            for pending, call_id in [one for one in self._compactions if one[0] is done]:
                self._answers.ok((call_id,), (pending.response,))
                self._compactions.remove((pending, call_id))
