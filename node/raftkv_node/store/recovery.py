"""Opening: from the backend's bytes to the state that serves.  Contradictions are refused, never repaired.

Never compiled (`docs/architecture.md`): other threads than the turn's spend their time here, too.
"""

from __future__ import annotations

import gc
import struct
from dataclasses import dataclass, field

from .backend import APPLIED, APPLIED_KEY, CONFIGURATION_KEY, REVISION_KEY, REVISIONS, Backend
from .encoding import main_of, record_key, record_numbers
from .errors import StoreCorrupt
from .mvcc import Mvcc


@dataclass(slots=True)
class Recovered:
    """What stood in the backend beside the key space."""

    applied_index: int = 0
    applied_term: int = 0
    configuration: bytes = b""
    configuration_index: int = 0
    members: dict[int, bytes] = field(default_factory=dict)


def recover(backend: Backend, mvcc: Mvcc) -> Recovered:
    """Fills an empty `mvcc` from the backend.  `StoreCorrupt` when the bytes contradict themselves."""
    found = Recovered()
    try:
        meta = backend.load_meta()
        if APPLIED_KEY in meta:
            found.applied_index, found.applied_term = APPLIED.unpack(meta[APPLIED_KEY])
            backend.committed_index = found.applied_index
        if CONFIGURATION_KEY in meta:
            stored = meta[CONFIGURATION_KEY]
            found.configuration_index = int.from_bytes(stored[:8], "big")
            found.configuration = stored[8:]
        if REVISION_KEY in meta:
            mvcc.revision, mvcc.compact_revision = REVISIONS.unpack(meta[REVISION_KEY])
        found.members = backend.load_members()
    except struct.error as error:
        raise StoreCorrupt(f"the backend's meta data cannot be read: {error}") from error
    collecting = gc.isenabled()
    gc.disable()  # A million new entries, none of them garbage.
    try:
        newest = _load_records(backend, mvcc)
    finally:
        if collecting:
            gc.enable()
    if newest > mvcc.revision:
        raise StoreCorrupt(f"the backend holds revision {newest}, but its newest one should be {mvcc.revision}")
    mvcc.evict()
    return found


def _load_records(backend: Backend, mvcc: Mvcc) -> int:
    """Rebuilds the index with one scan; the newest main revision found."""
    index, warm = mvcc.index, mvcc.warm
    rid = b""
    try:
        with backend.all_records() as records:
            for count, (rid, data) in enumerate(records):
                if rid[11] & 1:
                    key = record_key(data)
                    index.restore(key, rid, 0, 0)
                    warm(key, None)
                else:
                    key, create, mod, version = record_numbers(data)
                    if mod != main_of(rid) or not version:
                        raise ValueError("revision and content differ")
                    index.restore(key, rid, create, version)
                    warm(key, data)
                if not count & 0xFFF:
                    mvcc.evict()
    except (ValueError, IndexError) as error:
        raise StoreCorrupt(f"the backend's record {rid.hex()} cannot be read: {error}") from error
    # Here and in `keyorder`, not in a compiled module: a snapshot's index is built beside the turn.
    index.live.build(key for key, entry in index.entries.items() if entry[2])
    index.dead.build(key for key, entry in index.entries.items() if not entry[2])
    return main_of(rid) if rid else 0
