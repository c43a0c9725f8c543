"""Messages between members, and their bytes.

One message type carries every field; the table in `docs/raft.md` says what each type uses them for. The encoding is a
fixed header followed by opaque data and the entries, little-endian, with a version (D16). Decoding checks every length
and relation before it trusts it and raises `MessageError` only.

The entries of an append are an `EntryBlock`: several peers mostly get the same range, so its bytes are made once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from .errors import MessageError
from .types import Entry, EntryType

MESSAGE_VERSION = 1


class MessageType(IntEnum):
    """Message types. The numbers travel: append, never renumber."""

    PRE_VOTE = 1
    PRE_VOTE_RESPONSE = 2
    VOTE = 3
    VOTE_RESPONSE = 4
    APPEND = 5
    APPEND_RESPONSE = 6
    HEARTBEAT = 7
    HEARTBEAT_RESPONSE = 8
    TIMEOUT_NOW = 9
    READ_INDEX = 10
    READ_INDEX_RESPONSE = 11
    PROPOSE = 12
    PROPOSE_REJECTED = 13
    SNAPSHOT = 14
    SNAPSHOT_RESPONSE = 15


class Flag(IntEnum):
    """Bits of `Message.flags`."""

    REJECT = 1
    """A response says no."""
    QUIET = 2
    """An append that only carries the commit index: success needs no answer, a gap does."""
    FORCE = 4
    """A vote request of a leadership transfer: the receiver's leader knows, so the lease does not count."""
    EAGER = 8
    """An acknowledgement of a member at which somebody waits for what is committed."""


_KNOWN_FLAGS = Flag.REJECT | Flag.QUIET | Flag.FORCE | Flag.EAGER


class EntryBlock:
    """A contiguous run of entries, and their encoding, made at the first need and shared by all that send it."""

    __slots__ = ("_encoded", "items", "size_bytes")

    def __init__(self, items: Sequence[Entry] = ()) -> None:
        self.items = tuple(items)
        self.size_bytes = sum(entry.size_bytes for entry in self.items)
        self._encoded: bytes | None = None

    @property
    def encoded(self) -> bytes:
        """The entries' bytes: for each a header (term, type, length) and its data; indexes follow from the message."""
        if self._encoded is None:
            parts: list[bytes] = []
            for entry in self.items:
                parts.append(_ENTRY.pack(entry.term, entry.type, len(entry.data)))
                parts.append(entry.data)
            self._encoded = b"".join(parts)
        return self._encoded

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EntryBlock) and self.items == other.items

    def __hash__(self) -> int:
        return hash(self.items)

    def __repr__(self) -> str:
        return f"EntryBlock({list(self.items)!r})"


NO_ENTRIES = EntryBlock()


class Message(NamedTuple):
    """A message. `term` is the sender's term (for pre-votes the term it would campaign in).

    `index`, `log_term`: an append's previous entry, a vote request's last entry, an acknowledged or rejected index.
    `match`: M15 in appends and heartbeats; the hint of a rejected append. `sequence`: number of a read round, a read,
    or a forwarded proposal (`log_term` is then the sender's incarnation).
    `reason`: a `ProposalReason`. `data`: a forwarded proposal, or a piece of a snapshot (`index`, `log_term`: the last
    entry in it; `sequence`: the transfer). `context`: the caller's: for a rejection, or where the piece belongs.
    """

    type: int
    sender: int
    to: int
    term: int
    index: int = 0  # type: ignore[assignment]  # the field hides tuple.index
    log_term: int = 0
    commit: int = 0
    match: int = 0
    sequence: int = 0
    flags: int = 0
    reason: int = 0
    context: bytes = b""
    data: bytes = b""
    entries: EntryBlock = NO_ENTRIES

    @property
    def reject(self) -> bool:
        """Whether the response says no."""
        return bool(self.flags & Flag.REJECT)


_HEADER = struct.Struct("<BBBBQQQQQQQQIII")
_ENTRY = struct.Struct("<QBI")
_TYPES = frozenset(int(known) for known in MessageType)
_ENTRY_TYPES = frozenset(int(known) for known in EntryType)
_MAX_INDEX = (1 << 64) - 1


def encode_message(message: Message) -> bytes:
    """Return the message's bytes: header (version, type, flags, reason, eight 64-bit fields, three lengths), context,
    data, entries."""
    entries = message.entries
    header = _HEADER.pack(
        MESSAGE_VERSION,
        message.type,
        message.flags,
        message.reason,
        message.sender,
        message.to,
        message.term,
        message.index,
        message.log_term,
        message.commit,
        message.match,
        message.sequence,
        len(message.context),
        len(message.data),
        len(entries.items),
    )
    if entries.items:
        return b"".join((header, message.context, message.data, entries.encoded))
    return b"".join((header, message.context, message.data)) if message.context or message.data else header


def decode_message(data: bytes) -> Message:
    """Parse what `encode_message` gave. Raises `MessageError` for any other bytes."""
    if len(data) < _HEADER.size:
        raise MessageError("message is shorter than its header")
    (version, kind, flags, reason, sender, to, term, index, log_term, commit, match, sequence, *lengths) = (
        _HEADER.unpack_from(data)
    )
    if version != MESSAGE_VERSION:
        raise MessageError(f"message version {version} is not known (newest: {MESSAGE_VERSION})")
    if kind not in _TYPES or flags & ~_KNOWN_FLAGS:
        raise MessageError(f"message type {kind} with flags {flags:#x} is not known")
    if not sender or not to:
        raise MessageError("message from or to nobody")
    context_bytes, data_bytes, entry_count = lengths
    context_end = _HEADER.size + context_bytes
    offset = context_end + data_bytes
    if offset > len(data):
        raise MessageError("message ends early")
    if entry_count and kind != MessageType.APPEND:
        raise MessageError("only an append carries entries")
    block, end = (
        _decode_entries(data, offset, entry_count, index, log_term, term) if entry_count else (NO_ENTRIES, offset)
    )
    if end != len(data):
        raise MessageError("bytes follow the message")
    return Message(
        kind,
        sender,
        to,
        term,
        index,
        log_term,
        commit,
        match,
        sequence,
        flags,
        reason,
        data[_HEADER.size : context_end],
        data[context_end:offset],
        block,
    )


def _decode_entries(
    data: bytes, offset: int, count: int, index: int, previous_term: int, term: int
) -> tuple[EntryBlock, int]:
    """Parse `count` entries that follow (index, previous_term) and were sent in `term`."""
    if count * _ENTRY.size > len(data) - offset or index + count > _MAX_INDEX:
        raise MessageError("message ends early")
    entries: list[Entry] = []
    for _ in range(count):
        if offset + _ENTRY.size > len(data):
            raise MessageError("message ends early")
        entry_term, kind, length = _ENTRY.unpack_from(data, offset)
        offset += _ENTRY.size
        end = offset + length
        if end > len(data):
            raise MessageError("message ends early")
        if not previous_term <= entry_term <= term:
            raise MessageError("terms of entries decrease or exceed the message's")
        if kind not in _ENTRY_TYPES:
            raise MessageError(f"entry type {kind} is not known")
        index += 1
        entries.append(Entry(entry_term, index, kind, data[offset:end]))
        previous_term = entry_term
        offset = end
    return EntryBlock(entries), offset
