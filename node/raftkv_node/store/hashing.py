"""HashKV: a checksum over what a member holds, equal on all members.

It covers the records up to a revision, in revision order, without those that the compaction made unreachable.
Whether a member has already purged those does not matter: each record below the compact revision is held against
the index. Only agreement between members is required of the sum, so it is a CRC-32 of record ids and records.

Never compiled (`docs/architecture.md`): other threads than the turn's spend their time here, too.
"""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING

from .encoding import main_of, record_id, record_key, varint

if TYPE_CHECKING:
    from .mvcc import Mvcc

SLICE_RECORDS = 500


def hash_records(mvcc: Mvcc, header: bytes, revision: int, compacted: int) -> bytes:
    """An encoded HashKVResponse for records up to `revision`, seen from the compact revision `compacted`.

    Runs on a worker, `SLICE_RECORDS` at a time, while `compacted` is pinned.
    """
    crc = 0
    start, end = record_id(0), record_id(revision + 1)
    while True:
        records = mvcc.backend.scan(start, end, SLICE_RECORDS)
        if not records:
            break
        start = records[-1][0] + b"\0"
        if main_of(records[0][0]) <= compacted:
            with mvcc.lock:
                kept_at = mvcc.index.kept_at
                records = [
                    (rid, data)
                    for rid, data in records
                    if main_of(rid) > compacted or kept_at(record_key(data), compacted) == rid
                ]
        crc = zlib.crc32(b"".join([part for item in records for part in item]), crc)
        time.sleep(0)
    parts = [header]
    if crc:
        parts.append(b"\x10" + varint(crc))
    if compacted:
        parts.append(b"\x18" + varint(compacted))
    parts.append(b"\x20" + varint(revision))
    return b"".join(parts)
