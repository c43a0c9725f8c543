"""Who this node is: the identity file, and ids as etcd derives them for members started by hand (M1, M6).

An empty node gives its disk a random uuid and writes it down before anything else. Under the operator it then waits:
ids are issued by ``Bootstrap`` or ``Join``, once, and are never derived. By hand they follow from the flags as with
etcd: a member's id from its peer URLs and the token, the cluster's from the members' ids.

The file is one line ``raftkv-identity VERSION CRC32`` and a JSON object; it is replaced atomically (write, fsync,
rename, fsync of the folder). Once issued, ids never change: :meth:`Identity.issue` accepts the same content again and
refuses any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raftkv_node.adr.files import Files, replace_file

FILE_NAME = "identity"
FILE_VERSION = 1
DISOWNED = (
    "this member's disk is older than one that it has shown, or a copy: was a volume restored? Replace the member"
)
_HEAD = re.compile(rb"raftkv-identity (\d+) ([0-9a-f]{8})\n")


class IdentityError(Exception):
    """The identity file is damaged, of another version, or contradicts what is asked of the node."""


def member_id(peer_urls: Iterable[str], token: str, unix_seconds: int | None = None) -> int:
    """etcd's id of a member: from its peer URLs, the cluster's token and, when it is added later, the time."""
    text = "".join(sorted(peer_urls)) + token + ("" if unix_seconds is None else str(unix_seconds))
    return int.from_bytes(hashlib.sha1(text.encode()).digest()[:8], "big")


def cluster_id(member_ids: Iterable[int]) -> int:
    """etcd's id of a cluster: from the ids of its first members."""
    digest = hashlib.sha1(b"".join(member.to_bytes(8, "big") for member in sorted(member_ids)))
    return int.from_bytes(digest.digest()[:8], "big")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another member as known when the identity was issued: enough to find it."""

    member_id: int
    peer_url: str
    disk_uuid: bytes = b""


@dataclass(frozen=True, slots=True)
class Identity:
    """The content of the identity file. Without ids (0) the node waits for them."""

    disk_uuid: bytes
    number: int = 0
    name: str = ""
    cluster_id: int = 0
    member_id: int = 0
    peer_url: str = ""
    client_urls: tuple[str, ...] = ()
    zone: str = ""
    operated: bool = False
    founding: bytes = b""
    """The encoded first configuration for a member that founds the cluster; empty for one that joins."""
    peers: tuple[Peer, ...] = ()
    """Members known at the time; later ones are found in the replicated configuration."""
    bindings: Mapping[int, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """By hand: the disk uuids that other members have shown (M6). The node votes once it has all founders'."""
    begun: bool = False
    """The member's log was opened once. A disk that has only this file left has lost a log: it never starts empty."""
    disowned: bool = False
    """A member has said that this disk is older than one that it had seen (M5): a person must look (D10)."""
    forcing: tuple[int, int] | None = None
    """The cluster id and member id that this disk is being given (`--force-new-cluster`, force.py)."""
    forced_from: int = 0
    """The cluster that this one was made of so; 0: of none."""
    retired: bool = False
    """The operator has ordered the wipe of ring and disk; it may have been interrupted (M10)."""

    @property
    def issued(self) -> bool:
        return self.member_id != 0

    def issue(self, wanted: Identity) -> Identity:
        """This identity with the ids of ``wanted``: idempotent for the same content, refused for any other (M1)."""
        if wanted.disk_uuid != self.disk_uuid:
            raise IdentityError(f"this disk is {self.disk_uuid.hex()}, not {wanted.disk_uuid.hex()}")
        if not wanted.cluster_id or not wanted.member_id:
            raise IdentityError("an identity needs a cluster id and a member id")
        if self.number and wanted.number != self.number:
            raise IdentityError(f"this node has number {self.number}, not {wanted.number}")
        if self.retired:
            raise IdentityError("this node is being wiped")
        if not self.issued:
            return replace(wanted, bindings=self.bindings)
        same = replace(wanted, peers=self.peers, bindings=self.bindings, begun=self.begun, disowned=self.disowned)
        if same != self:
            raise IdentityError(
                f"this node already is member {self.member_id:x} of cluster {self.cluster_id:x}"
                + (", with other content" if same.member_id == self.member_id else "")
            )
        return self

    def encode(self) -> bytes:
        body = json.dumps(
            {
                "disk_uuid": self.disk_uuid.hex(),
                "number": self.number,
                "name": self.name,
                "cluster_id": f"{self.cluster_id:016x}",
                "member_id": f"{self.member_id:016x}",
                "peer_url": self.peer_url,
                "client_urls": list(self.client_urls),
                "zone": self.zone,
                "operated": self.operated,
                "founding": self.founding.hex(),
                "peers": [[f"{one.member_id:016x}", one.peer_url, one.disk_uuid.hex()] for one in self.peers],
                "bindings": {f"{member:016x}": disk.hex() for member, disk in sorted(self.bindings.items())},
                "begun": self.begun,
                "disowned": self.disowned,
                "forcing": [f"{one:016x}" for one in self.forcing or ()],
                "forced_from": f"{self.forced_from:016x}",
                "retired": self.retired,
            },
            indent=1,
        ).encode()
        return b"raftkv-identity %d %08x\n" % (FILE_VERSION, zlib.crc32(body)) + body

    @classmethod
    def decode(cls, data: bytes) -> Identity:
        """Parse what ``encode`` gave. Raises :class:`IdentityError` for anything else."""
        head = _HEAD.match(data)
        if head is None:
            raise IdentityError("the identity file has no valid first line")
        if int(head[1]) != FILE_VERSION:
            raise IdentityError(f"identity file version {int(head[1])} is not known (newest: {FILE_VERSION})")
        body = data[head.end() :]
        if zlib.crc32(body) != int(head[2], 16):
            raise IdentityError("the identity file's checksum is wrong")
        try:
            return cls._from_json(json.loads(body))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IdentityError(f"the identity file is malformed: {error!r}") from None

    @classmethod
    def _from_json(cls, fields: dict[str, Any]) -> Identity:
        return cls(
            disk_uuid=bytes.fromhex(fields["disk_uuid"]),
            number=int(fields["number"]),
            name=str(fields["name"]),
            cluster_id=int(fields["cluster_id"], 16),
            member_id=int(fields["member_id"], 16),
            peer_url=str(fields["peer_url"]),
            client_urls=tuple(fields["client_urls"]),
            zone=str(fields["zone"]),
            operated=bool(fields["operated"]),
            founding=bytes.fromhex(fields["founding"]),
            peers=tuple(Peer(int(member, 16), url, bytes.fromhex(disk)) for member, url, disk in fields["peers"]),
            bindings=MappingProxyType(
                {int(member, 16): bytes.fromhex(disk) for member, disk in fields["bindings"].items()}
            ),
            begun=bool(fields.get("begun", False)),
            disowned=bool(fields.get("disowned", False)),
            forcing=_pair(fields.get("forcing", [])),
            forced_from=int(fields.get("forced_from", "0"), 16),
            retired=bool(fields["retired"]),
        )


def _pair(ids: list[str]) -> tuple[int, int] | None:
    if not ids:
        return None
    cluster, member = ids
    return int(cluster, 16), int(member, 16)


def save(folder: Path, identity: Identity) -> None:
    """Replace the identity file atomically and durably."""
    replace_file(Files(), folder / FILE_NAME, identity.encode())


def load_or_format(folder: Path, number: int, name: str) -> Identity:
    """The identity in the folder; an empty folder is formatted with a random disk uuid first.

    Raises :class:`IdentityError` for a damaged file, or for a folder that has content but no identity (its content
    belongs to somebody, and an identity is never guessed).
    """
    path = folder / FILE_NAME
    try:
        return Identity.decode(path.read_bytes())
    except FileNotFoundError:
        pass
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in ("lost+found", f"{FILE_NAME}.tmp"))
    if others:
        raise IdentityError(f"{folder} holds {', '.join(others[:3])} but no identity file")
    identity = Identity(disk_uuid=os.urandom(16), number=number, name=name)
    save(folder, identity)
    return identity
