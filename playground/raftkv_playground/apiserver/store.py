"""The object store: one revision counter, current objects, a bounded log of events, and watchers.

Theory of operation
-------------------
All objects live in memory, keyed by resource, namespace and name; a stored object is never changed in place, so that
readers need no copies. Every write takes the next revision, is appended to the log and is offered to each watcher of
its resource at once. A watcher has a queue of its own with a bound: one that does not keep up is closed, and its
client lists anew (as with a real server). A watch may start at any revision that the log still covers; an older one
is ``Gone``. Nothing survives the process: a restart is a new cluster.

The store knows nothing of kinds; validation, defaults and deletion rules are the handlers' and strategies'.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raftkv_playground.apiserver.errors import Object

ResourceKey = tuple[str, str]
"""(group, plural)"""
ObjectKey = tuple[str, str]
"""(namespace or "", name)"""

LOG_LIMIT_EVENTS = 20_000
"""Events kept for watches that start in the past; the oldest are dropped."""
WATCHER_QUEUE_LIMIT_EVENTS = 1_000
"""Events that may wait for one watcher; one more and the watcher is closed."""
FIRST_REVISION = 100
"""The counter's start: low numbers that clients make up are older than all history, as on a real cluster."""


class Gone(Exception):
    """The wanted revision is older than the log."""

    def __init__(self, wanted: int, oldest: int) -> None:
        super().__init__(f"too old resource version: {wanted} ({oldest})")


@dataclass(frozen=True, slots=True)
class Change:
    """One write: ``kind`` is ADDED, MODIFIED or DELETED; ``before`` is the state that it replaced."""

    revision: int
    kind: str
    resource: ResourceKey
    object: Object
    before: Object | None


@dataclass(slots=True, eq=False)
class Watcher:
    """A subscription. ``queue`` yields changes, then None when the store closed it (``overrun`` says why)."""

    resource: ResourceKey
    queue: asyncio.Queue[Change | None] = field(default_factory=asyncio.Queue)
    overrun: bool = False

    def offer(self, change: Change) -> bool:
        if self.queue.qsize() >= WATCHER_QUEUE_LIMIT_EVENTS:
            self.overrun = True
            self.queue.put_nowait(None)
            return False
        self.queue.put_nowait(change)
        return True


class Store:
    """All state of the API server but the registry of kinds."""

    def __init__(self, log_limit: int = LOG_LIMIT_EVENTS) -> None:
        self.revision = FIRST_REVISION
        self._objects: dict[ResourceKey, dict[ObjectKey, Object]] = {}
        self._log: deque[Change] = deque()
        self._log_limit = log_limit
        self._compacted = FIRST_REVISION
        """Watches may start at this revision or later."""
        self._born: dict[ResourceKey, int] = {}
        self._watchers: dict[ResourceKey, set[Watcher]] = {}
        self._listeners: list[Callable[[Change], None]] = []

    def listen(self, listener: Callable[[Change], None]) -> None:
        """Hear every change synchronously: for indexes inside the server (kinds, RBAC), not for controllers."""
        self._listeners.append(listener)

    def born(self, resource: ResourceKey) -> None:
        """Note that a resource begins to be served now: there is no history of it before."""
        self._born[resource] = self.revision

    def get(self, resource: ResourceKey, namespace: str, name: str) -> Object | None:
        return self._objects.get(resource, {}).get((namespace, name))

    def scan(self, resource: ResourceKey, namespace: str | None = None) -> list[Object]:
        """Objects in key order, of one namespace or of all."""
        items = self._objects.get(resource, {})
        keys = sorted(k for k in items if namespace is None or k[0] == namespace)
        return [items[k] for k in keys]

    def all(self) -> Iterator[tuple[ResourceKey, Object]]:
        for resource, items in list(self._objects.items()):
            for item in list(items.values()):
                yield resource, item

    def put(self, resource: ResourceKey, item: Object) -> Object:
        """Store ``item`` (a new object, not shared) under the next revision; its resourceVersion is set."""
        metadata = item["metadata"]
        key = (metadata.get("namespace") or "", metadata["name"])
        before = self._objects.setdefault(resource, {}).get(key)
        self.revision += 1
        metadata["resourceVersion"] = str(self.revision)
        self._objects[resource][key] = item
        self._emit(Change(self.revision, "MODIFIED" if before else "ADDED", resource, item, before))
        return item

    def remove(self, resource: ResourceKey, item: Object) -> Object:
        """Remove an object; ``item`` is its last state (a new object) and gets the deletion's revision."""
        metadata = item["metadata"]
        key = (metadata.get("namespace") or "", metadata["name"])
        before = self._objects[resource].pop(key)
        self.revision += 1
        metadata["resourceVersion"] = str(self.revision)
        self._emit(Change(self.revision, "DELETED", resource, item, before))
        return item

    def _emit(self, change: Change) -> None:
        self._log.append(change)
        while len(self._log) > self._log_limit:
            self._compacted = self._log.popleft().revision
        watchers = self._watchers.get(change.resource, set())
        for watcher in list(watchers):
            if not watcher.offer(change):
                watchers.discard(watcher)
        for listener in self._listeners:
            listener(change)

    def oldest(self, resource: ResourceKey) -> int:
        """The oldest revision that a watch of the resource may start from."""
        return max(self._compacted, self._born.get(resource, 0))

    def watch(self, resource: ResourceKey, since: int | None) -> Watcher:
        """Subscribe; with ``since``, changes after that revision come first. Raises ``Gone``."""
        watcher = Watcher(resource)
        if since is not None:
            if since < self.oldest(resource):
                raise Gone(since, self.oldest(resource))
            for change in self._log:
                if change.revision > since and change.resource == resource:
                    watcher.queue.put_nowait(change)
        self._watchers.setdefault(resource, set()).add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        self._watchers.get(watcher.resource, set()).discard(watcher)

    def close_watchers(self, resource: ResourceKey | None = None) -> None:
        """End watches, of one resource (it is no longer served) or all (the server stops)."""
        for key, watchers in self._watchers.items():
            if resource is None or key == resource:
                for watcher in watchers:
                    watcher.queue.put_nowait(None)
                watchers.clear()
