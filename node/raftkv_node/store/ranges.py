"""Range: which records answer it, and how the answer is spelled.

What a range means is etcd's: `count` is the number of keys in the interval at the revision, whatever limit and
filters say; a sort other than ascending by key, or a filter by revision, looks at all of them before the limit is
applied.

Never compiled (`docs/architecture.md`): other threads than the turn's spend their time here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

from raftkv_node.pb import rpc_pb2
from raftkv_node.pb.kv_pb2 import KeyValue

from .encoding import read_varint, varint
from .errors import COMPACTED, FUTURE_REVISION

RangeRequest = rpc_pb2.RangeRequest
_KEY = RangeRequest.KEY
_VERSION = RangeRequest.VERSION
_CREATE = RangeRequest.CREATE
_MOD = RangeRequest.MOD
_NONE = RangeRequest.NONE
_DESCEND = RangeRequest.DESCEND


def interval_end(range_end: bytes, key: bytes) -> bytes | None:
    """The exclusive end of an etcd interval: empty is just `key`, a zero byte is unbounded (`None`)."""
    if not range_end:
        return key + b"\0"
    return None if range_end == b"\0" else range_end


def resolve_revision(asked: int, current: int, compacted: int) -> int:
    """The revision to read at.  Raises the answers for compacted and future ones; reading at the compacted one is
    allowed.
    """
    if asked > current:
        raise FUTURE_REVISION.fresh()
    if asked <= 0:
        return current
    if asked < compacted:
        raise COMPACTED.fresh()
    return asked


def has_filters(request: RangeRequest) -> bool:
    """Whether keys are filtered by their revisions."""
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def needs_all(request: RangeRequest) -> bool:
    """Whether the limit may be applied only to the sorted and filtered whole."""
    return request.sort_target != _KEY or request.sort_order == _DESCEND or has_filters(request)


def scan_limit(request: RangeRequest) -> int:
    """How many keys have to be looked at (0: all)."""
    return 0 if request.limit <= 0 or needs_all(request) else int(request.limit)


def without_value(record: bytes) -> bytes:
    """The record with its value left out."""
    length, at = read_varint(record, 1)
    at += length
    for _ in range(3):
        _, at = read_varint(record, at + 1)
    if at >= len(record) or record[at] != 0x2A:
        return record
    length, end = read_varint(record, at + 1)
    return record[:at] + record[end + length :]


def _filter(records: Sequence[bytes], request: RangeRequest) -> list[bytes]:
    kept = []
    for record in records:
        kv = KeyValue.FromString(record)
        if (
            (request.min_mod_revision and kv.mod_revision < request.min_mod_revision)
            or (request.max_mod_revision and kv.mod_revision > request.max_mod_revision)
            or (request.min_create_revision and kv.create_revision < request.min_create_revision)
            or (request.max_create_revision and kv.create_revision > request.max_create_revision)
        ):
            continue
        kept.append(record)
    return kept


def _sort(records: Sequence[bytes], request: RangeRequest) -> list[bytes]:
    """Sorts records that come in key order; equal ones stay in key order."""
    descend = request.sort_order == _DESCEND
    target = request.sort_target
    if target == _KEY:
        return list(reversed(records)) if descend else list(records)
    if target == _VERSION:
        return sorted(records, key=lambda record: KeyValue.FromString(record).version, reverse=descend)
    if target == _CREATE:
        return sorted(records, key=lambda record: KeyValue.FromString(record).create_revision, reverse=descend)
    if target == _MOD:
        return sorted(records, key=lambda record: KeyValue.FromString(record).mod_revision, reverse=descend)
    return sorted(records, key=lambda record: KeyValue.FromString(record).value, reverse=descend)


@lru_cache(maxsize=1 << 14)
def _record_head(size_bytes: int) -> bytes:
    """What stands before a record of that size in a RangeResponse."""
    return b"\x12" + varint(size_bytes)


def count_response(header: bytes, total: int) -> bytes:
    """The answer to a `count_only` range."""
    return header + b"\x20" + varint(total) if total else header


def range_response(request: RangeRequest, header: bytes, records: Sequence[bytes], total: int) -> bytes:
    """An encoded RangeResponse.

    `header` is the encoded field 1; `records` are in key order, cut to `scan_limit`; `total` counts all keys of the
    interval.
    """
    limit = int(request.limit)
    if needs_all(request):
        if has_filters(request):
            records = _filter(records, request)
        if request.sort_target != _KEY or request.sort_order != _NONE:
            records = _sort(records, request)
        more = 0 < limit < len(records)
        if more:
            records = records[:limit]
    else:
        more = 0 < limit < total
    if request.keys_only:
        records = [without_value(record) for record in records]
    return b"".join(_response_parts(header, records, more, total))


def stream_piece(header: bytes, records: Sequence[bytes], *, more: bool, total: int) -> bytes:
    """An encoded RangeStreamResponse: a piece of a RangeResponse in its only field."""
    parts = _response_parts(header, records, more, total)
    return b"".join((b"\x0a", varint(sum(map(len, parts))), *parts))


def _response_parts(header: bytes, records: Sequence[bytes], more: bool, total: int) -> list[bytes]:
    parts = [header, *chain.from_iterable(zip(map(_record_head, map(len, records)), records, strict=True))]
    if more:
        parts.append(b"\x18\x01")
    if total:
        parts.append(b"\x20" + varint(total))
    return parts
