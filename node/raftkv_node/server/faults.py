"""Mistakes in the handling of one request: its caller is told, and everybody else is served on."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from raftkv_node.store.errors import INTERNAL, EtcdError

INTERNAL_FAULT = EtcdError(INTERNAL, "raftkv: this request met an error in the node; its log has more")
REQUEST_FAULTS = (ArithmeticError, AttributeError, DecodeError, LookupError, TypeError, ValueError)
"""What a mistake in the handling of one request raises. Before a write is proposed such a mistake concerns its caller
alone, and must not end the node: the client would try it on every other member, too. What tells of a broken invariant,
log or store is none of these, and does end it."""


class RequestFault(Exception):
    """A worker met one of them (the cause); the caller has been told."""

    def __init__(self, method: int) -> None:
        super().__init__(method)
        self.method = method
