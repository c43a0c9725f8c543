"""Recording Events, so that ``kubectl describe`` tells what a component did and why.

A repeated Event (same object, reason and message) is counted up in place instead of being created again, as
Kubernetes' own recorder does. Recording never fails its caller: an Event that cannot be written is logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from raftkv_playground import client as api
from raftkv_playground.objects import now, object_reference

log = logging.getLogger(__name__)

REMEMBERED_EVENTS = 1000
"""How many Events a recorder remembers for counting up; beyond, the least recently used is forgotten."""
PENDING_EVENTS = 1000
"""How many Events may wait to be written; beyond, new ones are dropped and logged."""
MESSAGE_LIMIT_BYTES = 1024
"""Kubernetes' limit for an Event's message; a longer one is cut."""


class EventRecorder:
    """Writes Events as ``component``; ``run()`` does it in the background, in order."""

    def __init__(self, client: api.ApiClient, component: str, host: str = "") -> None:
        self._client = client
        self._component = component
        self._host = host
        self._known: OrderedDict[tuple[str, ...], tuple[str, str, int]] = OrderedDict()
        self._pending: asyncio.Queue[tuple[dict[str, Any], str, str, str]] = asyncio.Queue(PENDING_EVENTS)

    def record(self, item: Mapping[str, Any], type: str, reason: str, message: str) -> None:
        """``type`` is ``Normal`` or ``Warning``; ``reason`` a CamelCase word, ``message`` a sentence."""
        log.info("%s %s/%s: %s", reason, item.get("kind", ""), item["metadata"]["name"], message)
        message = message.encode()[:MESSAGE_LIMIT_BYTES].decode(errors="ignore")
        try:
            self._pending.put_nowait((object_reference(item), type, reason, message))
        except asyncio.QueueFull:
            log.warning("event dropped, too many wait to be written: %s %s", reason, message)

    async def run(self) -> None:
        while True:
            reference, type, reason, message = await self._pending.get()
            try:
                await self._write(reference, type, reason, message)
            except api.ApiError as error:
                # An Event in a namespace that is going away is refused; nothing is lost by that.
                log.debug("event not written: %s", error)
            finally:
                self._pending.task_done()

    async def _write(self, reference: dict[str, Any], type: str, reason: str, message: str) -> None:
        reference = {name: value for name, value in reference.items() if name != "resourceVersion"}
        identity = (reference.get("uid", ""), reference["name"], type, reason, message)
        namespace = reference.get("namespace") or "default"
        moment = now()
        known = self._known.get(identity)
        if known is not None:
            name, first, count = known
            try:
                await self._client.patch(
                    api.EVENTS, name, namespace, {"count": count + 1, "lastTimestamp": moment}, "merge"
                )
                self._remember(identity, (name, first, count + 1))
                return
            except api.ApiError as error:
                if not error.not_found:
                    raise
        created = await self._client.create(
            api.EVENTS,
            {
                "metadata": {"generateName": reference["name"] + ".", "namespace": namespace},
                "involvedObject": reference,
                "type": type,
                "reason": reason,
                "message": message,
                "source": {"component": self._component} | ({"host": self._host} if self._host else {}),
                "reportingComponent": self._component,
                "reportingInstance": self._host,
                "count": 1,
                "firstTimestamp": moment,
                "lastTimestamp": moment,
            },
            namespace,
        )
        self._remember(identity, (created["metadata"]["name"], moment, 1))

    def _remember(self, identity: tuple[str, ...], value: tuple[str, str, int]) -> None:
        self._known[identity] = value
        self._known.move_to_end(identity)
        while len(self._known) > REMEMBERED_EVENTS:
            self._known.popitem(last=False)
