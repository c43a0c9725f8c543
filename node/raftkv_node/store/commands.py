"""The command batch: what one entry of the replicated log holds.

All requests that a member proposes in one turn travel as one entry.  The layout lets a member take the tables apart
with one operation each; what a request says stays opaque until it is applied::

    version u8 = 1 | origin member id u64 | first sequence u64 | count u32       (big-endian)
    kinds     count * u8
    lengths   count * u32                                                        (big-endian)
    payloads  back to back: the serialised protobuf requests, as the client sent them

The requests of a batch are numbered from `first_seq` by their origin, which finds its waiting callers by it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, final

from mypy_extensions import mypyc_attr

from .errors import CommandError, UnknownCommand

VERSION: Final = 1

PUT: Final = 1
DELETE_RANGE: Final = 2
TXN: Final = 3
COMPACT: Final = 4
MEMBER_ATTRIBUTES: Final = 5
"""Payload: an `etcdserverpb.Member` with ID, name and clientURLs."""

# Numbers kept free for what is to come: 16 to 31 leases, 32 to 63 authentication, 64 to 79 alarms and versions.
_KNOWN: Final = bytes((PUT, DELETE_RANGE, TXN, COMPACT, MEMBER_ATTRIBUTES))

_HEADER: Final = struct.Struct(">BQQI")
_HEADER_BYTES: Final = _HEADER.size
_LENGTH: Final = struct.Struct(">I")
_HEADER_OF_ONE: Final = struct.Struct(">BQQIBI")
"""Header and tables of a batch of one request, as a lone client's."""
MAX_BATCH_REQUESTS: Final = 1 << 20
"""More requests in a batch are refused by encoder and decoder."""


@final
@mypyc_attr(acyclic=True)
class Batch:
    """A decoded command batch.  `kinds[i]` says what `payloads[i]` is."""

    __slots__ = ("first_seq", "kinds", "origin", "payloads")

    def __init__(self, origin: int, first_seq: int, kinds: bytes, payloads: list[bytes]) -> None:
        self.origin: Final = origin
        self.first_seq: Final = first_seq
        self.kinds: Final = kinds
        self.payloads: Final = payloads


def encode_batch(origin: int, first_seq: int, kinds: bytes | Sequence[int], payloads: Sequence[bytes]) -> bytes:
    """The bytes of a batch.  `CommandError` when the tables differ in length or are too long."""
    count = len(payloads)
    if len(kinds) != count or count > MAX_BATCH_REQUESTS:
        raise CommandError(f"a command batch of {len(kinds)} kinds and {count} payloads")
    try:
        if count == 1:
            return _HEADER_OF_ONE.pack(VERSION, origin, first_seq, 1, kinds[0], len(payloads[0])) + payloads[0]
        return b"".join(
            (
                _HEADER.pack(VERSION, origin, first_seq, count),
                bytes(kinds),
                struct.pack(f">{count}I", *map(len, payloads)),
                *payloads,
            )
        )
    except (struct.error, ValueError) as error:
        raise CommandError(f"a command batch that cannot be encoded: {error}") from None


def origin_of(data: bytes) -> tuple[int, int]:
    """(origin, first sequence) of a batch, without taking it apart.  `UnknownCommand`: not of this version."""
    if len(data) < _HEADER_BYTES or data[0] != VERSION:
        raise UnknownCommand(f"a command batch of version {data[:1].hex()}; this node knows version {VERSION}")
    header = _HEADER.unpack_from(data)
    return header[1], header[2]


def decode_batch(data: bytes) -> Batch:
    """Takes a batch apart.  `CommandError` when the bytes are not one, to the last byte."""
    if len(data) < _HEADER_BYTES:
        raise CommandError(f"a command batch of {len(data)} bytes is shorter than its header")
    header = _HEADER.unpack_from(data)
    version: int = header[0]
    count: int = header[3]
    if version != VERSION:
        raise UnknownCommand(f"command batch of version {version}; this node knows version {VERSION}")
    end = _HEADER_BYTES + count * 5
    if count > MAX_BATCH_REQUESTS or len(data) < end:
        raise CommandError(f"a command batch of {len(data)} bytes cannot hold the tables of {count} requests")
    kinds = data[_HEADER_BYTES : _HEADER_BYTES + count]
    payloads: list[bytes] = []
    lengths: tuple[int, ...]
    if count == 1:
        lengths = _LENGTH.unpack_from(data, _HEADER_BYTES + 1)
    else:
        lengths = struct.unpack_from(f">{count}I", data, _HEADER_BYTES + count)
    for length in lengths:
        start = end
        end += length
        payloads.append(data[start:end])
    if end != len(data):
        raise CommandError(f"a command batch of {len(data)} bytes whose tables say {end}")
    return Batch(header[1], header[2], kinds, payloads)


def check_known(kinds: bytes) -> None:
    """`UnknownCommand` when a kind is of a newer version: before the batch has any effect."""
    unknown = kinds.translate(None, _KNOWN)
    if unknown:
        raise UnknownCommand(
            f"command of kind {unknown[0]}, which this version does not know: the node must be upgraded"
        )
