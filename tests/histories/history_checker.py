"""Is a history linearizable? And did every watch keep its promises?

In general the question is answered by a search: find an order of all operations that respects real time (who was
answered before another was invoked comes first) and in which a single key space gives exactly these answers. Wing and
Gong's search, and what grew from it, tries orders; cutting the history by key, which makes that fast elsewhere, is not
valid here, since a transaction joins keys.

But every answer of etcd carries a revision, and each effective write makes exactly one. So the order is given: writes
by their revision, each read behind the write whose revision its header names. What is left to find is which writes of
unknown outcome made the revisions that nobody was answered. The search goes up the revisions; where there is a gap, it
tries the writes of unknown outcome that could have made it, guided by what watches and reads told of that revision, and
goes back when something later contradicts. In practice nearly nothing is ever tried twice.

An order by revision respects real time if no pair contradicts: an operation that was answered before another was
invoked must not have a higher revision, nor the same one if the other is the write that made it. With the answers of
all operations and reads compared with the model at their revisions, that is linearizability, no more and no less.

- A serializable read may see any state of the past: real time bounds it from above only. Within a session, reads never
  go back. What one has seen is committed, so linearizable operations invoked later must see it: it counts there.
- Compactions make no revision. What must and what may be compacted at a moment follows from the answers before it and
  the invocations until then; an answer outside of these bounds is a contradiction.

`check` raises `Contradiction`, which names what contradicts what. It never does for a history that is legal. Gaps that
could be filled in too many ways end in `Undecided`, which is neither; watches over all keys prevent that.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from google.protobuf.message import Message
from history_records import History, Operation, Outcome, Watch
from history_timeline import Timeline
from history_watches import check_watches
from raftkv_node.pb import rpc_pb2
from raftkv_node.pb.kv_pb2 import KeyValue
from raftkv_node.store import EtcdError

COMPACTED = "mvcc: required revision has been compacted"
FUTURE = "mvcc: required revision is a future revision"
MAX_ATTEMPTS = 1_000_000
"""So many fillings of gaps are tried before the answer is `Undecided`."""


class Contradiction(AssertionError):
    """No order of the operations explains the answers. The text says which ones contradict."""

    def __init__(self, rule: str, text: str, *operations: Operation) -> None:
        lines = [f"{rule}: {text}", *(f"  - {one.describe()}" for one in operations)]
        super().__init__("\n".join(lines))
        self.rule = rule
        self.operations = operations


class Undecided(Exception):
    """Too many ways to fill the gaps: more must be watched to tell."""


@dataclass(frozen=True)
class Checked:
    """What was checked, for a table."""

    operations: int
    acknowledged_writes: int
    linearizable_reads: int
    serializable_reads: int
    unknown: int
    unknown_took_effect: int
    watch_events: int
    bookmarks: int
    """Notifications of progress that watches were given."""
    revision: int
    """The newest revision that anybody has seen."""


def check(history: History, max_attempts: int = MAX_ATTEMPTS) -> Checked:
    """Checks operations and watches; raises `Contradiction` or `Undecided`."""
    return _Check(history, max_attempts).run()


def _bookmarks(watch: Watch) -> int:
    told = [response for _, response in watch.responses]
    return sum(1 for one in told if not (one.created or one.canceled or one.events))


def _revision(response: Message) -> int:
    return int(response.header.revision)  # type: ignore[attr-defined]


def _writes(operation: Operation) -> bool:
    """Whether an answered operation made a revision."""
    return _changed(operation.response)


def _changed(response: Message | None) -> bool:
    if isinstance(response, rpc_pb2.PutResponse):
        return True
    if isinstance(response, rpc_pb2.DeleteRangeResponse):
        return response.deleted > 0
    if isinstance(response, rpc_pb2.TxnResponse):
        return any(_changed(getattr(one, one.WhichOneof("response"))) for one in response.responses)
    return False


def _only_reads(request: Message) -> bool:
    if isinstance(request, rpc_pb2.TxnRequest):
        ops = [*request.success, *request.failure]
        return all(_only_reads(getattr(one, one.WhichOneof("request"))) for one in ops)
    return isinstance(request, rpc_pb2.RangeRequest)


def _serializable(request: Message) -> bool:
    """Whether it may see the past; of a transaction: if all that it does is to read so."""
    if isinstance(request, rpc_pb2.TxnRequest):
        ops = [*request.success, *request.failure]
        return bool(ops) and all(_serializable(getattr(one, one.WhichOneof("request"))) for one in ops)
    return isinstance(request, rpc_pb2.RangeRequest) and request.serializable


class _Evidence:
    """What has been seen of each revision: puts by (key, value), deleted keys, and what else there was not."""

    def __init__(self) -> None:
        self.puts: dict[int, dict[bytes, KeyValue]] = defaultdict(dict)
        self.deletes: dict[int, set[bytes]] = defaultdict(set)
        self.told: dict[int, set[tuple[bytes, bytes, frozenset[bytes]]]] = defaultdict(set)
        """Of an interval (first key, end) a watch was told that exactly these keys were changed."""
        self.before: dict[int, dict[bytes, KeyValue]] = defaultdict(dict)
        """What events of watches have shown as the value before them."""

    def gather(self, history: History) -> None:
        for operation in history.operations:
            if operation.response is not None:
                self._look(operation.response)
        for watch in history.watches:
            for _, response in watch.responses:
                for event in response.events:
                    if event.HasField("prev_kv"):
                        self.before[event.prev_kv.mod_revision].setdefault(event.prev_kv.key, event.prev_kv)
                    if event.type == 0:
                        self.puts[event.kv.mod_revision][event.kv.key] = event.kv
                    else:
                        self.deletes[event.kv.mod_revision].add(event.kv.key)
            if not watch.request.filters and not watch.request.fragment:
                self._gather_whole(watch)

    def _gather_whole(self, watch: Watch) -> None:
        """What such a watch is told of a revision is all that changed in its interval."""
        for _, response in watch.responses:
            keys: dict[int, set[bytes]] = defaultdict(set)
            for event in response.events:
                keys[event.kv.mod_revision].add(event.kv.key)
            for revision, changed in keys.items():
                self.told[revision].add((watch.request.key or b"\0", watch.request.range_end, frozenset(changed)))

    def _look(self, response: Message) -> None:
        if isinstance(response, rpc_pb2.RangeResponse):
            kvs = list(response.kvs)
        elif isinstance(response, rpc_pb2.DeleteRangeResponse):
            kvs = list(response.prev_kvs)
        elif isinstance(response, rpc_pb2.PutResponse):
            kvs = [response.prev_kv] if response.HasField("prev_kv") else []
        elif isinstance(response, rpc_pb2.TxnResponse):
            for one in response.responses:
                self._look(getattr(one, one.WhichOneof("response")))
            return
        else:
            return
        for kv in kvs:
            self.puts[kv.mod_revision].setdefault(kv.key, kv)

    def denies(self, revision: int, changes: list[tuple[str, KeyValue, KeyValue | None]]) -> str:
        """Why these changes cannot be those of the revision; empty if they can."""
        made = {kv.key: (kind, kv) for kind, kv, _ in changes}
        for key, seen in self.puts.get(revision, {}).items():
            kind, kv = made.get(key, ("", KeyValue()))
            # A read of keys only shows no value.
            if kind != "put" or (seen.version, seen.create_revision) != (kv.version, kv.create_revision):
                return f"{key!r} was seen with that revision: {' '.join(str(seen).split())}"
            if seen.value and seen.value != kv.value:
                return f"{key!r} was seen with value {seen.value!r} of that revision, not {kv.value!r}"
        for key in self.deletes.get(revision, ()):
            if made.get(key, ("",))[0] != "delete":
                return f"{key!r} was seen deleted at that revision"
        return ""

    def denies_more(self, revision: int, changes: list[tuple[str, KeyValue, KeyValue | None]]) -> str:
        """Why these changes were not those of the revision, as watches tell; empty if they may have been.

        It chooses among writes of unknown outcome. (Of those that were answered the revision is known; there it is the
        watch that is judged.)
        """
        for key, end, told in self.told.get(revision, ()):
            for _, kv, _ in changes:
                inside = kv.key == key if not end else key <= kv.key and (end == b"\0" or kv.key < end)
                if inside and kv.key not in told:
                    return f"only {sorted(told)} were told at that revision"
        made = {kv.key: kv for kind, kv, _ in changes if kind == "put"}
        for key, seen in self.before.get(revision, {}).items():
            if made.get(key) != seen:
                return f"{key!r} was told as the value before a later one: {' '.join(str(seen).split())}"
        return ""


class _Floor:
    """The highest revision that was seen by whoever was answered before a moment."""

    def __init__(self, seen: list[tuple[float, int, Operation | None]]) -> None:
        seen.sort(key=lambda one: one[0])
        self._times = [one[0] for one in seen]
        self._best = list(accumulate(seen, lambda a, b: b if b[1] > a[1] else a))

    def before(self, moment: float) -> tuple[int, Operation | None]:
        """Revision and the operation that has seen it (None: a watch)."""
        place = bisect_left(self._times, moment)
        return self._best[place - 1][1:] if place else (1, None)


class _Check:
    def __init__(self, history: History, max_attempts: int) -> None:
        self.history = history
        self.max_attempts = max_attempts
        self.timeline = Timeline()
        self.evidence = _Evidence()
        self.evidence.gather(history)
        self.answered = [one for one in history.operations if one.outcome is Outcome.OK]
        self.by_revision: dict[int, Operation] = {}
        self.observers: dict[int, list[Operation]] = defaultdict(list)
        self.unknown = sorted(
            (
                one
                for one in history.operations
                if one.outcome is Outcome.UNKNOWN
                and not _only_reads(one.request)
                and not isinstance(one.request, rpc_pb2.CompactionRequest)
            ),
            key=lambda one: one.invoked,
        )
        self.fingerprints = {one: (type(one.request), one.request.SerializeToString()) for one in self.unknown}
        self.putting: dict[tuple[bytes, bytes], list[Operation]] = defaultdict(list)
        for one in self.unknown:
            for put in set(_puts(one.request)):
                self.putting[put].append(one)
        self.used: dict[Operation, None] = {}
        self.attempts = 0
        self.deepest = 0
        self.failure: Contradiction | None = None
        self.top = 1

    def run(self) -> Checked:
        self._sort_by_revision()
        self._real_time()
        self._sessions()
        self._compactions()
        self._rebuild()
        events = check_watches(self.history, self.timeline, Contradiction)
        reads = [one for one in self.answered if _only_reads(one.request)]
        serializable = sum(_serializable(one.request) for one in reads)
        return Checked(
            operations=len(self.history.operations),
            acknowledged_writes=len(self.by_revision),
            linearizable_reads=len(reads) - serializable,
            serializable_reads=serializable,
            unknown=len(self.unknown),
            unknown_took_effect=len(self.used),
            watch_events=events,
            bookmarks=sum(_bookmarks(watch) for watch in self.history.watches),
            revision=self.top,
        )

    # -- revisions -----------------------------------------------------------------------------------------------------

    def _sort_by_revision(self) -> None:
        seen: list[tuple[float, int, Operation | None]] = []
        for operation in self.answered:
            assert operation.response is not None
            revision = _revision(operation.response)
            seen.append((operation.returned, revision, operation))
            if _writes(operation):
                other = self.by_revision.setdefault(revision, operation)
                if other is not operation:
                    raise Contradiction(
                        "ONE_REVISION_PER_WRITE", f"two writes made revision {revision}", other, operation
                    )
                if revision < 2:
                    raise Contradiction("ONE_REVISION_PER_WRITE", "the first write makes revision 2", operation)
            elif not isinstance(operation.request, rpc_pb2.CompactionRequest):
                self.observers[revision].append(operation)
        for watch in self.history.watches:
            for moment, response in watch.responses:
                if response.events:
                    seen.append((moment, max(one.kv.mod_revision for one in response.events), None))
                elif not response.canceled:
                    seen.append((moment, response.header.revision, None))
        self.floor = _Floor(seen)
        self.top = max((one[1] for one in seen), default=1)
        self.top = max([self.top, *self.evidence.puts, *self.evidence.deletes])

    def _real_time(self) -> None:
        for operation in self.answered:
            if _serializable(operation.request):
                continue
            assert operation.response is not None
            revision = _revision(operation.response)
            floor, witness = self.floor.before(operation.invoked)
            write = _writes(operation)
            if revision > floor or (revision == floor and not write):
                continue
            who = [operation] if witness is None else [witness, operation]
            what = (
                f"revision {floor} had been seen before the write was invoked that is answered with revision {revision}"
                if write
                else f"revision {floor} had been seen before this was invoked, but it saw revision {revision}"
            )
            raise Contradiction("REAL_TIME_ORDER" if write else "NO_STALE_READ", what, *who)

    def _sessions(self) -> None:
        sessions: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.answered:
            if operation.session:
                sessions[operation.session].append(operation)
        for operations in sessions.values():
            floor = _Floor([(one.returned, _revision(one.response), one) for one in operations if one.response])
            for one in operations:
                best, witness = floor.before(one.invoked)
                if one.response is not None and _revision(one.response) < best and witness is not None:
                    raise Contradiction("A_SESSION_NEVER_GOES_BACK", f"from {best}", witness, one)

    # -- the search ----------------------------------------------------------------------------------------------------

    def _rebuild(self) -> None:
        """Goes up the revisions; leaves the timeline at the newest one."""
        self._observe(1)
        if self.failure is not None:
            raise self.failure
        choices = [self._choices(2)]
        while len(choices) <= self.top - 1:
            revision = len(choices) + 1
            for operation in choices[-1]:
                if self._try(revision, operation):
                    choices.append(self._choices(revision + 1))
                    break
            else:
                if revision > self.deepest:
                    self._nobody_wrote(revision)
                choices.pop()
                if not choices:
                    assert self.failure is not None
                    raise self.failure
                self._take_back(revision - 1)

    def _choices(self, revision: int) -> Iterator[Operation]:
        """Who may have made the revision."""
        if revision in self.by_revision:
            yield self.by_revision[revision]
            return
        pool = self.unknown
        for key, kv in self.evidence.puts.get(revision, {}).items():
            if kv.value:
                found = self.putting.get((key, kv.value), [])
                pool = found if len(found) < len(pool) else pool
        tried = set()
        for operation in pool:
            if operation in self.used:
                continue
            if self.floor.before(operation.invoked)[0] >= revision:
                break
            # Of equal requests the earliest fits wherever a later one does.
            if self.fingerprints[operation] in tried:
                continue
            tried.add(self.fingerprints[operation])
            yield operation

    def _try(self, revision: int, operation: Operation) -> bool:
        self.attempts += 1
        if self.attempts > self.max_attempts + len(self.by_revision):
            tried = f"{self.max_attempts} ways to fill the gaps were tried"
            raise Undecided(f"{tried}; the highest revision was {self.deepest}")
        expected = self.timeline.apply(operation.request)
        if self.timeline.revision != revision:
            self._fail(
                revision, "ANSWER_FITS", f"it could not make revision {revision}, but {_text(expected)}", operation
            )
            return False
        if operation.outcome is Outcome.UNKNOWN:
            self.used[operation] = None
        else:
            assert operation.response is not None
            if not _same(expected, operation.response):
                self._fail(revision, "ANSWER_FITS", f"{_text(expected)} would have been right", operation)
                return self._take_back(revision)
        changes = self.timeline.changes[revision]
        denied = self.evidence.denies(revision, changes)
        if not denied and operation.outcome is Outcome.UNKNOWN:
            denied = self.evidence.denies_more(revision, changes)
        if denied:
            self._fail(revision, "VALUE_WAS_WRITTEN", f"it made revision {revision}, but {denied}", operation)
            return self._take_back(revision)
        return self._observe(revision) or self._take_back(revision)

    def _take_back(self, revision: int) -> bool:
        self.timeline.undo()
        if revision not in self.by_revision:
            self.used.popitem()
        return False

    def _observe(self, revision: int) -> bool:
        """Compares all that saw exactly this revision."""
        for operation in self.observers.get(revision, ()):
            expected = self.timeline.apply(operation.request)
            assert operation.response is not None
            if self.timeline.revision != revision:
                self.timeline.undo()
                text = f"it changed nothing at revision {revision}, where {_text(expected)} would have been right"
                self._fail(revision, "READ_FITS", text, operation)
                return False
            if not _same(expected, operation.response):
                writers = [self.by_revision[one] for one in _mentioned(expected) if one in self.by_revision]
                text = f"at revision {revision} {_text(expected)} would have been right"
                self._fail(revision, "READ_FITS", text, operation, *writers[:3])
                return False
        return True

    def _fail(self, revision: int, rule: str, text: str, *operations: Operation) -> None:
        """The failure at the highest revision is the one that explains."""
        if revision > self.deepest:
            self.deepest, self.failure = revision, Contradiction(rule, text, *operations)

    def _nobody_wrote(self, revision: int) -> None:
        puts = self.evidence.puts.get(revision, {})
        others = [
            one
            for one in self.history.operations
            if any(
                (put_key, value) in set(_puts(one.request))
                for put_key, value in ((k, v.value) for k, v in puts.items())
            )
        ]
        if puts:
            what = f"revision {revision} was seen with {[(key, kv.value) for key, kv in puts.items()]}"
            if any(one.outcome is Outcome.OK for one in others):
                what += ", which had taken effect already: a write was done twice"
            elif others:
                what += ", which was refused, or was not invoked yet"
            else:
                what += ", which nobody ever wrote"
        elif revision in self.evidence.deletes:
            what = f"nobody can have deleted {sorted(self.evidence.deletes[revision])} at revision {revision}"
        else:
            what = f"nobody made revision {revision}, though {self.top} was seen"
        self._fail(revision, "EVERY_REVISION_WAS_WRITTEN", what, *others[:4])

    # -- compaction ----------------------------------------------------------------------------------------------------

    def _compactions(self) -> None:
        bounds = _Compactions(self.history.operations)
        for operation in self.history.operations:
            request = operation.request
            if operation.outcome is Outcome.UNKNOWN:
                continue
            if isinstance(request, rpc_pb2.CompactionRequest):
                bounds.check_compaction(operation, self.floor)
            elif isinstance(request, rpc_pb2.RangeRequest) and request.revision > 0:
                bounds.check_read(operation, self.floor)
            elif operation.error == COMPACTED and isinstance(request, rpc_pb2.RangeRequest):
                raise Contradiction("COMPACTION_IS_TRUE", "the newest revision is never compacted", operation)


class _Compactions:
    """What must and what may be compacted at a moment."""

    def __init__(self, operations: list[Operation]) -> None:
        self._all = [one for one in operations if isinstance(one.request, rpc_pb2.CompactionRequest)]
        done = sorted((one for one in self._all if one.outcome is Outcome.OK), key=lambda one: one.returned)
        asked = sorted((one for one in self._all if one.outcome is not Outcome.FAILED), key=lambda one: one.invoked)
        self._done = ([one.returned for one in done], _running(done))
        self._asked = ([one.invoked for one in asked], _running(asked))
        revisions: dict[int, Operation] = {}
        for one in done:
            other = revisions.setdefault(_asked_revision(one), one)
            if other is not one:
                raise Contradiction("COMPACTION_IS_TRUE", "one revision was compacted twice", other, one)

    def at_least(self, moment: float) -> Operation | None:
        """The highest compaction that was answered before the moment."""
        place = bisect_left(self._done[0], moment)
        return self._done[1][place - 1] if place else None

    def at_most(self, moment: float) -> int:
        """The highest revision whose compaction was asked for until the moment, and not refused."""
        place = bisect_right(self._asked[0], moment)
        return _asked_revision(self._asked[1][place - 1]) if place else 0

    def check_compaction(self, operation: Operation, floor: _Floor) -> None:
        asked = _asked_revision(operation)
        if operation.outcome is Outcome.OK:
            before = self.at_least(operation.invoked)
            if before is not None and _asked_revision(before) >= asked:
                raise Contradiction("COMPACTION_IS_TRUE", "it was compacted before", before, operation)
            if operation.response is not None and _revision(operation.response) < asked:
                raise Contradiction("COMPACTION_IS_TRUE", "a future revision was compacted", operation)
        elif operation.error == COMPACTED and asked > self.at_most(operation.returned):
            raise Contradiction("COMPACTION_IS_TRUE", "nothing so high was compacted", operation)
        elif operation.error == FUTURE:
            self._check_future(operation, asked, floor)

    def check_read(self, operation: Operation, floor: _Floor) -> None:
        asked = operation.request.revision  # type: ignore[attr-defined]
        if operation.outcome is Outcome.OK:
            before = self.at_least(operation.invoked)
            if before is not None and asked < _asked_revision(before) and not _serializable(operation.request):
                raise Contradiction("COMPACTION_IS_TRUE", "a compacted revision was read", before, operation)
        elif operation.error == COMPACTED and asked >= self.at_most(operation.returned):
            raise Contradiction("COMPACTION_IS_TRUE", "that revision was not compacted", operation)
        elif operation.error == FUTURE and not _serializable(operation.request):
            self._check_future(operation, asked, floor)

    @staticmethod
    def _check_future(operation: Operation, asked: int, floor: _Floor) -> None:
        seen, witness = floor.before(operation.invoked)
        if seen >= asked:
            who = [operation] if witness is None else [witness, operation]
            raise Contradiction("NO_STALE_READ", f"revision {seen} had been seen, so {asked} was not the future", *who)


def _asked_revision(operation: Operation) -> int:
    return int(operation.request.revision)  # type: ignore[attr-defined]


def _running(operations: list[Operation]) -> list[Operation]:
    return list(accumulate(operations, lambda a, b: b if _asked_revision(b) > _asked_revision(a) else a))


# -- messages ----------------------------------------------------------------------------------------------------------


def _puts(request: Message) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values that a request may put."""
    if isinstance(request, rpc_pb2.PutRequest):
        yield (request.key, request.value)
    elif isinstance(request, rpc_pb2.TxnRequest):
        for one in (*request.success, *request.failure):
            yield from _puts(getattr(one, one.WhichOneof("request")))


def _same(expected: object, actual: Message) -> bool:
    """Whether an answer is the expected one. Of headers the outermost revision counts; those inside may be left out."""
    if not isinstance(expected, Message) or type(expected) is not type(actual):
        return False
    if _revision(expected) != _revision(actual):
        return False
    copy = type(actual)()
    copy.CopyFrom(actual)
    _without_headers(copy)
    _without_headers(expected)
    return bool(copy == expected)


def _without_headers(response: Message) -> None:
    response.ClearField("header")
    if isinstance(response, rpc_pb2.TxnResponse):
        for one in response.responses:
            _without_headers(getattr(one, one.WhichOneof("response")))


def _mentioned(expected: object) -> Iterator[int]:
    """Revisions of the key-values in an answer, the newest first."""
    if isinstance(expected, rpc_pb2.RangeResponse):
        yield from sorted({kv.mod_revision for kv in expected.kvs}, reverse=True)


def _text(expected: object) -> str:
    if isinstance(expected, EtcdError):
        return f"the error {expected.message!r}"
    return f"{{{' '.join(str(expected).split())}}}"[:600]
