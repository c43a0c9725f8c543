"""Templates of the bench: the gaps are where they are said to be, and answers are read at the protocol's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raftkv_node.bench import loads
from raftkv_node.bench.templates import Filling, Message, Shape, Template, template
from raftkv_node.pb import rpc_pb2

_SHAPE = Shape(b"/p/", 12, 40)


def _varint(number: int) -> bytes:
    return bytes([number >> (7 * n) & 0x7F | 0x80 for n in range(9)]) + bytes([number >> 63])


def _filled(made: Template, fillings: dict[str, bytes]) -> bytes:
    body = bytearray(made.body)
    for kind, at, argument in made.patches:
        bytes_ = fillings[f"key{argument}" if kind == "key" else kind]
        body[at : at + len(bytes_)] = bytes_
    return bytes(body)


def test_a_filled_template_of_a_compare_and_swap_is_that_message() -> None:
    made = template(_SHAPE, loads.cas_operation(stamped=True).make)
    stamp = b"MARKMARK\0\0\0\0\0\0\0\x07"
    body = _filled(made, {"key0": b"00000abcd", "stamp": stamp, "key_number": _varint(1234567)})
    message = rpc_pb2.TxnRequest.FromString(body)
    assert message.compare[0].key == b"/p/00000abcd"
    assert message.compare[0].mod_revision == 1234567
    put = message.success[0].request_put
    assert (put.key, put.value[:16], len(put.value)) == (b"/p/00000abcd", stamp, 40)
    assert message.failure[0].request_range.key == b"/p/00000abcd"


@settings(max_examples=50, deadline=None)
@given(number=st.integers(0, (1 << 63) - 1), key=st.binary(min_size=12, max_size=12))
def test_a_list_goes_on_after_the_last_key_at_the_same_revision(number: int, key: bytes) -> None:
    plan = loads.kubernetes((1, 1, 1), 500, loads.Watchers())
    made = template(_SHAPE, plan.operations[1].make)
    body = _filled(made, {"client_bytes": key, "client_number": _varint(number)})
    message = rpc_pb2.RangeRequest.FromString(body)
    assert (message.key, message.range_end, message.limit) == (key + b"\0", b"/p0", 500)
    assert message.revision == number


def test_each_put_of_a_transaction_has_its_own_key() -> None:
    made = template(_SHAPE, loads.txn(3).operations[0].make)
    fillings = {f"key{n}": b"%09d" % n for n in range(3)} | {"random": b"8 bytes!"}
    message = rpc_pb2.TxnRequest.FromString(_filled(made, fillings))
    assert [one.request_put.key for one in message.success] == [b"/p/%09d" % n for n in range(3)]
    assert {one.request_put.value[:8] for one in message.success} == {b"8 bytes!"}


@pytest.mark.parametrize("key_bytes", [4, 5, 11, 18, 19, 20, 100])
@pytest.mark.parametrize("value_bytes", [0, 1, 7, 8, 9, 300])
def test_keys_and_values_have_the_size_asked_for(key_bytes: int, value_bytes: int) -> None:
    shape = Shape(b"/p/", key_bytes, value_bytes)
    made = template(shape, loads.put_operation().make)
    message = rpc_pb2.PutRequest.FromString(made.body)
    assert (len(message.key), len(message.value)) == (key_bytes, value_bytes)
    assert message.key.startswith(b"/p/")


def test_a_filling_that_changes_the_length_is_refused() -> None:
    def make(fill: Filling) -> Message:
        return rpc_pb2.PutRequest(key=fill.key(), lease=0 if b"\1" in fill.key() else 1)

    with pytest.raises(AssertionError, match="length"):
        template(_SHAPE, make)


@pytest.mark.parametrize(
    ("answer", "path", "names"),
    [
        (rpc_pb2.PutResponse, loads.HEADER_REVISION, "header.revision"),
        (rpc_pb2.TxnResponse, loads.HEADER_REVISION, "header.revision"),
        (rpc_pb2.RangeResponse, loads.HEADER_REVISION, "header.revision"),
        (rpc_pb2.RangeResponse, loads.RANGE_COUNT, "count"),
        (rpc_pb2.RangeResponse, loads.RANGE_MORE, "more"),
        (rpc_pb2.RangeResponse, loads.RANGE_KEY, "kvs.key"),
        (rpc_pb2.TxnResponse, loads.TXN_SUCCEEDED, "succeeded"),
        (rpc_pb2.TxnResponse, loads.TXN_RANGE_MOD_REVISION, "responses.response_range.kvs.mod_revision"),
        (rpc_pb2.LeaseGrantResponse, loads.LEASE_ID, "ID"),
        (rpc_pb2.LeaseKeepAliveResponse, loads.LEASE_TTL, "TTL"),
        (rpc_pb2.WatchResponse, loads.WATCH_CREATED, "created"),
        (rpc_pb2.WatchResponse, loads.WATCH_CANCELED, "canceled"),
        (rpc_pb2.WatchResponse, loads.WATCH_VALUE, "events.kv.value"),
    ],
)
def test_answers_are_read_at_the_numbers_of_the_protocol(answer: Any, path: Sequence[int], names: str) -> None:
    descriptor, found = answer.DESCRIPTOR, []
    for number in path:
        field = descriptor.fields_by_number[number]
        found.append(field.name)
        descriptor = field.message_type
    assert ".".join(found) == names


def test_methods_are_those_of_the_protocol() -> None:
    package = rpc_pb2.DESCRIPTOR.package
    known = {
        f"/{package}.{service.name}/{method.name}"
        for service in rpc_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert {loads.PUT, loads.RANGE, loads.TXN, loads.WATCH, loads.GRANT, loads.KEEP_ALIVE, loads.REVOKE} <= known
