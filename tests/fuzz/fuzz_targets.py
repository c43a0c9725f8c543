"""What the node's Python parsers must keep whatever bytes they are given, as fuzz targets.

A target takes bytes. It may end with the errors that its parser documents, and no other; what was read and can be
written again must be the same. `make test` runs them on mutations of their seeds, `make fuzz` under atheris.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lmdb
from google.protobuf.message import DecodeError

sys.path.append(str(Path(__file__).parents[1] / "adr"))

from adr_crash import laboratory
from adr_harness import Machine, Member
from raftkv_node._engine import LogCorrupt, LogIndex, crc32c, log_encode
from raftkv_node.adr import Files, LogError, configuration, entry, hard_state, tools
from raftkv_node.adr.files import decode_document, encode_document, write_document
from raftkv_node.adr.log import Identity
from raftkv_node.adr.manifest import MANIFEST_FILE, ManifestInvalid, read_manifest
from raftkv_node.adr.ringfile import decode_header as decode_ring_header
from raftkv_node.adr.segments import SEGMENT_HEADER_BYTES, Generation, Segments, encode_header, segment_name
from raftkv_node.adr.segments import decode_header as decode_segment_header
from raftkv_node.api import http
from raftkv_node.pb import rpc_pb2
from raftkv_node.raft import Message, MessageError, MessageType, decode_message, encode_message
from raftkv_node.raft.configuration import Configuration, ConfigurationError, initial_configuration
from raftkv_node.server.hello import Hello, HelloError, HelloKind
from raftkv_node.server.identity import Identity as NodeIdentity
from raftkv_node.server.identity import IdentityError
from raftkv_node.server.peers import _take_messages, parse_members_frame
from raftkv_node.store import commands, snapshot, validate
from raftkv_node.store.errors import StoreError
from raftkv_node.store.snapshot import SnapshotInvalid, SnapshotSink, SnapshotSource
from raftkv_node.store.store import Store
from ring_file import bases, repaired_header, ring_file
from ring_file import seeds as ring_file_seeds

#: An input of n bytes may take so many for each byte at its peak, and so many more.
BYTES_PER_BYTE = 200
BYTES_MORE = 2 << 20


@dataclass(frozen=True)
class Target:
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def mutated(rng: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with some bytes flipped, cut, filled or added; or anything."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(400))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(5)):
        at, how = rng.randint(0, len(data)), rng.randrange(5)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
        elif how == 2:
            del data[at:]
        elif how == 3:
            data[at:at] = rng.randbytes(rng.randrange(40))
        else:
            data += data[at : at + 64]
    return bytes(data)


def raft_message(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        assert encode_message(decode_message(data)) == data


def raft_frame(data: bytes) -> None:
    messages: list[Message] = []
    # The errors that end a connection and nothing else (`server/peers.py`).
    with contextlib.suppress(MessageError, struct.error, IndexError):
        _take_messages(data, 1, messages)
    assert all(message.sender == 1 for message in messages)


def raft_configuration(data: bytes) -> None:
    with contextlib.suppress(ConfigurationError):
        found = Configuration.decode(data)
        assert Configuration.decode(found.encode()) == found


def hello(data: bytes) -> None:
    with contextlib.suppress(HelloError):
        assert Hello.decode(data).encode() == data


def members_frame(data: bytes) -> None:
    with contextlib.suppress(HelloError, ConfigurationError):
        Configuration.decode(parse_members_frame(data)[1])


def identity_file(data: bytes) -> None:
    with contextlib.suppress(IdentityError):
        NodeIdentity.decode(data)


def command_batch(data: bytes) -> None:
    with contextlib.suppress(commands.CommandError):
        batch = commands.decode_batch(data)
        assert commands.encode_batch(batch.origin, batch.first_seq, batch.kinds, batch.payloads) == data
        assert commands.origin_of(data) == (batch.origin, batch.first_seq)
        with contextlib.suppress(commands.UnknownCommand):
            commands.check_known(batch.kinds)


_REQUESTS = (
    (rpc_pb2.RangeRequest, validate.check_range),
    (rpc_pb2.PutRequest, validate.check_put),
    (rpc_pb2.DeleteRangeRequest, validate.check_delete),
    (rpc_pb2.TxnRequest, validate.check_txn),
)


def client_request(data: bytes) -> None:
    """The first byte says which; the rest goes through protobuf and the checks of the API."""
    kind, check = _REQUESTS[data[0] % len(_REQUESTS)] if data else _REQUESTS[0]
    with contextlib.suppress(DecodeError):
        error = check(kind.FromString(data[1:]))
        assert error is None or str(error)


def http_target(data: bytes) -> None:
    method, _, target = data.decode("latin-1").partition(" ")
    found = http.parse(method, target)
    assert not isinstance(found, http.HttpReply) or found.status in (404, 405)


def document(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        found = decode_document(data)
        assert decode_document(encode_document(found)) == found


def headers(data: bytes) -> None:
    """As they are, and with a ring header's checksum made right: what is taken is written again as it was read."""
    decode_ring_header(data)
    decode_segment_header(data)
    fixed = repaired_header(data)
    found = decode_ring_header(fixed)
    if found is not None:
        # Text that was no UTF-8 may be cut; everything else is as it was, also in the copy that would follow.
        again = decode_ring_header(dataclasses.replace(found, sequence=found.sequence + 1).encode())
        assert again is not None
        texts = {"level": "", "boot_id": "", "host": "", "file_system": ""}
        assert dataclasses.replace(again, sequence=found.sequence, **texts) == dataclasses.replace(found, **texts)


CLUSTER_ID = 7
_SECRET, _UUID, _DISK = b"s" * 16, b"u" * 16, b"d" * 16
_GENERATION = Generation(3, _UUID, _SECRET)
_OWNER = Identity(1, 2, 3, _DISK).member


def segment_file(data: bytes) -> None:
    """A segment with these bytes behind its header, or instead of it (first byte odd), is loaded or refused."""
    whole = bool(data) and data[0] % 2 == 1
    content = data[1:] if whole else encode_header(_OWNER, _GENERATION, 0) + data[1:]
    folder = laboratory()
    try:
        (folder / segment_name(0, 3)).write_bytes(content)
        segments = Segments(Files(), folder, _OWNER)
        with contextlib.suppress(LogError):
            segments.load(max(0, len(content) - SEGMENT_HEADER_BYTES) // 64 * 64, LogIndex())
        again = Segments(Files(), folder, _OWNER)
        with contextlib.suppress(LogError):
            again.scan_tail(again.load(0, LogIndex()), _GENERATION, LogIndex())
    finally:
        shutil.rmtree(folder)


def manifest_file(data: bytes) -> None:
    """A folder with this manifest: told about, or said to be damaged, in words."""
    folder = laboratory()
    try:
        (folder / MANIFEST_FILE).write_bytes(data)
        with contextlib.suppress(ManifestInvalid):
            read_manifest(folder)
        said: list[str] = []
        tools.inspect(folder, folder, said.append)
        tools.verify(folder, folder, said.append)
        assert said
    finally:
        shutil.rmtree(folder)


def snapshot_stream(data: bytes) -> None:
    """A snapshot from a peer. Two bytes say in what pieces, and whether head and digest are made to match (so that what
    is behind them is reached). One that is taken in whole opens as a store, or is refused as one."""
    if len(data) < 2:
        return
    stream = _signed(data[2:]) if data[0] % 2 else data[2:]
    step = (1, 7, 200, 1 << 20)[data[1] % 4]
    folder = laboratory()
    sink = SnapshotSink(folder / "snapshot", CLUSTER_ID, 1 << 24)
    try:
        with contextlib.suppress(SnapshotInvalid, lmdb.Error, StoreError):
            for at in range(0, len(stream), step):
                sink.feed(stream[at : at + step])
            if sink.complete:
                sink.finish()
                Store.open(folder / "snapshot", start_thread=False).close()
    finally:
        sink.close()
        shutil.rmtree(folder)


def _signed(stream: bytes) -> bytes:
    """The stream with the head's checksum and the digest that its bytes have, as far as it has such places."""
    if len(stream) < snapshot.HEADER.size + snapshot.DIGEST_BYTES:
        return stream
    end = snapshot.HEADER.size + snapshot.HEADER.unpack_from(stream)[-1]
    body = bytearray(stream[: -snapshot.DIGEST_BYTES])
    if end + snapshot.CHECK.size <= len(body):
        snapshot.CHECK.pack_into(body, end, crc32c(bytes(body[:end])))
    return bytes(body) + hashlib.sha256(body).digest()


def _snapshot() -> bytes:
    folder = laboratory()
    try:
        store = Store.open(folder / "backend", start_thread=False)
        for number in (1, 2):
            put = rpc_pb2.PutRequest(key=b"k%d" % number, value=b"v" * 20).SerializeToString()
            store.apply(number, 1, commands.decode_batch(commands.encode_batch(9, number, [commands.PUT], [put])))
        while store.backend.commit_now():
            pass
        stream = SnapshotSource(store.backend, CLUSTER_ID, Configuration().encode()).read(1 << 20)
        store.close()
        return stream
    finally:
        shutil.rmtree(folder)


def log_bytes(data: bytes) -> None:
    with contextlib.suppress(LogCorrupt):
        LogIndex().absorb(data, 0, 3, 0)


def _records() -> bytes:
    batch = [hard_state(1, 2, 0), configuration(1, 1, b"c"), (4, 1, 0, 0, b""), entry(1, 1, 0, b"hello")]
    return bytes(log_encode(batch, 0, 0, 3, _GENERATION.seed, LogIndex()))


def _manifest() -> bytes:
    folder = laboratory()
    try:
        member = Member(folder, Machine()).make()
        member.open()[0].close()
        return (member.data / MANIFEST_FILE).read_bytes()
    finally:
        shutil.rmtree(folder)


def _document(value: dict[str, object]) -> bytes:
    folder = laboratory()
    try:
        write_document(Files(), folder / "f", value)
        return (folder / "f").read_bytes()
    finally:
        shutil.rmtree(folder)


def _targets() -> dict[str, Target]:
    heartbeat = encode_message(Message(MessageType.HEARTBEAT, 1, 2, 3))
    two = (1).to_bytes(1, "big") + b"".join(len(heartbeat).to_bytes(4, "little") + heartbeat for _ in range(2))
    three = initial_configuration({1: b"a" * 16, 2: b"b" * 16, 3: b"c" * 16}).encode()
    put = rpc_pb2.PutRequest(key=b"key", value=b"value").SerializeToString()
    txn = rpc_pb2.TxnRequest(
        compare=[rpc_pb2.Compare(key=b"k", version=1)],
        success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k"))],
        failure=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"k", range_end=b"l"))],
    ).SerializeToString()
    return {
        "raft_message": Target(raft_message, (heartbeat,)),
        "raft_frame": Target(raft_frame, (two,)),
        "raft_configuration": Target(raft_configuration, (three,)),
        "hello": Target(hello, (_hello(),)),
        "members_frame": Target(members_frame, (b"\x06" + bytes(8) + three,)),
        "identity_file": Target(identity_file, (NodeIdentity(b"d" * 16).encode(),)),
        "command_batch": Target(command_batch, (commands.encode_batch(7, 1, b"\x01\x02", [put, b""]),)),
        "client_request": Target(client_request, (b"\x01" + put, b"\x03" + txn, b"\x00\x0a\x01k", b"\x02\x0a\x01k")),
        "http_target": Target(http_target, (b"GET /livez/ping?verbose&exclude=a", b"GET http://a/health")),
        "document": Target(document, (_document({"a": [1, "b"]}),)),
        "headers": Target(headers, (encode_header(_OWNER, _GENERATION, 0), bases()[1].ring[:1024], bytes(1024))),
        "ring_file": Target(ring_file, ring_file_seeds()),
        "segment_file": Target(segment_file, (b"\0" + _records(), b"\1" + encode_header(_OWNER, _GENERATION, 0))),
        "manifest_file": Target(manifest_file, (_manifest(),)),
        "snapshot_stream": Target(snapshot_stream, (b"\1\3" + _snapshot(), b"\0\2" + _snapshot())),
        "log_bytes": Target(log_bytes, (_records(),)),
    }


def _hello() -> bytes:
    return Hello(HelloKind.MEMBER, 1, 2, 3, b"d" * 16, 4, 5, "http://127.0.0.1:2380").encode()


TARGETS = _targets()
