"""What two members say to each other before anything else: who they are, and on which disk (M4, M5).

A hello opens each connection; the answer is a hello, too. Format, little-endian::

    magic "RKVH" | version u16 | kind u16 | cluster id u64 | from id u64 | to id u64 |
    disk uuid 16 bytes | generation u64 | nonce u64 | term u64 | last index u64 | url length u16 | url (UTF-8)

``kind`` is MEMBER, or ASKING for a node that was started by hand with ``--initial-cluster-state existing`` and looks
for its own id: it names neither cluster nor ids, and is answered with the configuration.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

HELLO_VERSION = 2
MAX_URL_BYTES = 4096
_MAGIC = b"RKVH"
_HEAD = struct.Struct("<4sHHQQQ16sQQQQH")
NO_DISK = bytes(16)


OLDER_DISK = "shows an older disk"
RUNS_TWICE = "runs twice on generation"
"""What a refusal says when the speaker's disk is not the newest that was seen of it (M5)."""
REMOVED = "has been permanently removed from the cluster"
"""What a removed member is told (M4), in etcd's words."""
BOOTSTRAPPED = "has already been bootstrapped"
"""What a member is told whose id has another disk (M4, M6), in etcd's words."""


class HelloError(ValueError):
    """Bytes that are no hello of this version."""


class HelloKind(IntEnum):
    """Who speaks."""

    MEMBER = 1
    ASKING = 2


@dataclass(frozen=True, slots=True)
class Hello:
    """A member's introduction on one connection."""

    kind: HelloKind
    cluster_id: int
    from_id: int
    to_id: int
    """The member that the speaker believes to talk to."""
    disk_uuid: bytes
    generation: int
    """The opening of the log that the speaker lives on."""
    nonce: int
    """Random per opening: a second process on a copy of the disk has another one."""
    url: str
    """Where the speaker listens for members."""
    term: int = 0
    """The speaker's term when it opened its log."""
    last_index: int = 0
    """The last entry that it had then."""

    def encode(self) -> bytes:
        url = self.url.encode()
        if len(url) > MAX_URL_BYTES:
            raise HelloError(f"the URL has more than {MAX_URL_BYTES} bytes")
        return (
            _HEAD.pack(
                _MAGIC,
                HELLO_VERSION,
                self.kind,
                self.cluster_id,
                self.from_id,
                self.to_id,
                self.disk_uuid,
                self.generation,
                self.nonce,
                self.term,
                self.last_index,
                len(url),
            )
            + url
        )

    @classmethod
    def decode(cls, data: bytes) -> Hello:
        """Parse what ``encode`` gave. Raises :class:`HelloError` for anything else."""
        if len(data) < _HEAD.size:
            raise HelloError("a hello is cut short")
        magic, version, kind, cluster, sender, receiver, disk, *numbers, length = _HEAD.unpack_from(data)
        generation, nonce, term, last_index = numbers
        if magic != _MAGIC:
            raise HelloError("this is no hello of RaftKV")
        if version != HELLO_VERSION:
            raise HelloError(f"hello version {version} is not known (newest: {HELLO_VERSION})")
        if length > MAX_URL_BYTES or len(data) != _HEAD.size + length:
            raise HelloError("a hello has another length than it says")
        try:
            url = data[_HEAD.size :].decode()
            known = HelloKind(kind)
        except ValueError as error:
            raise HelloError(f"a hello is malformed: {error}") from None
        return cls(known, cluster, sender, receiver, disk, generation, nonce, url, term, last_index)


@dataclass(frozen=True, slots=True)
class Judge:
    """What a node knows when it judges another's hello."""

    cluster_id: int
    own_id: int
    removed: Collection[int]
    """Ids whose removal is committed here."""
    bindings: Mapping[int, bytes]
    """Member id to disk uuid, as far as known."""
    openings: Mapping[int, tuple[int, int]]
    """Member id to the newest (generation, nonce) heard."""
    receipts: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    """Member id to the generation of its last hello, and the newest (term, index) that it has promised since."""

    def refusal(self, hello: Hello) -> str | None:
        """Why the speaker is not heard, or None. An unknown id of the same cluster is heard (M4)."""
        if hello.cluster_id != self.cluster_id:
            return f"cluster ID mismatch: {hello.cluster_id:x} is not {self.cluster_id:x}"
        if hello.to_id != self.own_id:
            return f"this is member {self.own_id:x}, not {hello.to_id:x}"
        if hello.from_id == self.own_id:
            return f"member id {hello.from_id:x} is this member's own"
        if hello.from_id in self.removed:
            return f"member {hello.from_id:x} {REMOVED}"
        bound = self.bindings.get(hello.from_id)
        if bound is not None and bound != hello.disk_uuid:
            return f"member {hello.from_id:x} {BOOTSTRAPPED}, and is bound to another disk"
        generation, nonce = self.openings.get(hello.from_id, (0, 0))
        if hello.generation < generation:
            return f"member {hello.from_id:x} {OLDER_DISK} (generation {hello.generation} after {generation})"
        if hello.generation == generation and nonce not in (0, hello.nonce):
            return f"member {hello.from_id:x} {RUNS_TWICE} {generation}"
        return self._broken_promise(hello)

    def _broken_promise(self, hello: Hello) -> str | None:
        """Whether the disk lacks what it has promised here in an earlier opening.

        In a term nothing takes away what was acknowledged to that term's leader. So a copy is found out that was taken
        in the middle of an opening, where the generation says nothing.
        """
        since, term, index = self.receipts.get(hello.from_id, (0, 0, 0))
        if since < hello.generation and (hello.term < term or (hello.term == term and hello.last_index < index)):
            return (
                f"member {hello.from_id:x} {OLDER_DISK} (term {hello.term} and entry {hello.last_index}, after "
                f"it has acknowledged entry {index} in term {term})"
            )
        return None
