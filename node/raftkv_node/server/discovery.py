"""A member that was added by hand looks for its id: it asks the others which member has its URL.

With ``--initial-cluster-state existing`` the flags do not say which ids MemberAdd has given. The node connects to the
other members of ``--initial-cluster`` with an ASKING hello; each answers with cluster id and configuration. Until one
of them has a member with one of this node's peer URLs, it asks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from raftkv_node import _engine
from raftkv_node.config import NodeConfig, parse_url
from raftkv_node.raft import Configuration, RaftError
from raftkv_node.server.hello import NO_DISK, Hello, HelloError, HelloKind
from raftkv_node.server.identity import Identity, Peer
from raftkv_node.server.log import Logger
from raftkv_node.server.members import attributes
from raftkv_node.server.peers import PeerTls, Transport, parse_members_frame
from raftkv_node.server.resolver import make_resolver

ASK_AGAIN_SECONDS = 1.0
FIRST_LINK_ID = 1 << 31
"""Link ids of questions; those of members lie below."""


class Discovery:
    """Asks until the answer is there."""

    def __init__(self, config: NodeConfig, identity: Identity, transport: Transport, logger: Logger) -> None:
        self._config = config
        self._identity = identity
        self._transport = transport
        self._logger = logger
        self._own = {address.url for address in config.initial_advertise_peer_urls}
        self._urls = [url for _, urls in config.initial_cluster for url in urls if url not in self._own]
        self._resolver = make_resolver(config.resolver)
        self._tls = PeerTls(config.peer_cert_file, config.peer_key_file, config.peer_trusted_ca_file)
        self._links: dict[int, str] = {}
        self._next_link = FIRST_LINK_ID
        self._ask_at = 0.0
        self._said = ""

    def tick(self, now: float) -> None:
        """Ask (again) where no answer is under way."""
        if now < self._ask_at:
            return
        self._ask_at = now + ASK_AGAIN_SECONDS
        hello = Hello(HelloKind.ASKING, 0, 0, 0, NO_DISK, 0, 0, self._config.peer_url).encode()
        for url in self._urls:
            address = parse_url(url)
            target = self._resolver.address(address.host)
            if target is not None and url not in self._links.values():
                tls = self._tls.client(address.host) if address.tls else None
                self._transport.peer_connect(self._next_link, target, address.port, hello, tls)
                self._links[self._next_link] = url
                self._next_link += 1

    def close(self) -> None:
        """Forget all links."""
        for link in list(self._links):
            self._drop(link)

    def _drop(self, link: int) -> None:
        if self._links.pop(link, None) is not None:
            self._transport.peer_disconnect(link)

    def handle(self, event: tuple[Any, ...]) -> None:
        """An EV_PEER_* event; nobody can talk to a node that does not know who it is."""
        if event[0] == _engine.EV_PEER_INBOUND:
            self._transport.peer_reject(event[1], b"this node has no identity yet")
        elif event[0] in (_engine.EV_PEER_DOWN, _engine.EV_PEER_REJECTED):
            self._drop(event[1])

    def receive(self, batches: Sequence[tuple[int, list[bytes]]]) -> Identity | None:
        """The identity, once an answer names this node's URL."""
        for link, frames in batches:
            if link not in self._links:
                continue
            try:
                found = self._find(frames[0])
            except (HelloError, RaftError) as error:
                self._say(f"the answer of {self._links[link]} makes no sense: {error}")
                found = None
            self._drop(link)
            if found is not None:
                return found
        return None

    def _find(self, frame: bytes) -> Identity | None:
        cluster_id, encoded = parse_members_frame(frame)
        configuration = Configuration.decode(encoded)
        urls = {one: attributes(known).peer_url for one, known in configuration.members.items()}
        own = [one for one, url in urls.items() if url in self._own]
        if not own:
            self._say(f"no member of cluster {cluster_id:x} has the URL {', '.join(sorted(self._own))}: add it first")
            return None
        return replace(
            self._identity,
            name=self._config.name,
            cluster_id=cluster_id,
            member_id=own[0],
            peer_url=urls[own[0]],
            client_urls=self._config.client_urls,
            zone=self._config.zone,
            peers=tuple(Peer(one, url) for one, url in sorted(urls.items()) if one != own[0]),
        )

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._logger.warn("waiting for an identity", reason=text)
