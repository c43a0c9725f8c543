"""The Cluster and Maintenance services: rare calls, each answered on its own.

What changes the membership is done by the leader; another member hands such a call on to it and passes the answer back,
as etcd does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from queue import Full

from google.protobuf.message import DecodeError, Message

from raftkv_node.api.methods import Method
from raftkv_node.config import NodeConfig, parse_url
from raftkv_node.pb import admin_pb2, rpc_pb2
from raftkv_node.raft import ConfigurationChange
from raftkv_node.server import versions
from raftkv_node.server.calls import Call
from raftkv_node.server.changes import is_caught_up
from raftkv_node.server.faults import faults_told
from raftkv_node.server.identity import member_id
from raftkv_node.server.member import Member
from raftkv_node.server.members import attributes, encode_attributes, member_list
from raftkv_node.server.workers import Workers
from raftkv_node.store.errors import (
    BAD_LEADER_TRANSFEREE,
    BAD_MEMBER_URLS,
    FAILED_PRECONDITION,
    LEARNER_NOT_READY,
    MALFORMED_REQUEST,
    MEMBER_EXISTS,
    MEMBER_NOT_FOUND,
    NO_LEADER,
    NOT_A_LEARNER,
    NOT_ENOUGH_STARTED_MEMBERS,
    NOT_LEADER,
    PEER_URLS_EXIST,
    TIMEOUT,
    TOO_MANY_LEARNERS,
    TOO_MANY_REQUESTS,
    UNIMPLEMENTED,
    EtcdError,
)

ALARM_UNSUPPORTED = EtcdError(UNIMPLEMENTED, "etcdserver: alarms cannot be raised by hand")
OPERATED = EtcdError(
    FAILED_PRECONDITION,
    "raftkv: the operator adds and removes this cluster's members: change spec.replicas of its RaftKVCluster",
)
"""M7: one owner per kind of change. A member that the operator did not issue has no disk, no pod and no number."""


@dataclass(slots=True)
class _Transfer:
    call: Call
    target: int
    deadline: float


@dataclass(slots=True)
class _Forwarded:
    call: Call
    deadline: float


class ClusterService:
    """Members, leader, status, hashes."""

    def __init__(self, config: NodeConfig, member: Member, workers: Workers) -> None:
        self._config = config
        self._member = member
        self._workers = workers
        self._transfers: list[_Transfer] = []
        self._forwarded: dict[int, _Forwarded] = {}
        self._next_forward = 1
        self._handlers: Mapping[int, tuple[Callable[[bytes], Message], Callable[..., None]]] = {
            Method.MEMBER_LIST: (rpc_pb2.MemberListRequest.FromString, self._member_list),
            Method.MEMBER_ADD: (rpc_pb2.MemberAddRequest.FromString, self._on_leader(self._member_add)),
            Method.MEMBER_REMOVE: (rpc_pb2.MemberRemoveRequest.FromString, self._on_leader(self._member_remove)),
            Method.MEMBER_PROMOTE: (rpc_pb2.MemberPromoteRequest.FromString, self._on_leader(self._member_promote)),
            Method.STATUS: (rpc_pb2.StatusRequest.FromString, self._status),
            Method.HASH_KV: (rpc_pb2.HashKVRequest.FromString, self._hash_kv),
            Method.ALARM: (rpc_pb2.AlarmRequest.FromString, self._alarm),
            Method.MOVE_LEADER: (rpc_pb2.MoveLeaderRequest.FromString, self._move_leader),
        }

    @property
    def methods(self) -> frozenset[int]:
        """The calls that :meth:`handle` takes."""
        return frozenset(self._handlers)

    def handle(self, call: Call, message: bytes, now: float) -> None:
        """One call."""
        parse, handler = self._handlers[call.method]
        try:
            request = parse(message)
        except DecodeError:
            call.error(MALFORMED_REQUEST)
            return
        handler(call, request, now)

    def tick(self, now: float) -> None:
        """Answer what waited for a new leader or for the leader's answer."""
        waiting, self._transfers = self._transfers, []
        for one in waiting:
            if self._member.leader_id == one.target:
                one.call.ok(self._respond(rpc_pb2.MoveLeaderResponse()))
            elif now >= one.deadline:
                one.call.error(TIMEOUT)
            else:
                self._transfers.append(one)
        for request_id in [one for one, forwarded in self._forwarded.items() if forwarded.deadline <= now]:
            self._forwarded.pop(request_id).call.error(TIMEOUT)

    def take_responses(self) -> None:
        """Pass the leader's answers back to those who asked."""
        responses, self._member.peers.responses = self._member.peers.responses, []
        for response in responses:
            forwarded = self._forwarded.pop(response.request_id, None)
            if forwarded is None:
                continue
            if response.status == 0:
                forwarded.call.ok(response.message)
            else:
                forwarded.call.error(EtcdError(response.status, response.message.decode(errors="replace")))

    def _respond(self, message: Message) -> bytes:
        """The message with a header of the present state."""
        return self._member.store.header() + message.SerializeToString()

    def _on_leader(self, handler: Callable[..., None]) -> Callable[..., None]:
        """The handler here if this member leads, else the same call there."""

        def handle(call: Call, request: Message, now: float) -> None:
            member = self._member
            if member.raft.is_leader:
                handler(call, request, now)
            elif (
                call.forwarded
                or not member.leader_id
                or not member.peers.forward(
                    member.leader_id, self._next_forward, call.method, request.SerializeToString()
                )
            ):
                call.error(NO_LEADER)
            else:
                self._forwarded[self._next_forward] = _Forwarded(call, now + self._config.request_timeout_seconds)
                self._next_forward += 1

        return handle

    # -- members ------------------------------------------------------------------------------------------------------

    def _members(self) -> list[rpc_pb2.Member]:
        return member_list(self._member.raft.committed_configuration[1], self._member.published())

    def _member_list(self, call: Call, request: rpc_pb2.MemberListRequest, now: float) -> None:
        def answer(error: EtcdError | None) -> None:
            if error is not None:
                call.error(error)
            else:
                call.ok(self._respond(rpc_pb2.MemberListResponse(members=self._members())))

        if request.linearizable:
            self._member.reads.add(answer, now)
        else:
            answer(None)

    def _change(self, call: Call, change: ConfigurationChange, now: float, answer: Callable[[], Message]) -> None:
        def done(error: EtcdError | None, _index: int) -> None:
            if error is not None:
                call.error(error)
            else:
                call.ok(self._respond(answer()))

        self._member.changes.propose(change, self._member.raft.configuration_index, now, done)

    def _member_add(self, call: Call, request: rpc_pb2.MemberAddRequest, now: float) -> None:
        if self._config.operated:
            call.error(OPERATED)
            return
        try:
            urls = sorted(parse_url(url).url for url in request.peerURLs)
        except ValueError:
            urls = []
        if not urls or len(set(urls)) != len(urls):
            call.error(BAD_MEMBER_URLS)
            return
        configuration = self._member.configuration
        known = {attributes(encoded).peer_url for encoded in configuration.members.values()}
        if known & set(urls):
            call.error(PEER_URLS_EXIST)
            return
        added = member_id(urls, self._config.initial_cluster_token, int(time.time()))
        if added in configuration.members or added in configuration.removed:
            call.error(MEMBER_EXISTS)
            return
        if request.isLearner and len(configuration.learners) >= self._config.max_learners:
            call.error(TOO_MANY_LEARNERS)
            return
        if not request.isLearner and self._config.strict_reconfig_check and not self._may_add_voter():
            call.error(NOT_ENOUGH_STARTED_MEMBERS)
            return
        identity = admin_pb2.Identity(member_id=added, peer_url=urls[0], voter_wished=not request.isLearner)
        change = ConfigurationChange(add_learners={added: encode_attributes(identity)})
        shown = rpc_pb2.Member(ID=added, peerURLs=urls, isLearner=request.isLearner)
        self._change(call, change, now, lambda: rpc_pb2.MemberAddResponse(member=shown, members=self._members()))

    def _may_add_voter(self) -> bool:
        """etcd's strict check: with the new member, those that have started must still be a quorum."""
        voters = self._member.configuration.voters
        started = sum(1 for one in self._members() if one.ID in voters and one.name)
        return started == len(voters) == 1 or started >= (len(voters) + 1) // 2 + 1

    def _member_remove(self, call: Call, request: rpc_pb2.MemberRemoveRequest, now: float) -> None:
        if self._config.operated:
            call.error(OPERATED)
            return
        configuration = self._member.configuration
        if request.ID not in configuration.members:
            call.error(MEMBER_NOT_FOUND)
            return
        if configuration.voters == {request.ID}:
            call.error(NOT_ENOUGH_STARTED_MEMBERS)
            return
        change = ConfigurationChange(remove=frozenset({request.ID}))
        self._change(call, change, now, lambda: rpc_pb2.MemberRemoveResponse(members=self._members()))

    def _member_promote(self, call: Call, request: rpc_pb2.MemberPromoteRequest, now: float) -> None:
        raft = self._member.raft
        configuration = raft.configuration
        if request.ID not in configuration.members:
            call.error(MEMBER_NOT_FOUND)
            return
        if configuration.is_voter(request.ID):
            call.error(NOT_A_LEARNER)
            return
        if not is_caught_up(raft.status().members.get(request.ID), raft.config.election_ticks):
            call.error(LEARNER_NOT_READY)
            return
        change = ConfigurationChange(voters=configuration.voters | {request.ID})
        self._change(call, change, now, lambda: rpc_pb2.MemberPromoteResponse(members=self._members()))

    # -- maintenance --------------------------------------------------------------------------------------------------

    def _status(self, call: Call, _request: rpc_pb2.StatusRequest, _now: float) -> None:
        member = self._member
        raft, store = member.raft, member.store
        call.ok(
            self._respond(
                rpc_pb2.StatusResponse(
                    version=versions.ETCD_VERSION,
                    dbSize=store.db_size_bytes,
                    leader=member.leader_id,
                    raftIndex=raft.commit_index,
                    raftTerm=raft.term,
                    raftAppliedIndex=store.applied_index,
                    errors=[] if member.leader_id else [NO_LEADER.message],
                    dbSizeInUse=store.db_size_in_use_bytes,
                    isLearner=member.is_learner,
                    storageVersion=versions.STORAGE_VERSION,
                    dbSizeQuota=store.quota_bytes,
                )
            )
        )

    def _hash_kv(self, call: Call, request: rpc_pb2.HashKVRequest, _now: float) -> None:
        try:
            cold = self._member.store.start_hash(request.revision)
        except EtcdError as error:
            call.error(error)
            return

        def job() -> None:
            try:
                with faults_told(Method.HASH_KV, lambda e: self._workers.done.append(partial(call.error, e))):
                    done = partial(call.ok, cold.run())
            except EtcdError as error:
                done = partial(call.error, error)
            self._workers.done.append(done)

        try:
            self._workers.submit(job)
        except Full:
            cold.close()
            call.error(TOO_MANY_REQUESTS)

    def _alarm(self, call: Call, request: rpc_pb2.AlarmRequest, _now: float) -> None:
        if request.action == rpc_pb2.AlarmRequest.ACTIVATE:
            call.error(ALARM_UNSUPPORTED)
        else:
            call.ok(self._respond(rpc_pb2.AlarmResponse()))

    def _move_leader(self, call: Call, request: rpc_pb2.MoveLeaderRequest, now: float) -> None:
        raft = self._member.raft
        if not raft.is_leader:
            call.error(NOT_LEADER)
        elif request.targetID == raft.id:
            call.ok(self._respond(rpc_pb2.MoveLeaderResponse()))
        elif not raft.transfer_leader(request.targetID):
            call.error(BAD_LEADER_TRANSFEREE)
        else:
            deadline = now + self._config.request_timeout_seconds
            self._transfers.append(_Transfer(call, request.targetID, deadline))
