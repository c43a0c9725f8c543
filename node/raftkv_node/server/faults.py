"""Mistakes in the handling of one request: its caller is told, and everybody else is served on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from google.protobuf.message import DecodeError

from raftkv_node.store.errors import INTERNAL, EtcdError

INTERNAL_FAULT = EtcdError(INTERNAL, "raftkv: this request met an error in the node; its log has more")
REQUEST_FAULTS = (ArithmeticError, AttributeError, DecodeError, LookupError, TypeError, ValueError)
"""What a mistake in the handling of one request raises. Before a write is proposed such a mistake concerns its caller
alone, and must not end the node: the client would try it on every other member, too. What tells of a broken invariant,
log or store is none of these, and does end it."""


class RequestFault(Exception):
    """A worker met one of them; the caller has been told."""

    def __init__(self, method: int, error: Exception) -> None:
        super().__init__(method, error)
        self.method = method
        self.error = error


@contextmanager
def faults_told(method: int, tell: Callable[[EtcdError], object]) -> Iterator[None]:
    """On a worker: what handles one request, whose caller is to be told of a fault by `tell`. Raises `RequestFault`."""
    try:
        yield
    except REQUEST_FAULTS as error:
        tell(INTERNAL_FAULT)
        raise RequestFault(method, error) from error
