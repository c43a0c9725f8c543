"""RangeStream: a range of any size, read in pieces at one revision.

A piece is read by a worker, like any cold read, and between two pieces nothing is held: no revision is pinned, no
transaction is open, however slowly the client takes what it gets.  When the history that a stream reads is compacted in
the meantime, the next piece answers so, as etcd's does.

A piece ends where its records have `piece_bytes`; so it is never larger than that and one record.  The first has ten
keys at most, as etcd's, so that the client has something to do.  Merged, the pieces are the RangeResponse that Range
would have given: header, `more` and `count` come with the last.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from raftkv_node.pb import rpc_pb2

from .ranges import interval_end, stream_piece, without_value
from .reads import SLICE_KEYS, PinnedView, look_up

if TYPE_CHECKING:
    from .mvcc import Mvcc

FIRST_KEYS = 10


class RangeCursor:
    """A stream's place in its range.  Made by `Store.open_range`; one thread at a time may use it."""

    __slots__ = (
        "_count_only",
        "_end",
        "_header",
        "_keys_only",
        "_limit",
        "_next",
        "_piece_bytes",
        "_sent",
        "_slice_keys",
        "_total",
        "finished",
        "revision",
    )

    def __init__(
        self, request: rpc_pb2.RangeRequest, revision: int, header: bytes, total: int | None, piece_bytes: int
    ) -> None:
        self._next: bytes = request.key
        self._end = interval_end(request.range_end, request.key)
        self._limit = max(0, int(request.limit))
        self._keys_only = bool(request.keys_only)
        self._count_only = bool(request.count_only)
        self._header = header
        self._total = total
        self._piece_bytes = piece_bytes
        self._slice_keys = FIRST_KEYS
        self._sent = 0
        self.revision = revision
        """What all pieces are read at."""
        self.finished = False
        """Whether the last piece was read."""

    def read(self, mvcc: Mvcc) -> bytes:
        """The next piece, an encoded RangeStreamResponse.  Its revision must be pinned (`Store.start_piece`)."""
        if self._count_only:
            return self._last(mvcc, [], exhausted=False)
        records: list[bytes] = []
        size = 0
        first = not self._sent
        while True:
            asked = self._slice_keys
            taken, taken_bytes, whole, exhausted = self._slice(mvcc, asked, self._piece_bytes - size)
            records += taken
            size += taken_bytes
            self._sent += len(taken)
            if self._sent in (self._limit or -1, self._total):
                return self._last(mvcc, records, exhausted=False)
            if exhausted:
                return self._last(mvcc, records, exhausted=True)
            self._slice_keys = min(2 * asked, SLICE_KEYS) if whole else max(FIRST_KEYS, min(asked, len(records)))
            if not whole or size >= self._piece_bytes or (first and records):
                return stream_piece(b"", records, more=False, total=0)
            time.sleep(0)  # other threads want the interpreter, too

    def _slice(self, mvcc: Mvcc, keys_wanted: int, room_bytes: int) -> tuple[list[bytes], int, bool, bool]:
        """Records of the next keys, as far as there is room (one always fits), and their size; whether that was all of
        them; and whether it was the range's end.
        """
        with mvcc.lock:
            rows = look_up(mvcc, self._next, self._end, self.revision, keys_wanted)
        if self._limit:
            rows = rows.cut(self._limit - self._sent)
        records = rows.filled(mvcc.backend.read_some(rows.missing, room_bytes))
        if self._keys_only:
            records = list(map(without_value, records))
        ends = list(accumulate(map(len, records)))
        kept = min(bisect_left(ends, room_bytes) + 1, len(records))
        whole = kept == len(rows.keys)
        if not whole:
            del records[kept:]
        if kept:
            self._next = rows.keys[kept - 1] + b"\0"
        if whole and rows.last is not None and not self._limit_reached(kept):
            self._next = rows.last + b"\0"
        return records, ends[kept - 1] if kept else 0, whole, whole and rows.last is None

    def _limit_reached(self, more: int) -> bool:
        return 0 < self._limit == self._sent + more

    def _last(self, mvcc: Mvcc, records: list[bytes], *, exhausted: bool) -> bytes:
        """The last piece: with the header, and how many keys the whole range has."""
        self.finished = True
        total = self._total
        if total is None:
            total = self._sent
            if not exhausted:
                total += PinnedView(mvcc, self.revision).count(self._next, self._end, self.revision)
        return stream_piece(self._header, records, more=not self._count_only and self._sent < total, total=total)
