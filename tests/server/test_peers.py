"""Links and frames without sockets: who is heard, by which way frames leave, what nonsense does."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftkv_node import _engine
from raftkv_node.raft import Message, MessageType, encode_message
from raftkv_node.server.discovery import Discovery
from raftkv_node.server.hello import Hello, HelloKind
from raftkv_node.server.identity import Identity
from raftkv_node.server.log import Logger
from raftkv_node.server.members import founders
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.openings import Told
from raftkv_node.server.peers import FrameKind, Peers, PeerTls, members_frame
from raftkv_node.server.resolver import Resolver

OWN, OTHER, THIRD = 1, 2, 3
INBOUND = 1 << 40


def hello(sender: int, to: int = OWN, cluster: int = 0xC1, generation: int = 1) -> Hello:
    return Hello(
        HelloKind.MEMBER,
        cluster,
        sender,
        to,
        bytes([sender]) * 16,
        generation,
        generation,
        f"http://host-{sender}:2380",
    )


class Transport:
    """The engine's part, recorded."""

    def __init__(self) -> None:
        self.links: dict[int, tuple[str, int]] = {}
        self.accepted: list[int] = []
        self.rejected: list[tuple[int, bytes]] = []
        self.closed: list[int] = []
        self.sent: list[tuple[int, bytes]] = []
        self.told: list[int] = []
        self.broken: set[int] = set()

    def peer_connect(self, link_id: int, host: str, port: int, hello: bytes, tls: object = None) -> None:
        self.links[link_id] = (host, port)

    def peer_disconnect(self, link_id: int) -> None:
        self.links.pop(link_id, None)
        self.closed.append(link_id)

    def peer_accept(self, inbound_id: int, hello_reply: bytes) -> None:
        self.accepted.append(inbound_id)

    def peer_reject(self, inbound_id: int, reason: bytes) -> None:
        self.rejected.append((inbound_id, reason))

    def peer_send(self, frames: Sequence[tuple[int, bytes]]) -> list[int]:
        said = bytes((FrameKind.OPENINGS,)) + b"stored here"
        self.told += [link for link, frame in frames if frame == said]
        self.sent += [one for one in frames if one[0] not in self.broken and one[1] != said]
        return [-1 if link in self.broken else len(frame) for link, frame in frames]


class Host:
    """Introductions of the member under test."""

    def hello(self, to_id: int) -> Hello:
        return hello(OWN, to_id)

    def refusal(self, given: Hello) -> str | None:
        return None if given.cluster_id == 0xC1 else "another cluster"

    def rejected(self, by: int, reason: str) -> None:
        pass

    def openings(self) -> bytes:
        return b"stored here"

    def told(self, by: int, data: bytes) -> None:
        Told.decode(data)
        self.told_by = by

    def members_frame(self) -> bytes | None:
        return members_frame(0xC1, b"configuration")


class Fixture:
    def __init__(self) -> None:
        self.transport = Transport()
        self.metrics = Metrics()
        self.log = io.StringIO()
        self.host = Host()
        self.peers = Peers(
            self.transport,  # type: ignore[arg-type]  # tls is not looked at
            self.host,
            resolver=Resolver(),
            tls=PeerTls(None, None, None),
            metrics=self.metrics,
            logger=Logger(stream=self.log),
        )

    def up(self, member: int) -> int:
        link = self.peers.link_ids()[member]
        self.peers.handle((_engine.EV_PEER_UP, link, hello(member).encode()))
        return link


@pytest.fixture
def fixture() -> Fixture:
    made = Fixture()
    made.peers.set_members({OTHER: "http://host-2:2380", THIRD: "http://host-3:2381"})
    return made


def heartbeat(to: int, term: int = 1) -> Message:
    return Message(MessageType.HEARTBEAT, OWN, to, term)


def test_a_link_is_kept_to_every_member_and_to_nobody_else(fixture: Fixture) -> None:
    assert sorted(fixture.transport.links.values()) == [("host-2", 2380), ("host-3", 2381)]
    fixture.peers.set_members({OTHER: "http://moved:1"})
    assert list(fixture.transport.links.values()) == [("moved", 1)]


def test_a_member_that_no_link_can_be_made_to_is_said_once_and_stops_nothing(fixture: Fixture) -> None:
    """MemberAdd takes any URL, so https in a cluster without certificates must not end its members."""
    engine = _engine.Engine()

    def connect(link_id: int, host: str, port: int, hello: bytes, tls: _engine.TlsConfig | None = None) -> None:
        if tls is not None:
            engine.peer_connect(link_id, host, port, hello, tls)
        fixture.transport.links[link_id] = (host, port)

    fixture.transport.peer_connect = connect  # type: ignore[assignment, method-assign]
    members = {OTHER: "http://host-2:2380", THIRD: "https://host-3:2381"}
    fixture.peers.set_members(members)
    fixture.peers.tick(0.0)
    fixture.peers.tick(0.1)
    assert list(fixture.transport.links.values()) == [("host-2", 2380)]
    assert fixture.log.getvalue().count("peer cannot be connected to") == 1
    assert "ca_file" in fixture.log.getvalue()
    fixture.peers.set_members({**members, THIRD: "http://host-3:2381"})
    assert sorted(fixture.transport.links.values()) == [("host-2", 2380), ("host-3", 2381)]


def test_messages_of_a_turn_for_one_member_are_one_frame(fixture: Fixture) -> None:
    link = fixture.up(OTHER)
    fixture.peers.send([heartbeat(OTHER), heartbeat(THIRD), heartbeat(OTHER, 2)])
    assert [connection for connection, _ in fixture.transport.sent] == [link]
    receiver = Fixture()
    receiver.peers.handle((_engine.EV_PEER_INBOUND, INBOUND, hello(OWN).encode(), "address"))
    frame = fixture.transport.sent[0][1]
    assert receiver.peers.receive([(INBOUND, [frame])], 0.0) == [heartbeat(OTHER), heartbeat(OTHER, 2)]


def test_without_an_own_link_the_members_connection_is_the_way_back(fixture: Fixture) -> None:
    fixture.peers.handle((_engine.EV_PEER_INBOUND, INBOUND, hello(9).encode(), "address"))
    assert fixture.transport.accepted == [INBOUND]
    fixture.peers.send([heartbeat(9)])
    assert fixture.transport.sent[0][0] == INBOUND
    fixture.peers.handle((_engine.EV_PEER_INBOUND_CLOSED, INBOUND))
    assert 9 not in fixture.peers.connected


def test_the_own_link_is_preferred_and_its_loss_noticed(fixture: Fixture) -> None:
    fixture.peers.handle((_engine.EV_PEER_INBOUND, INBOUND, hello(OTHER).encode(), "address"))
    link = fixture.up(OTHER)
    fixture.peers.send([heartbeat(OTHER)])
    fixture.peers.handle((_engine.EV_PEER_DOWN, link))
    fixture.peers.send([heartbeat(OTHER)])
    assert [connection for connection, _ in fixture.transport.sent] == [link, INBOUND]


def test_what_is_lost_on_the_way_to_a_member_is_known(fixture: Fixture) -> None:
    """Without a way nothing is even encoded; a full queue and the loss of a link are noted as well."""
    link = fixture.up(OTHER)
    fixture.peers.send([heartbeat(OTHER), heartbeat(THIRD)])
    assert fixture.peers.dropped == {THIRD}
    fixture.peers.dropped.clear()
    fixture.transport.peer_send = lambda frames: [-1] * len(frames)  # type: ignore[assignment, method-assign]
    fixture.peers.send([heartbeat(OTHER)])
    assert fixture.peers.dropped == {OTHER}
    fixture.peers.dropped.clear()
    fixture.peers.handle((_engine.EV_PEER_DOWN, link))
    assert fixture.peers.dropped == {OTHER}


def test_who_is_refused_is_told_why(fixture: Fixture) -> None:
    fixture.peers.handle((_engine.EV_PEER_INBOUND, INBOUND, hello(OTHER, cluster=0xC2).encode(), "address"))
    fixture.peers.handle((_engine.EV_PEER_INBOUND, INBOUND + 1, b"GET / HTTP/1.1", "address"))
    assert fixture.transport.rejected[0] == (INBOUND, b"another cluster")
    assert fixture.transport.rejected[1][0] == INBOUND + 1
    assert fixture.peers.receive([(INBOUND, [b"\x01"])], 0.0) == []


def test_a_refusal_is_logged_once_a_minute_however_often_it_is_met(fixture: Fixture) -> None:
    for number in range(50):
        stranger = hello(OTHER, cluster=0xC2).encode()
        fixture.peers.handle((_engine.EV_PEER_INBOUND, INBOUND + number, stranger, "address"))
        fixture.peers.tick(0.1 * number)
    assert fixture.log.getvalue().count("peer is not heard") == 1
    fixture.peers.tick(100.0)
    fixture.peers.handle((_engine.EV_PEER_INBOUND, INBOUND, hello(OTHER, cluster=0xC2).encode(), "address"))
    assert fixture.log.getvalue().count("peer is not heard") == 2
    assert len(fixture.transport.rejected) == 51


def test_another_member_at_the_address_is_not_taken_for_the_one_sought(fixture: Fixture) -> None:
    link = fixture.peers.link_ids()[OTHER]
    fixture.peers.handle((_engine.EV_PEER_UP, link, hello(THIRD).encode()))
    assert OTHER not in fixture.peers.connected
    assert link in fixture.transport.closed
    fixture.peers.tick(0.0)
    assert OTHER in fixture.peers.link_ids()


def test_dropped_frames_are_counted(fixture: Fixture) -> None:
    fixture.transport.broken.add(fixture.up(OTHER))
    fixture.peers.send([heartbeat(OTHER)])
    assert fixture.metrics.peer_sent_failures == {OTHER: 1}


def test_requests_and_answers_travel(fixture: Fixture) -> None:
    fixture.up(OTHER)
    assert fixture.peers.forward(OTHER, 7, 8, b"add")
    assert not fixture.peers.forward(9, 7, 8, b"add")
    leader = Fixture()
    leader.peers.handle((_engine.EV_PEER_INBOUND, INBOUND, hello(OTHER).encode(), "address"))
    leader.peers.receive([(INBOUND, [fixture.transport.sent[0][1]])], 0.0)
    request = leader.peers.requests[0]
    assert (request.request_id, request.method, request.message) == (7, 8, b"add")
    leader.peers.respond(request.connection, request.request_id, 9, b"no")
    link = fixture.peers.link_ids()[OTHER]
    fixture.peers.receive([(link, [leader.transport.sent[0][1]])], 0.0)
    answer = fixture.peers.responses[0]
    assert (answer.request_id, answer.status, answer.message) == (7, 9, b"no")


def test_round_trips_are_measured(fixture: Fixture) -> None:
    link = fixture.up(OTHER)
    fixture.peers.tick(100.0)
    ping = fixture.transport.sent[0][1]
    fixture.peers.receive([(link, [bytes((FrameKind.PONG,)) + ping[1:]])], 100.25)
    assert fixture.metrics.round_trips[OTHER].total == 0.25


def test_a_member_that_speaks_for_another_is_cut_off(fixture: Fixture) -> None:
    """M4: the hello binds a connection to one member and its disk; a message of another's would walk around that."""
    link = fixture.up(OTHER)
    data = encode_message(Message(MessageType.VOTE_RESPONSE, THIRD, OWN, 7))
    frame = b"\x01" + len(data).to_bytes(4, "little") + data
    assert fixture.peers.receive([(link, [frame])], 0.0) == []
    assert fixture.transport.closed == [link]
    assert fixture.peers.receive([(fixture.up(THIRD), [frame])], 0.0) != []


def raft_frame(message: Message) -> bytes:
    data = encode_message(message)
    return b"\x01" + len(data).to_bytes(4, "little") + data


def test_m5_an_earlier_opening_is_not_heard_any_more_once_a_later_one_is(fixture: Fixture) -> None:
    """A disk was copied and both run: the older process may have promised what the newer one does not know. Whoever has
    let the newer one in must not take a late vote of the older one, on whichever connection it is still on its way."""
    vote = raft_frame(Message(MessageType.VOTE_RESPONSE, OTHER, OWN, 7))
    link = fixture.up(OTHER)
    fixture.peers.handle((_engine.EV_PEER_INBOUND, INBOUND, hello(OTHER).encode(), "address"))
    assert len(fixture.peers.receive([(link, [vote]), (INBOUND, [vote])], 0.0)) == 2
    fixture.peers.handle((_engine.EV_PEER_INBOUND, INBOUND + 1, hello(OTHER, generation=2).encode(), "elsewhere"))
    assert fixture.peers.receive([(link, [vote]), (INBOUND, [vote])], 0.0) == []
    assert sorted(fixture.transport.closed) == [link, INBOUND]
    assert len(fixture.peers.receive([(INBOUND + 1, [vote])], 0.0)) == 1
    fixture.peers.handle((_engine.EV_PEER_INBOUND_CLOSED, INBOUND))
    fixture.peers.send([heartbeat(OTHER)])
    assert fixture.transport.sent[-1][0] == INBOUND + 1
    fixture.peers.tick(0.0)
    assert fixture.peers.link_ids()[OTHER] != link, "the own link is made anew"


def test_m5_a_link_that_comes_up_with_a_later_opening_ends_what_the_earlier_one_had(fixture: Fixture) -> None:
    fixture.peers.handle((_engine.EV_PEER_INBOUND, INBOUND, hello(OTHER).encode(), "address"))
    link = fixture.peers.link_ids()[OTHER]
    fixture.peers.handle((_engine.EV_PEER_UP, link, hello(OTHER, generation=2).encode()))
    vote = raft_frame(Message(MessageType.VOTE_RESPONSE, OTHER, OWN, 7))
    assert fixture.peers.receive([(INBOUND, [vote])], 0.0) == []
    assert fixture.transport.closed == [INBOUND]
    assert len(fixture.peers.receive([(link, [vote])], 0.0)) == 1


def test_m4_every_connection_of_a_removed_member_is_closed(fixture: Fixture) -> None:
    """The newest one is not all: a member that connects again may have an earlier connection that nobody has ended."""
    for connection in (INBOUND, INBOUND + 1):
        fixture.peers.handle((_engine.EV_PEER_INBOUND, connection, hello(9).encode(), "address"))
    fixture.peers.handle((_engine.EV_PEER_INBOUND, INBOUND + 2, hello(8).encode(), "address"))
    fixture.peers.refuse_removed({9})
    assert sorted(fixture.transport.closed) == [INBOUND, INBOUND + 1]


@given(st.binary(max_size=200).map(lambda tail: b"\x01" + tail) | st.binary(max_size=200))
def test_nonsense_closes_the_connection_and_does_no_more(frame: bytes) -> None:
    made = Fixture()
    made.peers.handle((_engine.EV_PEER_INBOUND, INBOUND, hello(OTHER).encode(), "address"))
    messages = made.peers.receive([(INBOUND, [frame])], 0.0)
    kinds = (b"\x02", b"\x03", b"\x04", b"\x05", b"\x07")
    understood = bool(messages) or frame in (b"\x01", b"\x08") or frame[:1] in kinds
    assert understood or made.transport.closed == [INBOUND]


def test_m5_both_ends_of_a_connection_tell_what_they_have_stored(fixture: Fixture) -> None:
    link = fixture.up(OTHER)
    fixture.peers.handle((_engine.EV_PEER_INBOUND, INBOUND, hello(THIRD).encode(), "address"))
    assert fixture.transport.told == [link, INBOUND]
    kind = bytes((FrameKind.OPENINGS,))
    told = Told(True, 7, frozenset({1, 2}), frozenset({2, 3}), {2: (4, 5), 9: (1, 1 << 63)})
    assert Told.decode(told.encode()) == told
    fixture.peers.receive([(INBOUND, [kind + told.encode()])], 0.0)
    assert fixture.host.told_by == THIRD
    assert fixture.transport.closed == []
    fixture.peers.receive([(INBOUND, [kind + told.encode() + b"x"])], 0.0)
    assert fixture.transport.closed == [INBOUND]


def test_a_node_that_asks_gets_the_members(fixture: Fixture) -> None:
    asking = replace(hello(0), kind=HelloKind.ASKING, cluster_id=0, to_id=0)
    fixture.peers.handle((_engine.EV_PEER_INBOUND, INBOUND, asking.encode(), "address"))
    assert fixture.transport.accepted == [INBOUND]
    assert fixture.transport.sent == [(INBOUND, bytes((FrameKind.MEMBERS,)) + members_frame(0xC1, b"configuration"))]


def test_an_asking_node_finds_itself_by_its_url() -> None:
    from raftkv_node.config import parse_arguments

    config = parse_arguments(
        [
            *("--name", "n2", "--initial-advertise-peer-urls", "http://b:2"),
            *("--initial-cluster", "n1=http://a:1,n2=http://b:2", "--initial-cluster-state", "existing"),
        ],
        {},
    )
    log, transport = io.StringIO(), Transport()
    discovery = Discovery(config, Identity(bytes(16)), transport, Logger(stream=log))  # type: ignore[arg-type]
    discovery.tick(0.0)
    (link,) = transport.links
    only = founders([("n1", ("http://a:1",))], "t")
    kind = bytes((FrameKind.MEMBERS,))
    assert discovery.receive([(link, [kind + members_frame(0xC1, only.configuration.encode())])]) is None
    assert "add it first" in log.getvalue()
    discovery.tick(5.0)
    (link,) = transport.links
    both = founders([("n1", ("http://a:1",)), ("n2", ("http://b:2",))], "t")
    found = discovery.receive([(link, [kind + members_frame(0xC1, both.configuration.encode())])])
    assert found is not None
    assert (found.cluster_id, found.member_id) == (0xC1, both.ids["n2"])
    assert [one.member_id for one in found.peers] == [both.ids["n1"]]
    assert transport.links == {}
