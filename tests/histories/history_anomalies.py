"""Ways in which a store lies, planted into legal histories: each gives a history that no store could have made.

A plant changes what clients were told (or when they asked), so that the contradiction is certain whatever the rest of
the history says; it gives False where the history has no place for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from history_checker import _writes
from history_records import History, Operation, Outcome, Watch
from raftkv_node.pb import rpc_pb2

Plant = Callable[[History, random.Random], bool]


def _newest_read(one: Operation) -> bool:
    """Whether it is a linearizable read of the newest state, answered."""
    if one.outcome is not Outcome.OK or not isinstance(one.request, rpc_pb2.RangeRequest):
        return False
    return not one.request.serializable and not one.request.revision


def _reads(history: History) -> Iterator[Operation]:
    return filter(_newest_read, history.operations)


def _done(history: History) -> list[Operation]:
    return [one for one in history.operations if one.outcome is Outcome.OK and _writes(one)]


def _revision(operation: Operation) -> int:
    return int(operation.response.header.revision)  # type: ignore[union-attr]


def stale_read(history: History, rng: random.Random) -> bool:
    """A read is answered from a state that was gone before it was invoked."""
    late = max((one.returned for one in _done(history)), default=None)
    reads = list(_reads(history))
    if late is None or not reads:
        return False
    newest = max(_revision(one) for one in _done(history))
    old = [one for one in reads if _revision(one) < newest]
    if not old:
        return False
    read = rng.choice(old)
    read.invoked, read.returned = late + 10, late + 11
    return True


def lost_write(history: History, rng: random.Random) -> bool:
    """A read of a key does not find what its newest revision is."""
    reads = [one for one in _reads(history) if one.response.kvs]  # type: ignore[union-attr]
    if not reads:
        return False
    response = rng.choice(reads).response
    assert isinstance(response, rpc_pb2.RangeResponse)
    del response.kvs[-1]
    response.count -= 1
    return True


def write_done_twice(history: History, rng: random.Random) -> bool:
    """An acknowledged put was sent again, and is seen at a second revision."""
    puts = [one for one in _done(history) if isinstance(one.request, rpc_pb2.PutRequest)]
    watches = [one for one in history.watches if one.request.start_revision == 1 and one.request.range_end]
    if not puts or not watches:
        return False
    put = rng.choice(puts)
    end = max([_revision(one) for one in _done(history)] + [one.responses[-1][1].header.revision for one in watches])
    moment = max(*(one.returned for one in _done(history)), *(one.responses[-1][0] for one in history.watches)) + 1
    response = rpc_pb2.WatchResponse(header=rpc_pb2.ResponseHeader(revision=end + 1))
    event = response.events.add(type=0)
    event.kv.key, event.kv.value, event.kv.mod_revision = put.request.key, put.request.value, end + 1
    event.kv.create_revision, event.kv.version = end + 1, 1
    watches[0].responses.append((moment, response))
    return True


def phantom_value(history: History, rng: random.Random) -> bool:
    """A read finds a value that nobody has written."""
    reads = [one for one in _reads(history) if one.response.kvs]  # type: ignore[union-attr]
    if not reads:
        return False
    rng.choice(reads).response.kvs[0].value = b"nobody's"  # type: ignore[union-attr]
    return True


def revisions_out_of_order(history: History, rng: random.Random) -> bool:
    """Two writes, one after the other in real time, have exchanged their revisions."""
    puts = [one for one in _done(history) if isinstance(one.request, rpc_pb2.PutRequest)]
    pairs = [(a, b) for a in puts for b in puts if a.returned < b.invoked]
    if not pairs:
        return False
    first, second = (one.response for one in rng.choice(pairs))
    assert isinstance(first, rpc_pb2.PutResponse) and isinstance(second, rpc_pb2.PutResponse)
    first.header.revision, second.header.revision = second.header.revision, first.header.revision
    return True


def half_a_transaction(history: History, rng: random.Random) -> bool:
    """A read of the revision of a transaction sees one of its two puts."""
    for one in _done(history):
        if not isinstance(one.request, rpc_pb2.TxnRequest) or not one.response.succeeded:  # type: ignore[union-attr]
            continue
        kinds = [op.WhichOneof("request") for op in one.request.success]
        if kinds[:2] != ["request_put", "request_put"]:
            continue
        seen = one.response.responses[-1].response_range  # type: ignore[union-attr]
        second = one.request.success[1].request_put.key
        for place, kv in enumerate(seen.kvs):
            if kv.key == second:
                del seen.kvs[place]
                seen.count -= 1
                return True
    return False


def uncommitted_value(history: History, rng: random.Random) -> bool:
    """A read finds the value of a put that was refused."""
    refused = [
        one
        for one in history.operations
        if one.outcome is Outcome.FAILED and isinstance(one.request, rpc_pb2.PutRequest)
    ]
    for read in _reads(history):
        for put in refused:
            for kv in read.response.kvs:  # type: ignore[union-attr]
                if kv.key == put.request.key:  # type: ignore[attr-defined]
                    kv.value = put.request.value  # type: ignore[attr-defined]
                    return True
    return False


def revision_from_the_future(history: History, rng: random.Random) -> bool:
    """A read, serializable or not, shows a write that is invoked only later."""
    candidates = [
        (read, write)
        for read in history.operations
        if read.outcome is Outcome.OK and isinstance(read.request, rpc_pb2.RangeRequest)
        for write in _done(history)
        if 1 < _revision(write) <= _revision(read) and write.returned > read.returned
    ]
    if not candidates:
        return False
    read, write = rng.choice(candidates)
    write.invoked = (read.returned + write.returned) / 2
    return True


def wrong_transaction_branch(history: History, rng: random.Random) -> bool:
    """A transaction says that its condition held, and it did not, or the other way round."""
    reading = [
        one
        for one in history.operations
        if one.outcome is Outcome.OK and isinstance(one.request, rpc_pb2.TxnRequest) and not one.response.succeeded  # type: ignore[union-attr]
    ]
    if not reading:
        return False
    rng.choice(reading).response.succeeded = True  # type: ignore[union-attr]
    return True


def false_compaction_error(history: History, rng: random.Random) -> bool:
    """A read of a revision is refused as compacted before anyone has asked for that."""
    first = min((one.invoked for one in history.operations), default=None)
    if first is None:
        return False
    history.operations.append(
        Operation(
            "liar",
            rpc_pb2.RangeRequest(key=b"k1", revision=1),
            first - 2,
            first - 1,
            Outcome.FAILED,
            error="mvcc: required revision has been compacted",
        )
    )
    return True


# -- watches -----------------------------------------------------------------------------------------------------------


def _told(history: History) -> list[tuple[Watch, int]]:
    """Watches with the places of their responses that have events."""
    return [(watch, place) for watch in history.watches for place, (_, one) in enumerate(watch.responses) if one.events]


def event_lost(history: History, rng: random.Random) -> bool:
    """One event is never told, though later ones are, or the end is reached."""
    places = [one for one in _told(history) if one[0].complete_to]
    if not places:
        return False
    watch, place = rng.choice(places)
    response = watch.responses[place][1]
    del response.events[rng.randrange(len(response.events))]
    return True


def event_twice(history: History, rng: random.Random) -> bool:
    """A response is told again."""
    places = _told(history)
    if not places:
        return False
    watch, place = rng.choice(places)
    watch.responses.insert(place, watch.responses[place])
    return True


def events_out_of_order(history: History, rng: random.Random) -> bool:
    """Two responses have changed places."""
    for watch in history.watches:
        places = [place for place, (_, one) in enumerate(watch.responses) if one.events]
        if len(places) > 1:
            a, b = places[0], places[1]
            watch.responses[a], watch.responses[b] = watch.responses[b], watch.responses[a]
            return True
    return False


def revision_torn(history: History, rng: random.Random) -> bool:
    """The events of one revision come in two responses that do not say so."""
    for watch, place in _told(history):
        moment, whole = watch.responses[place]
        last = whole.events[-1].kv.mod_revision
        if len(whole.events) > 1 and whole.events[-2].kv.mod_revision == last:
            rest = rpc_pb2.WatchResponse(header=whole.header)
            rest.events.add().CopyFrom(whole.events[-1])
            del whole.events[-1]
            watch.responses.insert(place + 1, (moment, rest))
            return True
    return False


def progress_overtakes(history: History, rng: random.Random) -> bool:
    """Progress to a revision is told before its events."""
    places = _told(history)
    if not places:
        return False
    watch, place = rng.choice(places)
    moment, response = watch.responses[place]
    header = rpc_pb2.ResponseHeader(revision=response.events[-1].kv.mod_revision)
    watch.responses.insert(place, (moment, rpc_pb2.WatchResponse(header=header)))
    return True


def wrong_previous_value(history: History, rng: random.Random) -> bool:
    """An event names a previous value that never was."""
    for watch, place in _told(history):
        for event in watch.responses[place][1].events:
            if event.HasField("prev_kv"):
                event.prev_kv.version += 1
                return True
    return False


def filter_ignored(history: History, rng: random.Random) -> bool:
    """A watch is told what it has filtered out."""
    for watch, place in _told(history):
        kind = watch.responses[place][1].events[0].type
        if watch.responses[place][1].events[0].kv.mod_revision:
            watch.request.filters.append(0 if kind == 0 else 1)
            return True
    return False


def resumed_too_late(history: History, rng: random.Random) -> bool:
    """A watch from a start revision begins behind its first event."""
    for watch, place in _told(history):
        events = watch.responses[place][1].events
        first = place == 1 and watch.request.start_revision > 0
        if first and len(events) > 1 and events[0].kv.mod_revision != events[1].kv.mod_revision:
            del events[0]
            return True
    return False


def cancelled_for_nothing(history: History, rng: random.Random) -> bool:
    """A watch is cancelled as compacted at a revision that nobody compacted."""
    if not history.watches:
        return False
    watch = history.watches[0]
    gone = rpc_pb2.WatchResponse(canceled=True, compact_revision=1_000_000)
    watch.responses.append((watch.responses[-1][0] + 1, gone))
    return True


PLANTS: list[Plant] = [
    stale_read,
    lost_write,
    write_done_twice,
    phantom_value,
    revisions_out_of_order,
    half_a_transaction,
    uncommitted_value,
    revision_from_the_future,
    wrong_transaction_branch,
    false_compaction_error,
    event_lost,
    event_twice,
    events_out_of_order,
    revision_torn,
    progress_overtakes,
    wrong_previous_value,
    filter_ignored,
    resumed_too_late,
    cancelled_for_nothing,
]
