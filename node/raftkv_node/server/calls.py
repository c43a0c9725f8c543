"""A rare call that is answered on its own: from a client, or from another member on a client's behalf."""

from __future__ import annotations

from typing import Protocol

from raftkv_node.server.answers import Answers
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.peers import Peers
from raftkv_node.store.errors import EtcdError


class Call(Protocol):
    """Where an answer goes; exactly one of the two methods is called, once."""

    method: int
    forwarded: bool
    """Whether another member sent it here; it is not sent on again."""

    def ok(self, message: bytes) -> None:
        """Answers with a message."""

    def error(self, error: EtcdError) -> None:
        """Answers with an error."""


class ClientCall:
    """A client's own."""

    forwarded = False

    def __init__(self, call_id: int, method: int, answers: Answers, metrics: Metrics) -> None:
        self.call_id = call_id
        self.method = method
        self._answers = answers
        self._metrics = metrics

    def ok(self, message: bytes) -> None:
        """Answers with a message."""
        self._metrics.handled(self.method, 0)
        self._answers.ok((self.call_id,), (message,))

    def error(self, error: EtcdError) -> None:
        """Answers with an error."""
        self._metrics.handled(self.method, error.grpc_code)
        self._answers.error(self.call_id, error)


class PeerCall:
    """Another member's, for one of its clients."""

    forwarded = True

    def __init__(self, connection: int, request_id: int, method: int, peers: Peers) -> None:
        self.method = method
        self._connection = connection
        self._request_id = request_id
        self._peers = peers

    def ok(self, message: bytes) -> None:
        """Answers with a message."""
        self._peers.respond(self._connection, self._request_id, 0, message)

    def error(self, error: EtcdError) -> None:
        """Answers with an error."""
        self._peers.respond(self._connection, self._request_id, error.grpc_code, error.message.encode())
