"""What clients ask of the key space, from bytes to what can be proposed or read: decoding and etcd's static checks.

Whole groups at a time: a group of plain puts is only looked at, never parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar, final

from google.protobuf.message import DecodeError
from mypy_extensions import mypyc_attr

from raftkv_node.pb import rpc_pb2
from raftkv_node.store import commands
from raftkv_node.store.encoding import simple_put
from raftkv_node.store.errors import MALFORMED_REQUEST, NO_SPACE, REQUEST_TOO_LARGE, EtcdError
from raftkv_node.store.validate import (
    check_delete,
    check_put,
    check_range,
    check_range_stream,
    check_txn,
    is_read_only,
    is_serializable,
)

Errors = list[tuple[int, EtcdError]]
T = TypeVar("T")


@final
@mypyc_attr(acyclic=True)
class Admitted:
    """Writes that may be proposed, and the rest with its answers."""

    __slots__ = ("call_ids", "errors", "payloads")

    def __init__(self, call_ids: list[int], payloads: list[bytes], errors: Errors) -> None:
        self.call_ids: Final = call_ids
        self.payloads: Final = payloads
        self.errors: Final = errors


class Ranges(NamedTuple):
    """Ranges to serve: at once from local state, or once the quorum has been asked."""

    serializable: list[tuple[int, rpc_pb2.RangeRequest]]
    linearizable: list[tuple[int, rpc_pb2.RangeRequest]]
    errors: Errors


class Txns(NamedTuple):
    """Transactions: those that write, and those that only read."""

    writes: Admitted
    serializable: list[tuple[int, rpc_pb2.TxnRequest]]
    linearizable: list[tuple[int, rpc_pb2.TxnRequest]]


def _parse(parse: Callable[[bytes], T], payload: bytes, limit_bytes: int) -> T | EtcdError:
    if len(payload) > limit_bytes:
        return REQUEST_TOO_LARGE
    try:
        return parse(payload)
    except DecodeError:
        return MALFORMED_REQUEST


def _admit(call_ids: Sequence[int], payloads: Sequence[bytes], check: Callable[[bytes], EtcdError | None]) -> Admitted:
    admitted = Admitted([], [], [])
    for call_id, payload in zip(call_ids, payloads, strict=True):
        error = check(payload)
        if error is None:
            admitted.call_ids.append(call_id)
            admitted.payloads.append(payload)
        else:
            admitted.errors.append((call_id, error))
    return admitted


def _is_plain(payload: bytes, limit_bytes: int) -> bool:
    """Whether a put is only a key and a value, and no larger than it may be."""
    return simple_put(payload) > 0 and len(payload) <= limit_bytes


def admit_puts(call_ids: list[int], payloads: list[bytes], limit_bytes: int) -> Admitted:
    """Puts of a turn. Plain ones (a key and a value) need no parser."""
    if all(_is_plain(payload, limit_bytes) for payload in payloads):
        return Admitted(call_ids, payloads, [])

    def check(payload: bytes) -> EtcdError | None:
        if _is_plain(payload, limit_bytes):
            return None
        request = _parse(rpc_pb2.PutRequest.FromString, payload, limit_bytes)
        return request if isinstance(request, EtcdError) else check_put(request)

    return _admit(call_ids, payloads, check)


def admit_deletes(call_ids: list[int], payloads: list[bytes], limit_bytes: int) -> Admitted:
    """DeleteRanges of a turn."""

    def check(payload: bytes) -> EtcdError | None:
        request = _parse(rpc_pb2.DeleteRangeRequest.FromString, payload, limit_bytes)
        return request if isinstance(request, EtcdError) else check_delete(request)

    return _admit(call_ids, payloads, check)


def admit_compactions(call_ids: list[int], payloads: list[bytes], limit_bytes: int) -> Admitted:
    """Compactions of a turn; what is wrong with a revision shows when they are applied."""

    def check(payload: bytes) -> EtcdError | None:
        request = _parse(rpc_pb2.CompactionRequest.FromString, payload, limit_bytes)
        return request if isinstance(request, EtcdError) else None

    return _admit(call_ids, payloads, check)


def within_quota(kind: int, admitted: Admitted) -> Admitted:
    """What may still be written when the backend is at its quota: as with etcd, what puts nothing."""
    kept = Admitted([], [], [])
    for call_id, payload in zip(admitted.call_ids, admitted.payloads, strict=True):
        if kind == commands.TXN and not _puts(rpc_pb2.TxnRequest.FromString(payload)):
            kept.call_ids.append(call_id)
            kept.payloads.append(payload)
        else:
            kept.errors.append((call_id, NO_SPACE))
    return kept


def _puts(request: rpc_pb2.TxnRequest) -> bool:
    return any(
        op.HasField("request_put") or (op.HasField("request_txn") and _puts(op.request_txn))
        for branch in (request.success, request.failure)
        for op in branch
    )


def sort_txns(call_ids: list[int], payloads: list[bytes], limit_bytes: int, max_txn_ops: int) -> Txns:
    """Transactions of a turn."""
    txns = Txns(Admitted([], [], []), [], [])
    for call_id, payload in zip(call_ids, payloads, strict=True):
        request = _parse(rpc_pb2.TxnRequest.FromString, payload, limit_bytes)
        error = request if isinstance(request, EtcdError) else check_txn(request, max_txn_ops)
        if error is not None or isinstance(request, EtcdError):
            txns.writes.errors.append((call_id, error or MALFORMED_REQUEST))
        elif not is_read_only(request):
            txns.writes.call_ids.append(call_id)
            txns.writes.payloads.append(payload)
        elif is_serializable(request):
            txns.serializable.append((call_id, request))
        else:
            txns.linearizable.append((call_id, request))
    return txns


def sort_ranges(call_ids: list[int], payloads: list[bytes], limit_bytes: int) -> Ranges:
    """Ranges of a turn."""
    ranges = Ranges([], [], [])
    for call_id, payload in zip(call_ids, payloads, strict=True):
        request = _parse(rpc_pb2.RangeRequest.FromString, payload, limit_bytes)
        error = request if isinstance(request, EtcdError) else check_range(request)
        if error is not None or isinstance(request, EtcdError):
            ranges.errors.append((call_id, error or MALFORMED_REQUEST))
        elif request.serializable:
            ranges.serializable.append((call_id, request))
        else:
            ranges.linearizable.append((call_id, request))
    return ranges


def admit_range_stream(payload: bytes, limit_bytes: int) -> rpc_pb2.RangeRequest | EtcdError:
    """The request of a RangeStream, or what is wrong with it."""
    request = _parse(rpc_pb2.RangeRequest.FromString, payload, limit_bytes)
    return request if isinstance(request, EtcdError) else check_range_stream(request) or request
