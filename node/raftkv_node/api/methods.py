"""Every RPC that is served, with the number by which the engine hands it over.

RPCs of the protocol files that are not listed are not registered, and the engine answers them with UNIMPLEMENTED.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple


class Method(IntEnum):
    """Numbers of RPCs between engine and turn; they never leave the process."""

    RANGE = 1
    PUT = 2
    DELETE_RANGE = 3
    TXN = 4
    COMPACT = 5
    WATCH = 6
    MEMBER_LIST = 7
    MEMBER_ADD = 8
    MEMBER_REMOVE = 9
    MEMBER_PROMOTE = 10
    STATUS = 11
    HASH_KV = 12
    ALARM = 13
    MOVE_LEADER = 14
    HEALTH_CHECK = 15
    HEALTH_WATCH = 16
    DESCRIBE = 17
    BOOTSTRAP = 18
    JOIN = 19
    GET_CONFIGURATION = 20
    ADD_MEMBER = 21
    REMOVE_MEMBER = 22
    SET_SETTINGS = 23
    RETIRE = 24
    RESTART_TICKET = 25
    RANGE_STREAM = 26


class MethodInfo(NamedTuple):
    """How an RPC is called on the wire."""

    service: str
    name: str
    kind: str
    """unary, server_stream or bidi_stream, as metrics call it."""

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"

    @property
    def streaming(self) -> bool:
        return self.kind != "unary"


_KV, _WATCH, _CLUSTER = "etcdserverpb.KV", "etcdserverpb.Watch", "etcdserverpb.Cluster"
_MAINTENANCE, _HEALTH, _ADMIN = "etcdserverpb.Maintenance", "grpc.health.v1.Health", "raftkv.admin.v1.Admin"

METHODS: Mapping[int, MethodInfo] = MappingProxyType(
    {
        int(method): MethodInfo(service, name, kind)
        for method, service, name, kind in (
            (Method.RANGE, _KV, "Range", "unary"),
            (Method.RANGE_STREAM, _KV, "RangeStream", "server_stream"),
            (Method.PUT, _KV, "Put", "unary"),
            (Method.DELETE_RANGE, _KV, "DeleteRange", "unary"),
            (Method.TXN, _KV, "Txn", "unary"),
            (Method.COMPACT, _KV, "Compact", "unary"),
            (Method.WATCH, _WATCH, "Watch", "bidi_stream"),
            (Method.MEMBER_LIST, _CLUSTER, "MemberList", "unary"),
            (Method.MEMBER_ADD, _CLUSTER, "MemberAdd", "unary"),
            (Method.MEMBER_REMOVE, _CLUSTER, "MemberRemove", "unary"),
            (Method.MEMBER_PROMOTE, _CLUSTER, "MemberPromote", "unary"),
            (Method.STATUS, _MAINTENANCE, "Status", "unary"),
            (Method.HASH_KV, _MAINTENANCE, "HashKV", "unary"),
            (Method.ALARM, _MAINTENANCE, "Alarm", "unary"),
            (Method.MOVE_LEADER, _MAINTENANCE, "MoveLeader", "unary"),
            (Method.HEALTH_CHECK, _HEALTH, "Check", "unary"),
            (Method.HEALTH_WATCH, _HEALTH, "Watch", "server_stream"),
            (Method.DESCRIBE, _ADMIN, "Describe", "unary"),
            (Method.BOOTSTRAP, _ADMIN, "Bootstrap", "unary"),
            (Method.JOIN, _ADMIN, "Join", "unary"),
            (Method.GET_CONFIGURATION, _ADMIN, "GetConfiguration", "unary"),
            (Method.ADD_MEMBER, _ADMIN, "AddMember", "unary"),
            (Method.REMOVE_MEMBER, _ADMIN, "RemoveMember", "unary"),
            (Method.SET_SETTINGS, _ADMIN, "SetSettings", "unary"),
            (Method.RETIRE, _ADMIN, "Retire", "unary"),
            (Method.RESTART_TICKET, _ADMIN, "RestartTicket", "unary"),
        )
    }
)
"""Every registered RPC by its number."""

ADMIN_METHODS = frozenset(number for number, info in METHODS.items() if info.service == _ADMIN)
"""RPCs of the operator; for an operated node they need the bearer token."""

ALWAYS_SERVED = ADMIN_METHODS | {int(Method.HEALTH_CHECK), int(Method.HEALTH_WATCH)}
"""RPCs that are answered before the cluster is opened to clients (M2)."""


def registrations() -> list[tuple[str, int, bool]]:
    """What ``Engine.register_methods`` takes."""
    return [(info.path, number, info.streaming) for number, info in METHODS.items()]
