"""The bytes of messages: nothing is lost on the way, and no bytes can do more than raise MessageError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftkv_node.raft import (
    Entry,
    EntryBlock,
    Message,
    MessageError,
    MessageType,
    decode_message,
    encode_message,
)
from raftkv_node.raft.messages import LENGTH_BYTES, frame_message, messages_of_frame

u64 = st.integers(0, (1 << 64) - 1)
ids = st.integers(1, (1 << 64) - 1)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(MessageType))
    index, log_term, term = draw(st.integers(0, 1 << 60)), draw(st.integers(0, 1 << 60)), draw(u64)
    entries = []
    if kind == MessageType.APPEND:
        entry_term = log_term
        for position in range(draw(st.integers(0, 4))):
            entry_term = draw(st.integers(entry_term, entry_term + 3))
            entries.append(
                Entry(entry_term, index + 1 + position, draw(st.integers(0, 1)), draw(st.binary(max_size=9)))
            )
        term = max(term, entry_term)
    return Message(
        int(kind),
        draw(ids),
        draw(ids),
        term,
        index,
        log_term,
        draw(u64),
        draw(u64),
        draw(u64),
        draw(st.integers(0, 7)),
        draw(st.integers(0, 255)),
        draw(st.binary(max_size=9)),
        draw(st.binary(max_size=9)),
        EntryBlock(entries),
    )


@given(messages())
def test_round_trip(message: Message) -> None:
    assert decode_message(encode_message(message)) == message


@given(st.binary(max_size=300))
def test_arbitrary_bytes(data: bytes) -> None:
    try:
        message = decode_message(data)
    except MessageError:
        return
    assert encode_message(message) == data


@given(messages(), st.integers(0, 500), st.integers(0, 255))
def test_damaged_and_cut_bytes(message: Message, position: int, value: int) -> None:
    data = bytearray(encode_message(message))
    data[position % len(data)] = value
    for damaged in (bytes(data), bytes(data[:position])):
        try:
            decoded = decode_message(damaged)
        except MessageError:
            continue
        assert encode_message(decoded) == damaged


def test_every_shorter_prefix_is_refused() -> None:
    entries = EntryBlock([Entry(1, 1, 0, b"abc"), Entry(2, 2, 0, b"defg")])
    data = encode_message(Message(MessageType.APPEND, 1, 2, 3, context=b"c", data=b"d", entries=entries))
    for length in range(len(data)):
        with pytest.raises(MessageError):
            decode_message(data[:length])
    with pytest.raises(MessageError):
        decode_message(data + b"x")


@given(st.lists(messages(), max_size=4))
def test_a_frame_is_its_messages_each_behind_its_length(given_messages: list[Message]) -> None:
    parts = [b"k"]
    for message in given_messages:
        frame_message(message, parts)
    frame = b"".join(parts)
    encoded = [encode_message(message) for message in given_messages]
    assert frame == b"k" + b"".join(len(one).to_bytes(LENGTH_BYTES, "little") + one for one in encoded)
    assert messages_of_frame(frame, 1) == given_messages


def test_a_frame_that_is_cut_short_is_refused() -> None:
    parts: list[bytes] = []
    first, second = Message(MessageType.HEARTBEAT, 1, 2, 3), Message(MessageType.PROPOSE, 1, 2, 3, data=b"d")
    frame_message(first, parts)
    whole = len(b"".join(parts))
    frame_message(second, parts)
    frame = b"".join(parts)
    for length in range(1, len(frame)):
        if length == whole:
            assert messages_of_frame(frame[:length], 0) == [first]
        else:
            with pytest.raises(MessageError):
                messages_of_frame(frame[:length], 0)


def test_peers_share_the_bytes_of_a_block() -> None:
    block = EntryBlock([Entry(1, 1, 0, b"abc")])
    first = encode_message(Message(MessageType.APPEND, 1, 2, 1, entries=block))
    encoded = block.encoded
    second = encode_message(Message(MessageType.APPEND, 1, 3, 1, entries=block))
    assert block.encoded is encoded
    assert decode_message(first).entries == decode_message(second).entries


@pytest.mark.parametrize(
    ("offset", "value"), [(0, 99), (1, 0), (1, 200), (2, 255)], ids=["version", "no type", "unknown type", "flags"]
)
def test_unknown_versions_types_and_flags(offset: int, value: int) -> None:
    data = bytearray(encode_message(Message(MessageType.HEARTBEAT, 1, 2, 1)))
    data[offset] = value
    with pytest.raises(MessageError):
        decode_message(bytes(data))
