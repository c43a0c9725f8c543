"""Stand-ins for what costs most of a large fleet: nodes that run no process, and members that are only an admin API.

Theory of operation
-------------------
``Fleet`` takes the part of the playground's kubelet: it registers Nodes, and reports each pod that is bound to one of
them as running and ready, under a loopback address of its own, where a gRPC server answers the operator. The members of
one cluster share a ``Group``, which keeps what a quorum would hold: configuration, roles, settings. A change is
committed at once, a learner votes at once, the founder leads. So the operator meets each step of a cluster's life, in
the right order, and none of the time or work that Raft, disks and processes would take.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import grpc.aio
from raftkv_node.pb import admin_pb2 as pb
from raftkv_node.pb import admin_pb2_grpc
from raftkv_operator.api import constants
from raftkv_playground import client as api
from raftkv_playground.blocks import claim_block
from raftkv_playground.client import ApiClient, ApiError, Informer
from raftkv_playground.kubelet.addresses import AddressPool
from raftkv_playground.kubelet.node import PODS_PER_NODE, NodeAgent
from raftkv_playground.kubelet.status import ContainerState, PodState, build_status, running
from raftkv_playground.objects import Object, deleting, now, uid_of

VERSION: Final = "0.1.0"
MAX_NODES: Final = AddressPool.RESERVED - 1
# The generated registration carries no types.
_REGISTER: Final[Any] = admin_pb2_grpc.add_AdminServicer_to_server


@dataclass
class Group:
    """What the quorum of one cluster holds."""

    leader_id: int
    index: int
    settings: pb.Settings
    members: dict[int, pb.Identity] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)

    def role(self, member_id: int) -> pb.Role:
        """Members vote in the order of their ids, the leader first, as many as the settings allow."""
        order = sorted(self.members, key=lambda one: (one != self.leader_id, one))
        voters = order[: max(1, self.settings.max_voters)]
        voters = voters[: len(voters) - 1 + len(voters) % 2]
        return pb.ROLE_VOTER if member_id in voters else pb.ROLE_STANDBY

    def answer(self) -> pb.GetConfigurationResponse:
        """The committed configuration; everyone is alive and has everything."""
        members = [
            pb.MemberState(identity=one, role=self.role(i), match_index=self.index, recent_active=True, caught_up=True)
            for i, one in sorted(self.members.items())
        ]
        return pb.GetConfigurationResponse(
            cluster_id=self.members[self.leader_id].cluster_id,
            configuration_index=self.index,
            leader_id=self.leader_id,
            term=2,
            members=members,
            removed=sorted(self.removed),
            settings=self.settings,
        )


class StandInMember:
    """The administration API of one member (``raftkv.admin.v1.Admin``), without a member behind it."""

    def __init__(self, groups: dict[int, Group], number: int, host: str) -> None:
        self._groups = groups
        self._number = number
        self._host = host
        self._disk = uuid.uuid4().bytes
        self._identity: pb.Identity | None = None

    async def Describe(self, _: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:
        identity = self._identity
        answer = pb.DescribeResponse(version=VERSION, durability="process", medium="file", host=self._host)
        if identity is None:
            answer.phase = pb.PHASE_WAITING
            answer.identity.CopyFrom(pb.Identity(number=self._number, disk_uuid=self._disk))
            return answer
        group = self._groups.get(identity.cluster_id)
        answer.identity.CopyFrom(identity)
        answer.phase = pb.PHASE_LATCHED
        if group is not None and identity.member_id in group.members:
            answer.phase = pb.PHASE_OPENED if group.settings.opened else pb.PHASE_LATCHED
            answer.leader_id, answer.term, answer.role = group.leader_id, 2, group.role(identity.member_id)
        return answer

    async def Bootstrap(self, request: pb.BootstrapRequest, context: Any) -> pb.BootstrapResponse:
        identity = self._identity = request.identity
        if identity.cluster_id not in self._groups:
            group = Group(identity.member_id, 1, request.settings, {identity.member_id: identity})
            self._groups[identity.cluster_id] = group
        return pb.BootstrapResponse()

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinResponse:
        self._identity = request.identity
        return pb.JoinResponse()

    async def GetConfiguration(self, _: pb.GetConfigurationRequest, context: Any) -> pb.GetConfigurationResponse:
        return (await self._leading(context)).answer()

    async def AddMember(self, request: pb.AddMemberRequest, context: Any) -> pb.ConfigurationChanged:
        group = await self._changing(request.decided_at_index, context)
        group.members[request.identity.member_id] = request.identity
        return pb.ConfigurationChanged(configuration_index=group.index)

    async def RemoveMember(self, request: pb.RemoveMemberRequest, context: Any) -> pb.ConfigurationChanged:
        group = await self._changing(request.decided_at_index, context)
        group.members.pop(request.member_id, None)
        group.removed.add(request.member_id)
        return pb.ConfigurationChanged(configuration_index=group.index)

    async def SetSettings(self, request: pb.SetSettingsRequest, context: Any) -> pb.ConfigurationChanged:
        group = await self._changing(request.decided_at_index, context)
        group.settings = request.settings
        return pb.ConfigurationChanged(configuration_index=group.index)

    async def RestartTicket(self, request: pb.RestartTicketRequest, context: Any) -> pb.RestartTicketResponse:
        return pb.RestartTicketResponse(granted=False, reason="stand-ins do not restart")

    async def Retire(self, request: pb.RetireRequest, context: Any) -> pb.RetireResponse:
        self._identity, self._disk = None, uuid.uuid4().bytes
        return pb.RetireResponse()

    async def _leading(self, context: Any) -> Group:
        identity = self._identity
        group = self._groups.get(identity.cluster_id) if identity is not None else None
        if group is None or identity is None or group.leader_id != identity.member_id:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: not leader")
        assert group is not None
        return group

    async def _changing(self, decided_at: int, context: Any) -> Group:
        group = await self._leading(context)
        if decided_at != group.index:
            await context.abort(grpc.StatusCode.ABORTED, "the configuration has changed")
        group.index += 1
        return group


class Fleet:
    """Nodes without processes. Use as ``async with Fleet(client, nodes):``."""

    def __init__(self, client: ApiClient, nodes: int) -> None:
        if not 1 <= nodes <= MAX_NODES:
            raise ValueError(f"1 to {MAX_NODES} nodes")
        self._client = client
        self._block = claim_block()
        self._addresses = AddressPool(self._block.pods)
        self._nodes = {f"stand-in-{i}": self._addresses.host(i) for i in range(1, nodes + 1)}
        self._groups: dict[int, Group] = {}
        self._members: dict[str, StandInMember] = {}
        """By the name of the pod, which keeps its disk when it comes back."""
        self._servers: dict[str, grpc.aio.Server] = {}
        """By the pod's uid."""
        self._pods = Informer(client, api.PODS, self._changed)
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures: list[str] = []
        """What went wrong with pods; a run that has any measured something else than it says."""

    async def __aenter__(self) -> Fleet:
        agents = [
            _RoomyAgent(self._client, name, f"zone-{'abc'[i % 3]}", address, 10250)
            for i, (name, address) in enumerate(self._nodes.items())
        ]
        for agent in agents:
            await agent.register()
            self._keep(agent.run())
        self._pods.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pods.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(server.stop(0) for server in self._servers.values()))
        self._block.release()

    def _keep(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _changed(self, kind: str, pod: Object) -> None:
        uid, node = uid_of(pod), pod["spec"].get("nodeName") or ""
        if kind == "DELETED" or node not in self._nodes:
            return
        if deleting(pod):
            self._keep(self._told(self._end, pod))
        elif uid not in self._servers and not (pod.get("status") or {}).get("podIP"):
            self._servers[uid] = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            self._keep(self._told(self._start, pod))

    async def _told(self, work: Callable[[Object], Awaitable[None]], pod: Object) -> None:
        try:
            await work(pod)
        except (ApiError, RuntimeError) as error:
            self.failures.append(f"{pod['metadata']['name']}: {error}")

    async def _start(self, pod: Object) -> None:
        meta, node = pod["metadata"], pod["spec"]["nodeName"]
        number = int((meta.get("labels") or {}).get(constants.LABEL_NUMBER, "0"))
        member = self._members.setdefault(meta["name"], StandInMember(self._groups, number, node))
        address, server = self._addresses.take(meta["uid"]), self._servers[meta["uid"]]
        _REGISTER(member, server)
        server.add_insecure_port(f"{address}:{constants.CLIENT_PORT}")
        await server.start()
        containers = [
            ContainerState(one["name"], one["image"], running(now()), ready=True, started=True, container_id="none://1")
            for one in pod["spec"]["containers"]
        ]
        state = PodState([], containers, pod_ip=address, started=now(), initialized=True)
        status = build_status(pod, state, self._nodes[node])
        await self._client.patch(
            api.PODS, meta["name"], meta["namespace"], {"status": status}, "merge", subresource="status"
        )

    async def _end(self, pod: Object) -> None:
        meta = pod["metadata"]
        server = self._servers.pop(meta["uid"], None)
        if server is None:
            return
        await server.stop(0)
        self._addresses.release(meta["uid"])
        with contextlib.suppress(ApiError):
            await self._client.delete(api.PODS, meta["name"], meta["namespace"], grace=0)


class _RoomyAgent(NodeAgent):
    """A node with room for any number of pods: a playground has few nodes, and the fleet is large."""

    async def _report(self) -> None:
        await super()._report()
        room = {"pods": str(PODS_PER_NODE * 100)}
        patch = {"status": {"capacity": room, "allocatable": room}}
        await self._client.patch(api.NODES, self.name, None, patch, "merge", subresource="status")
