"""Members as the configuration carries them: attributes and settings, which consensus itself does not read.

A member's attributes are an encoded ``admin.Identity`` without the cluster's id, the settings an encoded
``admin.Settings``. What a member publishes of itself after its start (name, client URLs) travels as a command of the
log, as with etcd, and is the store's; it counts before the attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from raftkv_node.pb import admin_pb2, rpc_pb2
from raftkv_node.raft import Configuration, initial_configuration
from raftkv_node.server.identity import Identity, Peer, cluster_id, member_id
from raftkv_node.server.preference import LeaderPreference
from raftkv_node.server.roles import RoleSettings

BY_HAND_MAX_VOTERS = 9


@lru_cache(maxsize=1024)
def attributes(encoded: bytes) -> admin_pb2.Identity:
    """A member's attributes; not to be changed by the caller."""
    return admin_pb2.Identity.FromString(encoded)


@lru_cache(maxsize=64)
def settings(encoded: bytes) -> admin_pb2.Settings:
    """The replicated settings; not to be changed by the caller."""
    return admin_pb2.Settings.FromString(encoded)


def encode_attributes(identity: admin_pb2.Identity) -> bytes:
    """What the configuration keeps of a member; equal for equal content."""
    kept = admin_pb2.Identity()
    kept.CopyFrom(identity)
    kept.cluster_id = 0
    return kept.SerializeToString(deterministic=True)


def encode_settings(value: admin_pb2.Settings) -> bytes:
    """The settings as the configuration keeps them; equal for equal content."""
    return value.SerializeToString(deterministic=True)


def role_settings(encoded: bytes) -> RoleSettings:
    """The part that the decision about roles needs."""
    value = settings(encoded)
    return RoleSettings(
        replicas=value.replicas,
        max_voters=value.max_voters or 5,
        promote_after_seconds=value.promote_after_milliseconds / 1000,
        leaving=frozenset(value.leaving),
    )


def zones(configuration: Configuration) -> dict[int, str]:
    """Where each member stands: as the operator says in the settings, else as its identity does; empty: unknown."""
    listed = settings(configuration.settings).zones
    return {
        one: listed[one] if one in listed else attributes(encoded).zone
        for one, encoded in configuration.members.items()
    }


@lru_cache(maxsize=64)
def leader_preference(encoded: bytes) -> LeaderPreference:
    """Where the leader is wished; what was never checked and makes no sense is no wish."""
    try:
        return LeaderPreference.parse(settings(encoded).leader_preference)
    except ValueError:
        return LeaderPreference()


def peer_urls(configuration: Configuration, own_id: int) -> dict[int, str]:
    """Where the other members of the configuration listen."""
    return {
        one: attributes(encoded).peer_url
        for one, encoded in configuration.members.items()
        if one != own_id and attributes(encoded).peer_url
    }


def bindings(configuration: Configuration) -> dict[int, bytes]:
    """Member id to disk uuid, for members whose binding is in the configuration (M4)."""
    return {
        one: attributes(encoded).disk_uuid
        for one, encoded in configuration.members.items()
        if attributes(encoded).disk_uuid
    }


def to_proto(identity: Identity) -> admin_pb2.Identity:
    """An identity as the administration API shows it."""
    return admin_pb2.Identity(
        cluster_id=identity.cluster_id,
        member_id=identity.member_id,
        number=identity.number,
        disk_uuid=identity.disk_uuid,
        name=identity.name,
        peer_url=identity.peer_url,
        client_urls=identity.client_urls,
        zone=identity.zone,
    )


def from_proto(
    identity: admin_pb2.Identity, founding: bytes = b"", peers: Iterable[admin_pb2.Identity] = ()
) -> Identity:
    """The identity that Bootstrap (with a founding configuration) or Join (with peers) asks for."""
    return Identity(
        disk_uuid=identity.disk_uuid,
        number=identity.number,
        name=identity.name,
        cluster_id=identity.cluster_id,
        member_id=identity.member_id,
        peer_url=identity.peer_url,
        client_urls=tuple(identity.client_urls),
        zone=identity.zone,
        operated=True,
        founding=founding,
        peers=tuple(
            Peer(one.member_id, one.peer_url, one.disk_uuid) for one in peers if one.member_id != identity.member_id
        ),
    )


def bootstrap_configuration(identity: admin_pb2.Identity, wanted: admin_pb2.Settings) -> Configuration:
    """The first configuration of a cluster that the operator founds: one voter."""
    return initial_configuration({identity.member_id: encode_attributes(identity)}, encode_settings(wanted))


class Founders(NamedTuple):
    """A cluster that is started by hand, as every founder derives it from the same flags."""

    cluster_id: int
    configuration: Configuration
    ids: Mapping[str, int]
    """Member ids by name."""


def founders(initial_cluster: Iterable[tuple[str, tuple[str, ...]]], token: str) -> Founders:
    """Ids and first configuration of ``--initial-cluster``: all listed vote; clients are served from the start."""
    listed = list(initial_cluster)
    ids = {name: member_id(urls, token) for name, urls in listed}
    members = {
        ids[name]: encode_attributes(admin_pb2.Identity(member_id=ids[name], name=name, peer_url=urls[0]))
        for name, urls in listed
    }
    hand = admin_pb2.Settings(replicas=0, max_voters=BY_HAND_MAX_VOTERS, opened=True)
    return Founders(cluster_id(ids.values()), initial_configuration(members, encode_settings(hand)), ids)


def member_list(configuration: Configuration, published: Mapping[int, rpc_pb2.Member]) -> list[rpc_pb2.Member]:
    """The members as etcd's API shows them, by id."""
    result = []
    for one in sorted(configuration.members):
        known, said = attributes(configuration.members[one]), published.get(one)
        result.append(
            rpc_pb2.Member(
                ID=one,
                name=said.name if said else known.name,
                peerURLs=[known.peer_url],
                clientURLs=said.clientURLs if said else known.client_urls,
                isLearner=not configuration.is_voter(one),
            )
        )
    return result
