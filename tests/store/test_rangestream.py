"""RangeStream: merged, its pieces are the range, whatever happens between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raftkv_node.pb import rpc_pb2
from raftkv_node.store import EtcdError, rangestream
from raftkv_node.store.errors import COMPACTED, EMPTY_KEY, FUTURE_REVISION, INVALID_SORT_OPTION
from raftkv_node.store.index import Index
from raftkv_node.store.rangestream import RangeCursor
from raftkv_node.store.validate import check_range_stream
from store_driver import Driver, fast_folder
from store_strategies import ranges, writes
from test_mvcc_model import Pair, moments, plain

Range = rpc_pb2.RangeRequest


class Reader:
    """One stream over a store, read when it is told to."""

    def __init__(self, driver: Driver, request: Range, piece_bytes: int) -> None:
        self.cursor: RangeCursor = driver.store.open_range(request, piece_bytes)
        self.pieces: list[bytes] = []

    def read(self, driver: Driver) -> bool:
        """Another piece; whether there are more."""
        self.pieces.append(driver.store.start_piece(self.cursor).run())
        return not self.cursor.finished

    @property
    def merged(self) -> rpc_pb2.RangeResponse:
        """What a client puts together."""
        whole = rpc_pb2.RangeStreamResponse()
        for piece in self.pieces:
            whole.MergeFromString(piece)
        for piece in self.pieces[:-1]:
            part = rpc_pb2.RangeStreamResponse.FromString(piece).range_response
            assert not (part.HasField("header") or part.more or part.count), "they come with the last piece"
            assert part.kvs, "no piece but the last is empty"
        return whole.range_response


streamed = ranges.filter(lambda request: check_range_stream(request) is None)
piece_sizes = st.sampled_from([1, 60, 250, 10_000])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    steps=st.lists(st.tuples(st.lists(writes, min_size=1, max_size=3), moments), max_size=14),
    opened=st.lists(st.tuples(streamed, piece_sizes, st.integers(0, 13)), max_size=6),
    first_keys=st.sampled_from([1, 2, 10]),
    data=st.data(),
)
def test_merged_pieces_are_the_range_at_its_start(
    steps: list[tuple[list[Any], str]], opened: list[tuple[Range, int, int]], first_keys: int, data: st.DataObject
) -> None:
    with fast_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rangestream, "FIRST_KEYS", first_keys)
        pair = Pair(Path(folder))
        reading: list[tuple[Reader, Any, int]] = []
        for number in range(len(steps) + 1):
            for request, piece_bytes, _ in [one for one in opened if one[2] == number]:
                expected = pair.model.apply(request)
                if isinstance(expected, Exception):
                    with pytest.raises(EtcdError) as refused:
                        pair.driver.store.open_range(request, piece_bytes)
                    assert refused.value == expected
                else:
                    reading.append((Reader(pair.driver, request, piece_bytes), expected, request.revision))
            if number < len(steps):
                requests, moment = steps[number]
                pair.write(*requests)
                pair.disturb(moment)
            for one in [one for one in reading if data.draw(st.booleans())]:
                if not _goes_on(pair, *one):
                    reading.remove(one)
        for one in reading:
            while _goes_on(pair, *one):
                pass
        pair.driver.sweep()
        assert not pair.driver.store.compacting, "nothing is pinned between pieces"
        pair.driver.close()


def _goes_on(pair: Pair, reader: Reader, expected: Any, _asked: int) -> bool:
    """Reads a piece, and checks the answer when it was the last; whether there are more."""
    if reader.cursor.revision < pair.model.compacted:
        with pytest.raises(EtcdError) as refused:
            reader.read(pair.driver)
        assert refused.value == COMPACTED
        return False
    if reader.read(pair.driver):
        return True
    assert plain(reader.merged) == expected
    return False


def test_what_is_refused() -> None:
    def refusal(**more: Any) -> EtcdError | None:
        return check_range_stream(Range(**{"key": b"k", **more}))

    assert refusal() is None
    assert refusal(sort_order=Range.ASCEND) is None
    assert refusal(sort_target=Range.MOD) is None, "without an order the target means nothing"
    assert refusal(key=b"") == EMPTY_KEY
    assert refusal(sort_order=7) == INVALID_SORT_OPTION
    sorts = EtcdError(12, "RangeStream does not support custom sort orders")
    assert refusal(sort_order=Range.DESCEND) == sorts
    assert refusal(sort_order=Range.ASCEND, sort_target=Range.MOD) == sorts
    filters = EtcdError(12, "RangeStream does not support revision filters")
    for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
        assert refusal(**{name: 1}) == filters


def test_revisions_that_are_not_there(driver: Driver) -> None:
    driver.put(b"a")
    with pytest.raises(EtcdError) as refused:
        driver.store.open_range(Range(key=b"a", revision=9), 1000)
    assert refused.value == FUTURE_REVISION


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_a_piece_is_never_larger_than_asked_and_one_record(
    make_driver: Callable[..., Driver], cache_bytes: int
) -> None:
    """Small records and then large ones: what came before says nothing of what comes."""
    driver = make_driver(value_cache_bytes=cache_bytes)
    sizes = [10] * 300 + [50_000] * 20 + [10] * 100
    for n, size in enumerate(sizes):
        driver.put(b"k%04d" % n, bytes(size))
    driver.commit()
    read_bytes: list[int] = []
    real = driver.store.backend.read_some

    def read_some(rids: list[bytes], room_bytes: int) -> list[bytes]:
        found = real(rids, room_bytes)
        read_bytes.append(sum(map(len, found)))
        return found

    driver.store.backend.read_some = read_some  # type: ignore[method-assign]
    reader = Reader(driver, Range(key=b"k", range_end=b"l"), 100_000)
    while reader.read(driver):
        pass
    assert [len(kv.value) for kv in reader.merged.kvs] == sizes
    assert max(map(len, reader.pieces)) < 100_000 + 51_000
    assert max(read_bytes, default=0) < 100_000 + 51_000, "nor is more read for one"
    assert len(rpc_pb2.RangeStreamResponse.FromString(reader.pieces[0]).range_response.kvs) == 10
    assert len(reader.pieces) < 20


def test_a_stream_reads_no_key_twice(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of a long stream grows with its keys, not with their square."""
    for n in range(3000):
        driver.put(b"k%04d" % n, b"v" * 20)
    driver.delete(b"k0500", b"k2500")
    looked_at = 0
    real = Index.candidates

    def candidates(index: Index, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
        nonlocal looked_at
        keys = real(index, start, end, limit)
        looked_at += len(keys)
        return keys

    monkeypatch.setattr(Index, "candidates", candidates)
    reader = Reader(driver, Range(key=b"k", range_end=b"l"), 2000)
    while reader.read(driver):
        pass
    assert reader.merged.count == 1000
    assert looked_at < 2 * 3000
