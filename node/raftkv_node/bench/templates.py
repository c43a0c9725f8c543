"""Protobuf messages with gaps: bodies that the native load generator fills in without knowing the message.

Where the gaps are is found by making each message more than once: the bytes that change when one filling changes are
that filling's. So nothing here depends on how protobuf lays a message out, except that fillings have a fixed length.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

_STAMP_BYTES = 16
_FRESH_BYTES = 8
_VARINT_BYTES = 10
# The native side spreads keys by a multiplication, which this one takes back.
_GATHER = pow(0x9E37_79B9_7F4A_7C15, -1, 1 << 64)
# Both take ten bytes as varints; the last of them is the same, all others differ.
_NUMBERS = (-1, -(1 << 63))


class Message(Protocol):
    """Any protobuf message."""

    def SerializeToString(self) -> bytes: ...


@dataclass(frozen=True)
class Shape:
    """What keys and values look like."""

    prefix: bytes
    key_bytes: int
    value_bytes: int

    @property
    def digits(self) -> int:
        """Hexadecimal digits of a key, after the prefix."""
        return min(16, self.key_bytes - len(self.prefix))

    @property
    def stem(self) -> bytes:
        """What all keys begin with: the prefix, filled up to the length of keys."""
        return self.prefix + b"0" * (self.key_bytes - len(self.prefix) - self.digits)

    def number(self, key: bytes, *, ordered: bool) -> int | None:
        """The number that a key stands for; None when it is not one of these keys."""
        if len(key) != self.key_bytes or not key.startswith(self.stem):
            return None
        try:
            digits = int(key[len(self.stem) :], 16)
        except ValueError:
            return None
        return digits if ordered else digits * _GATHER % 16**self.digits

    @property
    def end(self) -> bytes:
        """The end of the range of all keys."""
        return _after(self.prefix)


def _after(prefix: bytes) -> bytes:
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\x00"


class Filling:
    """Gives placeholders for what is filled in; one of them may be changed, to see where it is."""

    def __init__(self, shape: Shape, changed: tuple[str, int] | None = None) -> None:
        self.shape = shape
        self.used: dict[tuple[str, int], int] = {}
        """Kind and argument of each filling, and its length."""
        self._changed = changed

    def _bytes(self, kind: str, argument: int, length: int) -> bytes:
        self.used[kind, argument] = length
        return bytes([1 if self._changed == (kind, argument) else 0]) * length

    def _number(self, kind: str) -> int:
        self.used[kind, 0] = _VARINT_BYTES
        return _NUMBERS[self._changed == (kind, 0)]

    def key(self, offset: int = 0) -> bytes:
        """A key: the call's, or one so many after it."""
        return self.shape.stem + self._bytes("key", offset, self.shape.digits)

    def value(self, *, stamped: bool = False) -> bytes:
        """A value that is another one each time; stamped: it tells when it was sent."""
        size = self.shape.value_bytes
        filler = random.Random(7).randbytes(size)
        if stamped:
            return (self._bytes("stamp", 0, _STAMP_BYTES) + filler)[: max(size, _STAMP_BYTES)]
        fresh = min(size, _FRESH_BYTES)
        return self._bytes("random", fresh, fresh) + filler[fresh:] if fresh else b""

    def key_number(self) -> int:
        """The number remembered for the call's key."""
        return self._number("key_number")

    def client_number(self) -> int:
        """The number that the client remembers."""
        return self._number("client_number")

    def client_key(self) -> bytes:
        """The key that the client remembers."""
        return self._bytes("client_bytes", self.shape.key_bytes, self.shape.key_bytes)


@dataclass(frozen=True)
class Template:
    """A body, and what is written over it: kind, first byte, argument."""

    body: bytes
    patches: list[tuple[str, int, int]]


def template(shape: Shape, make: Callable[[Filling], Message]) -> Template:
    """The template of the message that ``make`` makes with the fillings that it asks for."""
    plain = Filling(shape)
    body = make(plain).SerializeToString()
    patches = []
    for (kind, argument), length in plain.used.items():
        other = make(Filling(shape, (kind, argument))).SerializeToString()
        assert len(other) == len(body), f"{kind}: the placeholder changes the message's length"
        differing = [at for at in range(len(body)) if body[at] != other[at]]
        shown = length - 1 if kind.endswith("_number") else length
        assert differing and len(differing) % shown == 0, f"{kind}: not found"
        for at in differing[::shown]:
            assert all(body[at + n] != other[at + n] for n in range(shown)), f"{kind}: torn apart"
            patches.append((kind, at, argument))
    return Template(body, patches)
