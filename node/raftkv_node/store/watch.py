"""Watches: who is told what, in which order, and what happens to those who read slowly.

Pure logic without a transport.  A `WatchHub` belongs to a store and to the thread that applies; a `WatchStream` is
one client stream with any number of watchers on it.  Requests go in through `WatchStream.receive`, what was applied
through `WatchHub.publish`, time through `WatchHub.tick`; encoded responses come out of `WatchHub.take_output`, in
the order in which each stream must send them.

A watcher is *synced* when it has been given all that was published, and then gets new events as they are applied.
Otherwise it is *unsynced* and knows the first revision it has not been given: because it asked to start in the
past, or because its stream did not take what was sent (a stream holds at most `stream_limit_bytes`; beyond that
nothing is buffered for it, the history is in the store anyway).  Unsynced watchers catch up in slices of history
that a worker reads (`start_resync`, `ResyncJob.run`, `finish_resync`), when their stream has room.

What holds for each watcher, whatever happens to its speed: events come in revision order, each once, none left out,
those of one revision in one response (or in fragments that are marked as such, if the client asked for them); a
response with revision R and no events says that all up to R has been sent before.

Watchers of the same interval form a group.  A batch of events is matched against groups, and encoded once for
each kind of watcher in a group, however many there are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import islice

from raftkv_node.pb import rpc_pb2

from .encoding import varint
from .errors import WATCH_COMPACTED, WATCH_DUPLICATE_ID, WATCH_EMPTY_RANGE, StoreError
from .intervals import IntervalMap
from .mvcc import RevisionEvents
from .ranges import interval_end
from .resync import Matcher, ResyncJob, Want
from .store import Store
from .watchcodec import DEFAULT_RESPONSE_BYTES, Encoded, Memo, Plan, Variant, plan_responses, select

DEFAULT_PROGRESS_SECONDS = 600.0
DEFAULT_STREAM_LIMIT_BYTES = 8 << 20
RESYNC_WATCHERS = 512
"""Watchers that take part in one slice of catching up."""
RESYNC_LOOKED_AT = 2048
RETAINED_EVENTS = 20_000
RETAINED_BYTES = 16 << 20
"""Events published while a slice is being read are kept, up to this many, to bridge the gap at its end."""
ALL_WATCHERS = -1
"""Watch id of answers that concern no single watcher."""

_Request = rpc_pb2.WatchRequest
_Create = rpc_pb2.WatchCreateRequest


class Group:
    """The synced watchers of one interval."""

    __slots__ = ("end", "key", "watchers")

    def __init__(self, key: bytes, end: bytes | None) -> None:
        self.key = key
        self.end = end
        self.watchers: dict[Watcher, None] = {}


class Watcher:
    """One watch.  `next_revision` is the first revision whose events it has not been given."""

    __slots__ = (
        "end",
        "future",
        "group",
        "head",
        "id",
        "key",
        "next_revision",
        "progress",
        "quiet",
        "stream",
        "variant",
    )

    def __init__(
        self, stream: WatchStream, watch_id: int, key: bytes, end: bytes | None, start: int, *, request: _Create
    ) -> None:
        self.stream = stream
        self.id = watch_id
        self.key = key
        self.end = end
        self.next_revision = start
        self.future: int = request.start_revision
        """Until this revision it is told nothing, not even progress."""
        self.variant = Variant(
            request.prev_kv, _Create.NOPUT in request.filters, _Create.NODELETE in request.filters, request.fragment
        )
        self.progress = request.progress_notify
        self.quiet = True
        """No events since the last progress notification was due."""
        self.group: Group | None = None
        """`None` while unsynced."""
        self.head = b"\x10" + varint(watch_id) if watch_id else b""


class WatchStream:
    """One client's stream of watches."""

    def __init__(self, hub: WatchHub, number: int, now: float) -> None:
        self.hub = hub
        self.watchers: dict[int, Watcher] = {}
        self.output: list[bytes] = []
        self.output_bytes = 0
        self.queued_bytes = 0
        self.closed = False
        self.progress_seconds = hub.progress_seconds * (1 + number % 11 / 100)
        """Spread by up to a tenth, so that streams do not all speak at once."""
        self.next_progress = now + self.progress_seconds
        self._next_id = 0

    @property
    def full(self) -> bool:
        """Whether more waits for this stream than it may hold.  Its requests should not be read meanwhile."""
        return self.queued_bytes + self.output_bytes > self.hub.stream_limit_bytes

    def set_queued(self, queued_bytes: int) -> None:
        """Tells how many bytes of taken output the transport still holds."""
        self.queued_bytes = queued_bytes

    def receive(self, request: _Request) -> None:
        """Handles a client's message.  One without content is ignored, as etcd does."""
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            self.hub.create(self, request.create_request)
        elif kind == "cancel_request":
            self.hub.cancel(self, request.cancel_request.watch_id)
        elif kind == "progress_request":
            self.hub.request_progress(self)

    def new_id(self) -> int:
        """A watch id that is free on this stream."""
        while self._next_id in self.watchers:
            self._next_id += 1
        self._next_id += 1
        return self._next_id - 1

    def send(self, responses: Sequence[bytes]) -> None:
        """Queues encoded responses."""
        if not self.output:
            self.hub.speaking[self] = None
        self.output += responses
        self.output_bytes += sum(map(len, responses))


class WatchHub:
    """All watches of a store.  See the module's text."""

    def __init__(
        self,
        store: Store,
        *,
        progress_seconds: float = DEFAULT_PROGRESS_SECONDS,
        stream_limit_bytes: int = DEFAULT_STREAM_LIMIT_BYTES,
        response_bytes: int = DEFAULT_RESPONSE_BYTES,
    ) -> None:
        """`response_bytes`: a response is split above this size, between revisions, and within one if fragments were
        asked for.
        """
        self.store = store
        self.progress_seconds = progress_seconds
        self.stream_limit_bytes = stream_limit_bytes
        self.response_bytes = response_bytes
        self.streams: dict[WatchStream, None] = {}
        self.speaking: dict[WatchStream, None] = {}
        """Streams with output to take."""
        self.unsynced: dict[Watcher, None] = {}
        self.events_total = 0
        """Events sent, counted once for each watcher."""
        self.watchers_total = 0
        self._groups: dict[bytes, Group] = {}
        self._ranges: IntervalMap[Group] = IntervalMap()
        self._with_prev = 0
        self._streams_opened = 0
        self._job: ResyncJob | None = None
        self._in_job: list[Watcher] = []
        self._retained: list[RevisionEvents] | None = None
        self._retained_events = 0
        self._retained_bytes = 0

    @property
    def slow_watchers(self) -> int:
        """Watchers that are not up to date."""
        return len(self.unsynced)

    # Streams and requests.

    def open_stream(self, now: float) -> WatchStream:
        """A new stream.  `now` is the clock that `tick` gets, in seconds."""
        self._streams_opened += 1
        stream = WatchStream(self, self._streams_opened, now)
        self.streams[stream] = None
        return stream

    def close_stream(self, stream: WatchStream) -> None:
        """Forgets a stream and all on it."""
        if stream.closed:
            return
        stream.closed = True
        for watcher in list(stream.watchers.values()):
            self._drop(watcher)
        self.streams.pop(stream)
        self.speaking.pop(stream, None)

    def create(self, stream: WatchStream, request: _Create) -> None:
        """Handles a create request: exactly one response with `created`, then the watcher's own."""
        revision = self.store.revision
        key = request.key or b"\0"
        end = interval_end(request.range_end, key)
        reason = None
        if end is not None and key >= end:
            reason = WATCH_EMPTY_RANGE
        elif request.start_revision < 0:
            reason = WATCH_COMPACTED
        elif request.watch_id and request.watch_id in stream.watchers:
            reason = WATCH_DUPLICATE_ID
        if reason is not None:
            response = rpc_pb2.WatchResponse(watch_id=ALL_WATCHERS, created=True, canceled=True, cancel_reason=reason)
            stream.send([self.store.header() + response.SerializeToString()])
            return
        watch_id = request.watch_id or stream.new_id()
        start = request.start_revision or revision + 1
        watcher = Watcher(stream, watch_id, key, end, start, request=request)
        stream.watchers[watch_id] = watcher
        self.watchers_total += 1
        self._with_prev += watcher.variant.prev
        self.store.watching(True, self._with_prev > 0)
        stream.send([b"".join((self.store.header(), watcher.head, b"\x18\x01"))])
        if start > revision:
            self._join(watcher)
        else:
            self.unsynced[watcher] = None

    def cancel(self, stream: WatchStream, watch_id: int) -> None:
        """Handles a cancel request; one for an unknown id has no answer."""
        watcher = stream.watchers.get(watch_id)
        if watcher is not None:
            self._drop(watcher)
            stream.send([b"".join((self.store.header(), watcher.head, b"\x20\x01"))])

    def request_progress(self, stream: WatchStream) -> None:
        """Handles a progress request: answered only if all watchers of the stream are up to date and none starts in
        the future.
        """
        revision = self.store.revision
        if stream.watchers and all(self._current(watcher, revision) for watcher in stream.watchers.values()):
            stream.send([self.store.header() + b"\x10" + varint(ALL_WATCHERS)])

    @staticmethod
    def _current(watcher: Watcher, revision: int) -> bool:
        return watcher.group is not None and watcher.future <= revision

    def tick(self, now: float) -> None:
        """Sends the progress notifications that are due."""
        revision = self.store.revision
        for stream in self.streams:
            if now < stream.next_progress:
                continue
            stream.next_progress = now + stream.progress_seconds
            for watcher in stream.watchers.values():
                if watcher.progress:
                    if watcher.quiet and self._current(watcher, revision):
                        stream.send([self.store.header() + watcher.head])
                    watcher.quiet = True

    def take_output(self) -> list[tuple[WatchStream, list[bytes]]]:
        """The responses to send, by stream, each once.  From now on the transport answers for their bytes
        (`set_queued`).
        """
        taken = []
        for stream in self.speaking:
            taken.append((stream, stream.output))
            stream.queued_bytes += stream.output_bytes
            stream.output = []
            stream.output_bytes = 0
        self.speaking.clear()
        return taken

    # Groups.

    def _join(self, watcher: Watcher) -> None:
        """Makes a watcher a synced one."""
        key, end = watcher.key, watcher.end
        group: Group | None
        if end == key + b"\0":
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = Group(key, end)
        else:
            group = self._ranges.get(key, end)
            if group is None:
                group = Group(key, end)
                self._ranges.set(key, end, group)
        group.watchers[watcher] = None
        watcher.group = group

    def _leave(self, watcher: Watcher) -> None:
        group = watcher.group
        if group is None:
            return
        watcher.group = None
        del group.watchers[watcher]
        if not group.watchers:
            if group.end == group.key + b"\0":
                del self._groups[group.key]
            else:
                self._ranges.remove(group.key, group.end)

    def _drop(self, watcher: Watcher) -> None:
        self._leave(watcher)
        self.unsynced.pop(watcher, None)
        del watcher.stream.watchers[watcher.id]
        self.watchers_total -= 1
        self._with_prev -= watcher.variant.prev
        self.store.watching(self.watchers_total > 0, self._with_prev > 0)

    # New events.

    def publish(self, events: Sequence[RevisionEvents]) -> None:
        """Gives applied events (`ApplyResult.events`, of one batch) to those who watch, before anything else is
        applied.
        """
        if not events:
            return
        if self._retained is not None:
            self._retain(events)
        if not (self._groups or self._ranges):
            return
        touched: dict[Group, list[RevisionEvents]] = {}
        groups, ranges = self._groups, self._ranges
        has_ranges = len(ranges) > 0
        for revision, changes in events:
            for event in changes:
                group = groups.get(event.key)
                found = ranges.containing(event.key) if has_ranges else []
                if group is not None:
                    found.append(group)
                for group in found:
                    batch = touched.setdefault(group, [])
                    if batch and batch[-1][0] == revision:
                        batch[-1][1].append(event)
                    else:
                        batch.append((revision, [event]))
        memo: Memo = {}
        for group, batch in touched.items():
            self._publish_group(group, batch, events[-1][0], memo)

    def _retain(self, events: Sequence[RevisionEvents]) -> None:
        """Keeps events for those who are catching up, or gives up keeping them."""
        assert self._retained is not None
        self._retained += events
        for _, changes in events:
            self._retained_events += len(changes)
            self._retained_bytes += sum(len(event.record) + len(event.prev or b"") for event in changes)
        if self._retained_events > RETAINED_EVENTS or self._retained_bytes > RETAINED_BYTES:
            self._retained = None

    def _publish_group(self, group: Group, batch: list[RevisionEvents], through: int, memo: Memo) -> None:
        encoded: dict[Variant, tuple[Encoded, Plan | None]] = {}
        slow = []
        for watcher in group.watchers:
            if batch[-1][0] < watcher.next_revision:
                continue
            variant = watcher.variant
            shared = encoded.get(variant)
            if shared is None:
                mine = select(batch, variant, memo)
                shared = encoded[variant] = mine, self._plan(mine, variant, through) if mine else None
            mine, plan = shared
            if plan is None:
                continue
            if watcher.next_revision > mine[0][0]:
                mine = [(revision, parts) for revision, parts in mine if revision >= watcher.next_revision]
                if not mine:
                    continue
                plan = self._plan(mine, variant, through)
            if watcher.stream.full:
                watcher.next_revision = mine[0][0]
                slow.append(watcher)
                continue
            self._deliver(watcher, plan)
            watcher.next_revision = through + 1
        for watcher in slow:
            self._leave(watcher)
            self.unsynced[watcher] = None

    def _plan(self, mine: Encoded, variant: Variant, through: int) -> Plan:
        return plan_responses(self.store.header, mine, through, fragment=variant.fragment, limit=self.response_bytes)

    def _deliver(self, watcher: Watcher, plan: Plan) -> None:
        watcher.quiet = False
        self.events_total += plan.events
        watcher.stream.send(plan.responses(watcher.head))

    def restored(self, revision: int) -> None:
        """The store has jumped ahead of `revision`, up to which it had published: who watches reads the rest from
        history, or learns that it is compacted.
        """
        if self._job is not None:
            self._job.void = True
        self._job, self._in_job, self._retained = None, [], None
        newest = self.store.revision
        groups = [*self._groups.values(), *self._ranges.values()]
        for group in groups:
            for watcher in list(group.watchers):
                watcher.next_revision = max(watcher.next_revision, revision + 1)
                if watcher.next_revision <= newest:
                    self._leave(watcher)
                    self.unsynced[watcher] = None

    # Catching up.

    def start_resync(self) -> ResyncJob | None:
        """The next slice of catching up for a worker, or `None`: nobody is behind, no stream has room, or one is
        under way.

        The job's `run` is for a worker; then it must come back through `finish_resync`.
        """
        if self._job is not None or not self.unsynced:
            return None
        compacted, revision = self.store.compact_revision, self.store.revision
        ready: list[Watcher] = []
        for watcher in list(islice(self.unsynced, RESYNC_LOOKED_AT)):
            if watcher.next_revision < compacted:
                self._cancel_compacted(watcher, compacted)
            elif watcher.next_revision > revision:
                del self.unsynced[watcher]
                self._join(watcher)
            elif 2 * (watcher.stream.queued_bytes + watcher.stream.output_bytes) <= self.stream_limit_bytes:
                ready.append(watcher)
                if len(ready) >= RESYNC_WATCHERS:
                    break
            else:
                self._to_end_of_line(watcher)
        if not ready:
            return None
        self._in_job = ready
        self._job = ResyncJob(self.store, self._wants(ready), revision)
        self._retained, self._retained_events, self._retained_bytes = [], 0, 0
        return self._job

    @staticmethod
    def _wants(watchers: Iterable[Watcher]) -> list[Want]:
        return [Want(w, w.key, w.end, w.next_revision, w.variant) for w in watchers]

    def _to_end_of_line(self, watcher: Watcher) -> None:
        del self.unsynced[watcher]
        self.unsynced[watcher] = None

    def _cancel_compacted(self, watcher: Watcher, compacted: int) -> None:
        self._drop(watcher)
        watcher.stream.send([b"".join((self.store.header(), watcher.head, b"\x20\x01", b"\x28", varint(compacted)))])

    def finish_resync(self, job: ResyncJob) -> None:
        """Delivers what a job found (in the thread that applies), and lets those who are up to date join the others.

        `StoreError` when the history could not be read.
        """
        if job.void:
            job.close()
            return
        if job is not self._job:
            raise ValueError("not the resync job that was started")
        waiting, retained = self._in_job, self._retained
        self._job, self._in_job, self._retained = None, [], None
        job.close()
        if job.failed is not None:
            raise StoreError(f"history could not be read for a watch: {job.failed}") from job.failed
        # Meanwhile some may have been cancelled; nothing else moves an unsynced watcher.
        waiting = [watcher for watcher in waiting if watcher in self.unsynced]
        self._give(waiting, job.found, job.through)
        if retained is None or job.through < job.target:
            return
        bridged = [watcher for watcher in waiting if watcher in self.unsynced and watcher.next_revision > job.through]
        matcher = Matcher(self._wants(bridged))
        for revision, events in retained:
            for event in events:
                matcher.add(revision, event, matcher.intervals(event.key))
        if retained:
            self._give(bridged, matcher.found(), retained[-1][0])

    def _give(self, watchers: Iterable[Watcher], found: dict[Hashable, Encoded], through: int) -> None:
        """Gives unsynced watchers all they want up to `through`, unless their stream has filled up."""
        for watcher in watchers:
            mine = found.get(watcher)
            if mine:
                if watcher.stream.full:
                    self._to_end_of_line(watcher)
                    continue
                self._deliver(watcher, self._plan(mine, watcher.variant, through))
            watcher.next_revision = max(watcher.next_revision, through + 1)
            if watcher.next_revision > self.store.revision:
                del self.unsynced[watcher]
                self._join(watcher)
            else:
                self._to_end_of_line(watcher)
