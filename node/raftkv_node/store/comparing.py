"""Comparisons of transactions.

Never compiled (`docs/architecture.md`): one comparison may look at every key there is, on a worker, and only between
interpreted instructions the turn can have the interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkv_node.pb import rpc_pb2
from raftkv_node.pb.kv_pb2 import KeyValue

from .ranges import interval_end

if TYPE_CHECKING:
    from .txn import View

Compare = rpc_pb2.Compare


def compare_holds(compare: Compare, view: View) -> bool:
    """Whether a comparison is true, for every key of its interval.

    A missing key has no value (a VALUE comparison is false); its revisions, version and lease are 0.
    """
    target = compare.target
    if not compare.range_end and target in (Compare.VERSION, Compare.CREATE, Compare.MOD):
        create, mod, version = view.numbers(compare.key) or (0, 0, 0)
        if target == Compare.VERSION:
            return _holds(compare.result, version, compare.version)
        if target == Compare.CREATE:
            return _holds(compare.result, create, compare.create_revision)
        return _holds(compare.result, mod, compare.mod_revision)
    end = interval_end(compare.range_end, compare.key)
    records, _ = view.rows(compare.key, end, view.read_revision, 0)
    if not records:
        return target != Compare.VALUE and _compare_kv(compare, KeyValue())
    return all(_compare_kv(compare, KeyValue.FromString(record)) for record in records)


def _compare_kv(compare: Compare, kv: KeyValue) -> bool:
    target = compare.target
    if target == Compare.VALUE:
        return _holds(compare.result, kv.value, compare.value)
    if target == Compare.VERSION:
        return _holds(compare.result, kv.version, compare.version)
    if target == Compare.CREATE:
        return _holds(compare.result, kv.create_revision, compare.create_revision)
    if target == Compare.MOD:
        return _holds(compare.result, kv.mod_revision, compare.mod_revision)
    if target == Compare.LEASE:
        return _holds(compare.result, kv.lease, compare.lease)
    return _holds(compare.result, 0, 0)


def _holds(result: int, found: bytes | int, given: bytes | int) -> bool:
    if result == Compare.EQUAL:
        return found == given
    if result == Compare.NOT_EQUAL:
        return found != given
    if isinstance(found, bytes) and isinstance(given, bytes):
        return found > given if result == Compare.GREATER else found < given if result == Compare.LESS else True
    assert isinstance(found, int) and isinstance(given, int)
    return found > given if result == Compare.GREATER else found < given if result == Compare.LESS else True
