"""The members' administration API over ``grpc.aio``.

One pool of channels for all clusters, keyed by address; each call carries its cluster's token and its own deadline, so
that a member that hangs costs a pass two seconds and not its life. Calls that change the configuration wait for the
commit and get longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from raftkv_node.pb import admin_pb2 as pb
from raftkv_node.pb import admin_pb2_grpc, rpc_pb2, rpc_pb2_grpc

from raftkv_operator import metrics
from raftkv_operator.observe.seams import MemberError
from raftkv_operator.observe.views import (
    Configuration,
    MemberState,
    NodeIdentity,
    NodePhase,
    NodeView,
    RestartTicket,
    Retirement,
    Role,
    Settings,
)

READ_TIMEOUT_SECONDS: Final = 2.0
CHANGE_TIMEOUT_SECONDS: Final = 10.0
MAX_CALLS: Final = 50
"""Calls in flight over all clusters; more wait."""
MAX_CHANNELS: Final = 2000
"""Open channels; at the limit the one that was idle longest is closed."""

T = TypeVar("T")
# The generated stubs carry no types.
_ADMIN: Final[Any] = admin_pb2_grpc.AdminStub
_MAINTENANCE: Final[Any] = rpc_pb2_grpc.MaintenanceStub


class Channel:
    """A channel to one member, with the stub of its administration: one for each call would cost more than the call."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self.admin = _ADMIN(self.channel)

    async def close(self) -> None:
        """Ends the calls on it."""
        await self.channel.close()


class Channels:
    """The pool of channels, shared by all clusters."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}
        self._slots = asyncio.Semaphore(MAX_CALLS)

    def for_cluster(self, token: str) -> MemberClient:
        """A client that shows this token."""
        return MemberClient(self, token)

    async def close(self) -> None:
        """Closes all channels."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    async def forget(self, address: str) -> None:
        """Closes the channel to an address whose pod is gone or does not answer."""
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close()

    async def call(self, rpc: str, address: str, invoke: Callable[[Channel], Awaitable[T]]) -> T:
        """One call with its metrics; every failure becomes a ``MemberError``."""
        started, code = time.monotonic(), "OK"
        async with self._slots:
            try:
                return await invoke(await self._channel(address))
            except grpc.aio.AioRpcError as error:
                code = error.code().name
                if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                    # A channel backs off after a refused connection; a pod that comes back must be seen at once.
                    await self.forget(address)
                raise MemberError(code, error.details() or "") from error
            finally:
                metrics.member_rpc(rpc, code, time.monotonic() - started)

    async def _channel(self, address: str) -> Channel:
        channel = self._channels.pop(address, None)
        if channel is None:
            if len(self._channels) >= MAX_CHANNELS:
                await self.forget(next(iter(self._channels)))
            channel = Channel(address)
        self._channels[address] = channel
        return channel


class MemberClient:
    """``observe.seams.Members`` over gRPC for one cluster."""

    def __init__(self, channels: Channels, token: str) -> None:
        self._channels = channels
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def describe(self, address: str) -> NodeView:
        """What the node says of itself."""
        answer = await self._admin("Describe", address, pb.DescribeRequest(), READ_TIMEOUT_SECONDS)
        identity = answer.identity
        try:
            phase = NodePhase(answer.phase)
        except ValueError as error:
            raise MemberError("INTERNAL", f"unknown phase {answer.phase}") from error
        return NodeView(
            phase=phase,
            number=identity.number,
            disk_uuid=identity.disk_uuid.hex(),
            cluster_id=identity.cluster_id,
            member_id=identity.member_id,
            leader_id=answer.leader_id,
            term=answer.term,
            role=_role(answer.role),
            version=answer.version,
            durability=answer.durability,
            medium=answer.medium,
            host=answer.host,
        )

    async def configuration(self, address: str) -> Configuration:
        """The committed configuration; only the leader answers."""
        answer = await self._admin("GetConfiguration", address, pb.GetConfigurationRequest(), READ_TIMEOUT_SECONDS)
        return Configuration(
            cluster_id=answer.cluster_id,
            index=answer.configuration_index,
            changing=answer.changing,
            leader_id=answer.leader_id,
            term=answer.term,
            members=tuple(
                MemberState(
                    member_id=m.identity.member_id,
                    number=m.identity.number,
                    role=_role(m.role) or Role.LEARNER,
                    disk_uuid=m.identity.disk_uuid.hex(),
                    match_index=m.match_index,
                    recent_active=m.recent_active,
                    caught_up=m.caught_up,
                )
                for m in answer.members
            ),
            removed=frozenset(answer.removed),
            settings=Settings(
                replicas=answer.settings.replicas,
                max_voters=answer.settings.max_voters,
                promote_after_milliseconds=answer.settings.promote_after_milliseconds,
                leaving=tuple(sorted(answer.settings.leaving)),
                opened=answer.settings.opened,
                leader_preference=tuple(answer.settings.leader_preference),
                zones=tuple(sorted(answer.settings.zones.items())),
            ),
        )

    async def bootstrap(self, address: str, identity: NodeIdentity, settings: Settings) -> None:
        """Makes an empty node the first voter of a new cluster."""
        request = pb.BootstrapRequest(identity=_identity(identity), settings=_settings(settings))
        await self._admin("Bootstrap", address, request)

    async def join(self, address: str, identity: NodeIdentity, peers: tuple[NodeIdentity, ...]) -> None:
        """Gives an empty node its identity in an existing cluster."""
        request = pb.JoinRequest(identity=_identity(identity), peers=[_identity(p) for p in peers])
        await self._admin("Join", address, request)

    async def add_member(self, address: str, decided_at: int, identity: NodeIdentity) -> None:
        """Adds a learner."""
        request = pb.AddMemberRequest(decided_at_index=decided_at, identity=_identity(identity))
        await self._admin("AddMember", address, request)

    async def remove_member(self, address: str, decided_at: int, member_id: int) -> None:
        """Removes a member, or burns an id that never was one."""
        await self._admin(
            "RemoveMember", address, pb.RemoveMemberRequest(decided_at_index=decided_at, member_id=member_id)
        )

    async def set_settings(self, address: str, decided_at: int, settings: Settings) -> None:
        """Sets the replicated settings."""
        request = pb.SetSettingsRequest(decided_at_index=decided_at, settings=_settings(settings))
        await self._admin("SetSettings", address, request)

    async def restart_ticket(self, address: str, decided_at: int, member_id: int) -> RestartTicket:
        """Asks the leader for leave to restart a member (M11)."""
        request = pb.RestartTicketRequest(member_id=member_id, decided_at_index=decided_at)
        answer = await self._admin("RestartTicket", address, request)
        return RestartTicket(answer.granted, answer.reason, answer.valid_seconds, answer.sole_voter)

    async def retire(self, address: str, retirement: Retirement) -> None:
        """Lets a node wipe its ring and disk."""
        request = pb.RetireRequest(
            cluster_id=retirement.cluster_id,
            member_id=retirement.member_id,
            disk_uuid=bytes.fromhex(retirement.disk_uuid),
            configuration_index=retirement.configuration_index,
            cluster_deleted=retirement.cluster_deleted,
        )
        await self._admin("Retire", address, request)

    async def move_leader(self, address: str, target: int) -> None:
        """Hands leadership to a voter."""

        async def invoke(channel: Channel) -> None:
            stub = _MAINTENANCE(channel.channel)
            request = rpc_pb2.MoveLeaderRequest(targetID=target)
            await stub.MoveLeader(request, timeout=CHANGE_TIMEOUT_SECONDS, metadata=self._metadata)

        await self._channels.call("MoveLeader", address, invoke)

    async def _admin(self, rpc: str, address: str, request: Any, timeout: float = CHANGE_TIMEOUT_SECONDS) -> Any:
        async def invoke(channel: Channel) -> Any:
            return await getattr(channel.admin, rpc)(request, timeout=timeout, metadata=self._metadata)

        return await self._channels.call(rpc, address, invoke)


def _role(value: int) -> Role | None:
    return Role(value) if value in (1, 2, 3) else None


def _identity(identity: NodeIdentity) -> pb.Identity:
    return pb.Identity(
        cluster_id=identity.cluster_id,
        member_id=identity.member_id,
        number=identity.number,
        disk_uuid=bytes.fromhex(identity.disk_uuid),
        name=identity.name,
        peer_url=identity.peer_url,
        client_urls=identity.client_urls,
        zone=identity.zone,
    )


def _settings(settings: Settings) -> pb.Settings:
    return pb.Settings(
        replicas=settings.replicas,
        max_voters=settings.max_voters,
        promote_after_milliseconds=settings.promote_after_milliseconds,
        leaving=settings.leaving,
        opened=settings.opened,
        leader_preference=settings.leader_preference,
        zones=dict(settings.zones),
    )
