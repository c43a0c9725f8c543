"""The links to the other members: who is connected, who is heard, and the frames that travel.

Each member keeps one link of its own to every other and sends on it; what it accepts from others it only listens to,
except that an answer to a member it has no working link to takes the way that the question came.

A frame is a kind (one byte) and a body:

    RAFT      raft messages, each with its length (u32)
    ACKS      the same, and all of them are acknowledgements: the receiver may let them wait for each other
    REQUEST   id u64 | method u16 | message        a client's request for the leader, from a member that is not
    RESPONSE  id u64 | gRPC status u8 | message, or the error's text
    PING      8 bytes that come back as PONG
    MEMBERS   cluster id u64 | the configuration    the answer to an ASKING hello
    OPENINGS  who votes, and what is stored of the members' disks (openings.py)

All integers little-endian. A frame that makes no sense closes the link that it came from.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from raftkv_node import _engine
from raftkv_node.config import parse_url
from raftkv_node.raft import Message, MessageError
from raftkv_node.raft.messages import APPEND_RESPONSE, REJECT, frame_message, messages_of_frame
from raftkv_node.server.hello import Hello, HelloError, HelloKind
from raftkv_node.server.log import Logger, member
from raftkv_node.server.metrics import ROUND_TRIP_BUCKETS, Histogram, Metrics
from raftkv_node.server.resolver import Resolver

_REQUEST: Final = struct.Struct("<QH")
_RESPONSE: Final = struct.Struct("<QB")
_CLUSTER: Final = struct.Struct("<Q")
PING_INTERVAL_SECONDS: Final = 5.0
REFUSALS_REPEATED_SECONDS: Final = 60.0
"""A refusal is logged once in so long: whoever is refused tries again many times a second."""
MAX_REFUSALS_KEPT: Final = 1000


class FrameKind(IntEnum):
    """First byte of a frame."""

    RAFT = 1
    REQUEST = 2
    RESPONSE = 3
    PING = 4
    PONG = 5
    MEMBERS = 6
    OPENINGS = 7
    ACKS = 8


_RAFT_KIND: Final = int(FrameKind.RAFT)
_ACKS_KIND: Final = int(FrameKind.ACKS)
_RAFT: Final = bytes((FrameKind.RAFT,))
_ACKS: Final = bytes((FrameKind.ACKS,))
DEFERRABLE_FRAMES: Final = (int(FrameKind.ACKS),)
"""For the engine's ``deferrable_frames``."""


class ForwardedRequest(NamedTuple):
    """A client's request that another member hands to the leader."""

    connection: int
    request_id: int
    method: int
    message: bytes


class ForwardedResponse(NamedTuple):
    """The leader's answer."""

    request_id: int
    status: int
    message: bytes


class Transport(Protocol):
    """The part of the engine that links need."""

    def peer_connect(
        self, link_id: int, host: str, port: int, hello: bytes, tls: _engine.TlsConfig | None = None
    ) -> None: ...
    def peer_disconnect(self, link_id: int) -> None: ...
    def peer_accept(self, inbound_id: int, hello_reply: bytes) -> None: ...
    def peer_reject(self, inbound_id: int, reason: bytes) -> None: ...
    def peer_send(self, frames: Sequence[tuple[int, bytes]]) -> list[int]: ...


@dataclass(slots=True)
class Link:
    """The own link to a member."""

    member_id: int
    url: str
    address: str | None = None
    """What the engine was told to connect to; None while the name has no address."""
    up: bool = False
    last_refusal: str = ""


@dataclass(frozen=True)
class PeerTls:
    """Files for links; the server's name is the host of each URL."""

    cert_file: Path | None
    key_file: Path | None
    ca_file: Path | None

    def client(self, host: str) -> _engine.TlsConfig:
        """How to connect to a member of this name."""
        cert, key, authority = (str(path) if path else None for path in (self.cert_file, self.key_file, self.ca_file))
        return _engine.TlsConfig(cert_file=cert, key_file=key, ca_file=authority, server_name=host)


class Introduction(Protocol):
    """What a node says and judges at the beginning of a connection."""

    def hello(self, to_id: int) -> Hello:
        """The own hello, for this member."""

    def refusal(self, hello: Hello) -> str | None:
        """Why the speaker is not heard, or None; an accepted hello is remembered."""

    def rejected(self, by: int, reason: str) -> None:
        """A member does not hear this node."""

    def openings(self) -> bytes:
        """What this node has stored of the members' disks (:class:`Told`)."""

    def told(self, by: int, data: bytes) -> None:
        """What a member says that it has stored. Raises :class:`HelloError` for nonsense."""

    def members_frame(self) -> bytes | None:
        """Cluster id and configuration for a node that asks for its own id; None: not known yet."""


class Peers:
    """Links by member, inbound connections by member, and the way of frames."""

    def __init__(
        self,
        transport: Transport,
        introduction: Introduction,
        *,
        resolver: Resolver,
        tls: PeerTls,
        metrics: Metrics,
        logger: Logger,
    ) -> None:
        self._transport = transport
        self._introduction = introduction
        self._resolver = resolver
        self._tls = tls
        self._metrics = metrics
        self._log = logger
        self._next_link_id = 1
        self._links: dict[int, Link] = {}
        self._link_of: dict[int, int] = {}
        self._inbound: dict[int, int] = {}
        self._inbound_of: dict[int, int] = {}
        self._generation_of: dict[int, int] = {}
        """Connection, of either kind, to the opening of the log that the speaker at its end lives on."""
        self._way: dict[int, int] = {}
        self._urls: dict[int, str] = {}
        self._unreachable: dict[int, str] = {}
        self._next_ping = 0.0
        self._refusals: set[str] = set()
        self._forget_refusals: float | None = None
        self.requests: list[ForwardedRequest] = []
        self.responses: list[ForwardedResponse] = []
        self.dropped: set[int] = set()
        """Members that messages were lost to: their queue is full, or the way to them is gone. The core is to know."""

    # -- who is connected ---------------------------------------------------------------------------------------------

    @property
    def connected(self) -> frozenset[int]:
        """Members that frames can be sent to now."""
        return frozenset(self._way)

    @property
    def known(self) -> frozenset[int]:
        """Members that a link is kept to."""
        return frozenset(self._urls)

    def link_ids(self) -> dict[int, int]:
        """Member to the id of the own link, for the engine's counters."""
        return {link.member_id: link_id for link_id, link in self._links.items()}

    def set_members(self, urls: Mapping[int, str]) -> None:
        """Keep links to exactly these members."""
        if urls == self._urls:
            return
        for member_id in [one for one, url in self._urls.items() if urls.get(one) != url]:
            self._drop_link(member_id)
            self._unreachable.pop(member_id, None)
        self._urls = dict(urls)
        self._connect_missing()

    def _connect_missing(self) -> None:
        """Connect where there is no link, or where a name has another address now and the link is down."""
        for member_id, url in self._urls.items():
            try:
                self._connect(member_id, url)
            except ValueError as error:
                self._cannot_connect(member_id, url, str(error))

    def _connect(self, member_id: int, url: str) -> None:
        """Raises ValueError where no link can be made: an https URL without certificates, a name that TLS refuses."""
        link_id = self._link_of.get(member_id)
        address = parse_url(url)
        target = self._resolver.address(address.host)
        if link_id is not None:
            link = self._links[link_id]
            if link.up or target is None or link.address == target:
                return
            self._drop_link(member_id)
        if target is None:
            return
        tls = self._tls.client(address.host) if address.tls else None
        hello = self._introduction.hello(member_id).encode()
        link_id = self._next_link_id
        self._next_link_id += 1
        self._transport.peer_connect(link_id, target, address.port, hello, tls)
        self._links[link_id] = Link(member_id, url, target)
        self._link_of[member_id] = link_id
        self._unreachable.pop(member_id, None)

    def _cannot_connect(self, member_id: int, url: str, reason: str) -> None:
        """Say so once; it is tried again with every tick, since files may appear."""
        if self._unreachable.get(member_id) != reason:
            self._unreachable[member_id] = reason
            self._log.warn("peer cannot be connected to", peer=member(member_id), url=url, reason=reason)

    def _drop_link(self, member_id: int) -> None:
        link_id = self._link_of.pop(member_id, None)
        if link_id is not None:
            del self._links[link_id]
            self._generation_of.pop(link_id, None)
            self._transport.peer_disconnect(link_id)
            self._choose_way(member_id)

    def refuse_removed(self, removed: Iterable[int]) -> None:
        """Close what is still open from members whose removal is now committed here (M4)."""
        for member_id in removed:
            for connection in self._inbound_from(member_id):
                self._transport.peer_disconnect(connection)

    def _inbound_from(self, member_id: int) -> list[int]:
        """All connections that a member has made: an earlier one may not have ended yet."""
        return [connection for connection, speaker in self._inbound.items() if speaker == member_id]

    def _heard_anew(self, connection: int, hello: Hello) -> None:
        """M5: a member was let in; what an earlier opening of its disk has still under way is not heard any more.

        Where a disk was copied and both run, the older process may have voted in a term in which the newer one, which
        does not know it, votes otherwise. It is told soon that it is the older one (`Member.told`), but what it sent
        before that must not count beside what the newer one sends.
        """
        member_id = hello.from_id
        self._generation_of[connection] = hello.generation
        for other in self._inbound_from(member_id):
            if self._generation_of[other] < hello.generation:
                self._transport.peer_disconnect(other)
                self._closed(other)
        link_id = self._link_of.get(member_id)
        if link_id is not None and self._generation_of.get(link_id, hello.generation) < hello.generation:
            self._drop_link(member_id)

    def _choose_way(self, member_id: int) -> None:
        """Send by the own link when it is up, else by the connection that the member made."""
        link_id = self._link_of.get(member_id)
        if link_id is not None and self._links[link_id].up:
            self._way[member_id] = link_id
        elif member_id in self._inbound_of:
            self._way[member_id] = self._inbound_of[member_id]
        elif self._way.pop(member_id, None) is not None:
            self.dropped.add(member_id)

    # -- events -------------------------------------------------------------------------------------------------------

    def handle(self, event: tuple[Any, ...]) -> None:
        """One EV_PEER_* event."""
        kind, connection = event[0], event[1]
        if kind == _engine.EV_PEER_INBOUND:
            self._introduced(connection, event[2], event[3])
        elif kind == _engine.EV_PEER_INBOUND_CLOSED:
            self._closed(connection)
        elif connection in self._links:
            link = self._links[connection]
            if kind == _engine.EV_PEER_UP:
                self._up(connection, link, event[2])
            elif kind == _engine.EV_PEER_DOWN:
                link.up = False
                self._generation_of.pop(connection, None)
                self._choose_way(link.member_id)
                self._log.info("peer link is down", peer=member(link.member_id), url=link.url)
            elif kind == _engine.EV_PEER_REJECTED:
                reason = event[2].decode(errors="replace")
                if reason != link.last_refusal:
                    link.last_refusal = reason
                    self._log.warn("peer refuses this member", peer=member(link.member_id), reason=reason)
                    self._introduction.rejected(link.member_id, reason)

    def _introduced(self, connection: int, data: bytes, address: str) -> None:
        try:
            hello = Hello.decode(data)
        except HelloError as error:
            self._refuse(connection, str(error), address)
            return
        if hello.kind == HelloKind.ASKING:
            frame = self._introduction.members_frame()
            if frame is None:
                self._refuse(connection, "this member has no configuration yet", address)
                return
            self._transport.peer_accept(connection, self._introduction.hello(0).encode())
            self._transport.peer_send([(connection, bytes((FrameKind.MEMBERS,)) + frame)])
            return
        refusal = self._introduction.refusal(hello)
        if refusal is not None:
            self._refuse(connection, refusal, address)
            return
        self._transport.peer_accept(connection, self._introduction.hello(hello.from_id).encode())
        self._inbound[connection] = hello.from_id
        self._inbound_of[hello.from_id] = connection
        self._heard_anew(connection, hello)
        self._choose_way(hello.from_id)
        self.tell(hello.from_id, self._introduction.openings())

    def _refuse(self, connection: int, reason: str, address: str) -> None:
        self._transport.peer_reject(connection, reason.encode())
        if self._is_news(reason):
            self._log.warn("peer is not heard", address=address, reason=reason)

    def _is_news(self, reason: str) -> bool:
        """Whether a refusal was not logged lately."""
        if reason in self._refusals or len(self._refusals) >= MAX_REFUSALS_KEPT:
            return False
        self._refusals.add(reason)
        return True

    def _closed(self, connection: int) -> None:
        self._generation_of.pop(connection, None)
        member_id = self._inbound.pop(connection, None)
        if member_id is not None and self._inbound_of.get(member_id) == connection:
            del self._inbound_of[member_id]
            self._choose_way(member_id)

    def _up(self, link_id: int, link: Link, data: bytes) -> None:
        try:
            hello = Hello.decode(data)
            refusal = self._introduction.refusal(hello)
            if refusal is None and hello.from_id != link.member_id:
                refusal = f"member {hello.from_id:x} answers in place of {link.member_id:x}"
        except HelloError as error:
            refusal = str(error)
        if refusal is not None:
            if self._is_news(f"{link.url} {refusal}"):
                self._log.warn("peer link is given up", peer=member(link.member_id), url=link.url, reason=refusal)
            self._drop_link(link.member_id)
            return
        link.up = True
        link.last_refusal = ""
        self._heard_anew(link_id, hello)
        self._choose_way(link.member_id)
        self._log.info("peer link is up", peer=member(link.member_id), url=link.url)
        self.tell(link.member_id, self._introduction.openings())

    def tick(self, now: float) -> None:
        """Resolve names again where links are down; measure round trips now and then."""
        if any(member_id not in self._way or member_id not in self._link_of for member_id in self._urls):
            self._connect_missing()
        if self._refusals and self._forget_refusals is None:
            self._forget_refusals = now + REFUSALS_REPEATED_SECONDS
        elif self._forget_refusals is not None and now >= self._forget_refusals:
            self._refusals.clear()
            self._forget_refusals = None
        if now >= self._next_ping:
            self._next_ping = now + PING_INTERVAL_SECONDS
            frame = bytes((FrameKind.PING,)) + struct.pack("<d", now)
            self._transport.peer_send([(self._link_of[one], frame) for one in self._way if one in self._link_of])

    # -- frames -------------------------------------------------------------------------------------------------------

    def receive(self, batches: Iterable[tuple[int, list[bytes]]], now: float) -> list[Message]:
        """Raft messages of the frames, in order; requests and responses are left in ``requests`` and ``responses``."""
        messages: list[Message] = []
        for connection, frames in batches:
            sender = self._sender(connection)
            if sender is None:
                continue
            try:
                for frame in frames:
                    kind = frame[0]
                    if kind in (_RAFT_KIND, _ACKS_KIND):
                        _take_messages(frame, sender, messages)
                    else:
                        self._take_other(connection, sender, frame, now)
            except (MessageError, HelloError, struct.error, IndexError) as error:
                self._log.warn("peer sent a frame that makes no sense", peer=member(sender), error=str(error))
                self._hang_up(connection, sender)
        return messages

    def _sender(self, connection: int) -> int | None:
        link = self._links.get(connection)
        if link is not None:
            return link.member_id if link.up else None
        return self._inbound.get(connection)

    def _hang_up(self, connection: int, sender: int) -> None:
        if connection in self._links:
            self._drop_link(sender)
        else:
            self._transport.peer_disconnect(connection)

    def _take_other(self, connection: int, sender: int, frame: bytes, now: float) -> None:
        kind = frame[0]
        if kind == FrameKind.REQUEST:
            request_id, method = _REQUEST.unpack_from(frame, 1)
            self.requests.append(ForwardedRequest(connection, request_id, method, frame[1 + _REQUEST.size :]))
        elif kind == FrameKind.RESPONSE:
            request_id, status = _RESPONSE.unpack_from(frame, 1)
            self.responses.append(ForwardedResponse(request_id, status, frame[1 + _RESPONSE.size :]))
        elif kind == FrameKind.PING:
            self._transport.peer_send([(connection, bytes((FrameKind.PONG,)) + frame[1:])])
        elif kind == FrameKind.PONG:
            trips = self._metrics.round_trips
            if sender not in trips:
                trips[sender] = Histogram(ROUND_TRIP_BUCKETS)
            trips[sender].add(now - struct.unpack("<d", frame[1:])[0])
        elif kind == FrameKind.OPENINGS:
            self._introduction.told(sender, frame[1:])
        else:
            raise MessageError(f"frame kind {kind} is not known")

    def send(self, messages: Sequence[Message]) -> None:
        """Send raft messages; what cannot be sent is lost, as on any network."""
        frames: dict[int, list[bytes]] = {}
        way = self._way
        for message in messages:
            to = message.to
            if to not in way:
                self.dropped.add(to)
                continue
            parts = frames.get(to)
            if parts is None:
                frames[to] = parts = [_ACKS]
            if message.type != APPEND_RESPONSE or message.flags & REJECT:
                parts[0] = _RAFT
            frame_message(message, parts)
        queued = [(way[to], b"".join(parts)) for to, parts in frames.items()]
        sizes = self._transport.peer_send(queued)
        assert len(sizes) == len(queued)
        for at, size in enumerate(sizes):
            if size < 0:
                self._not_queued(queued[at][0])

    def _not_queued(self, connection: int) -> None:
        """Frames for a connection are lost."""
        sender = self._sender(connection) or 0
        self.dropped.add(sender)
        failures = self._metrics.peer_sent_failures
        failures[sender] = failures.get(sender, 0) + 1

    def tell(self, to: int, openings: bytes) -> None:
        """Tell a member what is stored here; what cannot be sent is asked for again by whoever waits for it."""
        connection = self._way.get(to)
        if connection is not None:
            self._transport.peer_send([(connection, bytes((FrameKind.OPENINGS,)) + openings)])

    def forward(self, to: int, request_id: int, method: int, message: bytes) -> bool:
        """Hand a client's request to a member; whether it was queued."""
        connection = self._way.get(to)
        if connection is None:
            return False
        frame = bytes((FrameKind.REQUEST,)) + _REQUEST.pack(request_id, method) + message
        return self._transport.peer_send([(connection, frame)])[0] >= 0

    def respond(self, connection: int, request_id: int, status: int, message: bytes) -> None:
        """Answer a forwarded request on the connection it came from."""
        frame = bytes((FrameKind.RESPONSE,)) + _RESPONSE.pack(request_id, status) + message
        self._transport.peer_send([(connection, frame)])


def _take_messages(frame: bytes, sender: int, messages: list[Message]) -> None:
    """Append the messages of a frame. A member speaks for itself only: its hello proved nothing of others (M4)."""
    for message in messages_of_frame(frame, 1):
        if message.sender != sender:
            raise MessageError(f"a message of member {message.sender:x}")
        messages.append(message)


def members_frame(cluster_id: int, configuration: bytes) -> bytes:
    """The body of a MEMBERS frame."""
    return _CLUSTER.pack(cluster_id) + configuration


def parse_members_frame(frame: bytes) -> tuple[int, bytes]:
    """Cluster id and encoded configuration of a MEMBERS frame. Raises :class:`HelloError`."""
    if frame[:1] != bytes((FrameKind.MEMBERS,)) or len(frame) < 1 + _CLUSTER.size:
        raise HelloError("the answer is no list of members")
    return _CLUSTER.unpack_from(frame, 1)[0], frame[1 + _CLUSTER.size :]
