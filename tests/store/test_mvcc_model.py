"""The store against the model: every answer, at every revision, whatever is cached, committed or purged meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raftkv_node.pb import rpc_pb2
from raftkv_node.store import PendingCompaction
from raftkv_node.store.encoding import main_of, record_key
from raftkv_node.store.reads import ColdRead
from store_driver import TERM, Driver, batch_of, fast_folder
from store_model import Model
from store_strategies import range_txns, ranges, txns, writes

SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def plain(answer: Any) -> Any:
    """The answer without what the model does not know: the outer header's cluster, member and term."""
    if isinstance(answer, PendingCompaction):
        answer = rpc_pb2.CompactionResponse.FromString(answer.response)
    if hasattr(answer, "header"):
        assert answer.header.cluster_id and answer.header.member_id and answer.header.raft_term
        copy = type(answer)()
        copy.CopyFrom(answer)
        copy.header.CopyFrom(rpc_pb2.ResponseHeader(revision=answer.header.revision))
        return copy
    return answer


moments = st.sampled_from(["", "", "", "commit", "sweep", "forget", "step", "crash", "compact", "compact"])


class Pair:
    """A store and a model, given the same; the store is disturbed now and then."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.driver = Driver(folder, **options)
        self.model = Model()
        self.log: list[tuple[Any, ...]] = []

    def write(self, *requests: Any) -> None:
        answers = self.driver.apply(*requests)
        self.log.append(requests)
        for request, answer in zip(requests, answers, strict=True):
            assert plain(answer) == self.model.apply(request), request
        assert self.driver.store.revision == self.model.revision
        assert self.driver.store.compact_revision == self.model.compacted

    def disturb(self, moment: str) -> None:
        driver = self.driver
        if moment == "commit":
            driver.commit()
        elif moment == "sweep":
            driver.sweep()
        elif moment == "step":
            driver.store.background(1)
        elif moment == "compact":
            self.write(rpc_pb2.CompactionRequest(revision=self.model.revision))
            driver.sweep()
        elif moment == "forget":
            driver.store.mvcc.cache_limit_bytes, limit = 0, driver.store.mvcc.cache_limit_bytes
            driver.store.mvcc.evict()
            driver.store.mvcc.cache_limit_bytes = limit
            assert not driver.store.mvcc.cache and driver.store.mvcc.cache_bytes == 0
        elif moment == "crash":
            self.driver = driver.reopen()
            for requests in self.log[self.driver.index :]:
                self.driver.apply(*requests)

    def check(self, request: rpc_pb2.RangeRequest) -> None:
        assert plain(self.driver.range(request.key, request.range_end, **_rest(request))) == self.model.apply(request)

    def check_all(self) -> None:
        for revision in range(max(self.model.compacted, 1), self.model.revision + 1):
            self.check(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", revision=revision))

    def check_purged(self) -> None:
        """A compaction of everything leaves one record for each live key, and the last revision's deletions."""
        model = self.model
        if model.compacted < model.revision:
            self.write(rpc_pb2.CompactionRequest(revision=model.revision))
        self.driver.commit()
        self.driver.sweep()
        self.driver.commit()
        expected = {(kv.key, kv.mod_revision) for kv in model.history[-1].values()}
        deleted = {kv.key for kind, kv, _ in model.changes[-1] if kind == "delete" and kv.key not in model.history[-1]}
        with self.driver.store.backend.all_records() as records:
            found = {(record_key(data), main_of(rid)) for rid, data in records}
        assert found == expected | {(key, model.revision) for key in deleted}
        assert {key for key, _ in found} == set(self.driver.store.mvcc.index.entries)


def _rest(request: rpc_pb2.RangeRequest) -> dict[str, Any]:
    return {field.name: value for field, value in request.ListFields() if field.name not in ("key", "range_end")}


@SETTINGS
@given(
    steps=st.lists(st.tuples(st.lists(writes, min_size=1, max_size=3), moments), max_size=14),
    reads=st.lists(ranges, max_size=6),
    crash_first=st.booleans(),
)
def test_every_answer_is_the_models(steps: list[tuple[list[Any], str]], reads: list[Any], crash_first: bool) -> None:
    with fast_folder() as folder:
        pair = Pair(Path(folder))
        for requests, moment in steps:
            pair.write(*requests)
            pair.disturb(moment)
        for request in reads:
            pair.check(request)
        pair.check_all()
        if crash_first:
            pair.disturb("crash")
            pair.check_all()
        pair.driver.commit()
        pair.driver.sweep()
        pair.driver.commit()
        pair.check_purged()
        pair.disturb("crash")
        pair.check_all()
        assert pair.driver.store.keys_total == len(pair.model.history[-1])
        pair.driver.close()


@SETTINGS
@given(
    st.lists(st.tuples(st.one_of(writes, writes, ranges, range_txns), moments), max_size=20),
    st.lists(st.one_of(ranges, range_txns), max_size=4),
)
def test_reads_are_as_of_their_start(steps: list[tuple[Any, str]], late: list[Any]) -> None:
    """Reads that a worker does later, after writes, compactions, purges and commits, answer as if done at once."""
    with fast_folder() as folder:
        pair = Pair(Path(folder), value_cache_bytes=0)
        waiting: list[tuple[Any, ColdRead, Any]] = []
        for request, moment in [*steps, *((request, "") for request in late)]:
            if isinstance(request, rpc_pb2.RangeRequest):
                expected = pair.model.apply(request)
                if isinstance(expected, Exception):
                    pair.check(request)
                    continue
                read = pair.driver.store.start_range(request)
                if isinstance(read, bytes):
                    assert plain(rpc_pb2.RangeResponse.FromString(read)) == expected
                else:
                    waiting.append((rpc_pb2.RangeResponse, read, expected))
            elif isinstance(request, rpc_pb2.TxnRequest) and request in late:
                pass
            elif not isinstance(request, rpc_pb2.TxnRequest) or not _reads_only(request):
                pair.write(request)
            else:
                expected = pair.model.apply(request)
                read = pair.driver.store.start_txn(request)
                if isinstance(expected, Exception):
                    assert pair.driver.read_txn(request) == expected
                    read.close()
                else:
                    waiting.append((rpc_pb2.TxnResponse, read, expected))
            if moment != "crash":
                pair.disturb(moment)
        for response_type, read, expected in waiting:
            assert plain(response_type.FromString(read.run())) == expected
        pair.driver.sweep()
        assert not pair.driver.store.compacting, "nothing is pinned any more"
        pair.driver.close()


def _reads_only(request: rpc_pb2.TxnRequest) -> bool:
    return all(op.HasField("request_range") for op in [*request.success, *request.failure])


def dump(driver: Driver) -> list[list[tuple[bytes, bytes]]]:
    """All that stands in LMDB."""
    backend = driver.store.backend
    with backend.env.begin() as txn:
        return [list(txn.cursor(db)) for db in (backend.revisions, backend.meta, backend.members)]


@SETTINGS
@given(st.lists(st.tuples(st.lists(writes, min_size=1, max_size=4), moments, moments), max_size=14))
def test_members_agree_to_the_byte(steps: list[tuple[list[Any], str, str]]) -> None:
    """One that answers clients and one that does not, disturbed at different times, with different caches."""
    with fast_folder() as folder:
        one = Driver(Path(folder) / "one")
        two = Driver(Path(folder) / "two", value_cache_bytes=500, member_id=0xB2)
        for requests, first, second in steps:
            one.apply(*requests, want=True)
            two.apply(*requests, want=False)
            for driver, moment in ((one, first), (two, second)):
                if moment == "commit":
                    driver.commit()
                elif moment == "sweep":
                    driver.sweep()
                elif moment == "step":
                    driver.store.background(1)
            assert one.store.revision == two.store.revision
        left, right = one.hash(), two.hash()
        assert (left.hash, left.compact_revision, left.hash_revision) == (
            right.hash,
            right.compact_revision,
            right.hash_revision,
        ), "whatever has been committed and purged"
        for driver in (one, two):
            driver.commit()
            driver.sweep()
            driver.commit()
        assert dump(one) == dump(two)
        assert one.hash().hash == left.hash, "a purge does not change it"
        two = two.reopen()
        assert two.hash().hash == left.hash, "nor does a restart"
        one.close()
        two.close()


@settings(SETTINGS, max_examples=100)
@given(st.lists(st.tuples(writes, st.booleans(), st.booleans()), max_size=20), st.booleans(), st.booleans())
def test_d17_what_was_fetched_ahead_changes_no_result(
    steps: list[tuple[Any, bool, bool]], want: bool, prev: bool
) -> None:
    """Records that were fetched for this entry, and all that were fetched for earlier ones and may be outdated."""
    with fast_folder() as folder:
        plain_one = Driver(Path(folder) / "plain")
        ahead = Driver(Path(folder) / "ahead", value_cache_bytes=0)
        for one in (plain_one, ahead):
            one.store.watching(True, prev)
        have: dict[bytes, bytes] = {}
        for request, look, commit in steps:
            batch = batch_of(request)
            expected = plain_one.store.apply(plain_one.index + 1, TERM, batch, None, want)
            store = ahead.store
            needs = store.needs_of(batch, want) if look else None
            if needs is not None:
                have.update(store.read_records(store.cold_records(needs, have)))
            misses = store.cache_misses_total
            decoded = needs.decoded if needs is not None else None
            found = store.apply(ahead.index + 1, TERM, batch, decoded, want, have)
            assert found.events == expected.events
            assert found.revision == expected.revision
            for left, right in zip(found.results or (), expected.results or (), strict=True):
                if not isinstance(left, PendingCompaction):
                    assert left == right
            if look and not isinstance(request, rpc_pb2.TxnRequest):
                assert store.cache_misses_total == misses, "the look just before finds all"
            if commit:
                ahead.commit()
        assert ahead.hash().hash == plain_one.hash().hash
        ahead.close()
        plain_one.close()


@settings(SETTINGS, max_examples=40)
@given(st.lists(writes, min_size=1, max_size=10), st.data())
def test_recovery_from_every_commit_boundary(requests: list[Any], data: st.DataObject) -> None:
    """A crash after any commit, and the log applied again from there, gives the same store."""
    with fast_folder() as folder:
        whole = Driver(Path(folder) / "whole")
        for request in requests:
            whole.apply(request)
        for boundary in range(len(requests) + 1):
            other = Driver(Path(folder) / f"at{boundary}")
            for at, request in enumerate(requests):
                other.apply(request)
                if at + 1 == boundary:
                    if data.draw(st.booleans()):
                        other.sweep()
                    other.commit()
            other = other.reopen()
            assert other.index == boundary
            for request in requests[boundary:]:
                other.apply(request)
            assert other.store.revision == whole.store.revision
            assert other.hash().SerializeToString() == whole.hash().SerializeToString()
            for driver in (whole, other):
                driver.sweep()
            assert _index(other) == _index(whole)
            other.close()
        whole.close()


def _index(driver: Driver) -> dict[bytes, Any]:
    index = driver.store.mvcc.index
    assert index.live.slice(b"", None) == sorted(key for key, entry in index.entries.items() if entry[2])
    assert index.dead.slice(b"", None) == sorted(key for key, entry in index.entries.items() if not entry[2])
    return dict(index.entries)


@settings(SETTINGS, max_examples=40)
@given(txns)
def test_parsed_and_opaque_requests_give_the_same(request_: Any) -> None:
    with fast_folder() as folder:
        answers = []
        for decoded in (None, [request_]):
            driver = Driver(Path(folder) / str(decoded is None))
            result = driver.store.apply(1, TERM, batch_of(request_), decoded, True)
            answers.append((result.results, driver.hash().hash))
            driver.close()
        assert answers[0] == answers[1]
