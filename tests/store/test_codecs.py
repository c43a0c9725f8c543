"""What is written by hand, held against the protobuf library; the command batch; the order of keys; static checks."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raftkv_node.pb import rpc_pb2
from raftkv_node.pb.kv_pb2 import KeyValue
from raftkv_node.store import CommandError, UnknownCommand, commands, keyorder, validate
from raftkv_node.store import encoding as enc
from raftkv_node.store import errors as e
from raftkv_node.store.keyorder import KeyOrder
from raftkv_node.store.ranges import without_value
from store_strategies import any_txns, deletes, puts, ranges

int64s = st.integers(-(2**63), 2**63 - 1)
uint64s = st.integers(0, 2**64 - 1)
positive = st.one_of(st.integers(1, 20000), st.integers(1, 2**63 - 1))


@given(st.one_of(int64s, uint64s))
def test_varint(number: int) -> None:
    encoded = enc.varint(number)
    assert enc.read_varint(encoded, 0) == (number & (2**64 - 1), len(encoded))
    if number < 2**63:
        message = rpc_pb2.CompactionRequest(revision=number)
        assert message.SerializeToString() == (b"\x08" + encoded if number else b"")


@given(
    st.binary(min_size=1, max_size=200), positive, positive, positive, st.binary(max_size=300), st.integers(0, 2**62)
)
def test_record(key: bytes, create: int, mod: int, version: int, value: bytes, lease: int) -> None:
    kv = KeyValue(key=key, create_revision=create, mod_revision=mod, version=version, value=value, lease=lease)
    data = enc.record(key, create, mod, version, value=value, lease=lease)
    assert data == kv.SerializeToString()
    assert enc.record_key(data) == key and enc.record_numbers(data) == (key, create, mod, version)
    kv.value = b""
    assert without_value(data) == kv.SerializeToString()
    assert enc.tombstone_record(key, mod) == KeyValue(key=key, mod_revision=mod).SerializeToString()


@given(st.integers(0, 2**63), st.integers(0, enc.MAX_SUB_REVISION), st.booleans(), st.integers(0, 2**63), st.booleans())
def test_record_ids_order_as_revisions(main: int, sub: int, tombstone: bool, other: int, flag: bool) -> None:
    one, two = enc.record_id(main, sub, tombstone), enc.record_id(other, sub, flag)
    assert (enc.main_of(one), enc.is_tombstone(one)) == (main, tombstone)
    if main != other:
        assert (one < two) == (main < other)


@given(uint64s, uint64s, uint64s, st.integers(1, 2**63 - 1))
def test_header(cluster: int, member: int, term: int, revision: int) -> None:
    header = rpc_pb2.ResponseHeader(cluster_id=cluster, member_id=member, revision=revision, raft_term=term)
    assert (
        enc.HeaderEncoder(cluster, member, term).field(revision)
        == rpc_pb2.PutResponse(header=header).SerializeToString()
    )


@given(st.binary(max_size=140), st.binary(max_size=140), st.integers(-2, 2))
def test_simple_put_recognises_only_what_it_may(key: bytes, value: bytes, cut: int) -> None:
    payload = rpc_pb2.PutRequest(key=key, value=value).SerializeToString()
    simple = 0 < len(key) < 128 and len(value) > 0
    assert enc.simple_put(payload) == (len(key) + 2 if simple else 0)
    for other in (
        rpc_pb2.PutRequest(key=key, value=value, lease=1),
        rpc_pb2.PutRequest(key=key, value=value, prev_kv=True),
        rpc_pb2.PutRequest(key=key, ignore_value=True),
    ):
        assert enc.simple_put(other.SerializeToString()) == 0
    if cut:
        assert enc.simple_put(payload[:-1] if cut < 0 else payload + b"x") == 0


@settings(max_examples=500)
@given(st.one_of(st.binary(max_size=40), st.binary(max_size=12).map(lambda data: b"\x0a\x02ab\x12" + data)))
def test_simple_put_never_errs(payload: bytes) -> None:
    end = enc.simple_put(payload)
    if end:
        message = rpc_pb2.PutRequest.FromString(payload)
        assert message == rpc_pb2.PutRequest(key=payload[2:end], value=message.value)
        assert message.SerializeToString() == payload, "only canonical bytes"


@pytest.mark.parametrize("size", [1, 127, 128, 16383, 16384, 2_097_151])
def test_simple_put_sizes(size: int) -> None:
    assert enc.simple_put(rpc_pb2.PutRequest(key=b"k", value=b"v" * size).SerializeToString()) == 3


commands_of_a_batch = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=20)), max_size=20)


@given(uint64s, uint64s, commands_of_a_batch)
def test_batches_come_back_as_they_went(origin: int, first: int, items: list[tuple[int, bytes]]) -> None:
    kinds = bytes(kind for kind, _ in items)
    payloads = [payload for _, payload in items]
    batch = commands.decode_batch(commands.encode_batch(origin, first, kinds, payloads))
    assert (batch.origin, batch.first_seq, batch.kinds, batch.payloads) == (origin, first, kinds, payloads)


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(lambda data: b"\x01" + data)))
def test_arbitrary_bytes_are_a_batch_or_an_error(data: bytes) -> None:
    try:
        batch = commands.decode_batch(data)
    except CommandError:
        return
    assert commands.encode_batch(batch.origin, batch.first_seq, batch.kinds, batch.payloads) == data


@given(commands_of_a_batch, st.data())
def test_a_cut_or_lengthened_batch_is_an_error(items: list[tuple[int, bytes]], data: st.DataObject) -> None:
    whole = commands.encode_batch(1, 1, bytes(kind for kind, _ in items), [payload for _, payload in items])
    cut = data.draw(st.integers(0, len(whole) - 1))
    for bad in (whole[:cut], whole + b"\0"):
        with pytest.raises(CommandError):
            commands.decode_batch(bad)


def test_batches_that_cannot_be() -> None:
    with pytest.raises(CommandError):
        commands.encode_batch(1, 1, b"\x01", [])
    with pytest.raises(CommandError):
        commands.encode_batch(1, 1, [256], [b""])
    newer = bytearray(commands.encode_batch(1, 1, b"", []))
    newer[0] = 2
    with pytest.raises(UnknownCommand, match="version 2"):
        commands.decode_batch(bytes(newer))
    huge = b"\x01" + bytes(16) + b"\xff\xff\xff\xff"
    with pytest.raises(CommandError):
        commands.decode_batch(huge)


key_steps = st.lists(
    st.tuples(st.sampled_from(["add", "add", "add", "remove", "merge"]), st.integers(0, 300)), max_size=120
)


@settings(deadline=None)
@given(key_steps, st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 5)), max_size=10))
def test_key_order(steps: list[tuple[str, int]], reads: list[tuple[int, int, int]]) -> None:
    _check_order(steps, reads, keyorder.MERGE_THRESHOLD_KEYS)


def test_key_order_with_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyorder, "CHUNK_KEYS", 4)

    @settings(deadline=None, max_examples=200)
    @given(key_steps, st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 5)), max_size=10))
    def check(steps: list[tuple[str, int]], reads: list[tuple[int, int, int]]) -> None:
        _check_order(steps, reads, merged_at=7)

    check()


def _check_order(steps: list[tuple[str, int]], reads: list[tuple[int, int, int]], merged_at: int) -> None:
    order = KeyOrder()
    model: set[bytes] = set()
    for action, number in steps:
        key = b"%03d" % number
        if action == "add" and key not in model:
            order.add(key)
            model.add(key)
            if len(order.fresh) >= merged_at:
                order.merge()
        elif action == "remove":
            if key in model:
                order.remove(key)
                model.discard(key)
            else:
                with pytest.raises(KeyError):
                    order.remove(key)
        elif action == "merge":
            order.merge()
        assert len(order) == len(model)
    for low, high, limit in reads:
        start, end = b"%03d" % low, None if high == 300 else b"%03d" % high
        expected = sorted(key for key in model if key >= start and (end is None or key < end))
        assert order.count(start, end) == len(expected)
        assert order.slice(start, end, limit) == (expected[:limit] if limit else expected)


# Static checks.

Op = rpc_pb2.RequestOp


def put_op(key: bytes) -> Op:
    return Op(request_put=rpc_pb2.PutRequest(key=key))


def delete_op(key: bytes, end: bytes = b"") -> Op:
    return Op(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key, range_end=end))


def txn_op(success: list[Op], failure: list[Op] = []) -> Op:  # noqa: B006
    return Op(request_txn=rpc_pb2.TxnRequest(success=success, failure=failure))


def test_static_checks_of_single_requests() -> None:
    assert validate.check_range(rpc_pb2.RangeRequest()) == e.EMPTY_KEY
    assert validate.check_range(rpc_pb2.RangeRequest(key=b"a", sort_order=7)) == e.INVALID_SORT_OPTION  # type: ignore[arg-type]
    assert validate.check_range(rpc_pb2.RangeRequest(key=b"a", sort_target=5)) == e.INVALID_SORT_OPTION  # type: ignore[arg-type]
    assert validate.check_put(rpc_pb2.PutRequest(value=b"v")) == e.EMPTY_KEY
    assert validate.check_put(rpc_pb2.PutRequest(key=b"a", value=b"v", ignore_value=True)) == e.VALUE_PROVIDED
    assert validate.check_put(rpc_pb2.PutRequest(key=b"a", lease=1, ignore_lease=True)) == e.LEASE_PROVIDED
    assert validate.check_delete(rpc_pb2.DeleteRangeRequest(range_end=b"b")) == e.EMPTY_KEY


@pytest.mark.parametrize(
    ("ops", "error"),
    [
        ([put_op(b"a"), put_op(b"b")], None),
        ([put_op(b"a"), put_op(b"a")], e.DUPLICATE_KEY),
        ([put_op(b"a"), delete_op(b"a")], e.DUPLICATE_KEY),
        ([delete_op(b"a", b"c"), put_op(b"b")], e.DUPLICATE_KEY),
        ([delete_op(b"a", b"c"), put_op(b"c")], None),
        ([delete_op(b"a", b"\0"), put_op(b"z")], e.DUPLICATE_KEY),
        ([delete_op(b"a", b"c"), delete_op(b"b")], None),
        ([put_op(b"a"), txn_op([put_op(b"a")])], e.DUPLICATE_KEY),
        ([put_op(b"a"), txn_op([], [put_op(b"a")])], e.DUPLICATE_KEY),
        ([txn_op([put_op(b"a")], [put_op(b"a")])], None),
        ([txn_op([put_op(b"a")]), txn_op([put_op(b"a")])], e.DUPLICATE_KEY),
        ([delete_op(b"a"), txn_op([put_op(b"a")])], e.DUPLICATE_KEY),
        ([txn_op([delete_op(b"a", b"b")]), put_op(b"a")], e.DUPLICATE_KEY),
        ([txn_op([delete_op(b"a")]), txn_op([put_op(b"a")])], e.DUPLICATE_KEY),
        ([Op()], e.KEY_NOT_FOUND),
        ([txn_op([Op()])], e.KEY_NOT_FOUND),
        ([put_op(b"")], e.EMPTY_KEY),
        ([delete_op(b"")], e.EMPTY_KEY),
    ],
)
def test_static_checks_of_branches(ops: list[Op], error: e.EtcdError | None) -> None:
    assert validate.check_txn(rpc_pb2.TxnRequest(success=ops)) == error
    assert validate.check_txn(rpc_pb2.TxnRequest(failure=ops)) == error


def test_numbers_of_operations() -> None:
    many = [put_op(b"%d" % n) for n in range(129)]
    assert validate.check_txn(rpc_pb2.TxnRequest(success=many[:128])) is None
    assert validate.check_txn(rpc_pb2.TxnRequest(success=many)) == e.TOO_MANY_OPERATIONS
    compares = [rpc_pb2.Compare(key=b"a")] * 129
    assert validate.check_txn(rpc_pb2.TxnRequest(compare=compares)) == e.TOO_MANY_OPERATIONS
    assert validate.check_txn(rpc_pb2.TxnRequest(compare=[rpc_pb2.Compare()])) == e.EMPTY_KEY
    outer = [txn_op(many[:28]), *many[28:127]]
    assert validate.check_txn(rpc_pb2.TxnRequest(success=outer)) == None  # noqa: E711
    assert validate.check_txn(rpc_pb2.TxnRequest(success=[txn_op(many[:100]), *many[100:]])) == e.TOO_MANY_OPERATIONS


@settings(deadline=None)
@given(any_txns)
def test_branches_that_pass_write_each_key_once_on_a_level(request_: Any) -> None:
    """The check of one level, done naively."""
    if validate.check_txn(request_) is not None:
        return
    for branch in (request_.success, request_.failure):
        written = [op.request_put.key for op in branch if op.HasField("request_put")]
        assert len(written) == len(set(written))
        for op in branch:
            if op.HasField("request_delete_range"):
                key, end = op.request_delete_range.key, op.request_delete_range.range_end
                for put in written:
                    assert not (put == key if not end else put >= key and (end == b"\0" or put < end))


@given(st.one_of(puts, deletes, ranges))
def test_what_strategies_make_passes(request_: Any) -> None:
    checks = {
        rpc_pb2.PutRequest: validate.check_put,
        rpc_pb2.DeleteRangeRequest: validate.check_delete,
        rpc_pb2.RangeRequest: validate.check_range,
    }
    assert checks[type(request_)](request_) is None


def test_read_only_transactions() -> None:
    def read(serializable: bool) -> Op:
        return Op(request_range=rpc_pb2.RangeRequest(key=b"a", serializable=serializable))

    txn = rpc_pb2.TxnRequest
    assert validate.is_read_only(txn(success=[read(False)])) and not validate.is_read_only(txn(failure=[put_op(b"a")]))
    assert not validate.is_read_only(txn(success=[txn_op([read(True)])]))
    assert validate.is_serializable(txn(success=[read(True)], failure=[read(True)]))
    assert not validate.is_serializable(txn(success=[read(True)], failure=[read(False)]))
    assert not validate.is_serializable(txn())


@pytest.mark.parametrize("shape", ["random", "ascending", "descending", "one prefix", "few"])
def test_many_keys_are_put_in_order_in_small_parts(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sort of millions of keys lets no other thread run for as long as it takes: a member that prepared a snapshot
    stood still."""
    monkeypatch.setattr(keyorder, "SORTED_AT_ONCE_KEYS", 2000)
    chosen = random.Random(1)
    keys = [b"%08d" % number for number in chosen.sample(range(10**8), 400 if shape == "few" else 20_000)]
    if shape == "one prefix":
        keys = [b"/registry/pods/" + key for key in keys] + [b"a", b"z"]
    if shape in ("ascending", "descending"):
        keys.sort(reverse=shape == "descending")
    parts = keyorder.parts_in_order(keys)
    assert [key for part in parts for key in sorted(part)] == sorted(keys)
    assert max(map(len, parts)) <= 2000
    order = KeyOrder()
    order.build(keys)
    assert order.slice(b"", None, 0) == sorted(keys)
    assert order.count(b"", None) == len(keys)
