"""RangeStream: merged, its pieces are the range, whatever happens between them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raftkv_node.pb import rpc_pb2
from raftkv_node.store import EtcdError, Store, rangestream
from raftkv_node.store.errors import COMPACTED, EMPTY_KEY, FUTURE_REVISION, INVALID_SORT_OPTION
from raftkv_node.store.keyorder import KeyOrder
from raftkv_node.store.rangestream import RangeCursor
from raftkv_node.store.reads import SLICE_KEYS
from raftkv_node.store.validate import check_range_stream
from store_driver import Driver, fast_folder
from store_strategies import range_fields, writes
from test_mvcc_model import Pair, moments, plain

Range = rpc_pb2.RangeRequest


class Reader:
    """One stream over a store, read when it is told to."""

    def __init__(self, driver: Driver, request: Range, piece_bytes: int) -> None:
        self.cursor: RangeCursor = driver.store.open_range(request)
        self.piece_bytes = piece_bytes
        self.pieces: list[bytes] = []

    def read(self, driver: Driver) -> bool:
        """Another piece; whether there are more."""
        self.pieces.append(driver.store.start_piece(self.cursor, self.piece_bytes).run())
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


streamed = st.builds(Range, **range_fields, sort_order=st.sampled_from([Range.NONE, Range.ASCEND])).filter(
    lambda request: check_range_stream(request) is None
)
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
                        pair.driver.store.open_range(request)
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
        driver.store.open_range(Range(key=b"a", revision=9))
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


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys the index told of, a number for each time it was asked."""
    asked: list[int] = []
    real = KeyOrder.slice

    def counted(order: KeyOrder, start: bytes, end: bytes | None, limit: int = 0) -> list[bytes]:
        found = real(order, start, end, limit)
        asked.append(len(found))
        return found

    monkeypatch.setattr(KeyOrder, "slice", counted)
    return asked


@pytest.mark.interpreted("counts calls")
@pytest.mark.parametrize("written_meanwhile", [False, True])
def test_a_stream_reads_no_key_twice(driver: Driver, looked_at: list[int], written_meanwhile: bool) -> None:
    """The cost of a long stream grows with its keys, not with their square."""
    for n in range(3000):
        driver.put(b"k%04d" % n, b"v" * 20)
    driver.delete(b"k0500", b"k2500")
    reader = Reader(driver, Range(key=b"k", range_end=b"l"), 2000)
    if written_meanwhile:
        driver.put(b"k2999", b"new")
    looked_at.clear()
    while reader.read(driver):
        pass
    assert reader.merged.count == 1000 and len(reader.pieces) > 10
    assert 1000 <= sum(looked_at) < 2 * 3000


@pytest.mark.interpreted("counts calls")
def test_dead_keys_make_no_piece_and_no_long_lock(driver: Driver, looked_at: list[int]) -> None:
    """More of them in a row than one look at the index takes, at the start, amid and at the end."""
    batch = SLICE_KEYS + 300
    for name in (b"a", b"c", b"e"):
        driver.apply(*(rpc_pb2.PutRequest(key=b"%s%05d" % (name, n)) for n in range(batch)))
    for name in (b"b", b"d"):
        driver.apply(*(rpc_pb2.PutRequest(key=b"%s%02d" % (name, n), value=b"v" * 50) for n in range(30)))
    for name in (b"a", b"c", b"e"):
        driver.delete(name, name + b"~")
    reader = Reader(driver, Range(key=b"a", range_end=b"z"), 1000)
    driver.put(b"c00100", b"later")
    looked_at.clear()
    while reader.read(driver):
        pass
    merged = reader.merged
    assert [kv.key[:1] for kv in merged.kvs] == [b"b"] * 30 + [b"d"] * 30
    assert merged.count == 60 and not merged.more
    assert max(looked_at) <= SLICE_KEYS
    first = rpc_pb2.RangeStreamResponse.FromString(reader.pieces[0]).range_response
    assert len(first.kvs) == rangestream.FIRST_KEYS, "however far the index had to be searched for them"


@pytest.mark.parametrize("piece_bytes", [1, 120, 100_000])
@pytest.mark.parametrize("limit", [0, 1, 3, 9, 10, 11, 12, 19, 20, 21, 30])
def test_a_limited_stream_of_the_past_is_the_range(driver: Driver, limit: int, piece_bytes: int) -> None:
    """What lies beyond the limit is counted, whether it is dead now or then, and once."""
    for n in range(30):
        driver.put(b"k%02d" % n, b"v")
    for n in range(0, 30, 3):
        driver.delete(b"k%02d" % n)
    past = driver.store.revision
    driver.delete(b"k04", b"k11")
    for n in range(0, 30, 2):
        driver.put(b"k%02d" % n, b"new")
    driver.put(b"k99")
    for revision in (past, past - 10, past + 1, driver.store.revision, 0):
        request = Range(key=b"k", range_end=b"l", limit=limit, revision=revision)
        expected = driver.range(b"k", b"l", limit=limit, revision=revision)
        reader = Reader(driver, request, piece_bytes)
        while reader.read(driver):
            pass
        assert reader.merged == expected


def test_keys_of_large_cold_records_come_in_pieces_of_many(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(value_cache_bytes=0)
    for n in range(200):
        driver.put(b"k%03d" % n, bytes(5000))
    driver.commit()
    reader = Reader(driver, Range(key=b"k", range_end=b"l", keys_only=True), 10_000)
    while reader.read(driver):
        pass
    assert [kv.key for kv in reader.merged.kvs] == [b"k%03d" % n for n in range(200)]
    sent = [len(rpc_pb2.RangeStreamResponse.FromString(one).range_response.kvs) for one in reader.pieces]
    read_most = rangestream.READ_PER_PIECE * 10_000 // 5000
    assert max(sent) <= read_most + 2 and len(sent) <= 2 + 190 // (read_most // 2)


def test_a_stream_goes_on_over_an_installed_snapshot(tmp_path: Path, driver: Driver) -> None:
    """The state that replaces this one is of the same history: the rest is read from there, or was compacted there."""
    for n in range(40):
        driver.put(b"k%02d" % n, b"v%d" % n)
    driver.commit()
    readers = [Reader(driver, Range(key=b"k", range_end=b"l"), 100) for _ in range(2)]
    assert all(reader.read(driver) for reader in readers)
    expected = driver.range(b"k", b"l")
    shutil.copytree(driver.path, tmp_path / "ahead")
    ahead = Driver(tmp_path / "ahead")
    ahead.put(b"k20", b"changed")
    ahead.delete(b"k30", b"k40")
    ahead.commit()
    shutil.copytree(ahead.path, tmp_path / "compacted")
    ahead.crash()
    driver.store.replace(Store.open(tmp_path / "ahead", **driver.options)).retire()
    while readers[0].read(driver):
        pass
    assert readers[0].merged == expected
    compacted = Driver(tmp_path / "compacted")
    compacted.compact(compacted.store.revision)
    compacted.commit()
    compacted.crash()
    driver.store.replace(Store.open(tmp_path / "compacted", **driver.options)).retire()
    with pytest.raises(EtcdError) as refused:
        readers[1].read(driver)
    assert refused.value == COMPACTED
