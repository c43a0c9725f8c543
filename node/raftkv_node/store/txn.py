"""Transactions: If/Then/Else over many keys, nested.

The order is etcd's, and every step of it is the same on all members:

1. all comparisons are evaluated, of nested transactions on the chosen path too, before anything is written;
2. the writes and ranges on that path are checked (leases, `ignore_*`, revisions), so that
3. applying them cannot fail half-way.

What a range *returns* is worked out only where a client waits for it: reading never decides what is written.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol

from raftkv_node.pb import rpc_pb2
from raftkv_node.pb.kv_pb2 import KeyValue

from .comparing import compare_holds
from .encoding import field, inner_header, varint
from .errors import COMPACTED, FUTURE_REVISION, KEY_NOT_FOUND, LEASE_NOT_FOUND, StoreError
from .mvcc import Mvcc
from .ranges import count_response, interval_end, range_response, resolve_revision, scan_limit
from .yielding import YIELD_EVERY, give_way


class View(Protocol):
    """State to read from at one revision."""

    @property
    def read_revision(self) -> int:
        """The revision a read without one sees, and that headers name."""
        ...

    def rows(self, key: bytes, end: bytes | None, revision: int, limit: int) -> tuple[list[bytes], int]:
        """Records of [key, end) at a revision, cut to `limit` (0: all), and how many there are."""
        ...

    def count(self, key: bytes, end: bytes | None, revision: int) -> int:
        """How many keys [key, end) has at a revision."""
        ...

    def numbers(self, key: bytes) -> tuple[int, int, int] | None:
        """(create revision, modification revision, version) of a key at `read_revision`, or `None`."""
        ...


class Path:
    """A transaction with its outcome decided."""

    __slots__ = ("nested", "ops", "succeeded")

    def __init__(self, request: rpc_pb2.TxnRequest, view: View) -> None:
        self.succeeded = all(compare_holds(compare, view) for compare in request.compare)
        self.ops: Sequence[rpc_pb2.RequestOp] = request.success if self.succeeded else request.failure
        self.nested = {
            at: Path(op.request_txn, view)
            for at, op in enumerate(self.ops)
            if op.WhichOneof("request") == "request_txn"
        }


def check_puts(path: Path, view: View, leases: Container[int]) -> None:
    """Raises what etcd answers when a put on the path cannot be done."""
    for at, op in enumerate(path.ops):
        kind = op.WhichOneof("request")
        if kind == "request_put":
            put = op.request_put
            if (put.ignore_value or put.ignore_lease) and view.numbers(put.key) is None:
                raise KEY_NOT_FOUND.fresh()
            if put.lease and put.lease not in leases:
                raise LEASE_NOT_FOUND.fresh()
        elif kind == "request_txn":
            check_puts(path.nested[at], view, leases)


def check_ranges(path: Path, revision: int, compacted: int) -> None:
    """Raises what etcd answers when a range on the path asks for a revision that is not there.

    Unlike a range of its own, one in a transaction takes only 0 as "newest": a negative revision is a compacted one.
    """
    for at, op in enumerate(path.ops):
        kind = op.WhichOneof("request")
        if kind == "request_range":
            asked = op.request_range.revision
            if asked > revision:
                raise FUTURE_REVISION.fresh()
            if asked and (asked < compacted or asked < 0):
                raise COMPACTED.fresh()
        elif kind == "request_txn":
            check_ranges(path.nested[at], revision, compacted)


def range_body(request: rpc_pb2.RangeRequest, header: bytes, view: View, compacted: int) -> bytes:
    """The encoded answer to a range, read from a view."""
    revision = resolve_revision(request.revision, view.read_revision, compacted)
    end = interval_end(request.range_end, request.key)
    if request.count_only:
        return count_response(header, view.count(request.key, end, revision))
    records, total = view.rows(request.key, end, revision, scan_limit(request))
    return range_response(request, header, records, total)


def put_in_revision(mvcc: Mvcc, put: rpc_pb2.PutRequest) -> None:
    """Writes one put, its checks done, in the open revision."""
    value, lease = put.value, put.lease
    if put.ignore_value or put.ignore_lease:
        current = mvcc.newest(put.key)
        if current is None:
            raise StoreError("a put that ignores its value lost its key between check and write")
        kv = KeyValue.FromString(current)
        if put.ignore_value:
            value = kv.value
        if put.ignore_lease:
            lease = kv.lease
    mvcc.put(put.key, value, lease)


def delete_in_revision(mvcc: Mvcc, delete: rpc_pb2.DeleteRangeRequest, want_prev: bool) -> tuple[int, list[bytes]]:
    """Deletes an interval in the open revision; how many keys it had, and their records if wanted."""
    key = delete.key
    if not delete.range_end:
        entry = mvcc.index.entries.get(key)
        keys = [key] if entry is not None and entry[2] else []
    else:
        keys = mvcc.index.live.slice(key, interval_end(delete.range_end, key))
    prev = []
    if want_prev:
        for key in keys:
            record = mvcc.newest(key)
            assert record is not None
            prev.append(record)
    for at, key in enumerate(keys):
        if not at % YIELD_EVERY:
            give_way()
        mvcc.delete(key)
    return len(keys), prev


def delete_response(header: bytes, deleted: int, prev: Sequence[bytes]) -> bytes:
    """An encoded DeleteRangeResponse."""
    parts = [header]
    if deleted:
        parts.append(b"\x10" + varint(deleted))
    parts += [field(b"\x1a", record) for record in prev]
    return b"".join(parts)


def txn_response(header: bytes, succeeded: bool, responses: Sequence[bytes]) -> bytes:
    """An encoded TxnResponse; `responses` are encoded ResponseOps."""
    parts = [header]
    if succeeded:
        parts.append(b"\x10\x01")
    parts += [field(b"\x1a", response) for response in responses]
    return b"".join(parts)


def apply_path(path: Path, mvcc: Mvcc, view: View, want_results: bool) -> list[bytes]:
    """Executes the chosen path in the open revision; the encoded ResponseOps, if wanted."""
    responses = []
    for at, op in enumerate(path.ops):
        kind = op.WhichOneof("request")
        if kind == "request_put":
            put = op.request_put
            prev = mvcc.newest(put.key) if want_results and put.prev_kv else None
            put_in_revision(mvcc, put)
            if want_results:
                body = inner_header(mvcc.main)
                responses.append(field(b"\x12", body if prev is None else body + field(b"\x12", prev)))
        elif kind == "request_delete_range":
            delete = op.request_delete_range
            deleted, records = delete_in_revision(mvcc, delete, want_results and delete.prev_kv)
            if want_results:
                responses.append(field(b"\x1a", delete_response(inner_header(view.read_revision), deleted, records)))
        elif kind == "request_range":
            if want_results:
                responses.append(field(b"\x0a", range_in_path(op.request_range, view, mvcc.compact_revision)))
        elif kind == "request_txn":
            nested = path.nested[at]
            inner = apply_path(nested, mvcc, view, want_results)
            if want_results:
                responses.append(field(b"\x22", txn_response(b"\x0a\x00", nested.succeeded, inner)))
    return responses


def range_in_path(request: rpc_pb2.RangeRequest, view: View, compacted: int) -> bytes:
    """The encoded answer to a range inside a transaction."""
    return range_body(request, inner_header(view.read_revision), view, compacted)
