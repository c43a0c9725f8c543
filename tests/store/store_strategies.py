"""Hypothesis strategies for requests over a few keys, so that they meet."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from raftkv_node.pb import rpc_pb2
from raftkv_node.store.validate import check_delete, check_put, check_range, check_txn

Range, Compare, RequestOp = rpc_pb2.RangeRequest, rpc_pb2.Compare, rpc_pb2.RequestOp

keys = st.sampled_from([b"a", b"aa", b"ab", b"b", b"c", b"\0", b"\xff", b"k" * 128])
ends = st.one_of(st.just(b""), st.sampled_from([b"\0", b"ab", b"b", b"z", b"a"]))
values = st.sampled_from([b"", b"1", b"2", b"v" * 200])
revisions = st.one_of(st.just(0), st.integers(-1, 14))
flags = st.booleans()
rare = st.sampled_from([False, False, False, True])

puts = st.builds(
    rpc_pb2.PutRequest, key=keys, value=values, prev_kv=flags, lease=st.sampled_from([0, 0, 0, 0, 0, 0, 7])
)
keeping_puts = st.builds(rpc_pb2.PutRequest, key=keys, prev_kv=flags, ignore_value=flags, ignore_lease=rare)
all_puts = st.one_of(puts, puts, puts, keeping_puts).filter(lambda request: check_put(request) is None)
deletes = st.builds(rpc_pb2.DeleteRangeRequest, key=keys, range_end=ends, prev_kv=flags).filter(
    lambda request: check_delete(request) is None
)
bounds = st.sampled_from([0, 0, 0, 0, 2, 4, 6, 9])
range_fields: dict[str, st.SearchStrategy[Any]] = {
    "key": keys,
    "range_end": ends,
    "limit": st.sampled_from([0, 0, 1, 2, 3, -1]),
    "revision": revisions,
    "keys_only": rare,
    "count_only": rare,
}
"""Of any range, whether it comes at once or in pieces."""
ranges = st.builds(
    Range,
    **range_fields,
    sort_order=st.sampled_from(Range.SortOrder.values()),
    sort_target=st.sampled_from(Range.SortTarget.values()),
    min_mod_revision=bounds,
    max_mod_revision=bounds,
    min_create_revision=bounds,
    max_create_revision=bounds,
).filter(lambda request: check_range(request) is None)
numbers = st.integers(0, 5)
compares = st.one_of(
    *(
        st.builds(
            Compare,
            key=keys,
            range_end=ends,
            result=st.sampled_from(Compare.CompareResult.values()),
            target=st.just(target),
            **{name: values if name == "value" else numbers},
        )
        for name, target in (
            ("version", Compare.VERSION),
            ("create_revision", Compare.CREATE),
            ("mod_revision", Compare.MOD),
            ("value", Compare.VALUE),
            ("lease", Compare.LEASE),
        )
    )
)


def _txns(ops: st.SearchStrategy[RequestOp]) -> st.SearchStrategy[rpc_pb2.TxnRequest]:
    return st.builds(
        rpc_pb2.TxnRequest,
        compare=st.lists(compares, max_size=2),
        success=st.lists(ops, max_size=4),
        failure=st.lists(ops, max_size=2),
    )


_flat_ops = st.one_of(
    st.builds(RequestOp, request_put=all_puts),
    st.builds(RequestOp, request_put=all_puts),
    st.builds(RequestOp, request_delete_range=deletes),
    st.builds(RequestOp, request_range=ranges),
)
any_txns = _txns(st.recursive(_flat_ops, lambda ops: st.builds(RequestOp, request_txn=_txns(ops)), max_leaves=6))
txns = any_txns.filter(lambda request: check_txn(request) is None)
range_txns = _txns(st.builds(RequestOp, request_range=ranges))
compactions = st.builds(rpc_pb2.CompactionRequest, revision=st.integers(0, 12), physical=flags)

writes = st.one_of(all_puts, all_puts, all_puts, deletes, txns, txns, compactions)
