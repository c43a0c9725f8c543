"""The administration service: identity (M1, M2), configuration changes bound to an index (M7, M9, M10), Retire."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Protocol

from google.protobuf.message import DecodeError, Message

from raftkv_node.adr import Log
from raftkv_node.api.methods import Method
from raftkv_node.config import NodeConfig, parse_url
from raftkv_node.pb import admin_pb2
from raftkv_node.raft import Configuration, ConfigurationChange
from raftkv_node.server import versions
from raftkv_node.server.calls import Call
from raftkv_node.server.changes import is_caught_up
from raftkv_node.server.identity import Identity, IdentityError
from raftkv_node.server.member import Member
from raftkv_node.server.members import (
    attributes,
    bootstrap_configuration,
    encode_attributes,
    encode_settings,
    from_proto,
    role_settings,
    settings,
    to_proto,
    zones,
)
from raftkv_node.server.preference import MAX_ZONE_CHARACTERS, LeaderPreference
from raftkv_node.server.roles import wished_number
from raftkv_node.server.tickets import HOLD_SECONDS, VALID_SECONDS, keep_ticket
from raftkv_node.store.errors import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    MALFORMED_REQUEST,
    NOT_LEADER,
    UNAUTHENTICATED,
    EtcdError,
)

NO_TOKEN = EtcdError(UNAUTHENTICATED, "raftkv: the admin service asks for the bearer token of --admin-token-file")


MAX_ZONED_MEMBERS = 200


def _refused(text: str) -> EtcdError:
    return EtcdError(FAILED_PRECONDITION, f"raftkv: {text}")


class TokenFile:
    """The token, read again when its file has changed (a mounted Secret is replaced in place)."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp = (-1, -1)
        self._token = b""

    def accepts(self, authorization: bytes | None) -> bool:
        """Whether the header carries the token; without a file everything is accepted."""
        if self._path is None:
            return True
        try:
            status = self._path.stat()
            if (status.st_ino, status.st_mtime_ns) != self._stamp:
                self._token = self._path.read_bytes().strip()
                self._stamp = (status.st_ino, status.st_mtime_ns)
        except OSError:
            return False
        given = authorization or b""
        return bool(self._token) and hmac.compare_digest(given, b"Bearer " + self._token)


class Host(Protocol):
    """The node around the service."""

    config: NodeConfig
    identity: Identity
    member: Member | None
    started: float

    def take_identity(self, identity: Identity) -> None:
        """Save an identity that was just issued and begin to be that member. Raises the log's and store's errors."""

    def retire(self, identity: Identity) -> None:
        """Wipe ring and disk and end the process, after the answer is out."""


class AdminService:
    """The RPCs of ``raftkv.admin.v1.Admin``."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._token = TokenFile(host.config.admin_token_file)
        self._handlers: Mapping[int, tuple[Callable[[bytes], Message], Callable[..., None]]] = {
            Method.DESCRIBE: (admin_pb2.DescribeRequest.FromString, self._describe),
            Method.BOOTSTRAP: (admin_pb2.BootstrapRequest.FromString, self._bootstrap),
            Method.JOIN: (admin_pb2.JoinRequest.FromString, self._join),
            Method.GET_CONFIGURATION: (admin_pb2.GetConfigurationRequest.FromString, self._get_configuration),
            Method.ADD_MEMBER: (admin_pb2.AddMemberRequest.FromString, self._add_member),
            Method.REMOVE_MEMBER: (admin_pb2.RemoveMemberRequest.FromString, self._remove_member),
            Method.SET_SETTINGS: (admin_pb2.SetSettingsRequest.FromString, self._set_settings),
            Method.RETIRE: (admin_pb2.RetireRequest.FromString, self._retire),
            Method.RESTART_TICKET: (admin_pb2.RestartTicketRequest.FromString, self._restart_ticket),
        }

    def handle(self, call: Call, message: bytes, authorization: bytes | None, now: float) -> None:
        """One call."""
        if not self._token.accepts(authorization):
            call.error(NO_TOKEN)
            return
        parse, handler = self._handlers[call.method]
        try:
            request = parse(message)
        except DecodeError:
            call.error(MALFORMED_REQUEST)
            return
        handler(call, request, now)

    # -- what this node is --------------------------------------------------------------------------------------------

    def _describe(self, call: Call, _request: Message, _now: float) -> None:
        host, member = self._host, self._host.member
        answer = admin_pb2.DescribeResponse(
            phase=admin_pb2.PHASE_WAITING,
            identity=to_proto(host.identity),
            version=versions.RAFTKV_VERSION,
            host=host.config.host_name,
            uptime_milliseconds=int((monotonic() - host.started) * 1000),
        )
        if host.identity.retired:
            answer.phase = admin_pb2.PHASE_RETIRED
        elif member is not None:
            raft, store = member.raft, member.store
            answer.phase = admin_pb2.PHASE_OPENED if member.opened else admin_pb2.PHASE_LATCHED
            answer.durability = str(member.log.level)
            answer.medium = str(member.log.medium)
            answer.alarms.extend(f"{name}: {text}" for name, text in sorted(member.log.alarms().items()))
            answer.ring_size_bytes, answer.ring_used_bytes = ring_bytes(member.log, host.config)
            answer.leader_id = member.leader_id
            answer.term = raft.term
            answer.commit_index = raft.commit_index
            answer.applied_index = store.applied_index
            answer.role = own_role(member)
            answer.revision = store.revision
            answer.db_size_bytes = store.db_size_bytes
        call.ok(answer.SerializeToString())

    # -- identity -----------------------------------------------------------------------------------------------------

    def _bootstrap(self, call: Call, request: admin_pb2.BootstrapRequest, _now: float) -> None:
        if request.settings.opened:
            call.error(_refused("a cluster is opened by SetSettings, not by Bootstrap"))
            return
        founding = b""
        if request.identity.member_id:
            founding = bootstrap_configuration(request.identity, keep_ticket(request.settings, b"")).encode()
        self._issue(call, from_proto(request.identity, founding), admin_pb2.BootstrapResponse())

    def _join(self, call: Call, request: admin_pb2.JoinRequest, _now: float) -> None:
        self._issue(call, from_proto(request.identity, peers=request.peers), admin_pb2.JoinResponse())

    def _issue(self, call: Call, wanted: Identity, response: Message) -> None:
        """M1: once, idempotent for the same content, refused for any other."""
        host = self._host
        if not host.config.operated:
            call.error(_refused("this node was started by hand and has its identity from its flags"))
            return
        try:
            issued = host.identity.issue(wanted)
        except IdentityError as error:
            call.error(_refused(str(error)))
            return
        if host.member is None:
            host.take_identity(issued)
        call.ok(response.SerializeToString())

    # -- configuration ------------------------------------------------------------------------------------------------

    def _leading(self, call: Call) -> Member | None:
        member = self._host.member
        if member is None or not member.raft.is_leader:
            call.error(NOT_LEADER)
            return None
        return member

    def _get_configuration(self, call: Call, _request: Message, now: float) -> None:
        member = self._leading(call)
        if member is None:
            return

        def answer(error: EtcdError | None) -> None:
            if error is None and not member.raft.is_leader:
                error = NOT_LEADER
            if error is not None:
                call.error(error)
            else:
                call.ok(configuration_response(member).SerializeToString())

        member.reads.add(answer, now)

    def _change(self, call: Call, change: ConfigurationChange, decided_at: int, now: float) -> None:
        member = self._leading(call)
        if member is None:
            return

        def done(error: EtcdError | None, index: int) -> None:
            if error is not None:
                call.error(error)
            else:
                call.ok(admin_pb2.ConfigurationChanged(configuration_index=index).SerializeToString())

        member.changes.propose(change, decided_at, now, done)

    def _add_member(self, call: Call, request: admin_pb2.AddMemberRequest, now: float) -> None:
        identity = request.identity
        if not identity.member_id or not _is_url(identity.peer_url) or len(identity.disk_uuid) != 16:
            call.error(EtcdError(INVALID_ARGUMENT, "raftkv: a member needs an id, a disk uuid and a peer URL"))
            return
        member = self._leading(call)
        if member is None:
            return
        known = {encoded for one, encoded in member.configuration.members.items() if one != identity.member_id}
        if any(attributes(encoded).disk_uuid == identity.disk_uuid for encoded in known):
            call.error(_refused(f"disk {identity.disk_uuid.hex()} is bound to another member"))
            return
        change = ConfigurationChange(add_learners={identity.member_id: encode_attributes(identity)})
        self._change(call, change, request.decided_at_index, now)

    def _remove_member(self, call: Call, request: admin_pb2.RemoveMemberRequest, now: float) -> None:
        change = ConfigurationChange(remove=frozenset({request.member_id}))
        self._change(call, change, request.decided_at_index, now)

    def _set_settings(self, call: Call, request: admin_pb2.SetSettingsRequest, now: float) -> None:
        member = self._leading(call)
        if member is None:
            return
        wanted = keep_ticket(request.settings, member.configuration.settings)
        if wanted.max_voters > 9 or (wanted.max_voters and wanted.max_voters % 2 == 0):
            call.error(EtcdError(INVALID_ARGUMENT, "raftkv: max_voters is odd, 1 to 9"))
            return
        try:
            LeaderPreference.parse(wanted.leader_preference)
        except ValueError as error:
            call.error(EtcdError(INVALID_ARGUMENT, f"raftkv: leader_preference: {error}"))
            return
        if len(wanted.zones) > MAX_ZONED_MEMBERS or any(
            len(zone) > MAX_ZONE_CHARACTERS for zone in wanted.zones.values()
        ):
            text = f"raftkv: at most {MAX_ZONED_MEMBERS} members with zones of {MAX_ZONE_CHARACTERS} characters"
            call.error(EtcdError(INVALID_ARGUMENT, text))
            return
        if settings(member.configuration.settings).opened and not wanted.opened:
            call.error(_refused("a cluster that is opened is never closed again"))
            return
        encoded = encode_settings(wanted)
        index, committed = member.raft.committed_configuration
        if encoded == committed.settings and index == request.decided_at_index and not member.changes.changing:
            call.ok(admin_pb2.ConfigurationChanged(configuration_index=index).SerializeToString())
            return
        self._change(call, ConfigurationChange(settings=encoded), request.decided_at_index, now)

    def _restart_ticket(self, call: Call, request: admin_pb2.RestartTicketRequest, now: float) -> None:
        """M11: leave to restart a member, or why not."""
        member = self._leading(call)
        if member is None:
            return
        one, decided_at = request.member_id, request.decided_at_index
        reason = member.tickets.denial(one, now)
        if reason is not None:
            call.ok(admin_pb2.RestartTicketResponse(reason=reason).SerializeToString())
            return
        answer = admin_pb2.RestartTicketResponse(
            granted=True,
            valid_seconds=VALID_SECONDS,
            hold_seconds=HOLD_SECONDS,
            sole_voter=member.configuration.voters == {one},
        )

        def done(error: EtcdError | None, index: int) -> None:
            answer.configuration_index = index
            if error is not None:
                call.error(error)
            else:
                call.ok(answer.SerializeToString())

        number = member.tickets.grant(one, decided_at, now, done)
        answer.number = number

    # -- the end ------------------------------------------------------------------------------------------------------

    def _retire(self, call: Call, request: admin_pb2.RetireRequest, _now: float) -> None:
        """M10: only what is named, and only when its removal is committed (or the whole cluster is deleted)."""
        host = self._host
        own = host.identity
        if not host.config.operated:
            call.error(_refused("this node was started by hand; only an operated one is retired"))
            return
        if (request.cluster_id, request.member_id, request.disk_uuid) != (
            own.cluster_id, own.member_id, own.disk_uuid,
        ):  # fmt: skip
            call.error(
                _refused(
                    f"this is member {own.member_id:x} of cluster {own.cluster_id:x} on disk {own.disk_uuid.hex()}"
                )
            )
            return
        if not request.cluster_deleted and not self._removal_known(request.configuration_index):
            call.error(_refused(f"the removal of member {own.member_id:x} is not known to be committed"))
            return
        host.retire(own)
        call.ok(admin_pb2.RetireResponse().SerializeToString())

    def _removal_known(self, configuration_index: int) -> bool:
        """Whether this member has seen its own removal, or a later configuration than its own is named.

        A removed member mostly never hears of its removal: nobody sends it the entry. The operator has read it
        linearizably and names that configuration's index, which this member cannot have reached as a member.
        """
        member = self._host.member
        if member is None:
            return configuration_index > 0
        index, committed = member.raft.committed_configuration
        own = self._host.identity.member_id
        return own in committed.removed or configuration_index > index


def _is_url(text: str) -> bool:
    try:
        parse_url(text)
    except ValueError:
        return False
    return True


def own_role(member: Member) -> admin_pb2.Role:
    """This member's role as far as its own log says."""
    if member.is_voter:
        return admin_pb2.ROLE_VOTER
    return admin_pb2.ROLE_STANDBY if member.is_standby else admin_pb2.ROLE_LEARNER


def ring_bytes(log: Log, config: NodeConfig) -> tuple[int, int]:
    """Size of the log buffer and what of it is in use; zeros in disk mode."""
    if config.adr_path is None:
        return 0, 0
    return config.adr_size, round(log.pressure() * config.adr_size)


def configuration_response(member: Member) -> admin_pb2.GetConfigurationResponse:
    """The committed configuration and what the leader knows of each member."""
    raft = member.raft
    index, committed = raft.committed_configuration
    wanted = role_settings(committed.settings)
    answer = admin_pb2.GetConfigurationResponse(
        cluster_id=member.identity.cluster_id,
        configuration_index=index,
        changing=member.changes.changing,
        leader_id=member.leader_id,
        term=raft.term,
        commit_index=raft.commit_index,
        removed=sorted(committed.removed),
        settings=keep_ticket(settings(committed.settings), b""),
        wished_voters=wished_number(wanted, committed.ids),
    )
    if settings(committed.settings).HasField("restart"):
        answer.restart.CopyFrom(settings(committed.settings).restart)
    states = raft.status().members
    ticks = raft.config.election_ticks
    where = zones(committed)
    for one in sorted(committed.ids):
        identity = admin_pb2.Identity()
        identity.CopyFrom(attributes(committed.members[one]))
        identity.cluster_id = member.identity.cluster_id
        identity.zone = where[one]
        shown = answer.members.add(identity=identity, role=_role(member, committed, one))
        state = states.get(one)
        if state is None:
            continue
        shown.match_index = state.match
        shown.recent_active = state.answered_ticks_ago is not None and state.answered_ticks_ago <= ticks
        shown.caught_up = is_caught_up(state, ticks)
        shown.lag_entries = max(0, state.entries_behind)
        lag = raft.commit_index if state.ticks_behind is None else state.ticks_behind
        shown.lag_milliseconds = lag * member.config.heartbeat_interval
    return answer


def _role(member: Member, configuration: Configuration, one: int) -> admin_pb2.Role:
    if configuration.is_voter(one):
        return admin_pb2.ROLE_VOTER
    wanted = role_settings(configuration.settings)
    waiting = wanted.replicas > 0 and wished_number(wanted, configuration.ids) <= len(configuration.voters)
    return admin_pb2.ROLE_STANDBY if one in configuration.standbys or waiting else admin_pb2.ROLE_LEARNER
