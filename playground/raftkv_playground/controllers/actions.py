"""Side effects as values: a pure function decides on them, ``perform`` carries them out over the API."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raftkv_playground.client import ApiClient, ApiError, PatchType, Resource
from raftkv_playground.events import EventRecorder

log = logging.getLogger(__name__)

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Create:
    """Create ``body`` (its metadata names namespace and name)."""

    resource: Resource
    body: Object

    def describe(self) -> str:
        metadata = self.body["metadata"]
        return f"create {self.resource.kind} {metadata.get('name') or metadata.get('generateName')}"


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete exactly this incarnation: the uid is a precondition. One that is gone already is fine."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    propagation: Literal["Background", "Foreground", "Orphan"] = "Background"

    def describe(self) -> str:
        return f"delete {self.resource.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Replace:
    """PUT ``body``, whose resourceVersion guards against a state that was not seen."""

    resource: Resource
    body: Object
    subresource: str | None = None

    def describe(self) -> str:
        return f"replace {self.resource.kind} {self.body['metadata']['name']} {self.subresource or ''}".rstrip()


@dataclass(frozen=True, slots=True)
class Patch:
    resource: Resource
    namespace: str
    name: str
    patch: Object
    type: PatchType = "merge"
    subresource: str | None = None

    def describe(self) -> str:
        return f"patch {self.resource.kind} {self.name} {self.subresource or ''}".rstrip()


@dataclass(frozen=True, slots=True)
class Record:
    """An Event about ``item``."""

    item: Mapping[str, Any] = field(repr=False)
    type: Literal["Normal", "Warning"]
    reason: str
    message: str

    def describe(self) -> str:
        return f"event {self.reason}: {self.message}"


Action = Create | Delete | Replace | Patch | Record


async def perform(client: ApiClient, recorder: EventRecorder, actions: Iterable[Action]) -> list[Object]:
    """Carry out the actions in order and stop at the first that fails (``ApiError``); returns what was created."""
    created: list[Object] = []
    for action in actions:
        log.debug("%s", action.describe())
        match action:
            case Create(resource, body):
                created.append(await client.create(resource, body, body["metadata"].get("namespace")))
            case Delete(resource, namespace, name, uid, propagation):
                try:
                    await client.delete(resource, name, namespace, uid=uid, propagation=propagation)
                except ApiError as error:
                    if not (error.not_found or error.conflict):
                        raise
            case Replace(resource, body, subresource):
                await client.replace(resource, body, subresource=subresource)
            case Patch(resource, namespace, name, patch, type, subresource):
                await client.patch(resource, name, namespace, patch, type, subresource=subresource)
            case Record(item, type, reason, message):
                recorder.record(item, type, reason, message)
    return created
