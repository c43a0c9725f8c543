"""The store: applies the replicated log's entries, answers reads, and survives restarts.

One thread (the node's turn) owns it: `apply*`, `start_*` and `background` are called there and never wait for a
disk, but for values that apply itself needs, that are no longer in memory and that were not fetched ahead (see `ahead`;
counted in `cache_misses_total`).  A backend thread commits; workers run `ColdRead`s and `read_records`.

What is applied becomes visible at once and durable later: `applied_index` runs ahead of `committed_index`, the
applied index of the last synced transaction, and after a crash the log is applied again from there.  Whatever
follows from an entry must therefore be a function of the entries before it: results, errors, record bytes, never of
timing, caches or who is asking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path as FilePath
from typing import Any, Final, final

from google.protobuf.message import DecodeError, Message
from mypy_extensions import mypyc_attr

from raftkv_node.pb import rpc_pb2

from . import ahead, commands
from .backend import Backend
from .chunk import Chunk
from .encoding import HeaderEncoder, simple_put, varint
from .encoding import field as encode_field
from .errors import (
    COMPACTED,
    FUTURE_REVISION,
    KEY_NOT_FOUND,
    LEASE_NOT_FOUND,
    MALFORMED_REQUEST,
    CommandError,
    EtcdError,
    StoreError,
)
from .hashing import hash_records
from .mvcc import Mvcc, RevisionEvents
from .ranges import count_response, has_filters, interval_end, range_response, resolve_revision, scan_limit
from .rangestream import RangeCursor
from .reads import INLINE_BYTES, INLINE_KEYS, ApplyView, ColdRead, PinnedView, Pins, read_only_txn, rows_at
from .recovery import recover
from .txn import (
    Path,
    apply_path,
    check_puts,
    check_ranges,
    delete_in_revision,
    delete_response,
    put_in_revision,
    range_body,
    txn_response,
)
from .validate import is_read_only
from .yielding import YIELD_EVERY, give_way

DEFAULT_VALUE_CACHE_BYTES: Final = 128 << 20
DEFAULT_BUFFER_LIMIT_BYTES: Final = 64 << 20
SWEEP_KEYS: Final = 200
"""Keys that one step of a compaction looks at: about a millisecond at most."""

_REQUEST_TYPES: dict[int, Callable[[bytes], Message]] = {
    commands.PUT: rpc_pb2.PutRequest.FromString,
    commands.DELETE_RANGE: rpc_pb2.DeleteRangeRequest.FromString,
    commands.TXN: rpc_pb2.TxnRequest.FromString,
    commands.COMPACT: rpc_pb2.CompactionRequest.FromString,
    commands.MEMBER_ATTRIBUTES: rpc_pb2.Member.FromString,
}


class PendingCompaction:
    """The answer to a compaction that waits for the purge (`physical`).  Returned by `Store.finished_compactions`
    when due.
    """

    __slots__ = ("response", "revision")

    def __init__(self, revision: int, response: bytes) -> None:
        self.revision = revision
        self.response = response


Result = bytes | EtcdError | PendingCompaction


@final
@mypyc_attr(acyclic=True)
class ApplyResult:
    """What applying a batch gave."""

    __slots__ = ("events", "results", "revision")

    def __init__(self, revision: int, results: list[Result] | None, events: list[RevisionEvents]) -> None:
        self.revision: Final = revision
        """The store's revision afterwards."""
        self.results: Final = results
        """Per request of the batch; `None` when nobody wanted them."""
        self.events: Final = events
        """What watchers are to be told, by revision; empty while nobody watches (`Store.watching`)."""


class Store:
    """See the module's text.  Made by `Store.open`."""

    def __init__(self, backend: Backend, value_cache_bytes: int, buffer_limit_bytes: int) -> None:
        self.backend = backend
        self.buffer_limit_bytes = buffer_limit_bytes
        self.mvcc = Mvcc(backend, value_cache_bytes)
        self.applied_index = 0
        self.applied_term = 0
        self.configuration = b""
        """The newest applied membership configuration, opaque to the store."""
        self.configuration_index = 0
        self.members: dict[int, bytes] = {}
        """Members' attributes (encoded `etcdserverpb.Member`) by id."""
        self.leases: set[int] = set()
        """Ids of leases that exist: none before leases are implemented."""
        self.txns_total = 0
        self.ranges_total = 0
        self.compacted_keys_total = 0
        self._cluster_id = 0
        self._member_id = 0
        self._header = HeaderEncoder(0, 0, 0)
        self._view = ApplyView(self.mvcc)
        self._pins = Pins()
        self._sweep: set[bytes] = set()
        self._waiting_compactions: list[PendingCompaction] = []
        self._purge_done_at: int | None = None
        self._chunks_added = 0
        self._broken: BaseException | None = None

    # Life.

    @classmethod
    def open(
        cls,
        path: FilePath | str,
        *,
        cluster_id: int = 0,
        member_id: int = 0,
        quota_backend_bytes: int = 0,
        value_cache_bytes: int = DEFAULT_VALUE_CACHE_BYTES,
        buffer_limit_bytes: int = DEFAULT_BUFFER_LIMIT_BYTES,
        commit_interval_seconds: float = 0.1,
        on_commit: Callable[[int], None] | None = None,
        start_thread: bool = True,
    ) -> Store:
        """Opens or creates the store in folder `path` and rebuilds its index.

        `quota_backend_bytes` 0 is etcd's default, 2 GiB.  `on_commit(applied_index)` is called in the backend
        thread after each synced commit.  Without `start_thread` nothing is committed but by `backend.commit_now`.
        `StoreError` when the store cannot be used, `StoreCorrupt` when its files contradict themselves.
        """
        folder = FilePath(path)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the backend's folder {folder} cannot be made: {error}") from error
        backend = Backend(
            folder,
            quota_bytes=quota_backend_bytes,
            commit_interval_seconds=commit_interval_seconds,
            urgent_bytes=buffer_limit_bytes // 2,
            on_commit=on_commit,
        )
        try:
            store = cls(backend, value_cache_bytes, buffer_limit_bytes)
            store._recover()
        except BaseException:
            backend.env.close()
            raise
        store.set_identity(cluster_id, member_id)
        if start_thread:
            backend.start()
        return store

    def close(self, commit: bool = True) -> None:
        """Stops; with `commit`, what may be committed (see `set_durable_index`) is, first."""
        self.backend.close(commit)

    def replace(self, other: Store) -> Backend:
        """Takes over all that `other` holds; it was opened on a snapshot that goes beyond this store's state, and must
        not be used any more.  Returns the backend used before, to be retired: reads in progress go on in it.
        """
        if other.applied_index <= self.applied_index:
            raise StoreError(f"a snapshot at {other.applied_index} is no news for a store at {self.applied_index}")
        old, before = self.backend, self.mvcc
        mvcc = other.mvcc
        mvcc.collect_events, mvcc.collect_prev = before.collect_events, before.collect_prev
        mvcc.puts_total += before.puts_total
        mvcc.deletes_total += before.deletes_total
        mvcc.cache_misses_total += before.cache_misses_total
        other.backend.on_commit = old.on_commit
        self.backend, self.mvcc = other.backend, mvcc
        self.applied_index, self.applied_term = other.applied_index, other.applied_term
        self.configuration, self.configuration_index = other.configuration, other.configuration_index
        self.members, self.leases = other.members, other.leases
        self._view, self._pins, self._sweep = other._view, other._pins, other._sweep
        self._chunks_added, self._purge_done_at = 0, None
        self.set_term(other.applied_term)
        before.retire()
        if old.started:
            self.backend.start()
        return old

    def set_identity(self, cluster_id: int, member_id: int) -> None:
        """What response headers name."""
        self._cluster_id, self._member_id = cluster_id, member_id
        self._header = HeaderEncoder(cluster_id, member_id, self._header.term)

    def set_term(self, term: int) -> None:
        """The Raft term that response headers name from now on; applying an entry of a higher term raises it, too."""
        if term > self._header.term:
            self._header = HeaderEncoder(self._cluster_id, self._member_id, term)

    def header(self, revision: int | None = None) -> bytes:
        """A response's encoded header (as its field 1), by default of the current revision."""
        return self._header.field(self.mvcc.revision if revision is None else revision)

    def _recover(self) -> None:
        found = recover(self.backend, self.mvcc)
        self.applied_index, self.applied_term = found.applied_index, found.applied_term
        self.configuration, self.configuration_index = found.configuration, found.configuration_index
        self.members = found.members
        self.set_term(self.applied_term)
        if self.mvcc.compact_revision > 0:
            # A purge may have been cut off.
            self._sweep, self.mvcc.index.versioned = self.mvcc.index.versioned, set()

    # State.

    @property
    def revision(self) -> int:
        """The newest revision; 1 in an empty store."""
        return self.mvcc.revision

    @property
    def compact_revision(self) -> int:
        """The revision below which history is gone; -1 before the first compaction."""
        return self.mvcc.compact_revision

    @property
    def committed_index(self) -> int:
        """The applied index of the last synced commit: log entries up to it are no longer needed by this store."""
        return self.backend.committed_index

    @property
    def failed(self) -> BaseException | None:
        """The error of a commit, or the one that broke off an apply.  Never retried: the node must stop."""
        return self._broken or self.backend.failure

    @property
    def backpressure(self) -> bool:
        """Whether uncommitted data is over its limit: apply must wait."""
        return self.backend.buffered_bytes >= self.buffer_limit_bytes

    @property
    def keys_total(self) -> int:
        """Live keys."""
        return len(self.mvcc.index.live)

    @property
    def puts_total(self) -> int:
        return self.mvcc.puts_total

    @property
    def deletes_total(self) -> int:
        return self.mvcc.deletes_total

    @property
    def cache_misses_total(self) -> int:
        return self.mvcc.cache_misses_total

    @property
    def db_size_bytes(self) -> int:
        """Size of the backend's file, as of the last commit."""
        return self.backend.size_bytes

    @property
    def db_size_in_use_bytes(self) -> int:
        """Without the file's free pages."""
        return self.backend.size_in_use_bytes

    @property
    def quota_bytes(self) -> int:
        return self.backend.quota_bytes

    def exceeds_quota(self, cost_bytes: int = 0) -> bool:
        """Whether the backend would be over its quota with `cost_bytes` more.

        Free pages of the file do not count: LMDB writes to them first.
        """
        used = self.backend.size_in_use_bytes + self.backend.buffered_bytes
        return used + cost_bytes > self.backend.quota_bytes

    def watching(self, events: bool, prev: bool) -> None:
        """Whether `apply` is to collect events, and with them the records before each change."""
        self.mvcc.collect_events = events
        self.mvcc.collect_prev = events and prev

    def set_durable_index(self, index: int) -> None:
        """Log entries up to `index` are durable on this member: commits may cover them, and no later ones.

        To be called before an entry is applied that stands where a durable one was dropped: the index then goes back.
        """
        self.backend.set_durable_index(index)

    # Applying.

    def apply(
        self,
        index: int,
        term: int,
        batch: commands.Batch,
        decoded: Sequence[Message | None] | None = None,
        want_results: bool = True,
        fetched: dict[bytes, bytes] | None = None,
    ) -> ApplyResult:
        """Applies the requests of one log entry.

        `index` must follow the last applied one.  `decoded[i]`, where not `None`, is the parsed `payloads[i]`;
        `fetched` are records that were read ahead, by id.
        `UnknownCommand` before any effect when this version does not know a command (the node must stop);
        `StoreError` when the store has failed.
        """
        commands.check_known(batch.kinds)
        mvcc = self.mvcc
        with mvcc.lock:
            self._open_chunk(index, term)
            if fetched:
                mvcc.fetched = fetched
            try:
                results = self._apply_batch(batch, decoded, want_results)
                mvcc.settle()
                self._close_chunk()
            except BaseException as error:
                # Half of the batch may be in memory, and nothing of it will be committed: go no further.
                self._broken = error
                raise
            if fetched:
                mvcc.fetched = {}
        if self._sweep:
            self.background()
        events = mvcc.events
        if events:
            mvcc.events = []
        return ApplyResult(mvcc.revision, results if want_results else None, events)

    def apply_configuration(
        self, index: int, term: int, configuration: bytes, removed_members: Iterable[int] = ()
    ) -> None:
        """Applies a membership entry: remembers its opaque bytes, forgets removed members' attributes."""
        with self.mvcc.lock:
            chunk = self._open_chunk(index, term)
            self.configuration = configuration
            self.configuration_index = index
            chunk.configuration = index.to_bytes(8, "big") + configuration
            gone: dict[int, bytes | None] = {}
            for member in removed_members:
                if self.members.pop(member, None) is not None:
                    gone[member] = None
            if gone:
                chunk.members = gone
            self._close_chunk()

    def apply_empty(self, index: int, term: int) -> None:
        """Applies an entry that says nothing to the store."""
        with self.mvcc.lock:
            self._open_chunk(index, term)
            self._close_chunk()

    def _open_chunk(self, index: int, term: int) -> Chunk:
        if self.failed is not None:
            raise StoreError(f"the store has failed: {self.failed}") from self.failed
        if index != self.applied_index + 1 or term < self.applied_term:
            raise StoreError(
                f"entry {index} of term {term} does not follow the applied entry {self.applied_index} "
                f"of term {self.applied_term}"
            )
        mvcc = self.mvcc
        if not mvcc.no_chunk.is_empty:
            raise StoreError("the store was changed outside of an entry of the log")
        self.applied_index, self.applied_term = index, term
        if term > self._header.term:
            self.set_term(term)
        chunk = Chunk(index, term, mvcc.revision + 1)
        mvcc.chunk = chunk
        return chunk

    def _close_chunk(self) -> None:
        mvcc = self.mvcc
        chunk = mvcc.chunk
        if chunk.record_bytes:
            chunk.revision, chunk.compact_revision = mvcc.revision, mvcc.compact_revision
        self._add_chunk(chunk)

    def _add_chunk(self, chunk: Chunk) -> None:
        self.backend.add(chunk)
        self._chunks_added += 1
        # What is read from now on is found in the queue.
        self.mvcc.chunk = self.mvcc.no_chunk

    def _apply_batch(
        self, batch: commands.Batch, decoded: Sequence[Message | None] | None, want_results: bool
    ) -> list[Result]:
        results: list[Result] = []
        put_simple = self.mvcc.put_simple
        header = self._header
        heads, suffix = header.field_heads, header.field_suffix
        payloads = batch.payloads
        for at, kind in enumerate(batch.kinds):
            if not at % YIELD_EVERY:
                give_way()
            payload = payloads[at]
            if kind == commands.PUT:
                end = simple_put(payload)
                if end:
                    encoded = put_simple(payload, end)
                    if want_results:
                        results.append(heads[len(encoded)] + encoded + suffix)
                    continue
            request = decoded[at] if decoded is not None else None
            result: Result
            try:
                if request is None:
                    request = _REQUEST_TYPES[kind](payload)
                result = self._apply_one(kind, request, want_results)
            except EtcdError as error:
                result = error
            except DecodeError:
                result = MALFORMED_REQUEST
            if want_results:
                results.append(result)
        return results

    def _apply_one(self, kind: int, request: Message, want: bool) -> Result:
        if isinstance(request, rpc_pb2.PutRequest):
            return self._apply_put(request, want)
        if isinstance(request, rpc_pb2.TxnRequest):
            return self._apply_txn(request, want)
        if isinstance(request, rpc_pb2.DeleteRangeRequest):
            return self._apply_delete(request, want)
        if isinstance(request, rpc_pb2.CompactionRequest):
            return self._apply_compact(request, want)
        if isinstance(request, rpc_pb2.Member):
            return self._apply_member(request)
        raise CommandError(f"a {type(request).__name__} was handed in for a command of kind {kind}")

    def _apply_put(self, request: rpc_pb2.PutRequest, want: bool) -> bytes:
        mvcc = self.mvcc
        if request.lease and request.lease not in self.leases:
            raise LEASE_NOT_FOUND.fresh()
        if (request.ignore_value or request.ignore_lease) and self._view.numbers(request.key) is None:
            raise KEY_NOT_FOUND.fresh()
        prev = mvcc.newest(request.key) if want and request.prev_kv else None
        mvcc.begin()
        put_in_revision(mvcc, request)
        header = self._header.field(mvcc.end())
        return header if prev is None else header + encode_field(b"\x12", prev)

    def _apply_delete(self, request: rpc_pb2.DeleteRangeRequest, want: bool) -> bytes:
        mvcc = self.mvcc
        mvcc.begin()
        deleted, prev = delete_in_revision(mvcc, request, want and request.prev_kv)
        return delete_response(self._header.field(mvcc.end()), deleted, prev)

    def _apply_txn(self, request: rpc_pb2.TxnRequest, want: bool) -> bytes:
        mvcc, view = self.mvcc, self._view
        self.txns_total += 1
        path = Path(request, view)
        check_puts(path, view, self.leases)
        check_ranges(path, mvcc.revision, mvcc.compact_revision)
        mvcc.begin()
        responses = apply_path(path, mvcc, view, want)
        revision = mvcc.end()
        return txn_response(self._header.field(revision), path.succeeded, responses) if want else b""

    def _apply_compact(self, request: rpc_pb2.CompactionRequest, want: bool) -> Result:
        mvcc = self.mvcc
        if request.revision <= mvcc.compact_revision:
            raise COMPACTED.fresh()
        if request.revision > mvcc.revision:
            raise FUTURE_REVISION.fresh()
        mvcc.compact_revision = request.revision
        mvcc.chunk.revision, mvcc.chunk.compact_revision = mvcc.revision, mvcc.compact_revision
        if self._sweep:
            self._sweep |= mvcc.index.versioned
        else:
            self._sweep = mvcc.index.versioned
        mvcc.index.versioned = set()
        self._purge_done_at = None
        response = self._header.field(mvcc.revision)
        if not (request.physical and want):
            return response
        waiting = PendingCompaction(request.revision, response)
        self._waiting_compactions.append(waiting)
        return waiting

    def _apply_member(self, request: rpc_pb2.Member) -> bytes:
        attributes = request.SerializeToString(deterministic=True)
        self.members[request.ID] = attributes
        chunk = self.mvcc.chunk
        if chunk.members is None:
            chunk.members = {}
        chunk.members[request.ID] = attributes
        return b""

    # Fetching ahead.

    @property
    def may_be_cold(self) -> bool:
        """Whether newest records may have to be read from disk: not before the cache has first been too small.

        (History that a transaction's range asks for may be on disk before that; such a range is then read on the turn.)
        """
        return self.mvcc.evicted

    def needs_of(self, batch: commands.Batch, want_results: bool) -> ahead.Needs | None:
        """What applying the batch may read; `None` when nothing."""
        return ahead.needs_of(batch, want_results, self.mvcc.collect_prev)

    def cold_records(self, needs: ahead.Needs, have: dict[bytes, bytes]) -> list[bytes]:
        """Ids of records to read ahead, as of now and without those in `have` (which those that wait for their commit
        join): at most `ahead.AHEAD_ENTRY_RECORDS` together.
        """
        return ahead.cold_records(needs, self.mvcc, self._view, have)

    def read_records(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Reads records ahead, in a worker: at most `ahead.AHEAD_ENTRY_BYTES`, and the one that reaches it."""
        return ahead.read_records(self.mvcc, ids)

    # Compaction's slow half.

    def background(self, keys: int = SWEEP_KEYS) -> bool:
        """Does a slice of compaction: forgets unreachable records of some keys.  Whether more could be done at once."""
        mvcc, sweep = self.mvcc, self._sweep
        if not sweep:
            if self._waiting_compactions and self._purge_done_at is None:
                self._purge_done_at = self._chunks_added
            return False
        compact = mvcc.compact_revision
        lowest = self._pins.lowest()
        if lowest is not None and lowest < compact:
            return False
        with mvcc.lock:
            compact_key = mvcc.index.compact_key
            deletes: list[bytes] = []
            for _ in range(min(keys, len(sweep))):
                deletes += compact_key(sweep.pop(), compact)
            if deletes:
                self.compacted_keys_total += len(deletes)
                chunk = Chunk(self.applied_index, self.applied_term, mvcc.revision + 1)
                chunk.deletes = deletes
                self._add_chunk(chunk)
        if not sweep:
            self._purge_done_at = self._chunks_added
        return bool(sweep)

    @property
    def compacting(self) -> bool:
        """Whether `background` has work (it may have to wait for reads in progress)."""
        return bool(self._sweep)

    def finished_compactions(self) -> list[PendingCompaction]:
        """Physical compactions whose purge is committed, each returned once."""
        if not self._waiting_compactions or self._sweep:
            return []
        if self._purge_done_at is None:
            self._purge_done_at = self._chunks_added
        if self.backend.chunks_committed < self._purge_done_at:
            return []
        done, self._waiting_compactions = self._waiting_compactions, []
        return done

    # Reading.

    def start_range(self, request: rpc_pb2.RangeRequest) -> bytes | ColdRead:
        """A range of the applied state: the encoded response, or a read for a worker.  Raises `EtcdError` as an
        answer.
        """
        mvcc = self.mvcc
        self.ranges_total += 1
        if not request.range_end and request.revision <= 0 and not (request.keys_only or request.count_only):
            # One key as it is now: nearly every read.
            record = mvcc.cache.get(request.key)
            if record is not None and not has_filters(request):
                return b"".join((self._header.field(mvcc.revision), b"\x12", varint(len(record)), record, b"\x20\x01"))
        current = mvcc.revision
        revision = resolve_revision(request.revision, current, mvcc.compact_revision)
        header = self._header.field(current)
        key = request.key
        end = interval_end(request.range_end, key)
        total = None
        with mvcc.lock:
            index = mvcc.index
            if revision == current and end != key + b"\0":
                total = index.live.count(key, end)
                if request.count_only:
                    return count_response(header, total)
            limit = scan_limit(request)
            if end == key + b"\0" or (total is not None and min(total, limit or total) <= INLINE_KEYS):
                pairs, total = rows_at(mvcc, key, end, revision, limit)
                if request.count_only:
                    return count_response(header, total)
                records = []
                size = 0
                for k, rid in pairs:
                    record = mvcc.hot(k, rid)
                    if record is None or size > INLINE_BYTES:
                        break
                    size += len(record)
                    records.append(record)
                else:
                    return range_response(request, header, records, total)
        view = PinnedView(mvcc, current)
        if total is not None:
            view.remember_total(key, end, total)
        compacted = mvcc.compact_revision
        return ColdRead(self._pins, revision, lambda: range_body(request, header, view, compacted))

    def open_range(self, request: rpc_pb2.RangeRequest) -> RangeCursor:
        """A range of the applied state, to be read in pieces.  Raises `EtcdError` as an answer."""
        mvcc = self.mvcc
        self.ranges_total += 1
        current = mvcc.revision
        revision = resolve_revision(request.revision, current, mvcc.compact_revision)
        total = None
        if revision == current:
            with mvcc.lock:
                total = mvcc.index.live.count(request.key, interval_end(request.range_end, request.key))
        return RangeCursor(request, revision, self._header.field(current), total)

    def start_piece(self, cursor: RangeCursor, piece_bytes: int) -> ColdRead:
        """The next piece of a range, of `piece_bytes`, for a worker.  Raises `EtcdError` as an answer: its revision may
        be compacted.
        """
        mvcc = self.mvcc
        revision = resolve_revision(cursor.revision, mvcc.revision, mvcc.compact_revision)
        return ColdRead(self._pins, revision, lambda: cursor.read(mvcc, piece_bytes))

    def start_txn(self, request: rpc_pb2.TxnRequest) -> ColdRead:
        """A read-only transaction (`validate.is_read_only`) of the applied state, for a worker or to be run at once."""
        if not is_read_only(request):
            raise ValueError("a transaction that writes must go through the log")
        mvcc = self.mvcc
        self.txns_total += 1
        current, compacted = mvcc.revision, mvcc.compact_revision
        header = self._header.field(current)
        asked = [op.request_range.revision for branch in (request.success, request.failure) for op in branch]
        lowest = min((revision for revision in asked if compacted <= revision and revision > 0), default=current)
        view = PinnedView(mvcc, current)
        return ColdRead(self._pins, min(lowest, current), lambda: read_only_txn(request, header, view, compacted))

    def start_hash(self, revision: int = 0) -> ColdRead:
        """HashKV at a revision (0: the newest), for a worker.  Raises `EtcdError` as an answer."""
        mvcc = self.mvcc
        current, compacted = mvcc.revision, mvcc.compact_revision
        revision = resolve_revision(revision, current, compacted)
        header = self._header.field(current)
        pinned = max(compacted, 0)
        return ColdRead(self._pins, pinned, lambda: hash_records(mvcc, header, revision, compacted))

    def pin(self, revision: int) -> Callable[[], None]:
        """Keeps what reads at `revision` need from being compacted away, until the returned function is called."""
        pins = self._pins
        pins.add(revision)
        pending = [revision]

        def release() -> None:
            if pending:
                pins.release(pending.pop())

        return release

    def metrics(self) -> dict[str, Any]:
        """Counters and gauges, for an exporter: names end in their units, counters in `_total`."""
        backend, mvcc = self.backend, self.mvcc
        return {
            "puts_total": mvcc.puts_total,
            "deletes_total": mvcc.deletes_total,
            "txns_total": self.txns_total,
            "ranges_total": self.ranges_total,
            "keys": self.keys_total,
            "revision": mvcc.revision,
            "compact_revision": mvcc.compact_revision,
            "compacted_records_total": self.compacted_keys_total,
            "cache_bytes": mvcc.cache_bytes,
            "cache_misses_total": mvcc.cache_misses_total,
            "buffered_bytes": backend.buffered_bytes,
            "commits_total": backend.commits_total,
            "db_size_bytes": backend.size_bytes,
            "db_size_in_use_bytes": backend.size_in_use_bytes,
            "quota_bytes": backend.quota_bytes,
            "open_reads": len(self._pins),
        }
