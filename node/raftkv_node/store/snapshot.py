"""A snapshot of the backend as a stream of bytes: made from one consistent view, checked while it is taken in.

`SnapshotSource` holds an LMDB read transaction, which is the state of exactly one synced commit, and gives the stream
piece by piece, in any thread but one at a time.  What is applied and not committed yet is not in it, and need not be:
the log has it, and the stream names the applied index that it stands at.  The transaction keeps the pages it sees from
being used again, so a source must not live for ever.

`SnapshotSink` takes the stream in any cut, checks it, and writes it to an LMDB environment of its own; nothing else is
touched, and memory is bounded by `SINK_BYTES`, a record and a piece.  `docs/formats/snapshot.md` has the bytes.

Never compiled (`docs/architecture.md`): other threads than the turn's spend their time here, too.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from raftkv_node._engine import crc32c
from raftkv_node.raft import Configuration, ConfigurationError, Snapshot

from .backend import APPLIED, APPLIED_KEY, CONFIGURATION_KEY, SNAPSHOT_KEY, VERSION, VERSION_KEY, Backend
from .backend import FORMAT_VERSION as BACKEND_VERSION
from .errors import StoreCorrupt

MAGIC = b"RAFTKVSN"
FORMAT_VERSION = 1
HEADER = struct.Struct(">8sIIQQQQI")
"""Magic, version, backend version, cluster id, index, term, configuration's index, configuration's length."""
CHECK = struct.Struct(">I")
RECORD = struct.Struct(">BHI")
"""Database, length of the key, length of the value."""
END = struct.Struct(">BQ")
"""0, number of records; the digest follows."""
DIGEST_BYTES = 32
META = 1
DATABASES = ((META, b"meta"), (2, b"members"), (3, b"revisions"))
"""Databases of the backend by number, in the order of the stream."""
MAX_CONFIGURATION_BYTES = 16 << 20
MAX_RECORD_BYTES = 256 << 20
"""No record of a backend is larger: the log buffer holds at most 100 MiB."""
PIECE_BYTES = 64 << 10
"""The source gathers records up to this before it hashes and hands them on."""
SINK_BYTES = 4 << 20
"""The sink writes a transaction when it holds so much."""


class SnapshotInvalid(StoreCorrupt):
    """Bytes are not a snapshot of this format, or not whole."""


class SnapshotHead(NamedTuple):
    """What a snapshot says of itself."""

    cluster_id: int
    snapshot: Snapshot
    configuration: bytes
    """The configuration as it stands in the stream."""


class SnapshotSource:
    """See the module's text."""

    def __init__(self, backend: Backend, cluster_id: int, founding: bytes) -> None:
        """`founding`: the encoded configuration where no configuration entry was applied yet."""
        self.size_bytes = backend.size_in_use_bytes
        """About how many bytes the stream will have."""
        self._txn: lmdb.Transaction | None = backend.env.begin()
        self._buffer = bytearray()
        try:
            databases = {b"meta": backend.meta, b"members": backend.members, b"revisions": backend.revisions}
            meta = dict(self._txn.cursor(backend.meta))
            self.index, self.term = APPLIED.unpack(meta[APPLIED_KEY]) if APPLIED_KEY in meta else (0, 0)
            stored = meta.get(CONFIGURATION_KEY, bytes(8) + founding)
            head = HEADER.pack(
                MAGIC,
                FORMAT_VERSION,
                BACKEND_VERSION,
                cluster_id,
                self.index,
                self.term,
                int.from_bytes(stored[:8], "big"),
                len(stored) - 8,
            )
            head += stored[8:]
            head += CHECK.pack(crc32c(head))
            cursors = [(number, self._txn.cursor(databases[name])) for number, name in DATABASES]
            self._pieces: Iterator[bytes] | None = _pieces(head, cursors)
        except BaseException:
            self.close()
            raise

    def read(self, max_bytes: int) -> bytes:
        """The next bytes of the stream, at most `max_bytes`; empty at its end.  `lmdb.Error`: it is unreadable."""
        buffer = self._buffer
        while len(buffer) < max_bytes and self._pieces is not None:
            piece = next(self._pieces, None)
            if piece is None:
                self._release()
            else:
                buffer += piece
        data = bytes(buffer[:max_bytes])
        del buffer[:max_bytes]
        return data

    @property
    def done(self) -> bool:
        """Whether all of the stream was given."""
        return self._pieces is None and not self._buffer

    def close(self) -> None:
        """Gives it up.  May be called more than once, but not while another thread reads."""
        self._buffer.clear()
        self._release()

    def _release(self) -> None:
        """Lets LMDB use the pages again."""
        self._pieces = None
        if self._txn is not None:
            txn, self._txn = self._txn, None
            txn.abort()


def _pieces(head: bytes, cursors: Sequence[tuple[int, Any]]) -> Iterator[bytes]:
    """The stream in pieces of about `PIECE_BYTES`."""
    digest = hashlib.sha256()
    pack = RECORD.pack
    parts, size, records = [head], len(head), 0
    for number, cursor in cursors:
        for key, value in cursor:
            parts += (pack(number, len(key), len(value)), key, value)
            size += RECORD.size + len(key) + len(value)
            records += 1
            if size >= PIECE_BYTES:
                data = b"".join(parts)
                digest.update(data)
                yield data
                parts, size = [], 0
    parts.append(END.pack(0, records))
    data = b"".join(parts)
    digest.update(data)
    yield data + digest.digest()


class SnapshotSink:
    """See the module's text.  One thread at a time."""

    def __init__(self, folder: Path, cluster_id: int, map_bytes: int) -> None:
        """Makes the folder, in place of one that is there.  `map_bytes`: the address space of the environment."""
        self.folder = folder
        self.head: SnapshotHead | None = None
        self.complete = False
        """Whether all was taken in, and whole.  Durable is it after `finish`."""
        self.bytes = 0
        self._cluster_id = cluster_id
        self._digest = hashlib.sha256()
        self._buffer = bytearray()
        self._records = 0
        self._held: dict[int, list[tuple[bytes, bytes]]] = {number: [] for number, _ in DATABASES}
        self._held_bytes = 0
        self._last = (0, b"")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        self._env: lmdb.Environment | None = lmdb.open(
            str(folder), map_size=map_bytes, max_dbs=8, mode=0o600, readahead=False
        )
        self._databases = {number: self._env.open_db(name) for number, name in DATABASES}

    def feed(self, data: bytes) -> None:
        """Takes the next bytes.  `SnapshotInvalid`, or `lmdb.Error` and `OSError` of the disk: give it up."""
        if self.complete:
            raise SnapshotInvalid("bytes follow the end of the snapshot")
        self.bytes += len(data)
        self._buffer += data
        offset = 0
        if self.head is None:
            offset = self._take_head()
            if self.head is None:
                return
        offset = self._take_records(offset)
        self._digest.update(memoryview(self._buffer)[:offset])
        del self._buffer[:offset]
        if self._buffer[:1] == b"\0" and len(self._buffer) >= END.size + DIGEST_BYTES:
            self._take_end()
        if self._held_bytes >= SINK_BYTES or self.complete:
            self._write()

    def _take_head(self) -> int:
        """Parses the head once it is whole; returns where it ends."""
        buffer = self._buffer
        if len(buffer) < HEADER.size:
            return 0
        magic, version, backend, cluster_id, index, term, at, length = HEADER.unpack_from(buffer)
        if magic != MAGIC:
            raise SnapshotInvalid("this is no snapshot")
        if version != FORMAT_VERSION or backend != BACKEND_VERSION:
            raise SnapshotInvalid(
                f"a snapshot of version {version} with a backend of version {backend}; "
                f"this node reads {FORMAT_VERSION} and {BACKEND_VERSION}"
            )
        if length > MAX_CONFIGURATION_BYTES:
            raise SnapshotInvalid(f"a configuration of {length} bytes")
        end = HEADER.size + length
        if len(buffer) < end + CHECK.size:
            return 0
        head = bytes(buffer[:end])
        if CHECK.unpack_from(buffer, end)[0] != crc32c(head):
            raise SnapshotInvalid("the snapshot's head has another checksum")
        if cluster_id != self._cluster_id:
            raise SnapshotInvalid(f"a snapshot of cluster {cluster_id:x}, not of {self._cluster_id:x}")
        try:
            configuration = Configuration.decode(head[HEADER.size :])
        except ConfigurationError as error:
            raise SnapshotInvalid(f"the snapshot's configuration: {error}") from error
        self.head = SnapshotHead(cluster_id, Snapshot(index, term, at, configuration), head[HEADER.size :])
        return HEADER.size + int(length) + CHECK.size

    def _take_records(self, offset: int) -> int:
        """Parses all whole records from `offset` on; returns where the rest begins."""
        buffer, held = self._buffer, self._held
        unpack = RECORD.unpack_from
        end = len(buffer)
        last_number, last_key = self._last
        while end - offset >= RECORD.size and buffer[offset]:
            number, key_bytes, value_bytes = unpack(buffer, offset)
            if number not in held or value_bytes > MAX_RECORD_BYTES:
                raise SnapshotInvalid(f"a record for database {number} with {value_bytes} bytes")
            key_at = offset + RECORD.size
            value_at = key_at + key_bytes
            if end - value_at < value_bytes:
                break
            key = bytes(buffer[key_at:value_at])
            if (number, key) <= (last_number, last_key):
                raise SnapshotInvalid(f"record {key.hex()} is out of order")
            offset = value_at + value_bytes
            held[number].append((key, bytes(buffer[value_at:offset])))
            self._held_bytes += RECORD.size + key_bytes + value_bytes
            self._records += 1
            last_number, last_key = number, key
        self._last = last_number, last_key
        return offset

    def _take_end(self) -> None:
        _, records = END.unpack_from(self._buffer)
        self._digest.update(self._buffer[: END.size])
        found = bytes(self._buffer[END.size : END.size + DIGEST_BYTES])
        if records != self._records or found != self._digest.digest():
            raise SnapshotInvalid("the snapshot's digest does not match")
        if len(self._buffer) > END.size + DIGEST_BYTES:
            raise SnapshotInvalid("bytes follow the end of the snapshot")
        self.complete = True

    def _write(self) -> None:
        """One synced transaction (D13) with what is held."""
        assert self._env is not None
        with self._env.begin(write=True) as txn:
            for number, items in self._held.items():
                if items:
                    consumed, _ = txn.cursor(self._databases[number]).putmulti(items, append=True)
                    if consumed != len(items):
                        raise SnapshotInvalid(f"LMDB took {consumed} of {len(items)} records")
                    items.clear()
        self._held_bytes = 0

    def finish(self) -> Snapshot:
        """Checks that the state is what the head says, makes it whole and durable, and closes it.

        `SnapshotInvalid` when it contradicts itself.
        """
        assert self._env is not None and self.head is not None and self.complete
        snapshot = self.head.snapshot
        meta = self._databases[META]
        with self._env.begin(write=True) as txn:
            if txn.get(VERSION_KEY, db=meta) != VERSION.pack(BACKEND_VERSION):
                raise SnapshotInvalid("the snapshot's backend has another version")
            if txn.get(APPLIED_KEY, db=meta) != APPLIED.pack(snapshot.index, snapshot.term):
                raise SnapshotInvalid("the snapshot's backend is at another index than its head says")
            txn.put(
                CONFIGURATION_KEY, snapshot.configuration_index.to_bytes(8, "big") + self.head.configuration, db=meta
            )
            txn.put(SNAPSHOT_KEY, APPLIED.pack(snapshot.index, snapshot.term), db=meta)
        self._env.sync(True)
        self.close()
        return snapshot

    def close(self) -> None:
        """Closes the environment.  May be called more than once."""
        if self._env is not None:
            env, self._env = self._env, None
            env.close()
