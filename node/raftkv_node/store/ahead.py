"""What applying an entry will read, found out before it is applied (D17).

Applying needs the record before a change (`prev_kv`, and watchers that asked for it), values that a transaction
compares, values that a put keeps (`ignore_value`), and what a transaction's ranges return to a client that waits.  Most
of that is in memory.  What is not is named here, by record id, so that a worker can read it before its turn comes.

**A record never changes**, and its id names it for ever.  What a worker has read is handed to apply as a table from id
to record, beside the cache: apply looks up the id that the index names *then*.  A key that has changed in between has
another id, so that an outdated value cannot be found; what is missing in the table is read on the spot, as without it.
Hence nothing here can change a result, only who waits for the disk, and guesses are allowed: which way a transaction
goes is guessed from its comparisons where they need no values, and both ways are named otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from google.protobuf.message import DecodeError, Message

from raftkv_node.pb import rpc_pb2

from . import commands
from .backend import find
from .commands import Batch
from .comparing import compare_holds
from .encoding import simple_put
from .mvcc import Mvcc
from .ranges import interval_end, scan_limit
from .txn import View

AHEAD_ENTRY_RECORDS = 10_000
"""Records that are named for one entry; what it needs beyond is read on the turn, and counted."""
AHEAD_ENTRY_BYTES = 16 << 20
"""Bytes that one fetch reads, and the record that reaches it; beyond as above."""
_SLICE_RECORDS = 64
"""Records that a worker reads before it looks at the bound and lets other threads run."""
_PUT_FLAGS = (b"\x20\x01", b"\x28\x01", b"\x30\x01")
"""How a PutRequest with `prev_kv`, `ignore_value` or `ignore_lease` ends when its fields are in order, as protobuf
libraries write them.  One that ends otherwise is taken for a plain one: at worst its value is read on the spot."""

_Compare = rpc_pb2.Compare
_BY_NUMBERS = frozenset({_Compare.VERSION, _Compare.CREATE, _Compare.MOD})


class Needs:
    """The requests of one entry that may read records."""

    __slots__ = ("decoded", "keys", "prev", "spans", "txns", "want")

    def __init__(self, want: bool, prev: bool) -> None:
        self.want = want
        """Whether a client of this member waits for results."""
        self.prev = prev
        """Whether watchers want the record before each change."""
        self.keys: list[bytes] = []
        self.spans: list[tuple[bytes, bytes | None]] = []
        self.txns: list[rpc_pb2.TxnRequest] = []
        self.decoded: list[Message | None] | None = None
        """Requests that had to be parsed, by position: `Store.apply` takes them."""


def needs_of(batch: Batch, want: bool, prev: bool) -> Needs | None:
    """What the batch may read; `None` when nothing."""
    payloads, kinds = batch.payloads, batch.kinds
    if prev:
        suspects: Sequence[int] = range(len(payloads))
    else:
        suspects = [at for at, one in enumerate(payloads) if kinds[at] != commands.PUT or one.endswith(_PUT_FLAGS)]
    needs = Needs(want, prev)
    for at in suspects:
        try:
            request = _look(needs, kinds[at], payloads[at])
        except DecodeError:
            continue
        if request is not None:
            if needs.decoded is None:
                needs.decoded = [None] * len(payloads)
            needs.decoded[at] = request
    return needs if needs.keys or needs.spans or needs.txns else None


def _look(needs: Needs, kind: int, payload: bytes) -> Message | None:
    """Notes what one request may read; the request, if it was parsed."""
    if kind == commands.PUT:
        end = simple_put(payload)
        if end:
            if needs.prev:
                needs.keys.append(payload[2:end])
            return None
        put = rpc_pb2.PutRequest.FromString(payload)
        if needs.prev or (needs.want and put.prev_kv) or put.ignore_value or put.ignore_lease:
            needs.keys.append(put.key)
        return put
    if kind == commands.DELETE_RANGE:
        delete = rpc_pb2.DeleteRangeRequest.FromString(payload)
        if needs.prev or (needs.want and delete.prev_kv):
            needs.spans.append((delete.key, interval_end(delete.range_end, delete.key)))
        return delete
    if kind == commands.TXN:
        txn = rpc_pb2.TxnRequest.FromString(payload)
        needs.txns.append(txn)
        return txn
    return None


class _Cold:
    """Gathers the ids of records that are not in memory, up to the bound."""

    __slots__ = ("_have", "_mvcc", "ids")

    def __init__(self, mvcc: Mvcc, have: dict[bytes, bytes]) -> None:
        self._mvcc = mvcc
        self._have = have
        self.ids: dict[bytes, None] = {}

    @property
    def room(self) -> int:
        return AHEAD_ENTRY_RECORDS - len(self.ids) - len(self._have)

    def add(self, rid: bytes) -> None:
        """One record that is not in the cache."""
        if rid in self._have or rid in self.ids or self.room <= 0:
            return
        queued = find(self._mvcc.backend.chunks, rid)
        if queued is not None:
            self._have[rid] = queued
        else:
            self.ids[rid] = None

    def key(self, key: bytes) -> None:
        """The newest record of a key."""
        mvcc = self._mvcc
        if key not in mvcc.cache:
            entry = mvcc.index.entries.get(key)
            if entry is not None and entry[2]:
                self.add(entry[0])

    def span(self, key: bytes, end: bytes | None, limit: int = 0) -> None:
        """The newest records of an interval, or the first `limit` (0: all) of them."""
        if end == key + b"\0":
            self.key(key)
            return
        # Keys that are cached count, too: looking for cold ones must not take long, either.
        bound = max(1, min(limit or AHEAD_ENTRY_RECORDS, self.room))
        for one in self._mvcc.index.live.slice(key, end, bound):
            self.key(one)

    def past(self, key: bytes, end: bytes | None, revision: int, limit: int) -> None:
        """The records of an interval at an earlier revision."""
        mvcc = self._mvcc
        bound = max(1, self.room)
        keys = [key] if end == key + b"\0" else mvcc.index.candidates(key, end, bound)
        rows = mvcc.index.select([one for one in keys if one in mvcc.index.entries], revision)
        for one, rid, newest in rows[: limit or None]:
            if not newest or one not in mvcc.cache:
                self.add(rid)


def cold_records(needs: Needs, mvcc: Mvcc, view: View, have: dict[bytes, bytes]) -> list[bytes]:
    """Ids of records that the batch would read from LMDB if it were applied now, without those in `have`.

    Records that wait for their commit are put into `have`: they are in memory now, and may not be when it is applied.
    For the thread that applies.
    """
    cold = _Cold(mvcc, have)
    with mvcc.lock:
        for key in needs.keys:
            cold.key(key)
        for start, end in needs.spans:
            cold.span(start, end)
        for txn in needs.txns:
            _txn(txn, needs, cold, mvcc, view)
    return list(cold.ids)


def _txn(txn: rpc_pb2.TxnRequest, needs: Needs, cold: _Cold, mvcc: Mvcc, view: View) -> None:
    by_numbers = True
    for compare in txn.compare:
        if compare.range_end or compare.target not in _BY_NUMBERS:
            by_numbers = False
            cold.span(compare.key, interval_end(compare.range_end, compare.key))
    succeeds = by_numbers and all(compare_holds(compare, view) for compare in txn.compare)
    if succeeds or not by_numbers:
        for op in txn.success:
            _op(op, needs, cold, mvcc, view)
    if not succeeds:
        for op in txn.failure:
            _op(op, needs, cold, mvcc, view)


def _op(op: rpc_pb2.RequestOp, needs: Needs, cold: _Cold, mvcc: Mvcc, view: View) -> None:
    kind = op.WhichOneof("request")
    if kind == "request_put":
        put = op.request_put
        if needs.prev or (needs.want and put.prev_kv) or put.ignore_value or put.ignore_lease:
            cold.key(put.key)
    elif kind == "request_delete_range":
        delete = op.request_delete_range
        if needs.prev or (needs.want and delete.prev_kv):
            cold.span(delete.key, interval_end(delete.range_end, delete.key))
    elif kind == "request_range" and needs.want:
        asked = op.request_range
        end = interval_end(asked.range_end, asked.key)
        if asked.count_only:
            return
        if asked.revision in {0, mvcc.revision}:
            cold.span(asked.key, end, scan_limit(asked))
        elif mvcc.compact_revision <= asked.revision < mvcc.revision and asked.revision > 0:
            cold.past(asked.key, end, asked.revision, scan_limit(asked))
    elif kind == "request_txn":
        _txn(op.request_txn, needs, cold, mvcc, view)


def read_records(mvcc: Mvcc, ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """Reads records in a worker, up to `AHEAD_ENTRY_BYTES`.  What is gone was compacted away and is not missed."""
    found: dict[bytes, bytes] = {}
    size = 0
    for at in range(0, len(ids), _SLICE_RECORDS):
        piece = list(ids[at : at + _SLICE_RECORDS])
        for rid, record in zip(piece, mvcc.backend.read_many(piece), strict=True):
            if record is not None:
                found[rid] = record
                size += len(record)
                if size >= AHEAD_ENTRY_BYTES:
                    return found
        time.sleep(0)
    return found
