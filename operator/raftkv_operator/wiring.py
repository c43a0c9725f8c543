"""kopf's part: it watches, wakes and keeps the finalizer; all else happens in ``loop``.

``on.event`` handlers feed the cache and mark the cluster dirty: they put nothing on any object. One daemon per custom
resource runs the passes and sleeps until "dirty or resync". Deletion drives the same passes from ``on.delete``, because
kopf starts no daemon for an object that is being deleted; the handler is asked again until nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Any, Final

import kopf

from raftkv_operator import metrics
from raftkv_operator.api import constants
from raftkv_operator.decide import Rest
from raftkv_operator.loop import RESYNC_SECONDS, ClusterLoop, MembersFactory
from raftkv_operator.observe.cache import CHILDREN, Cache, Key
from raftkv_operator.observe.seams import CLUSTERS, Kube, Resource

log = logging.getLogger(__name__)

DELETION_RETRY_SECONDS: Final = 1.0
STILL_DELETING: Final = "the cluster is still being taken away"
LAG_PERIOD_SECONDS: Final = 1.0
LOOP_LAG_LIMIT_SECONDS: Final = 30.0
"""An event loop that is later than this is told by the liveness probe. (Silent watches are kopf's: it reconnects after
70 s, and ends the process if a watch dies.)"""


class Clusters:
    """All clusters under care: their loops, and who is dirty."""

    def __init__(self, kube: Kube, members_for: MembersFactory) -> None:
        self.cache = Cache(self.mark_dirty)
        self._kube = kube
        self._members_for = members_for
        self._loops: dict[Key, ClusterLoop] = {}
        self._dirty: dict[Key, asyncio.Event] = {}
        self._locks: dict[Key, asyncio.Lock] = {}
        # Counted when somebody asks: at each change it would cost every cluster something for every other one.
        metrics.DIRTY.set_function(lambda: sum(event.is_set() for event in list(self._dirty.values())))

    def mark_dirty(self, key: Key) -> None:
        """Wakes the cluster's daemon, if there is one."""
        event = self._dirty.get(key)
        if event is not None:
            event.set()

    async def run(self, key: Key, stopped: Any) -> None:
        """The daemon of one cluster: passes until the object is deleted or the operator stops."""
        dirty = self._dirty.setdefault(key, asyncio.Event())
        # Many clusters found at start are spread a little.
        pause = random.uniform(0.0, 0.2)
        while not stopped:
            await _sleep(stopped, dirty, pause)
            if stopped:
                return
            dirty.clear()
            result = await self._step(key)
            if result.gone:
                return
            pause = result.pause_seconds
            if pause >= RESYNC_SECONDS:
                pause *= random.uniform(0.9, 1.1)

    async def delete(self, key: Key) -> bool:
        """Passes of a cluster that is being deleted; True when nothing is left to do."""
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            result = await self._step(key)
            if result.gone or isinstance(result.decision, Rest):
                self._loops.pop(key, None)
                self._dirty.pop(key, None)
                self._locks.pop(key, None)
                metrics.cluster_gone(*key)
                return True
            await asyncio.sleep(min(result.pause_seconds, 1.0))
        return False

    async def _step(self, key: Key) -> Any:
        # The daemon of an object may still be in its last pass when the deletion begins.
        async with self._locks.setdefault(key, asyncio.Lock()):
            loop = self._loops.get(key)
            if loop is None:
                loop = self._loops[key] = ClusterLoop(key, self._kube, self._members_for, self.cache)
            return await loop.step()


async def _sleep(stopped: Any, dirty: asyncio.Event, seconds: float) -> None:
    """Until the cluster is dirty, the daemon is to stop, or the time is over."""
    if seconds <= 0 or stopped:
        return
    waits = [asyncio.ensure_future(dirty.wait()), asyncio.ensure_future(stopped.wait())]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


class Health:
    """What the liveness probe asks: does the event loop turn."""

    def __init__(self) -> None:
        self.lag_seconds = 0.0
        self._measured = time.monotonic()

    async def run(self) -> None:
        """Measures how late a timer fires, for ever."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_PERIOD_SECONDS)
            self._measured = time.monotonic()
            self.lag_seconds = max(0.0, self._measured - before - LAG_PERIOD_SECONDS)
            metrics.LOOP_LAG.set(self.lag_seconds)

    def problem(self) -> str:
        """What is wrong, in a sentence; empty if nothing is."""
        silent = time.monotonic() - self._measured
        if max(self.lag_seconds, silent) > LOOP_LAG_LIMIT_SECONDS:
            return f"the event loop is {max(self.lag_seconds, silent):.0f} s late"
        return ""


def register(registry: kopf.OperatorRegistry, clusters: Clusters, configure: Callable[[Any], None]) -> None:
    """Adds all handlers to a registry of its own, so that several operators can live in one process (tests)."""

    @kopf.on.startup(registry=registry)
    async def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> Any:
        return kopf.login_with_kubeconfig(**kwargs) or kopf.login_with_service_account(**kwargs)

    @kopf.daemon(
        constants.GROUP,
        constants.VERSION,
        constants.PLURAL,
        registry=registry,
        id="reconcile",
        cancellation_backoff=2.0,
        cancellation_timeout=10.0,
    )
    async def reconcile(namespace: str | None, name: str | None, stopped: Any, **_: Any) -> None:
        await clusters.run((namespace or "", name or ""), stopped)

    @kopf.on.delete(constants.GROUP, constants.VERSION, constants.PLURAL, registry=registry, id="delete")
    async def delete(namespace: str | None, name: str | None, **_: Any) -> None:
        if not await clusters.delete((namespace or "", name or "")):
            raise kopf.TemporaryError(STILL_DELETING, delay=DELETION_RETRY_SECONDS)

    for resource in (CLUSTERS, *CHILDREN):
        _watch(registry, clusters, resource)


def _watch(registry: kopf.OperatorRegistry, clusters: Clusters, resource: Resource) -> None:
    @kopf.on.event(resource.group, resource.version, resource.plural, registry=registry, id=f"see-{resource.plural}")
    async def seen(event: Any, **_: Any) -> None:
        metrics.WATCH_LAST_EVENT.labels(resource.plural).set_to_current_time()
        # The cache must never fall behind for one odd object.
        with contextlib.suppress(KeyError, TypeError, ValueError):
            clusters.cache.feed(resource, dict(event["object"]), event["type"] == "DELETED")


def quiet(record: logging.LogRecord) -> bool:
    """A log filter: to be asked again is how a deletion goes on, and no error."""
    return STILL_DELETING not in record.getMessage()


def configure(settings: kopf.OperatorSettings) -> None:
    """kopf's settings: everything that it would write or post by itself is off or under our own prefix."""
    settings.persistence.finalizer = constants.FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=constants.GROUP, v1=False)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=constants.GROUP, v1=False)
    settings.posting.enabled = False
    settings.posting.level = logging.WARNING
    settings.posting.loggers = False
    settings.watching.server_timeout = 300
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.execution.default_backoff = 5
    settings.queueing.worker_limit = None
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.background.cancellation_polling = 1
    settings.background.instant_exit_timeout = 1
    selector = f"{constants.LABEL_MANAGED_BY}={constants.MANAGED_BY}"
    for resource in CHILDREN:
        settings.watching.label_selectors[resource.plural] = selector
