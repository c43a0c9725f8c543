from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_WAITING: _ClassVar[Phase]
    PHASE_LATCHED: _ClassVar[Phase]
    PHASE_OPENED: _ClassVar[Phase]
    PHASE_RETIRED: _ClassVar[Phase]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_VOTER: _ClassVar[Role]
    ROLE_LEARNER: _ClassVar[Role]
    ROLE_STANDBY: _ClassVar[Role]
PHASE_UNSPECIFIED: Phase
PHASE_WAITING: Phase
PHASE_LATCHED: Phase
PHASE_OPENED: Phase
PHASE_RETIRED: Phase
ROLE_UNSPECIFIED: Role
ROLE_VOTER: Role
ROLE_LEARNER: Role
ROLE_STANDBY: Role

class Identity(_message.Message):
    __slots__ = ("cluster_id", "member_id", "number", "disk_uuid", "name", "peer_url", "client_urls", "zone", "voter_wished")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DISK_UUID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PEER_URL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_URLS_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    VOTER_WISHED_FIELD_NUMBER: _ClassVar[int]
    cluster_id: int
    member_id: int
    number: int
    disk_uuid: bytes
    name: str
    peer_url: str
    client_urls: _containers.RepeatedScalarFieldContainer[str]
    zone: str
    voter_wished: bool
    def __init__(self, cluster_id: _Optional[int] = ..., member_id: _Optional[int] = ..., number: _Optional[int] = ..., disk_uuid: _Optional[bytes] = ..., name: _Optional[str] = ..., peer_url: _Optional[str] = ..., client_urls: _Optional[_Iterable[str]] = ..., zone: _Optional[str] = ..., voter_wished: _Optional[bool] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("replicas", "max_voters", "promote_after_milliseconds", "leaving", "opened", "leader_preference", "zones", "restart")
    class ZonesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MAX_VOTERS_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_AFTER_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    LEADER_PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    ZONES_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    replicas: int
    max_voters: int
    promote_after_milliseconds: int
    leaving: _containers.RepeatedScalarFieldContainer[int]
    opened: bool
    leader_preference: _containers.RepeatedScalarFieldContainer[str]
    zones: _containers.ScalarMap[int, str]
    restart: Ticket
    def __init__(self, replicas: _Optional[int] = ..., max_voters: _Optional[int] = ..., promote_after_milliseconds: _Optional[int] = ..., leaving: _Optional[_Iterable[int]] = ..., opened: _Optional[bool] = ..., leader_preference: _Optional[_Iterable[str]] = ..., zones: _Optional[_Mapping[int, str]] = ..., restart: _Optional[_Union[Ticket, _Mapping]] = ...) -> None: ...

class Ticket(_message.Message):
    __slots__ = ("member_id", "generation", "number")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    member_id: int
    generation: int
    number: int
    def __init__(self, member_id: _Optional[int] = ..., generation: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("phase", "identity", "version", "durability", "medium", "ring_size_bytes", "ring_used_bytes", "host", "leader_id", "term", "commit_index", "applied_index", "role", "revision", "db_size_bytes", "uptime_milliseconds", "alarms")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    RING_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RING_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DB_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    phase: Phase
    identity: Identity
    version: str
    durability: str
    medium: str
    ring_size_bytes: int
    ring_used_bytes: int
    host: str
    leader_id: int
    term: int
    commit_index: int
    applied_index: int
    role: Role
    revision: int
    db_size_bytes: int
    uptime_milliseconds: int
    alarms: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, phase: _Optional[_Union[Phase, str]] = ..., identity: _Optional[_Union[Identity, _Mapping]] = ..., version: _Optional[str] = ..., durability: _Optional[str] = ..., medium: _Optional[str] = ..., ring_size_bytes: _Optional[int] = ..., ring_used_bytes: _Optional[int] = ..., host: _Optional[str] = ..., leader_id: _Optional[int] = ..., term: _Optional[int] = ..., commit_index: _Optional[int] = ..., applied_index: _Optional[int] = ..., role: _Optional[_Union[Role, str]] = ..., revision: _Optional[int] = ..., db_size_bytes: _Optional[int] = ..., uptime_milliseconds: _Optional[int] = ..., alarms: _Optional[_Iterable[str]] = ...) -> None: ...

class BootstrapRequest(_message.Message):
    __slots__ = ("identity", "settings")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    identity: Identity
    settings: Settings
    def __init__(self, identity: _Optional[_Union[Identity, _Mapping]] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ...) -> None: ...

class BootstrapResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("identity", "peers")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    identity: Identity
    peers: _containers.RepeatedCompositeFieldContainer[Identity]
    def __init__(self, identity: _Optional[_Union[Identity, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[Identity, _Mapping]]] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetConfigurationRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MemberState(_message.Message):
    __slots__ = ("identity", "role", "match_index", "recent_active", "caught_up", "lag_entries", "lag_milliseconds")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MATCH_INDEX_FIELD_NUMBER: _ClassVar[int]
    RECENT_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    LAG_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    LAG_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    identity: Identity
    role: Role
    match_index: int
    recent_active: bool
    caught_up: bool
    lag_entries: int
    lag_milliseconds: int
    def __init__(self, identity: _Optional[_Union[Identity, _Mapping]] = ..., role: _Optional[_Union[Role, str]] = ..., match_index: _Optional[int] = ..., recent_active: _Optional[bool] = ..., caught_up: _Optional[bool] = ..., lag_entries: _Optional[int] = ..., lag_milliseconds: _Optional[int] = ...) -> None: ...

class GetConfigurationResponse(_message.Message):
    __slots__ = ("cluster_id", "configuration_index", "changing", "leader_id", "term", "commit_index", "members", "removed", "settings", "wished_voters", "restart")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_INDEX_FIELD_NUMBER: _ClassVar[int]
    CHANGING_FIELD_NUMBER: _ClassVar[int]
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    WISHED_VOTERS_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    cluster_id: int
    configuration_index: int
    changing: bool
    leader_id: int
    term: int
    commit_index: int
    members: _containers.RepeatedCompositeFieldContainer[MemberState]
    removed: _containers.RepeatedScalarFieldContainer[int]
    settings: Settings
    wished_voters: int
    restart: Ticket
    def __init__(self, cluster_id: _Optional[int] = ..., configuration_index: _Optional[int] = ..., changing: _Optional[bool] = ..., leader_id: _Optional[int] = ..., term: _Optional[int] = ..., commit_index: _Optional[int] = ..., members: _Optional[_Iterable[_Union[MemberState, _Mapping]]] = ..., removed: _Optional[_Iterable[int]] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ..., wished_voters: _Optional[int] = ..., restart: _Optional[_Union[Ticket, _Mapping]] = ...) -> None: ...

class AddMemberRequest(_message.Message):
    __slots__ = ("decided_at_index", "identity")
    DECIDED_AT_INDEX_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    decided_at_index: int
    identity: Identity
    def __init__(self, decided_at_index: _Optional[int] = ..., identity: _Optional[_Union[Identity, _Mapping]] = ...) -> None: ...

class RemoveMemberRequest(_message.Message):
    __slots__ = ("decided_at_index", "member_id")
    DECIDED_AT_INDEX_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    decided_at_index: int
    member_id: int
    def __init__(self, decided_at_index: _Optional[int] = ..., member_id: _Optional[int] = ...) -> None: ...

class SetSettingsRequest(_message.Message):
    __slots__ = ("decided_at_index", "settings")
    DECIDED_AT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    decided_at_index: int
    settings: Settings
    def __init__(self, decided_at_index: _Optional[int] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ...) -> None: ...

class ConfigurationChanged(_message.Message):
    __slots__ = ("configuration_index",)
    CONFIGURATION_INDEX_FIELD_NUMBER: _ClassVar[int]
    configuration_index: int
    def __init__(self, configuration_index: _Optional[int] = ...) -> None: ...

class RestartTicketRequest(_message.Message):
    __slots__ = ("member_id", "decided_at_index")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    DECIDED_AT_INDEX_FIELD_NUMBER: _ClassVar[int]
    member_id: int
    decided_at_index: int
    def __init__(self, member_id: _Optional[int] = ..., decided_at_index: _Optional[int] = ...) -> None: ...

class RestartTicketResponse(_message.Message):
    __slots__ = ("granted", "reason", "valid_seconds", "hold_seconds", "sole_voter", "number", "configuration_index")
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VALID_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HOLD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SOLE_VOTER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_INDEX_FIELD_NUMBER: _ClassVar[int]
    granted: bool
    reason: str
    valid_seconds: int
    hold_seconds: int
    sole_voter: bool
    number: int
    configuration_index: int
    def __init__(self, granted: _Optional[bool] = ..., reason: _Optional[str] = ..., valid_seconds: _Optional[int] = ..., hold_seconds: _Optional[int] = ..., sole_voter: _Optional[bool] = ..., number: _Optional[int] = ..., configuration_index: _Optional[int] = ...) -> None: ...

class RetireRequest(_message.Message):
    __slots__ = ("cluster_id", "member_id", "disk_uuid", "configuration_index", "cluster_deleted")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_UUID_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_INDEX_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_DELETED_FIELD_NUMBER: _ClassVar[int]
    cluster_id: int
    member_id: int
    disk_uuid: bytes
    configuration_index: int
    cluster_deleted: bool
    def __init__(self, cluster_id: _Optional[int] = ..., member_id: _Optional[int] = ..., disk_uuid: _Optional[bytes] = ..., configuration_index: _Optional[int] = ..., cluster_deleted: _Optional[bool] = ...) -> None: ...

class RetireResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
