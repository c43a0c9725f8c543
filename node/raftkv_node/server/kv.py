"""The key space's RPCs in the turn: writes go to the queue before the log, reads wait for the quorum or are served."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import Full
from time import monotonic
from typing import Final

from raftkv_node.api.kv import (
    Admitted,
    admit_compactions,
    admit_deletes,
    admit_puts,
    sort_ranges,
    sort_txns,
    within_quota,
)
from raftkv_node.api.methods import Method
from raftkv_node.config import NodeConfig
from raftkv_node.pb import rpc_pb2
from raftkv_node.server.answers import Answers
from raftkv_node.server.faults import faults_told
from raftkv_node.server.member import Member
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.workers import Workers
from raftkv_node.server.writes import bytes_of
from raftkv_node.store import commands
from raftkv_node.store.errors import TOO_MANY_REQUESTS, EtcdError
from raftkv_node.store.reads import ColdRead

READS_PER_SLICE: Final = 64
"""Reads that are answered before the clock is looked at."""
_GROWING: Final = frozenset({commands.PUT, commands.TXN})
"""Writes that may make the backend larger; at its quota they are refused."""

Read = tuple[int, rpc_pb2.RangeRequest] | tuple[int, rpc_pb2.TxnRequest]


class KeySpace:
    """Range, Put, DeleteRange, Txn, Compact."""

    def __init__(
        self, config: NodeConfig, member: Member, answers: Answers, workers: Workers, metrics: Metrics
    ) -> None:
        self._config = config
        self._member = member
        self._answers = answers
        self._workers = workers
        self._metrics = metrics
        self._to_serve: deque[tuple[int, Sequence[Read]]] = deque()

    def handle(self, method: int, call_ids: list[int], payloads: list[bytes], now: float) -> None:
        """Calls of one method."""
        limit = self._config.max_request_bytes
        if method == Method.PUT:
            self._metrics.put_total += len(call_ids)
            self._write(commands.PUT, method, admit_puts(call_ids, payloads, limit), now)
        elif method == Method.RANGE:
            self._metrics.range_total += len(call_ids)
            self._ranges(call_ids, payloads, now)
        elif method == Method.TXN:
            self._metrics.txn_total += len(call_ids)
            self._txns(call_ids, payloads, now)
        elif method == Method.DELETE_RANGE:
            self._metrics.delete_total += len(call_ids)
            self._write(commands.DELETE_RANGE, method, admit_deletes(call_ids, payloads, limit), now)
        else:
            self._write(commands.COMPACT, method, admit_compactions(call_ids, payloads, limit), now)

    def _write(self, kind: int, method: int, admitted: Admitted, now: float) -> None:
        self._refuse(method, admitted.errors)
        if self._member.overloaded:
            self._refuse(method, [(call_id, TOO_MANY_REQUESTS) for call_id in admitted.call_ids])
            return
        if kind in _GROWING and self._member.store.exceeds_quota(bytes_of(admitted.payloads)):
            admitted = within_quota(kind, admitted)
            self._refuse(method, admitted.errors)
        if admitted.call_ids:
            self._refuse(method, self._member.writes.accept(kind, admitted.call_ids, admitted.payloads, now))

    def _refuse(self, method: int, errors: Sequence[tuple[int, EtcdError]]) -> None:
        for _, error in errors:
            self._metrics.handled(method, error.grpc_code)
        self._answers.errors(errors)

    def _ranges(self, call_ids: list[int], payloads: list[bytes], now: float) -> None:
        ranges = sort_ranges(call_ids, payloads, self._config.max_request_bytes)
        self._refuse(Method.RANGE, ranges.errors)
        if ranges.serializable:
            self._serve(Method.RANGE, ranges.serializable, None)
        if ranges.linearizable:
            self._member.reads.add(partial(self._serve, Method.RANGE, ranges.linearizable), now)

    def _txns(self, call_ids: list[int], payloads: list[bytes], now: float) -> None:
        txns = sort_txns(call_ids, payloads, self._config.max_request_bytes, self._config.max_txn_ops)
        self._write(commands.TXN, Method.TXN, txns.writes, now)
        if txns.serializable:
            self._serve(Method.TXN, txns.serializable, None)
        if txns.linearizable:
            self._member.reads.add(partial(self._serve, Method.TXN, txns.linearizable), now)

    def _serve(self, method: int, reads: Sequence[Read], error: EtcdError | None) -> None:
        """Reads that may be answered from the applied state, or are all to be answered with an error."""
        if error is not None:
            self._refuse(method, [(call_id, error) for call_id, _ in reads])
        else:
            self._to_serve.append((method, reads))

    @property
    def reads_left(self) -> bool:
        """Whether reads wait to be answered."""
        return bool(self._to_serve)

    def serve(self, deadline: float) -> bool:
        """Answer reads until none is left or the turn's budget is used; whether some are left. A later state serves a
        read as well as an earlier one that was allowed to."""
        while self._to_serve:
            method, reads = self._to_serve.popleft()
            self._answer(method, reads[:READS_PER_SLICE])
            if len(reads) > READS_PER_SLICE:
                self._to_serve.appendleft((method, reads[READS_PER_SLICE:]))
            if monotonic() >= deadline:
                break
        return bool(self._to_serve)

    def _answer(self, method: int, reads: Sequence[Read]) -> None:
        store = self._member.store
        ids: list[int] = []
        messages: list[bytes] = []
        for call_id, request in reads:
            try:
                if isinstance(request, rpc_pb2.RangeRequest):
                    found = store.start_range(request)
                else:
                    found = store.start_txn(request)
            except EtcdError as failure:
                self._refuse(method, [(call_id, failure)])
                continue
            if isinstance(found, ColdRead):
                self.run_cold(method, call_id, found)
            else:
                ids.append(call_id)
                messages.append(found)
        self._answers.ok(ids, messages)
        self._metrics.handled(method, 0, len(ids))

    def run_cold(self, method: int, call_id: int, cold: ColdRead) -> None:
        """Let a worker finish a read; it answers by itself."""
        try:
            self._workers.submit(cold_job(cold, method, call_id, self._answers))
            self._metrics.handled(method, 0)
        except Full:
            cold.close()
            self._refuse(method, [(call_id, TOO_MANY_REQUESTS)])


def cold_job(cold: ColdRead, method: int, call_id: int, answers: Answers) -> Callable[[], None]:
    """What a worker does for a read: run it and answer directly, off the turn."""

    def job() -> None:
        try:
            with faults_told(method, partial(answers.error_now, call_id)):
                message = cold.run()
        except EtcdError as error:
            answers.error_now(call_id, error)
        else:
            answers.ok_now(call_id, message)

    return job
