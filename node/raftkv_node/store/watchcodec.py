"""How events are spelled for watchers: each once per kind of watcher, then shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .encoding import field, varint
from .mvcc import Event, RevisionEvents

DEFAULT_RESPONSE_BYTES = (3 << 19) + (512 << 10)
"""etcd's limit for a fragment: its default request limit, and 512 KiB more."""

_DELETE_TYPE = b"\x08\x01"

Encoded = list[tuple[int, list[bytes]]]
"""By revision: encoded events, each framed as a field of the response."""


class Variant(NamedTuple):
    """What makes two watchers of one interval get different bytes."""

    prev: bool
    no_put: bool
    no_delete: bool
    fragment: bool


def encode_event(event: Event, prev: bool) -> bytes:
    """An event as field 11 of a WatchResponse."""
    body = b"\x12" + varint(len(event.record)) + event.record
    if event.deleted:
        body = _DELETE_TYPE + body
    if prev and event.prev is not None:
        body += field(b"\x1a", event.prev)
    return b"\x5a" + varint(len(body)) + body


Memo = dict[tuple[int, bool], bytes]
"""Encoded events by (identity, with the record before); valid while the events live."""


def select(batch: Sequence[RevisionEvents], variant: Variant, memo: Memo) -> Encoded:
    """The events of a batch that such a watcher wants, encoded; revisions without any are left out."""
    selected = []
    prev, no_put, no_delete, _ = variant
    for revision, events in batch:
        parts = []
        for event in events:
            if no_delete if event.deleted else no_put:
                continue
            encoded = memo.get((id(event), prev))
            if encoded is None:
                encoded = memo[id(event), prev] = encode_event(event, prev)
            parts.append(encoded)
        if parts:
            selected.append((revision, parts))
    return selected


class Plan(NamedTuple):
    """Responses but for the watcher's id, which stands between the two parts of each."""

    parts: list[tuple[bytes, bytes]]
    events: int
    """Events in all of them."""

    def responses(self, head: bytes) -> list[bytes]:
        """For the watcher whose encoded id field is `head`."""
        return [b"".join((front, head, back)) for front, back in self.parts]


def plan_responses(
    header: Callable[[int], bytes], selected: Encoded, through: int, *, fragment: bool, limit: int
) -> Plan:
    """The responses that carry `selected`, for any number of watchers.

    The last one's header names `through`, up to which the watchers then have everything.  Above `limit` bytes
    responses are split between revisions; within one only where fragments were asked for.
    """
    planned: list[tuple[bytes, bytes]] = []
    pending: list[bytes] = []
    size = 0
    last = 0
    for revision, parts in selected:
        length = sum(map(len, parts))
        if pending and size + length > limit:
            planned.append((header(last), b"".join(pending)))
            pending, size = [], 0
        if fragment and length > limit:
            for part in parts:
                if pending and size + len(part) > limit:
                    planned.append((header(revision), b"".join((b"\x38\x01", *pending))))
                    pending, size = [], 0
                pending.append(part)
                size += len(part)
        else:
            pending += parts
            size += length
        last = revision
    planned.append((header(through), b"".join(pending)))
    return Plan(planned, sum([len(parts) for _, parts in selected]))
