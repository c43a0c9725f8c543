"""What each load sends: operations, streams, and how answers are read.

Field numbers are those of etcd's ``rpc.proto``; tests check each of them against the protocol's descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .._engine import Load
from ..pb import rpc_pb2
from .templates import Filling, Message, Shape, template

_KEPT_KEYS = 1_000

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
RANGE_STREAM = "/etcdserverpb.KV/RangeStream"
TXN = "/etcdserverpb.KV/Txn"
WATCH = "/etcdserverpb.Watch/Watch"
GRANT = "/etcdserverpb.Lease/LeaseGrant"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
REVOKE = "/etcdserverpb.Lease/LeaseRevoke"

# Ways to fields of answers.
HEADER_REVISION = (1, 3)
RANGE_COUNT = (4,)
RANGE_MORE = (3,)
RANGE_KEY = (2, 1)
RANGE_MOD_REVISION = (2, 3)
TXN_SUCCEEDED = (2,)
TXN_RANGE_MOD_REVISION = (3, 1, 2, 3)
LEASE_ID = (2,)
LEASE_TTL = (3,)
WATCH_CREATED = (3,)
WATCH_CANCELED = (4,)
WATCH_VALUE = (11, 2, 5)


@dataclass(frozen=True)
class Operation:
    """A kind of call of a load."""

    label: str
    method: str
    make: Callable[[Filling], Message]
    weight: int = 1
    verdict: tuple[int, ...] | None = None
    captures: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    follow: tuple[tuple[int, ...], int] | None = None
    creates: bool = False
    writes: bool = False
    missed: str = "missed"
    """What it means that the verdict is zero."""


@dataclass(frozen=True)
class Watchers:
    """Watches of the whole key space, spread over streams."""

    count: int = 0
    streams: int = 0


@dataclass(frozen=True)
class LoadPlan:
    """All of a load but its size."""

    operations: Sequence[Operation]
    watchers: Watchers = field(default_factory=Watchers)
    needs_keys: bool = False
    """Whether it reads keys that must be there."""
    knows_revisions: bool = False
    """Whether its clients know the revision of each key from the start, as one who has listed them does."""


def put_operation(*, stamped: bool = False, weight: int = 1) -> Operation:
    """One put per call."""

    def make(fill: Filling) -> Message:
        return rpc_pb2.PutRequest(key=fill.key(), value=fill.value(stamped=stamped))

    return Operation("put", PUT, make, weight, creates=True, writes=True)


def read_operation(*, serializable: bool, limit: int = 1, weight: int = 1, stream: bool = False) -> Operation:
    """One key, or up to ``limit`` from a key on; 0: all of them. As a stream: a call lasts until its last piece."""

    def make(fill: Filling) -> Message:
        if limit == 1:
            return rpc_pb2.RangeRequest(key=fill.key(), serializable=serializable)
        first = fill.key() if limit else fill.shape.prefix
        return rpc_pb2.RangeRequest(key=first, range_end=fill.shape.end, limit=limit, serializable=serializable)

    if stream:
        return Operation("range-stream", RANGE_STREAM, make, weight)
    # To see whether something was found, an answer must be kept as a whole: not the large ones.
    verdict = RANGE_COUNT if 0 < limit <= _KEPT_KEYS else None
    return Operation("range", RANGE, make, weight, verdict=verdict, missed="found nothing")


def put(watchers: Watchers | None = None) -> LoadPlan:
    """Puts; with watchers, each event's way back is measured."""
    if watchers is None:
        return LoadPlan([put_operation()])
    return LoadPlan([put_operation(stamped=True)], watchers)


def txn(operations: int) -> LoadPlan:
    """Transactions of so many puts, to keys that follow each other."""

    def make(fill: Filling) -> Message:
        puts = [rpc_pb2.PutRequest(key=fill.key(n), value=fill.value()) for n in range(operations)]
        return rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=one) for one in puts])

    return LoadPlan([Operation("txn", TXN, make, writes=True)])


def cas_operation(*, stamped: bool = False, weight: int = 1) -> Operation:
    """A put that holds only if nobody has changed the key since; a conflict reads the key, as kube-apiserver does."""

    def make(fill: Filling) -> Message:
        compare = rpc_pb2.Compare(
            key=fill.key(),
            target=rpc_pb2.Compare.MOD,
            result=rpc_pb2.Compare.EQUAL,
            mod_revision=fill.key_number(),
        )
        write = rpc_pb2.PutRequest(key=fill.key(), value=fill.value(stamped=stamped))
        read = rpc_pb2.RangeRequest(key=fill.key())
        return rpc_pb2.TxnRequest(
            compare=[compare],
            success=[rpc_pb2.RequestOp(request_put=write)],
            failure=[rpc_pb2.RequestOp(request_range=read)],
        )

    captures = (
        ("hit", "key_number", HEADER_REVISION),
        ("miss", "key_number", TXN_RANGE_MOD_REVISION),
    )
    return Operation("cas", TXN, make, weight, TXN_SUCCEEDED, captures, writes=True, missed="conflicts")


def cas() -> LoadPlan:
    """Compare-and-swap on the revision that was last seen."""
    return LoadPlan([cas_operation()], knows_revisions=True)


def read(*, serializable: bool, limit: int, stream: bool = False) -> LoadPlan:
    """Reads."""
    return LoadPlan([read_operation(serializable=serializable, limit=limit, stream=stream)], needs_keys=True)


def mixed(puts: int, reads: int, *, serializable: bool) -> LoadPlan:
    """Puts and reads of single keys in a given ratio."""
    operations = [put_operation(weight=puts), read_operation(serializable=serializable, weight=reads)]
    return LoadPlan([one for one in operations if one.weight], needs_keys=reads > 0)


def lease() -> LoadPlan:
    """Leases: granted, kept alive once, revoked."""

    def grant(fill: Filling) -> Message:
        return rpc_pb2.LeaseGrantRequest(TTL=60)

    def keep_alive(fill: Filling) -> Message:
        return rpc_pb2.LeaseKeepAliveRequest(ID=fill.client_number())

    def revoke(fill: Filling) -> Message:
        return rpc_pb2.LeaseRevokeRequest(ID=fill.client_number())

    remember = (("always", "client_number", LEASE_ID),)
    return LoadPlan(
        [
            Operation("grant", GRANT, grant, captures=remember, follow=(LEASE_ID, 1)),
            Operation("keepalive", KEEP_ALIVE, keep_alive, 0, LEASE_TTL, follow=(LEASE_ID, 2), missed="expired"),
            Operation("revoke", REVOKE, revoke, 0),
        ]
    )


def kubernetes(mix: tuple[int, int, int], page: int, watchers: Watchers) -> LoadPlan:
    """What API servers do with objects such as leases: lists in pages at one revision, updates by compare-and-swap on
    the object's revision, gets, and watches that see each update."""

    def first_page(fill: Filling) -> Message:
        return rpc_pb2.RangeRequest(key=fill.shape.prefix, range_end=fill.shape.end, limit=page)

    def next_page(fill: Filling) -> Message:
        after = fill.client_key() + b"\x00"
        revision = fill.client_number()
        return rpc_pb2.RangeRequest(key=after, range_end=fill.shape.end, limit=page, revision=revision)

    lists, updates, gets = mix
    last_key = ("always", "client_bytes", RANGE_KEY)
    at_revision = ("always", "client_number", HEADER_REVISION)
    operations = [
        Operation("list", RANGE, first_page, lists, captures=(last_key, at_revision), follow=(RANGE_MORE, 1)),
        Operation("next page", RANGE, next_page, 0, captures=(last_key,), follow=(RANGE_MORE, 1)),
        cas_operation(stamped=True, weight=updates),
        read_operation(serializable=False, weight=gets),
    ]
    return LoadPlan(operations, watchers, needs_keys=True, knows_revisions=True)


def add_to(load: Load, plan: LoadPlan, shape: Shape) -> None:
    """Hands the plan to the native load generator."""
    for one in plan.operations:
        made = template(shape, one.make)
        load.add_operation(
            one.method,
            made.body,
            weight=one.weight,
            patches=made.patches,
            verdict=one.verdict,
            captures=one.captures,
            follow=one.follow,
            creates=one.creates,
            events=plan.watchers.count if one.writes else 0,
        )
    for count in _shares(plan.watchers):
        create = rpc_pb2.WatchCreateRequest(key=shape.prefix, range_end=shape.end)
        message = rpc_pb2.WatchRequest(create_request=create).SerializeToString()
        load.add_stream(
            WATCH,
            [message] * count,
            ready=WATCH_CREATED,
            ready_count=count,
            failed=WATCH_CANCELED,
            stamp=WATCH_VALUE,
        )


def _shares(watchers: Watchers) -> list[int]:
    """How many watchers each stream has."""
    if not watchers.count:
        return []
    streams = min(watchers.streams, watchers.count)
    return [watchers.count // streams + (n < watchers.count % streams) for n in range(streams)]
