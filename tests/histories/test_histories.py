"""The checker of histories: legal ones pass, each lie is found, and small ones agree with a search over all orders."""

from __future__ import annotations

import random

import pytest
from history_anomalies import PLANTS, Plant
from history_brute import explains
from history_checker import COMPACTED, Contradiction, check
from history_generator import Generator
from history_records import History, Operation, Outcome, Watch
from hypothesis import given, settings
from hypothesis import strategies as st
from raftkv_node.pb import rpc_pb2

SEEDS = st.integers(0, 1 << 40)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_legal_histories_are_accepted(seed: int) -> None:
    checked = check(Generator(seed).make())
    assert checked.operations == 60


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_legal_histories_without_watches_and_with_many_unknown_writes_are_accepted(seed: int) -> None:
    check(Generator(seed, unknown=0.4, watches=0).make())


@pytest.mark.parametrize("plant", PLANTS, ids=lambda one: one.__name__)
def test_each_lie_is_found(plant: Plant) -> None:
    planted = 0
    for seed in range(40):
        history = Generator(seed, failed=0.15, compactions=0).make()
        if plant(history, random.Random(seed)):
            with pytest.raises(Contradiction) as found:
                check(history)
            assert ": " in str(found.value), "the explanation names the rule, then what contradicts"
            planted += 1
        if planted == 8:
            return
    assert planted, "no history had a place for it: this test would check nothing"


def _small(seed: int, **shape: object) -> History:
    options = {"operations": 6, "clients": 3, "keys": 2, "watches": 0, "unknown": 0.25, "compactions": 0}
    return Generator(seed, **{**options, **shape}).make()


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_small_legal_histories_are_explained_by_some_order(seed: int) -> None:
    history = _small(seed)
    check(history)
    assert explains(history)


def _disturb(history: History, rng: random.Random) -> None:
    """Changes times, revisions or fates at random: legal or not, nobody knows before."""
    for _ in range(rng.randrange(1, 3)):
        operation = rng.choice(history.operations)
        kind = rng.randrange(4)
        if kind == 0 and operation.response is not None:
            operation.response.header.revision = max(1, operation.response.header.revision + rng.choice([-1, 1]))
        elif kind == 1 and operation.outcome is Outcome.OK:
            length = operation.returned - operation.invoked
            operation.invoked = rng.choice(history.operations).invoked + 0.0005
            operation.returned = operation.invoked + length
        elif kind == 2 and operation.outcome is Outcome.UNKNOWN:
            operation.outcome, operation.returned = Outcome.FAILED, operation.invoked + 0.001
        elif kind == 3 and isinstance(operation.response, rpc_pb2.RangeResponse) and operation.response.kvs:
            operation.response.kvs[0].mod_revision += 1


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_the_checker_agrees_with_a_search_over_all_orders(seed: int) -> None:
    history = _small(seed, past_reads=0)
    _disturb(history, random.Random(seed))
    try:
        check(history)
        accepted = True
    except Contradiction:
        accepted = False
    assert accepted == explains(history), "\n".join(one.describe() for one in history.operations)


# -- stories -----------------------------------------------------------------------------------------------------------


def _put(key: bytes, value: bytes, invoked: float, returned: float, revision: int) -> Operation:
    response = rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=revision))
    return Operation("c", rpc_pb2.PutRequest(key=key, value=value), invoked, returned, Outcome.OK, response)


def _get(key: bytes, invoked: float, returned: float, revision: int, serializable: bool = False) -> Operation:
    response = rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=revision))
    request = rpc_pb2.RangeRequest(key=key, serializable=serializable)
    return Operation("r", request, invoked, returned, Outcome.OK, response)


def test_an_explanation_names_both_sides_of_a_stale_read() -> None:
    history = History([_put(b"a", b"1", 1, 2, 2), _get(b"a", 3, 4, 1)])
    with pytest.raises(Contradiction, match="NO_STALE_READ: revision 2 had been seen before") as found:
        check(history)
    assert found.value.operations == tuple(history.operations)


def test_a_serializable_read_may_be_stale_but_no_session_goes_back() -> None:
    read = _get(b"b", 3, 4, 1, serializable=True)
    again = _get(b"b", 5, 6, 2, serializable=True)
    back = _get(b"b", 7, 8, 1, serializable=True)
    check(History([_put(b"a", b"1", 1, 2, 2), read, again, back]))
    read.session = again.session = back.session = "c1 n1 life 1"
    with pytest.raises(Contradiction, match="A_SESSION_NEVER_GOES_BACK"):
        check(History([_put(b"a", b"1", 1, 2, 2), read, again, back]))


def test_what_a_serializable_read_has_seen_a_linearizable_one_must_see() -> None:
    unknown = Operation("c", rpc_pb2.PutRequest(key=b"a", value=b"1"), 1)
    seen = _get(b"b", 2, 3, 2, serializable=True)
    check(History([unknown, seen]))
    with pytest.raises(Contradiction, match="NO_STALE_READ"):
        check(History([unknown, seen, _get(b"b", 4, 5, 1)]))


def test_an_unknown_write_may_take_effect_late_and_only_once() -> None:
    unknown = Operation("c", rpc_pb2.PutRequest(key=b"a", value=b"1"), 1)
    late = _get(b"a", 5, 6, 3)
    kv = {"key": b"a", "value": b"1", "create_revision": 3, "mod_revision": 3, "version": 1}
    late.response = rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=3), count=1, kvs=[kv])
    check(History([unknown, _put(b"b", b"2", 2, 3, 2), late]))
    with pytest.raises(Contradiction, match="EVERY_REVISION_WAS_WRITTEN"):
        check(History([unknown, _put(b"b", b"2", 2, 3, 2), late, _get(b"c", 7, 8, 4)]))


def test_the_search_goes_back_when_a_later_answer_contradicts() -> None:
    first = Operation("c", rpc_pb2.PutRequest(key=b"a", value=b"1"), 1)
    second = Operation("d", rpc_pb2.PutRequest(key=b"b", value=b"2"), 1)
    # Revision 2 could be either's; only the version that is read at revision 3 tells which.
    third = _put(b"b", b"3", 2, 3, 3)
    kv = {"key": b"b", "value": b"3", "create_revision": 2, "mod_revision": 3, "version": 2}
    read = _get(b"b", 4, 5, 3)
    read.response = rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=3), count=1, kvs=[kv])
    assert check(History([first, second, third, read])).unknown_took_effect == 1


def test_of_unknown_writes_the_one_is_taken_that_did_no_more_than_watches_were_told() -> None:
    """A transaction that may have deleted the key, too, but has put another one besides, did not make the revision."""
    transaction = rpc_pb2.TxnRequest()
    transaction.success.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=b"a", value=b"2"))
    transaction.success.add().request_delete_range.CopyFrom(rpc_pb2.DeleteRangeRequest(key=b"b"))
    put = _put(b"b", b"1", 0.0, 1.0, 2)
    unknown = [
        Operation("c2", transaction, 2.0),
        Operation("c3", rpc_pb2.DeleteRangeRequest(key=b"b"), 3.0),
    ]
    watch = Watch("w", rpc_pb2.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=3))
    created, told = rpc_pb2.WatchResponse(created=True), rpc_pb2.WatchResponse()
    created.header.revision, told.header.revision = 2, 3
    event = told.events.add(type=1)
    event.kv.key, event.kv.mod_revision = b"b", 3
    watch.responses += [(1.5, created), (4.0, told)]
    assert check(History([put, *unknown], [watch])).unknown_took_effect == 1


def test_compaction_errors_are_neither_too_early_nor_too_late() -> None:
    writes = [_put(b"a", b"%d" % n, n, n + 0.5, n + 1) for n in range(1, 5)]
    response = rpc_pb2.CompactionResponse(header=rpc_pb2.ResponseHeader(revision=5))
    compaction = Operation("c", rpc_pb2.CompactionRequest(revision=4), 10, 11, Outcome.OK, response)

    def refused(invoked: float, returned: float, revision: int) -> Operation:
        request = rpc_pb2.RangeRequest(key=b"a", revision=revision)
        return Operation("r", request, invoked, returned, Outcome.FAILED, error=COMPACTED)

    check(History([*writes, compaction, refused(10.5, 12, 3), refused(12, 13, 3)]))
    for wrong in (refused(8, 9, 3), refused(12, 13, 4)):
        with pytest.raises(Contradiction, match="COMPACTION_IS_TRUE"):
            check(History([*writes, compaction, wrong]))
    late = _get(b"z", 12, 13, 5)
    late.request.revision = 3  # type: ignore[attr-defined]
    with pytest.raises(Contradiction, match="a compacted revision was read"):
        check(History([*writes, compaction, late]))


def test_a_watch_that_was_cancelled_as_compacted_had_not_been_told_further() -> None:
    writes = [_put(b"a", b"%d" % n, n, n + 0.5, n + 1) for n in range(1, 5)]
    response = rpc_pb2.CompactionResponse(header=rpc_pb2.ResponseHeader(revision=5))
    compaction = Operation("c", rpc_pb2.CompactionRequest(revision=4), 10, 11, Outcome.OK, response)
    for start, right in ((3, True), (4, False)):
        watch = Watch("w", rpc_pb2.WatchCreateRequest(key=b"a", start_revision=start))
        header = rpc_pb2.ResponseHeader(revision=5)
        watch.responses.append((12, rpc_pb2.WatchResponse(header=header, created=True)))
        watch.responses.append((12, rpc_pb2.WatchResponse(header=header, canceled=True, compact_revision=4)))
        if right:
            check(History([*writes, compaction], [watch]))
        else:
            with pytest.raises(Contradiction, match="WATCH_COMPACTED"):
                check(History([*writes, compaction], [watch]))
