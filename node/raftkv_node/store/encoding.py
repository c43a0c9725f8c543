"""Protobuf by hand, where a message object would cost more than the work around it.

Everything that is stored or sent per key is spelled here byte by byte: the stored record (a `mvccpb.KeyValue`),
response headers, the framing of a repeated field.  All output is canonical (fields in order, defaults left out), so
that members agree on every stored byte and ordinary protobuf parsers read it.

A variable-length integer is assembled from tables of 14 bits at a time: two list lookups instead of a loop per 7 bits.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

_MASK64: Final = (1 << 64) - 1
_LAST: Final = [bytes((n,)) if n < 128 else bytes((n & 127 | 128, n >> 7)) for n in range(1 << 14)]
_MORE: Final = [bytes((n & 127 | 128, n >> 7 | 128)) for n in range(1 << 14)]

RECORD_ID: Final = Struct(">QI")
"""Main revision, then (sub-revision * 2 + tombstone): byte order is revision order."""
RECORD_ID_BYTES: Final = RECORD_ID.size
TOMBSTONE: Final = 1
MAX_SUB_REVISION: Final = (1 << 31) - 1


def varint(number: int) -> bytes:
    """`number` (int64 or uint64) as protobuf's variable-length integer."""
    if 0 <= number < 16384:
        return _LAST[number]
    if number < 0:
        number &= _MASK64
    low = _MORE[number & 16383]
    number >>= 14
    if number < 16384:
        return low + _LAST[number]
    return low + varint(number)


def record_id(main: int, sub: int = 0, tombstone: bool = False) -> bytes:
    """The key of a revision record; orders as (main, sub)."""
    return RECORD_ID.pack(main, sub << 1 | tombstone)


def main_of(rid: bytes) -> int:
    """The main revision of a record id."""
    return int.from_bytes(rid[:8], "big")


def is_tombstone(rid: bytes) -> bool:
    """Whether the record says that its key was deleted."""
    return rid[11] & TOMBSTONE == TOMBSTONE


def record(key: bytes, create: int, mod: int, version: int, *, value: bytes, lease: int) -> bytes:
    """A `mvccpb.KeyValue`."""
    parts = [b"\x0a", varint(len(key)), key, b"\x10", varint(create), b"\x18", varint(mod), b"\x20", varint(version)]
    if value:
        parts += (b"\x2a", varint(len(value)), value)
    if lease:
        parts += (b"\x30", varint(lease))
    return b"".join(parts)


def tombstone_record(key: bytes, mod: int) -> bytes:
    """The `mvccpb.KeyValue` of a deletion: key and revision only, as watchers see it."""
    return b"".join((b"\x0a", varint(len(key)), key, b"\x18", varint(mod)))


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer at `at` and the position behind it; `IndexError` past the end."""
    byte = data[at]
    at += 1
    if byte < 128:
        return byte, at
    number, shift = byte & 127, 7
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7


def record_key(data: bytes) -> bytes:
    """The key of a stored record (its first field)."""
    length = data[1]
    if length < 128:
        return data[2 : 2 + length]
    length, at = read_varint(data, 1)
    return data[at : at + length]


def record_numbers(data: bytes) -> tuple[bytes, int, int, int]:
    """(key, create, mod, version) of a stored record that is no tombstone; `ValueError` when it is something else."""
    try:
        if data[0] != 0x0A:
            raise ValueError("no key")
        length, at = read_varint(data, 1)
        key = data[at : at + length]
        at += length
        if data[at] != 0x10:
            raise ValueError("no create revision")
        create, at = read_varint(data, at + 1)
        if data[at] != 0x18:
            raise ValueError("no modification revision")
        mod, at = read_varint(data, at + 1)
        if data[at] != 0x20:
            raise ValueError("no version")
        version, at = read_varint(data, at + 1)
    except IndexError:
        raise ValueError("cut short") from None
    return key, create, mod, version


def field(tag: bytes, data: bytes) -> bytes:
    """A length-delimited field: one-byte `tag` (number * 8 + 2), length, content."""
    return tag + varint(len(data)) + data


def simple_put(payload: bytes) -> int:
    """End of the key in a PutRequest that is only a key of 1 to 127 bytes and a value of 1 to 2 MiB - 1 bytes; else 0.

    Such a request (nearly all of them) needs no parser: the key is `payload[2:end]`, and from `end + 1` on stand
    the value's length and the value, as they will stand in the record.  Only minimally encoded lengths count, so
    the stored bytes are the canonical ones.  A pure function of the payload: every member decides alike.
    """
    size = len(payload)
    if size < 6 or payload[0] != 0x0A:
        return 0
    end = payload[1] + 2
    if not 2 < end < 130 or end + 2 >= size or payload[end] != 0x12:
        return 0
    length = payload[end + 1]
    if length < 128:
        return end if length and end + 2 + length == size else 0
    high = payload[end + 2]
    if high < 128:
        return end if high and end + 3 + (length & 127 | high << 7) == size else 0
    if end + 3 >= size:
        return 0
    top = payload[end + 3]
    if 0 < top < 128 and end + 4 + (length & 127 | (high & 127) << 7 | top << 14) == size:
        return end
    return 0


class HeaderEncoder:
    """Encodes `ResponseHeader` fields (field 1 of every response) for one member and term.

    Only the revision differs between the responses of a batch, so all around it is made once per term.
    """

    __slots__ = ("_field_heads", "cluster_id", "field_suffix", "member_id", "term")

    def __init__(self, cluster_id: int, member_id: int, term: int) -> None:
        self.cluster_id = cluster_id
        self.member_id = member_id
        self.term = term
        prefix = b""
        if cluster_id:
            prefix += b"\x08" + varint(cluster_id)
        if member_id:
            prefix += b"\x10" + varint(member_id)
        prefix += b"\x18"
        self.field_suffix = b"\x20" + varint(term) if term else b""
        rest = len(prefix) + len(self.field_suffix)
        self._field_heads = [b"\x0a" + varint(rest + n) + prefix for n in range(11)]

    @property
    def field_heads(self) -> list[bytes]:
        """What comes before a revision whose encoding has that many bytes."""
        return self._field_heads

    def field(self, revision: int) -> bytes:
        """The header as field 1 of a response."""
        encoded = varint(revision)
        return self._field_heads[len(encoded)] + encoded + self.field_suffix


def inner_header(revision: int) -> bytes:
    """The header of a response inside a txn's: it carries only the revision."""
    return field(b"\x0a", b"\x18" + varint(revision))
