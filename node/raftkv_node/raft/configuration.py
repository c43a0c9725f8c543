"""Who takes part: the configuration, its encoding, and what a change makes of it (M7-M10).

A configuration is an immutable value and always complete: a CONFIG entry carries the whole result of a change, not the
change. Replay, truncation and a member that starts in the middle of the log therefore never depend on what came before.

Voter sets change by joint consensus (Raft, section 6): `enter` gives a joint configuration, whose decisions need
majorities of `voters` (the new set) and of `voters_outgoing` (the old one); once that is committed the leader appends
what `leave` gives. Members that lose their vote stay members until then; at `leave` they become learners or standbys if
the change said so, or go to the removed set.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType

from .errors import ConfigurationError

CONFIGURATION_VERSION = 1
_EMPTY: frozenset[int] = frozenset()
_COUNT = struct.Struct("<I")
_MEMBER = struct.Struct("<QI")
_SETS = (
    "voters",
    "voters_outgoing",
    "learners",
    "standbys",
    "learners_next",
    "standbys_next",
    "removed",
)


def _no_members() -> Mapping[int, bytes]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ConfigurationChange:
    """A wish, as one value. Whatever changes the voter set becomes a joint step, the rest a simple entry.

    `voters`: the complete new voter set; all of them must be members already (M7: members come in as learners).
    `demote_to_standby`: voters that lose their vote without being in `remove` become standbys, else learners.
    `standbys`: learners for which there is no vacancy: they become standbys (M7).
    `add_learners`, `add_standbys`: new members and their attributes.
    `remove`: ids to remove for ever; an id that was never a member is burned (M10).
    `attributes`: new attributes of existing members. `settings`: new replicated consensus settings.
    """

    voters: frozenset[int] | None = None
    demote_to_standby: bool = False
    standbys: frozenset[int] = _EMPTY
    add_learners: Mapping[int, bytes] = field(default_factory=_no_members)
    add_standbys: Mapping[int, bytes] = field(default_factory=_no_members)
    remove: frozenset[int] = _EMPTY
    attributes: Mapping[int, bytes] = field(default_factory=_no_members)
    settings: bytes | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """The members and their roles. Every id with a role is a key of `members`, whose values (address, disk uuid, ...)
    belong to the server. `removed` is never trimmed (M4). `settings` is opaque. The empty configuration is that of a
    node that has not been contacted yet."""

    voters: frozenset[int] = _EMPTY
    voters_outgoing: frozenset[int] = _EMPTY
    learners: frozenset[int] = _EMPTY
    standbys: frozenset[int] = _EMPTY
    learners_next: frozenset[int] = _EMPTY
    standbys_next: frozenset[int] = _EMPTY
    members: Mapping[int, bytes] = field(default_factory=_no_members)
    removed: frozenset[int] = _EMPTY
    settings: bytes = b""

    def __post_init__(self) -> None:
        for name in _SETS:
            object.__setattr__(self, name, frozenset(getattr(self, name)))
        object.__setattr__(self, "members", MappingProxyType(dict(self.members)))
        self._check()

    def __hash__(self) -> int:
        return hash(self.encode())

    def _check(self) -> None:
        ids = self.ids
        if any(not 0 < member < 1 << 64 for member in (*ids, *self.removed, *self.members)):
            raise ConfigurationError("a member id is not in 1..2^64-1")
        if set(self.members) != ids:
            raise ConfigurationError("the members are not exactly the ids that have a role")
        if self.removed & ids:
            raise ConfigurationError("a removed id has a role")
        followers = self.learners | self.standbys
        if self.learners & self.standbys or followers & self.all_voters:
            raise ConfigurationError("an id has two roles")
        leaving = self.voters_outgoing - self.voters
        if self.learners_next & self.standbys_next or not self.learners_next | self.standbys_next <= leaving:
            raise ConfigurationError("an id is to be demoted that does not lose its vote, or twice")
        if not self.voters and ids:
            raise ConfigurationError("there are members but no voter")

    @property
    def joint(self) -> bool:
        """Whether decisions need two majorities."""
        return bool(self.voters_outgoing)

    @property
    def all_voters(self) -> frozenset[int]:
        """Everyone whose vote counts in one of the sets."""
        return self.voters | self.voters_outgoing if self.voters_outgoing else self.voters

    @property
    def ids(self) -> frozenset[int]:
        """Everyone who receives the log."""
        return self.all_voters | self.learners | self.standbys

    def is_voter(self, member: int) -> bool:
        """Whether the member's vote counts."""
        return member in self.voters or member in self.voters_outgoing

    def change(self, change: ConfigurationChange) -> Configuration:
        """Return the configuration to append for a wish: the joint one if the voter set changes.

        Raises `ConfigurationError` if the wish is impossible or changes nothing.
        """
        if self.joint:
            raise ConfigurationError("a joint configuration is left before the next change")
        self._check_change(change)
        voters = self.voters - change.remove if change.voters is None else change.voters
        if not voters:
            raise ConfigurationError("no voter would remain")
        leaving = self.voters - voters
        demoted = leaving - change.remove
        gone_now = change.remove - leaving
        members = {**self.members, **change.attributes, **change.add_learners, **change.add_standbys}
        result = replace(
            self,
            voters=voters,
            voters_outgoing=self.voters if voters != self.voters else _EMPTY,
            learners=self.learners.union(change.add_learners) - voters - gone_now - change.standbys,
            standbys=self.standbys.union(change.add_standbys, change.standbys) - voters - gone_now,
            learners_next=_EMPTY if change.demote_to_standby else demoted,
            standbys_next=demoted if change.demote_to_standby else _EMPTY,
            members={member: value for member, value in members.items() if member not in gone_now},
            removed=self.removed | gone_now,
            settings=self.settings if change.settings is None else change.settings,
        )
        if result == self:
            raise ConfigurationError("the change changes nothing")
        return result

    def _check_change(self, change: ConfigurationChange) -> None:
        ids = self.ids
        added = change.add_learners.keys() | change.add_standbys.keys()
        if change.add_learners.keys() & change.add_standbys.keys():
            raise ConfigurationError("an id is added twice")
        for member in sorted(added):
            if member in self.removed:
                raise ConfigurationError(f"id {member:x} was removed and never returns")
            if member in ids:
                raise ConfigurationError(f"id {member:x} is a member already")
        if added & change.remove:
            raise ConfigurationError("an id is added and removed at once")
        if change.remove & self.removed:
            raise ConfigurationError("an id to remove was removed before")
        if not change.attributes.keys() <= ids - change.remove:
            raise ConfigurationError("attributes are given for an id that is not a member")
        if not change.standbys <= self.learners - change.remove:
            raise ConfigurationError("an id is to become a standby that is no learner")
        if change.voters is not None:
            if change.voters & change.standbys:
                raise ConfigurationError("an id is made a voter and a standby at once")
            if not change.voters <= ids:
                raise ConfigurationError("a new voter must be a member already (add it as a learner first)")
            if change.voters & change.remove:
                raise ConfigurationError("an id is made a voter and removed at once")

    def leave(self) -> Configuration:
        """Return what follows a joint configuration: the new voters alone, the leaving ones demoted or removed."""
        if not self.joint:
            raise ConfigurationError("the configuration is not joint")
        gone = self.voters_outgoing - self.voters - self.learners_next - self.standbys_next
        return Configuration(
            voters=self.voters,
            learners=self.learners | self.learners_next,
            standbys=self.standbys | self.standbys_next,
            members={member: value for member, value in self.members.items() if member not in gone},
            removed=self.removed | gone,
            settings=self.settings,
        )

    def encode(self) -> bytes:
        """Return the canonical bytes: version, the seven id sets sorted, members sorted by id, settings.

        All integers little-endian; sets and settings are prefixed by a 32-bit count, ids are 64-bit.
        """
        parts = [bytes((CONFIGURATION_VERSION,))]
        for name in _SETS:
            ids = sorted(getattr(self, name))
            parts.append(struct.pack(f"<I{len(ids)}Q", len(ids), *ids))
        parts.append(_COUNT.pack(len(self.members)))
        for member in sorted(self.members):
            value = self.members[member]
            parts.append(_MEMBER.pack(member, len(value)) + value)
        parts.append(_COUNT.pack(len(self.settings)) + self.settings)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Configuration:
        """Parse what `encode` gave. Raises `ConfigurationError` for anything else, unknown versions among it."""
        reader = _Reader(data)
        version = reader.take(1)[0]
        if version != CONFIGURATION_VERSION:
            raise ConfigurationError(f"configuration version {version} is not known (newest: {CONFIGURATION_VERSION})")
        sets = {name: reader.ids() for name in _SETS}
        members: dict[int, bytes] = {}
        previous = 0
        for _ in range(reader.count(_MEMBER.size)):
            member, length = _MEMBER.unpack(reader.take(_MEMBER.size))
            if member <= previous:
                raise ConfigurationError("members are not sorted")
            previous = member
            members[member] = reader.take(length)
        settings = reader.take(reader.count(1))
        reader.finish()
        return cls(members=members, settings=settings, **sets)


class _Reader:
    """Bounds-checked reading of little-endian fields."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, length: int) -> bytes:
        end = self._offset + length
        if end > len(self._data):
            raise ConfigurationError("configuration ends early")
        part = self._data[self._offset : end]
        self._offset = end
        return part

    def count(self, item_bytes: int) -> int:
        (count,) = _COUNT.unpack(self.take(_COUNT.size))
        if count * item_bytes > len(self._data) - self._offset:
            raise ConfigurationError("configuration ends early")
        return int(count)

    def ids(self) -> frozenset[int]:
        count = self.count(8)
        ids = struct.unpack(f"<{count}Q", self.take(8 * count))
        if any(left >= right for left, right in pairwise(ids)):
            raise ConfigurationError("ids are not sorted")
        return frozenset(ids)

    def finish(self) -> None:
        if self._offset != len(self._data):
            raise ConfigurationError("bytes follow the configuration")


def initial_configuration(members: Mapping[int, bytes] | Iterable[int], settings: bytes = b"") -> Configuration:
    """Return the configuration of a new cluster in which every given member votes."""
    attributes = dict(members) if isinstance(members, Mapping) else dict.fromkeys(members, b"")
    return Configuration(voters=frozenset(attributes), members=attributes, settings=settings)
