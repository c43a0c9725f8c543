"""The guarantees of watches, against the key space at every revision.

*Ordered* and *unique*: events come by revision, each once. *Reliable*: none of the subscribed interval is missing below
what was told. *Atomic*: those of one revision in one response, or in parts marked as such. *Resumable*: a watch
from a start revision goes on exactly there. *Bookmarkable*: progress to a revision comes after every event up to it.
All of these together say: what a watch was told is the changes of its interval, filtered, from its start up to the
highest revision that it heard of. Beyond that, previous values and filters are right, and a watch is cancelled as
compacted only if that is so.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator

from history_records import History, Operation, Outcome, Watch
from history_timeline import Timeline
from raftkv_node.pb import rpc_pb2
from raftkv_node.pb.kv_pb2 import Event, KeyValue

_Expected = tuple[int, str, KeyValue, KeyValue | None]


def check_watches(history: History, timeline: Timeline, contradiction: Callable[..., Exception]) -> int:
    """Checks all watches; the number of events that they were told."""
    compactions = _Compactions(history.operations)
    return sum(_Told(watch, timeline, compactions, contradiction).check() for watch in history.watches)


class _Compactions:
    """The highest compaction that may have been done at a moment."""

    def __init__(self, operations: list[Operation]) -> None:
        asked = sorted(
            (one.invoked, one.request.revision)
            for one in operations
            if isinstance(one.request, rpc_pb2.CompactionRequest) and one.outcome is not Outcome.FAILED
        )
        self._times = [one[0] for one in asked]
        self._revisions = [one[1] for one in asked]
        self._known = set(self._revisions)

    def at_most(self, moment: float) -> int:
        return max(self._revisions[: bisect_right(self._times, moment)], default=0)

    def knows(self, revision: int) -> bool:
        return revision in self._known


class _Told:
    """One watch, response after response."""

    def __init__(self, watch: Watch, timeline: Timeline, compactions: _Compactions, error: Callable[..., Exception]):
        self.watch = watch
        self.timeline = timeline
        self.compactions = compactions
        self.error = error
        self.reached = 0
        """Everything up to this revision has been told."""
        self.parts: list[Event] = []
        """Events of fragments that are not complete yet."""
        self.count = 0
        self.expected: Iterator[_Expected] = iter(())
        self.next: _Expected | None = None

    def fail(self, rule: str, text: str) -> Exception:
        return self.error(rule, f"{text}; {self.watch.describe()}")

    def check(self) -> int:
        if not self.watch.responses:
            return 0
        created = self.watch.responses[0][1]
        if not created.created:
            raise self.fail("WATCH_CREATED_FIRST", "its first response does not say created")
        start = self.watch.request.start_revision or created.header.revision + 1
        self.reached = start - 1
        self.expected = self._changes(start)
        self._advance()
        for number, (moment, response) in enumerate(self.watch.responses):
            if number and response.created:
                raise self.fail("WATCH_CREATED_FIRST", "it was created twice")
            if response.canceled:
                self._canceled(moment, response)
            elif response.events:
                self._events(moment, response)
            elif number:
                self._progress(response)
        if self.watch.complete_to:
            self._told_up_to(self.watch.complete_to, "WATCH_RELIABLE", "at the end")
        return self.count

    def _changes(self, start: int) -> Iterator[_Expected]:
        request = self.watch.request
        key, end = request.key or b"\0", request.range_end
        for revision in range(max(start, 2), self.timeline.revision + 1):
            for kind, kv, old in sorted(self.timeline.changes[revision], key=lambda one: one[1].key):
                inside = kv.key == key if not end else key <= kv.key and (end == b"\0" or kv.key < end)
                hidden = rpc_pb2.WatchCreateRequest.NOPUT if kind == "put" else rpc_pb2.WatchCreateRequest.NODELETE
                if inside and hidden not in request.filters:
                    yield revision, kind, kv, old

    def _advance(self) -> None:
        self.next = next(self.expected, None)

    def _events(self, moment: float, response: rpc_pb2.WatchResponse) -> None:
        by_revision: dict[int, list[Event]] = {}
        self.parts += response.events
        if response.fragment:
            return
        whole, self.parts = self.parts, []
        for event in whole:
            by_revision.setdefault(event.kv.mod_revision, []).append(event)
        # Within a revision the order is the transaction's; it is compared as a set.
        revisions = [one.kv.mod_revision for one in whole]
        if revisions != sorted(revisions):
            raise self.fail("WATCH_ORDERED", f"revisions {revisions} in one response")
        if response.header.revision < revisions[-1]:
            raise self.fail("WATCH_ORDERED", f"the header says {response.header.revision}, an event {revisions[-1]}")
        for revision, events in by_revision.items():
            self._one_revision(moment, revision, events)

    def _one_revision(self, moment: float, revision: int, events: list[Event]) -> None:
        if revision <= self.reached:
            raise self.fail("WATCH_UNIQUE", f"revision {revision} was told after {self.reached}")
        if self.next is not None and self.next[0] < revision:
            raise self.fail("WATCH_RELIABLE", f"{_text(self.next)} was not told before revision {revision}")
        told = {event.kv.key: event for event in events}
        if len(told) != len(events):
            raise self.fail("WATCH_UNIQUE", f"a key twice at revision {revision}")
        while self.next is not None and self.next[0] == revision:
            event = told.pop(self.next[2].key, None)
            if event is None:
                raise self.fail("WATCH_ATOMIC", f"{_text(self.next)} was not told with the rest of its revision")
            self._one_event(moment, event, self.next)
            self.count += 1
            self._advance()
        if told:
            raise self.fail("WATCH_TRUE", f"at revision {revision} {sorted(told)} did not change, or is filtered out")
        self.reached = revision

    def _one_event(self, moment: float, event: Event, expected: _Expected) -> None:
        revision, kind, kv, old = expected
        if (event.type == 0) != (kind == "put") or event.kv != kv:
            raise self.fail("WATCH_TRUE", f"{_text(expected)} was told as {{{' '.join(str(event).split())}}}")
        if not self.watch.request.prev_kv:
            right = not event.HasField("prev_kv")
        elif event.HasField("prev_kv"):
            right = old is not None and event.prev_kv == old
        else:
            right = old is None or self.compactions.at_most(moment) >= revision
        if not right:
            raise self.fail("WATCH_PREV_KV", f"{_text(expected)} has the previous value {{{event.prev_kv}}}")

    def _progress(self, response: rpc_pb2.WatchResponse) -> None:
        revision = response.header.revision
        if self.parts:
            raise self.fail("WATCH_ATOMIC", f"progress to {revision} between two fragments")
        self._told_up_to(revision, "WATCH_BOOKMARKABLE", f"before progress to {revision}")
        self.reached = max(self.reached, revision)

    def _told_up_to(self, revision: int, rule: str, when: str) -> None:
        if self.next is not None and self.next[0] <= revision:
            raise self.fail(rule, f"{_text(self.next)} was not told {when}")

    def _canceled(self, moment: float, response: rpc_pb2.WatchResponse) -> None:
        compacted = response.compact_revision
        if not compacted:
            return
        if not self.compactions.knows(compacted) or compacted > self.compactions.at_most(moment):
            raise self.fail("WATCH_COMPACTED", f"cancelled at {compacted}, which was not compacted")
        if self.reached + 1 >= compacted:
            raise self.fail("WATCH_COMPACTED", f"cancelled at {compacted}, but it had been told up to {self.reached}")


def _text(expected: _Expected) -> str:
    revision, kind, kv, _ = expected
    return f"{kind} of {kv.key!r} at revision {revision} (value {kv.value!r})"
