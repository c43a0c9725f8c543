"""RangeStream: a range of any size, read in pieces at one revision.

A piece is read by a worker, like any cold read, and between two pieces nothing is held: no revision is pinned, no
transaction is open, however slowly the client takes what it gets.  When the history that a stream reads is compacted in
the meantime, the next piece answers so, as etcd's does.

A piece ends where its records have `piece_bytes`; so it is never larger than that and one record.  The first has ten
keys at most, as etcd's, so that the client has something to do.  Merged, the pieces are the RangeResponse that Range
would have given: header, `more` and `count` come with the last.

Never compiled (`docs/architecture.md`): other threads than the turn's spend their time here, too.
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
READ_PER_PIECE = 8
"""After so many times a piece's size was read for it, it ends, where only the keys are sent of large records."""


class RangeCursor:
    """A stream's place in its range.  Made by `Store.open_range`; one thread at a time may use it."""

    __slots__ = (
        "_count_only",
        "_end",
        "_header",
        "_keys_only",
        "_limit",
        "_next",
        "_sent",
        "_slice_keys",
        "_total",
        "finished",
        "revision",
    )

    def __init__(self, request: rpc_pb2.RangeRequest, revision: int, header: bytes, total: int | None) -> None:
        self._next: bytes = request.key
        self._end = interval_end(request.range_end, request.key)
        self._limit = max(0, int(request.limit))
        self._keys_only = bool(request.keys_only)
        self._count_only = bool(request.count_only)
        self._header = header
        self._total = total
        self._slice_keys = FIRST_KEYS
        self._sent = 0
        self.revision = revision
        """What all pieces are read at."""
        self.finished = False
        """Whether the last piece was read."""

    def read(self, mvcc: Mvcc, piece_bytes: int) -> bytes:
        """The next piece, an encoded RangeStreamResponse.  `revision` must be pinned (`Store.start_piece`)."""
        if self._count_only:
            return self._last(mvcc, [], exhausted=False)
        records: list[bytes] = []
        size_bytes = read_bytes = 0
        first = not self._sent
        while True:
            most = FIRST_KEYS if first else 0
            taken, taken_bytes, exhausted = self._slice(mvcc, most, piece_bytes - size_bytes)
            read_bytes += taken_bytes
            if self._keys_only:
                taken = list(map(without_value, taken))
                taken_bytes = sum(map(len, taken))
            records += taken
            size_bytes += taken_bytes
            self._sent += len(taken)
            if exhausted or self._sent in (self._limit or -1, self._total):
                return self._last(mvcc, records, exhausted=exhausted)
            if size_bytes >= piece_bytes or read_bytes >= READ_PER_PIECE * piece_bytes or (first and records):
                return stream_piece(b"", records, more=False, total=0)
            time.sleep(0)  # other threads want the interpreter, too

    def _slice(self, mvcc: Mvcc, most: int, room_bytes: int) -> tuple[list[bytes], int, bool]:
        """Records of the next keys, `most` at most if that is not 0, as far as there is room (one always fits), their
        size, and whether that was the range's end.
        """
        asked = self._slice_keys
        with mvcc.lock:
            rows = look_up(mvcc, self._next, self._end, self.revision, asked)
        if self._limit:
            most = min(most or self._limit, self._limit - self._sent)
        if most:
            rows = rows.cut(most)
        records = rows.filled(mvcc.backend.read_some(rows.missing, room_bytes))
        ends = list(accumulate(map(len, records)))
        kept = min(bisect_left(ends, room_bytes) + 1, len(records))
        del records[kept:]
        whole = kept == len(rows.keys)
        self._slice_keys = min(2 * asked, SLICE_KEYS) if whole else max(FIRST_KEYS, min(asked, kept))
        reached = rows.last if whole else rows.keys[kept - 1]
        if reached is not None:
            self._next = reached + b"\0"
        return records, ends[kept - 1] if kept else 0, reached is None

    def _last(self, mvcc: Mvcc, records: list[bytes], *, exhausted: bool) -> bytes:
        """The last piece: with the header, and how many keys the whole range has."""
        self.finished = True
        total = self._total
        if total is None:
            total = self._sent
            if not exhausted:
                total += PinnedView(mvcc, self.revision).count(self._next, self._end, self.revision)
        return stream_piece(self._header, records, more=not self._count_only and self._sent < total, total=total)
