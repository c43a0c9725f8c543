"""What can be refused before it is proposed: etcd's static checks of a request.

Each check returns the error to answer, or `None`.  They look only at the request, so every member and the future agree.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from raftkv_node.pb import rpc_pb2

from .errors import (
    DUPLICATE_KEY,
    EMPTY_KEY,
    INVALID_SORT_OPTION,
    KEY_NOT_FOUND,
    LEASE_PROVIDED,
    STREAM_WITH_FILTER,
    STREAM_WITH_SORT,
    TOO_MANY_OPERATIONS,
    VALUE_PROVIDED,
    EtcdError,
)
from .ranges import has_filters

DEFAULT_MAX_TXN_OPS: Final = 128
_SORT_ORDERS: Final = frozenset(rpc_pb2.RangeRequest.SortOrder.values())
_NONE: Final = rpc_pb2.RangeRequest.NONE
_ASCEND: Final = rpc_pb2.RangeRequest.ASCEND
_KEY: Final = rpc_pb2.RangeRequest.KEY
_SORT_TARGETS: Final = frozenset(rpc_pb2.RangeRequest.SortTarget.values())


def check_range(request: rpc_pb2.RangeRequest) -> EtcdError | None:
    """Static checks of a RangeRequest."""
    if not request.key:
        return EMPTY_KEY
    if request.sort_order not in _SORT_ORDERS or request.sort_target not in _SORT_TARGETS:
        return INVALID_SORT_OPTION
    return None


def check_range_stream(request: rpc_pb2.RangeRequest) -> EtcdError | None:
    """Static checks of a RangeStream: what would need the whole range first is not served as a stream (etcd 3.7)."""
    if (error := check_range(request)) is not None:
        return error
    if request.sort_order != _NONE and (request.sort_target != _KEY or request.sort_order != _ASCEND):
        return STREAM_WITH_SORT
    return STREAM_WITH_FILTER if has_filters(request) else None


def check_put(request: rpc_pb2.PutRequest) -> EtcdError | None:
    """Static checks of a PutRequest."""
    if not request.key:
        return EMPTY_KEY
    if request.ignore_value and request.value:
        return VALUE_PROVIDED
    if request.ignore_lease and request.lease:
        return LEASE_PROVIDED
    return None


def check_delete(request: rpc_pb2.DeleteRangeRequest) -> EtcdError | None:
    """Static checks of a DeleteRangeRequest."""
    return None if request.key else EMPTY_KEY


def check_txn(request: rpc_pb2.TxnRequest, max_txn_ops: int = DEFAULT_MAX_TXN_OPS) -> EtcdError | None:
    """Static checks of a TxnRequest, nested ones included."""
    return _check_operations(request, max_txn_ops) or _check_duplicates(request)


def _check_operations(request: rpc_pb2.TxnRequest, max_ops: int) -> EtcdError | None:
    operations = max(len(request.compare), len(request.success), len(request.failure))
    if operations > max_ops:
        return TOO_MANY_OPERATIONS
    for compare in request.compare:
        if not compare.key:
            return EMPTY_KEY
    for branch in (request.success, request.failure):
        for op in branch:
            error = _check_operation(op, max_ops - operations)
            if error is not None:
                return error
    return None


def _check_operation(op: rpc_pb2.RequestOp, max_ops: int) -> EtcdError | None:
    kind = op.WhichOneof("request")
    if kind == "request_range":
        return check_range(op.request_range)
    if kind == "request_put":
        return check_put(op.request_put)
    if kind == "request_delete_range":
        return check_delete(op.request_delete_range)
    if kind == "request_txn":
        return _check_operations(op.request_txn, max_ops)
    return KEY_NOT_FOUND


class _Duplicate(Exception):
    pass


class _Intervals:
    """A union of half-open key intervals, merged and sorted.  An end of `None` is unbounded."""

    __slots__ = ("_items", "_merged")

    def __init__(self) -> None:
        self._items: list[tuple[bytes, bytes | None]] = []
        self._merged = True

    def add(self, start: bytes, end: bytes | None) -> None:
        if end is None or start < end:
            self._items.append((start, end))
            self._merged = False

    def update(self, other: _Intervals) -> None:
        self._items += other._items
        self._merged = False

    def __contains__(self, key: bytes) -> bool:
        if not self._merged:
            self._merge()
        at = bisect_right(self._items, key, key=lambda item: item[0]) - 1
        if at < 0:
            return False
        end = self._items[at][1]
        return end is None or key < end

    def _merge(self) -> None:
        merged: list[tuple[bytes, bytes | None]] = []
        for start, end in sorted(self._items, key=lambda item: item[0]):
            if merged:
                last_start, last_end = merged[-1]
                if last_end is None or start <= last_end:
                    if last_end is not None and (end is None or end > last_end):
                        merged[-1] = (last_start, end)
                    continue
            merged.append((start, end))
        self._items = merged
        self._merged = True


def _check_duplicates(request: rpc_pb2.TxnRequest) -> EtcdError | None:
    try:
        _collect(request.success)
        _collect(request.failure)
    except _Duplicate:
        return DUPLICATE_KEY
    return None


def _collect(ops: Iterable[rpc_pb2.RequestOp]) -> tuple[set[bytes], _Intervals]:
    """The keys put and the intervals deleted by a branch.  `_Duplicate` when two writes of it meet.

    The two branches of one nested transaction exclude each other, so they may put the same key.  Overlapping
    deletes are harmless.  As in etcd, a nested put is held against the deletes of this level and of earlier nested
    transactions.
    """
    deletes = _Intervals()
    puts: set[bytes] = set()
    nested = []
    own = []
    for op in ops:
        kind = op.WhichOneof("request")
        if kind == "request_delete_range":
            delete = op.request_delete_range
            if not delete.range_end:
                deletes.add(delete.key, delete.key + b"\0")
            else:
                deletes.add(delete.key, None if delete.range_end == b"\0" else delete.range_end)
        elif kind == "request_txn":
            nested.append(op.request_txn)
        elif kind == "request_put":
            own.append(op.request_put.key)
    for txn in nested:
        then_puts, then_deletes = _collect(txn.success)
        else_puts, else_deletes = _collect(txn.failure)
        for key in then_puts | else_puts:
            if key in puts or key in deletes:
                raise _Duplicate
        puts |= then_puts
        puts |= else_puts
        deletes.update(then_deletes)
        deletes.update(else_deletes)
    for key in own:
        if key in puts or key in deletes:
            raise _Duplicate
        puts.add(key)
    return puts, deletes


def is_read_only(request: rpc_pb2.TxnRequest) -> bool:
    """Whether a transaction needs no log entry: both branches hold only ranges (a nested transaction counts as a
    write).
    """
    return all(
        op.WhichOneof("request") == "request_range" for branch in (request.success, request.failure) for op in branch
    )


def is_serializable(request: rpc_pb2.TxnRequest) -> bool:
    """Whether a read-only transaction may be answered from local state: all its ranges are serializable.

    A transaction without any range is not.
    """
    ops = [*request.success, *request.failure]
    return bool(ops) and all(
        op.WhichOneof("request") == "request_range" and op.request_range.serializable for op in ops
    )
