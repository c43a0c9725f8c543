"""The ring's file: where it lies, and its header (docs/formats/adr-ring.md, rule D7)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from raftkv_node._engine import RingImage, crc32c

HEADER_PAGE_BYTES = 4096
DATA_OFFSET_BYTES = 2 * HEADER_PAGE_BYTES
HEADER_COPIES = 2
#: Far more than any ring has: a header that says more is damaged, whatever its checksum says.
SIZE_LIMIT_BYTES = 1 << 30
#: No LSN, generation or sequence number gets so far: sums with sizes stay in 64 bits.
LSN_LIMIT = GENERATION_LIMIT = SEQUENCE_LIMIT = 1 << 62
RING_VERSION = 1
RING_SUFFIX = ".ring"

_MAGIC = b"RAFTKVRB"
#: magic, version, crc32c, sequence, cluster, member, number, ring uuid, disk uuid, size, generation, start and
#: reclaimed LSN, unsafe shutdowns (-1: not counted), clean, then level, boot id, host and file system as zero-padded
#: text.
_LAYOUT = struct.Struct("<8sIIQQQQ16s16sQQQQqQ16s40s256s128s")
_CRC_AT = 12
#: Positions of fields behind the checksum.
_UNSAFE, _FIRST_TEXT = 10, 12


@dataclass(frozen=True, slots=True)
class RingHeader:
    """One header copy."""

    sequence: int
    cluster_id: int
    member_id: int
    number: int
    uuid: bytes
    disk_uuid: bytes
    size_bytes: int
    generation: int
    start_lsn: int
    reclaimed_lsn: int
    unsafe_shutdowns: int | None
    clean: bool
    level: str
    boot_id: str
    host: str
    file_system: str

    def encode(self) -> bytes:
        """The header's bytes, checksummed."""
        packed = bytearray(
            _LAYOUT.pack(
                _MAGIC,
                RING_VERSION,
                0,
                self.sequence,
                self.cluster_id,
                self.member_id,
                self.number,
                self.uuid,
                self.disk_uuid,
                self.size_bytes,
                self.generation,
                self.start_lsn,
                self.reclaimed_lsn,
                -1 if self.unsafe_shutdowns is None else self.unsafe_shutdowns,
                int(self.clean),
                self.level.encode(),
                self.boot_id.encode(),
                self.host.encode(),
                self.file_system.encode(),
            )
        )
        struct.pack_into("<I", packed, _CRC_AT, crc32c(bytes(packed)))
        return bytes(packed)


def decode_header(data: bytes) -> RingHeader | None:
    """The header in `data`, None if it is not whole, not of a known version, or has values that no ring has."""
    if len(data) < _LAYOUT.size:
        return None
    packed = bytearray(data[: _LAYOUT.size])
    (crc,) = struct.unpack_from("<I", packed, _CRC_AT)
    struct.pack_into("<I", packed, _CRC_AT, 0)
    if crc != crc32c(bytes(packed)):
        return None
    magic, version, _, *fields = _LAYOUT.unpack(packed)
    if magic != _MAGIC or version != RING_VERSION:
        return None
    values = [
        field.rstrip(b"\0").decode(errors="replace") if position >= _FIRST_TEXT else field
        for position, field in enumerate(fields)
    ]
    found = RingHeader(*values)
    if not DATA_OFFSET_BYTES < found.size_bytes <= SIZE_LIMIT_BYTES or found.size_bytes % 64:
        return None
    if max(found.start_lsn, found.reclaimed_lsn) >= LSN_LIMIT:
        return None
    if found.generation >= GENERATION_LIMIT or found.sequence >= SEQUENCE_LIMIT:
        return None
    return dataclasses.replace(
        found, unsafe_shutdowns=None if fields[_UNSAFE] < 0 else fields[_UNSAFE], clean=bool(found.clean)
    )


@dataclass(frozen=True, slots=True)
class RingSeen:
    """A ring file that was found, by its valid header with the higher sequence number, and its size on disk."""

    path: Path
    header: RingHeader
    file_size_bytes: int

    def damage(self, size_bytes: int) -> str | None:
        """Why it is not the ring of `size_bytes` that the manifest made, None if it is: with another size every record
        would be looked for in another place."""
        if self.header.size_bytes != size_bytes:
            return f"its header says {self.header.size_bytes} bytes, the manifest {size_bytes}"
        if self.file_size_bytes != size_bytes:
            return f"the file has {self.file_size_bytes} of {size_bytes} bytes"
        return None

    def load(self) -> RingImage:
        """Its data area, read back; held in memory whole. Only where there is no `damage`."""
        return RingImage.load(self.path, self.header.size_bytes - DATA_OFFSET_BYTES)


def read_headers(path: Path) -> list[RingHeader]:
    """The valid header copies of a file, the one that counts first. An unreadable copy is none."""
    found = []
    with path.open("rb", buffering=0) as file:
        for copy in range(HEADER_COPIES):
            with contextlib.suppress(OSError):
                header = decode_header(os.pread(file.fileno(), _LAYOUT.size, copy * HEADER_PAGE_BYTES))
                if header is not None:
                    found.append(header)
    return sorted(found, key=lambda header: -header.sequence)


def ring_folder(adr_path: Path, cluster_id: int, number: int) -> Path:
    """Where a member's rings lie (D11): by Raft's cluster id, so that a cluster object made again finds them."""
    return adr_path / f"{cluster_id:016x}" / str(number)


def ring_files(folder: Path) -> list[Path]:
    """The ring files in a member's folder, valid or not."""
    return sorted(folder.glob("*" + RING_SUFFIX)) if folder.is_dir() else []


def find_rings(folder: Path) -> list[RingSeen]:
    """The rings in a member's folder. A file without a valid header is no ring."""
    seen = []
    for path in ring_files(folder):
        headers = read_headers(path)
        if headers:
            seen.append(RingSeen(path, headers[0], path.stat().st_size))
    return seen


def is_blank(path: Path) -> bool:
    """Whether both header copies are zero: a file that was being made when its node stopped."""
    try:
        with path.open("rb") as file:
            return not any(file.read(DATA_OFFSET_BYTES))
    except OSError:
        return False
