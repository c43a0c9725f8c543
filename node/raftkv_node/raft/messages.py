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
from typing import Final, final

from mypy_extensions import mypyc_attr

from .errors import MessageError
from .types import Entry, EntryType, Value

MESSAGE_VERSION: Final = 1


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


# For comparisons, as in types.py.
APPEND: Final = int(MessageType.APPEND)
APPEND_RESPONSE: Final = int(MessageType.APPEND_RESPONSE)
VOTE_RESPONSE: Final = int(MessageType.VOTE_RESPONSE)
REJECT: Final = int(Flag.REJECT)
QUIET: Final = int(Flag.QUIET)
EAGER: Final = int(Flag.EAGER)
_KNOWN_FLAGS: Final = int(Flag.REJECT | Flag.QUIET | Flag.FORCE | Flag.EAGER)


@final
@mypyc_attr(acyclic=True)
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


NO_ENTRIES: Final = EntryBlock()


@final
@mypyc_attr(acyclic=True)
class Message(Value):
    """A message. `term` is the sender's term (for pre-votes the term it would campaign in).

    `index`, `log_term`: an append's previous entry, a vote request's last entry, an acknowledged or rejected index.
    `match`: M15 in appends and heartbeats; the hint of a rejected append. `sequence`: number of a read round, a read,
    or a forwarded proposal (`log_term` is then the sender's incarnation).
    `reason`: a `ProposalReason`. `data`: a forwarded proposal, or a piece of a snapshot (`index`, `log_term`: the last
    entry in it; `sequence`: the transfer). `context`: the caller's: for a rejection, or where the piece belongs.
    """

    __slots__ = (
        "commit",
        "context",
        "data",
        "entries",
        "flags",
        "index",
        "log_term",
        "match",
        "reason",
        "sender",
        "sequence",
        "term",
        "to",
        "type",
    )

    def __init__(
        self,
        type: int,
        sender: int,
        to: int,
        term: int,
        index: int = 0,
        log_term: int = 0,
        commit: int = 0,
        match: int = 0,
        sequence: int = 0,
        flags: int = 0,
        reason: int = 0,
        context: bytes = b"",
        data: bytes = b"",
        entries: EntryBlock = NO_ENTRIES,
    ) -> None:
        self.type: Final = type
        self.sender: Final = sender
        self.to: Final = to
        self.term: Final = term
        self.index: Final = index
        self.log_term: Final = log_term
        self.commit: Final = commit
        self.match: Final = match
        self.sequence: Final = sequence
        self.flags: Final = flags
        self.reason: Final = reason
        self.context: Final = context
        self.data: Final = data
        self.entries: Final = entries

    @property
    def reject(self) -> bool:
        """Whether the response says no."""
        return bool(self.flags & REJECT)

    def fields(self) -> tuple[object, ...]:
        return (
            self.type,
            self.sender,
            self.to,
            self.term,
            self.index,
            self.log_term,
            self.commit,
            self.match,
            self.sequence,
            self.flags,
            self.reason,
            self.context,
            self.data,
            self.entries,
        )


_HEADER: Final = struct.Struct("<BBBBQQQQQQQQIII")
_HEADER_BYTES: Final = _HEADER.size
_FRAMED_HEADER: Final = struct.Struct("<IBBBBQQQQQQQQIII")
_LENGTH: Final = struct.Struct("<I")
LENGTH_BYTES: Final = _LENGTH.size
_ENTRY: Final = struct.Struct("<QBI")
_ENTRY_BYTES: Final = _ENTRY.size
_TYPES: Final = frozenset(int(known) for known in MessageType)
_ENTRY_TYPES: Final = frozenset(int(known) for known in EntryType)
_MAX_INDEX: Final = (1 << 64) - 1


def encode_message(message: Message) -> bytes:
    """Return the message's bytes: header (version, type, flags, reason, eight 64-bit fields, three lengths), context,
    data, entries."""
    parts: list[bytes] = []
    frame_message(message, parts)
    return b"".join(parts)[LENGTH_BYTES:]


def frame_message(message: Message, parts: list[bytes]) -> None:
    """Append the message's bytes to the parts of a frame, behind their number (u32)."""
    context, data, entries = message.context, message.data, message.entries
    encoded = entries.encoded if entries.items else b""
    parts.append(
        _FRAMED_HEADER.pack(
            _HEADER_BYTES + len(context) + len(data) + len(encoded),
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
            len(context),
            len(data),
            len(entries.items),
        )
    )
    if context:
        parts.append(context)
    if data:
        parts.append(data)
    if encoded:
        parts.append(encoded)


def messages_of_frame(frame: bytes, offset: int) -> list[Message]:
    """Parse what `frame_message` put together, from `offset` to the frame's end. Raises `MessageError`."""
    messages: list[Message] = []
    end = len(frame)
    while offset < end:
        if offset + LENGTH_BYTES > end:
            raise MessageError("a frame is cut short")
        length: int = _LENGTH.unpack_from(frame, offset)[0]
        offset += LENGTH_BYTES
        if offset + length > end:
            raise MessageError("a frame is cut short")
        messages.append(decode_message(frame[offset : offset + length]))
        offset += length
    return messages


def decode_message(data: bytes) -> Message:
    """Parse what `encode_message` gave. Raises `MessageError` for any other bytes."""
    if len(data) < _HEADER_BYTES:
        raise MessageError("message is shorter than its header")
    # Taken one by one, each with its type: to unpack them all at once goes through an iterator where this is compiled.
    header = _HEADER.unpack_from(data)
    version: int = header[0]
    kind: int = header[1]
    flags: int = header[2]
    sender: int = header[4]
    to: int = header[5]
    term: int = header[6]
    index: int = header[7]
    context_bytes: int = header[12]
    data_bytes: int = header[13]
    entry_count: int = header[14]
    if version != MESSAGE_VERSION:
        raise MessageError(f"message version {version} is not known (newest: {MESSAGE_VERSION})")
    if kind not in _TYPES or flags & ~_KNOWN_FLAGS:
        raise MessageError(f"message type {kind} with flags {flags:#x} is not known")
    if not sender or not to:
        raise MessageError("message from or to nobody")
    context_end = _HEADER_BYTES + context_bytes
    offset = context_end + data_bytes
    if offset > len(data):
        raise MessageError("message ends early")
    block = NO_ENTRIES
    end = offset
    if entry_count:
        if kind != APPEND:
            raise MessageError("only an append carries entries")
        block, end = _decode_entries(data, offset, entry_count, index, header[8], term)
    if end != len(data):
        raise MessageError("bytes follow the message")
    return Message(
        kind,
        sender,
        to,
        term,
        index,
        header[8],
        header[9],
        header[10],
        header[11],
        flags,
        header[3],
        data[_HEADER_BYTES:context_end] if context_bytes else b"",
        data[context_end:offset] if data_bytes else b"",
        block,
    )


def _decode_entries(
    data: bytes, offset: int, count: int, index: int, previous_term: int, term: int
) -> tuple[EntryBlock, int]:
    """Parse `count` entries that follow (index, previous_term) and were sent in `term`."""
    if count * _ENTRY_BYTES > len(data) - offset or index + count > _MAX_INDEX:
        raise MessageError("message ends early")
    entries: list[Entry] = []
    for _ in range(count):
        if offset + _ENTRY_BYTES > len(data):
            raise MessageError("message ends early")
        header = _ENTRY.unpack_from(data, offset)
        entry_term: int = header[0]
        kind: int = header[1]
        offset += _ENTRY_BYTES
        end: int = offset + header[2]
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
