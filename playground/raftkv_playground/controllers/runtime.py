"""What all controllers share: informers, a work queue with delays and backoff, and the loop around ``sync``.

A key is in the queue at most once, and is never worked on twice at the same time: what comes in while it is being
worked on makes it due again afterwards. A failed ``sync`` is repeated after a delay that doubles per failure from
``RETRY_FIRST_SECONDS`` to ``RETRY_LIMIT_SECONDS``; a success forgets the failures.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import Callable, Iterable

from raftkv_playground.client import ApiClient, ApiError, Informer, Resource
from raftkv_playground.controllers.actions import Action, perform
from raftkv_playground.events import EventRecorder
from raftkv_playground.objects import Key, Object, controller_of, key_of, labels_of, selector_matches

log = logging.getLogger(__name__)

RETRY_FIRST_SECONDS = 0.05
RETRY_LIMIT_SECONDS = 15.0
RESYNC_SECONDS = 60.0
"""Every object is looked at again after this long, even if nothing changed: a missed trigger heals itself."""


class WorkQueue:
    """Keys that are due, each once; ``add`` may name a delay."""

    def __init__(self) -> None:
        self._due: dict[Key, None] = {}
        self._later: list[tuple[float, Key]] = []
        self._later_at: dict[Key, float] = {}
        """The one delayed entry of a key that counts, the earliest; others in the heap are stale."""
        self._active: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due) + len(self._later_at)

    def add(self, key: Key, after_seconds: float = 0.0) -> None:
        if after_seconds > 0:
            at = asyncio.get_running_loop().time() + after_seconds
            if self._later_at.get(key, at + 1) <= at:
                return
            self._later_at[key] = at
            heapq.heappush(self._later, (at, key))
        elif key in self._active:
            self._again.add(key)
        else:
            self._due[key] = None
        self._wake.set()

    async def take(self) -> Key:
        """The next due key; it counts as being worked on until ``done`` or ``failed``."""
        while True:
            self._wake.clear()
            clock = asyncio.get_running_loop().time()
            while self._later and self._later[0][0] <= clock:
                at, key = heapq.heappop(self._later)
                if self._later_at.get(key) == at:
                    del self._later_at[key]
                    self.add(key)
            if self._due:
                key = next(iter(self._due))
                del self._due[key]
                self._active.add(key)
                return key
            timeout = self._later[0][0] - clock if self._later else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()

    def done(self, key: Key, again_after_seconds: float | None = None) -> None:
        self._failures.pop(key, None)
        self._release(key)
        if again_after_seconds is not None:
            self.add(key, max(again_after_seconds, RETRY_FIRST_SECONDS))

    def failed(self, key: Key) -> float:
        """Put the key back after its backoff, which is returned."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay = min(RETRY_FIRST_SECONDS * float(2 ** min(count, 30)), RETRY_LIMIT_SECONDS)
        self._release(key)
        self.add(key, delay)
        return delay

    def _release(self, key: Key) -> None:
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)


class Informers:
    """One informer per resource, shared by all who ask for it."""

    def __init__(self, client: ApiClient) -> None:
        self.client = client
        self._informers: dict[Resource, Informer] = {}
        self._started = False

    def of(self, resource: Resource) -> Informer:
        if resource not in self._informers:
            informer = Informer(self.client, resource)
            self._informers[resource] = informer
            if self._started:
                informer.start()
        return self._informers[resource]

    def start(self) -> None:
        self._started = True
        for informer in self._informers.values():
            informer.start()

    async def synced(self) -> None:
        for informer in list(self._informers.values()):
            await informer.synced.wait()

    async def drop(self, resource: Resource) -> None:
        """Forget a resource that is no longer served."""
        informer = self._informers.pop(resource, None)
        if informer is not None:
            await informer.stop()

    async def stop(self) -> None:
        for informer in self._informers.values():
            await informer.stop()


class Controller:
    """Base of all: subclasses register their triggers in ``__init__`` and implement ``sync``.

    ``sync(key)`` makes the world right for one object and may return after how many seconds it wants to look again.
    It may raise ``ApiError``: the key is retried.
    """

    name = "controller"
    primary: Resource | None = None
    """The resource whose keys are queued; all of its objects are resynced now and then."""

    def __init__(self, client: ApiClient, informers: Informers) -> None:
        self.client = client
        self.informers = informers
        self.queue = WorkQueue()
        self.events = EventRecorder(client, self.name)
        if self.primary is not None:
            self.trigger(self.primary, lambda item: [key_of(item)])

    def store(self, resource: Resource) -> dict[Key, Object]:
        return self.informers.of(resource).store

    def trigger(self, resource: Resource, keys: Callable[[Object], Iterable[Key]]) -> None:
        """A change of an object of ``resource`` makes ``keys(object)`` due."""

        def handle(_type: str, item: Object) -> None:
            for key in keys(item):
                self.queue.add(key)

        self.informers.of(resource).add_handler(handle)

    def keys_of_owned(self, item: Object) -> list[Key]:
        """Primary objects to look at when ``item`` has changed: its controller, or those whose selector takes it in."""
        if self.primary is None:
            return []
        namespace, owner = item["metadata"]["namespace"], controller_of(item)
        if owner is not None:
            return [(namespace, owner["name"])] if owner["kind"] == self.primary.kind else []
        return [
            key
            for key, candidate in self.store(self.primary).items()
            if key[0] == namespace and selector_matches(candidate["spec"].get("selector"), labels_of(item))
        ]

    async def perform(self, actions: Iterable[Action]) -> list[Object]:
        return await perform(self.client, self.events, actions)

    async def sync(self, key: Key) -> float | None:
        raise NotImplementedError

    async def run(self) -> None:
        recorder = asyncio.create_task(self.events.run(), name=f"{self.name} events")
        resync = asyncio.create_task(self._resync(), name=f"{self.name} resync")
        try:
            while True:
                await self._step(await self.queue.take())
        finally:
            for task in (recorder, resync):
                task.cancel()
            await asyncio.gather(recorder, resync, return_exceptions=True)

    async def _step(self, key: Key) -> None:
        try:
            again = await self.sync(key)
        except ApiError as error:
            delay = self.queue.failed(key)
            level = logging.DEBUG if error.conflict or error.not_found or error.already_exists else logging.WARNING
            log.log(level, "%s %s: %s; again in %.2f s", self.name, "/".join(key), error, delay)
        except Exception:
            # A bug or an object of unexpected shape must not stop the other objects' control.
            delay = self.queue.failed(key)
            log.exception("%s %s failed; again in %.2f s", self.name, "/".join(key), delay)
        else:
            self.queue.done(key, again)

    async def _resync(self) -> None:
        while self.primary is not None:
            await asyncio.sleep(RESYNC_SECONDS)
            for key in list(self.store(self.primary)):
                self.queue.add(key)
