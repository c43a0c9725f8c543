"""What the store can answer instead of a result.

Clients compare the text of etcd's errors, so each text is here exactly once, together with its gRPC status code (a
plain integer: the store knows nothing of a transport).  `EtcdError` is an answer to one request and changes
nothing; `StoreError` and its kin mean that this member's store cannot go on.
"""

from __future__ import annotations

CANCELLED = 1
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
OUT_OF_RANGE = 11
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
DATA_LOSS = 15
UNAUTHENTICATED = 16


class EtcdError(Exception):
    """An answer to a client: a gRPC status code and etcd's exact message."""

    def __init__(self, grpc_code: int, message: str) -> None:
        super().__init__(message)
        self.grpc_code = grpc_code
        self.message = message

    def fresh(self) -> EtcdError:
        """An equal one to raise. What has been raised keeps its traceback, and with it all that the frames held: the
        constants below would gather requests and their values for ever.
        """
        return EtcdError(self.grpc_code, self.message)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EtcdError) and (self.grpc_code, self.message) == (other.grpc_code, other.message)

    def __hash__(self) -> int:
        return hash((self.grpc_code, self.message))

    def __repr__(self) -> str:
        return f"EtcdError({self.grpc_code}, {self.message!r})"


class StoreError(Exception):
    """The store cannot be opened or cannot go on; the text says why, for a person."""


class StoreCorrupt(StoreError):
    """The store's files contradict themselves: never repaired by guess."""


class CommandError(StoreError):
    """A log entry's bytes are not a command batch."""


class UnknownCommand(CommandError):
    """A command of a newer version.  Skipping it would let members diverge, so the node must stop."""


def _error(code: int, text: str) -> EtcdError:
    return EtcdError(code, "etcdserver: " + text)


# Requests that can never succeed.
EMPTY_KEY = _error(INVALID_ARGUMENT, "key is not provided")
KEY_NOT_FOUND = _error(INVALID_ARGUMENT, "key not found")
VALUE_PROVIDED = _error(INVALID_ARGUMENT, "value is provided")
LEASE_PROVIDED = _error(INVALID_ARGUMENT, "lease is provided")
TOO_MANY_OPERATIONS = _error(INVALID_ARGUMENT, "too many operations in txn request")
DUPLICATE_KEY = _error(INVALID_ARGUMENT, "duplicate key given in txn request")
INVALID_SORT_OPTION = _error(INVALID_ARGUMENT, "invalid sort option")
INVALID_CLIENT_API_VERSION = _error(INVALID_ARGUMENT, "invalid client api version")
BAD_MEMBER_URLS = _error(INVALID_ARGUMENT, "given member URLs are invalid")
REQUEST_TOO_LARGE = _error(INVALID_ARGUMENT, "request is too large")

# Revisions.
COMPACTED = _error(OUT_OF_RANGE, "mvcc: required revision has been compacted")
FUTURE_REVISION = _error(OUT_OF_RANGE, "mvcc: required revision is a future revision")

# Limits.
NO_SPACE = _error(RESOURCE_EXHAUSTED, "mvcc: database space exceeded")
TOO_MANY_REQUESTS = _error(RESOURCE_EXHAUSTED, "too many requests")

# Leases.
LEASE_NOT_FOUND = _error(NOT_FOUND, "requested lease not found")
LEASE_EXISTS = _error(FAILED_PRECONDITION, "lease already exists")
LEASE_TTL_TOO_LARGE = _error(OUT_OF_RANGE, "too large lease TTL")

# Membership.
MEMBER_NOT_FOUND = _error(NOT_FOUND, "member not found")
MEMBER_EXISTS = _error(FAILED_PRECONDITION, "member ID already exist")
PEER_URLS_EXIST = _error(FAILED_PRECONDITION, "Peer URLs already exists")
NOT_ENOUGH_STARTED_MEMBERS = _error(FAILED_PRECONDITION, "re-configuration failed due to not enough started members")
NOT_A_LEARNER = _error(FAILED_PRECONDITION, "can only promote a learner member")
LEARNER_NOT_READY = _error(FAILED_PRECONDITION, "can only promote a learner member which is in sync with leader")
TOO_MANY_LEARNERS = _error(FAILED_PRECONDITION, "too many learner members in cluster")
CLUSTER_ID_MISMATCH = _error(FAILED_PRECONDITION, "cluster ID mismatch")
NOT_SUPPORTED_FOR_LEARNER = _error(FAILED_PRECONDITION, "rpc not supported for learner")
BAD_LEADER_TRANSFEREE = _error(FAILED_PRECONDITION, "bad leader transferee")
NOT_LEADER = _error(FAILED_PRECONDITION, "not leader")
NOT_CAPABLE = _error(FAILED_PRECONDITION, "not capable")

# Availability.
NO_LEADER = _error(UNAVAILABLE, "no leader")
LEADER_CHANGED = _error(UNAVAILABLE, "leader changed")
STOPPED = _error(UNAVAILABLE, "server stopped")
TIMEOUT = _error(UNAVAILABLE, "request timed out")
TIMEOUT_LEADER_FAILURE = _error(UNAVAILABLE, "request timed out, possibly due to previous leader failure")
TIMEOUT_CONNECTION_LOST = _error(UNAVAILABLE, "request timed out, possibly due to connection lost")
TIMEOUT_WAITING_FOR_APPLIED_INDEX = _error(
    UNAVAILABLE, "request timed out, waiting for the applied index took too long"
)
UNHEALTHY = _error(UNAVAILABLE, "unhealthy cluster")
CORRUPT = _error(DATA_LOSS, "corrupt cluster")

# Others.
PERMISSION = _error(PERMISSION_DENIED, "permission denied")
INVALID_AUTH_TOKEN = _error(UNAUTHENTICATED, "invalid auth token")
WATCH_CANCELED = _error(CANCELLED, "watch canceled")
REQUEST_CANCELED = _error(CANCELLED, "request canceled")
STREAM_WITH_SORT = EtcdError(UNIMPLEMENTED, "RangeStream does not support custom sort orders")
STREAM_WITH_FILTER = EtcdError(UNIMPLEMENTED, "RangeStream does not support revision filters")
MALFORMED_REQUEST = _error(INVALID_ARGUMENT, "malformed request")
"""Ours: the bytes are not a protobuf message of the method's request type."""

# Reasons of cancelled watches (texts of a response, not of a status).
WATCH_DUPLICATE_ID = "mvcc: duplicate watch ID provided on the WatchStream"
WATCH_EMPTY_RANGE = "mvcc: watcher range is empty"
WATCH_COMPACTED = COMPACTED.message
