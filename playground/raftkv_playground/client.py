"""A small asyncio client of a Kubernetes API, for the playground's controllers and kubelets.

Everything in the playground talks to the API server over HTTPS only, with its own bearer token, so that the same
controllers and kubelets can run against any API server. Objects are plain ``dict`` values as the API gives them.

Theory of operation
-------------------
``ApiClient`` maps one call to one request; it does not retry, since only the caller knows whether a repetition is
safe. Every answer that is not a success becomes an ``ApiError`` with the Status' code, reason and message. Transport
failures (connection refused, reset, timeout) become ``ApiError`` with code 0 and reason ``Unreachable``, so that a
control loop needs one ``except``.

``Informer`` keeps a copy of one resource up to date: list, then watch from the list's resourceVersion; a stream that
ends is resumed where it was, and one that is refused with 410 Gone (history compacted) leads to a new list, whose
difference to the copy is handed to the handlers as if it had been watched. Deliveries are in order and never miss
the last state of an object, but may skip states in between. Failures are retried with a bounded, jittered backoff.
Handlers are called synchronously on the event loop: they should only mark work as due (see ``controllers``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import aiohttp
import yaml

log = logging.getLogger(__name__)

Object = dict[str, Any]
EventType = Literal["ADDED", "MODIFIED", "DELETED"]
PatchType = Literal["merge", "json", "strategic", "apply"]
Handler = Callable[[EventType, Object], None]

REQUEST_TIMEOUT_SECONDS = 30.0
"""A request other than a watch or a followed log takes no longer; then it fails as ``Unreachable``."""
WATCH_TIMEOUT_SECONDS = 300
"""How long the server is asked to keep one watch open; an informer reconnects then."""
WATCH_SILENCE_SECONDS = 330.0
"""A watch that carries nothing (not even a bookmark) for this long is given up and reconnected."""
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_LIMIT_SECONDS = 5.0
LIST_PAGE_OBJECTS = 500
"""Objects per page of a list; the client follows ``continue`` until all are read."""
LINE_LIMIT_BYTES = 16 << 20
"""Longest watch event accepted; a longer one ends the stream with an error."""

_PATCH_CONTENT_TYPE: dict[str, str] = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


@dataclass(frozen=True, slots=True)
class Resource:
    """What a URL needs to know of a kind: ``Resource("apps", "v1", "statefulsets", "StatefulSet")``."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """``v1`` or ``group/version``, as in an object's ``apiVersion``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection (in a namespace, or of all), an object, or its subresource."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace and self.namespaced:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


NAMESPACES = Resource("", "v1", "namespaces", "Namespace", False)
NODES = Resource("", "v1", "nodes", "Node", False)
PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
ENDPOINTS = Resource("", "v1", "endpoints", "Endpoints")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SECRETS = Resource("", "v1", "secrets", "Secret")
EVENTS = Resource("", "v1", "events", "Event")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
PERSISTENT_VOLUMES = Resource("", "v1", "persistentvolumes", "PersistentVolume", False)
PERSISTENT_VOLUME_CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
STATEFUL_SETS = Resource("apps", "v1", "statefulsets", "StatefulSet")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
REPLICA_SETS = Resource("apps", "v1", "replicasets", "ReplicaSet")
CONTROLLER_REVISIONS = Resource("apps", "v1", "controllerrevisions", "ControllerRevision")
POD_DISRUPTION_BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
STORAGE_CLASSES = Resource("storage.k8s.io", "v1", "storageclasses", "StorageClass", False)
CUSTOM_RESOURCE_DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False
)


class ApiError(Exception):
    """A request that did not succeed.

    ``code`` is the HTTP status (0: no answer came), ``reason`` the Status' machine-readable reason (``NotFound``,
    ``AlreadyExists``, ``Conflict``, ``Invalid``, ``Forbidden``, ``Expired``, ...; ``Unreachable`` for code 0),
    ``message`` its sentence for people, ``status`` the whole Status object if one came.
    """

    def __init__(self, code: int, reason: str, message: str, status: Object | None = None) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.status = status or {}

    @property
    def not_found(self) -> bool:
        return self.code == 404

    @property
    def already_exists(self) -> bool:
        return self.code == 409 and self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        """A stale resourceVersion or a failed precondition: read again and decide anew."""
        return self.code == 409 and self.reason == "Conflict"

    @property
    def gone(self) -> bool:
        """The wanted resourceVersion is too old to be watched or listed from: list again."""
        return self.code == 410


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One line of a watch. ``type`` is ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK``."""

    type: str
    object: Object

    @property
    def resource_version(self) -> str:
        return str(self.object["metadata"]["resourceVersion"])


def error_of(code: int, body: bytes) -> ApiError:
    """The error that an answer with a failure status carries; a body that is no Status becomes the message."""
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    if isinstance(status, dict) and status.get("kind") == "Status":
        reason = str(status.get("reason", "Unknown"))
        return ApiError(int(status.get("code", code)), reason, str(status.get("message", "")), status)
    return ApiError(code, "Unknown", body.decode(errors="replace").strip())


class ApiClient:
    """Requests to one API server under one identity. Use as ``async with ApiClient(...) as client``, or ``close()``.

    ``base_url`` is e.g. ``https://127.0.0.1:6443``; ``ca_file`` the certificate that must have signed the server's
    (``None``: the system's). ``field_manager`` names this writer in managedFields.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        ca_file: str | Path | None = None,
        *,
        field_manager: str | None = None,
        user_agent: str = "raftkv-playground",
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.field_manager = field_manager
        self._headers = {"Accept": "application/json", "User-Agent": user_agent}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._tls: ssl.SSLContext | bool = True
        if self.base_url.startswith("https"):
            self._tls = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def from_kubeconfig(cls, path: str | Path, *, field_manager: str | None = None) -> ApiClient:
        """The current context's server, CA (file or inline) and token. Client certificates are not supported."""
        config = yaml.safe_load(Path(path).read_text())
        by_name = {kind: {e["name"]: e[kind[:-1]] for e in config.get(kind, [])} for kind in ("clusters", "users")}
        context = next(c["context"] for c in config["contexts"] if c["name"] == config["current-context"])
        cluster, user = by_name["clusters"][context["cluster"]], by_name["users"][context["user"]]
        client = cls(
            cluster["server"], user.get("token"), cluster.get("certificate-authority"), field_manager=field_manager
        )
        if data := cluster.get("certificate-authority-data"):
            import base64

            client._tls = ssl.create_default_context(cadata=base64.b64decode(data).decode())
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # No limit on connections: each watch holds one, and a limit would let watches starve requests.
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0, ssl=self._tls),
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS),
                read_bufsize=1 << 20,
            )
        return self._session

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Any:
        """One request; the decoded JSON answer (``str`` for an answer that is no JSON). Raises ``ApiError``."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if data is not None else {}
        try:
            async with self._open().request(
                method, self.base_url + path, params=query or None, data=data, headers=headers
            ) as answer:
                raw = await answer.read()
                if answer.status >= 400:
                    raise error_of(answer.status, raw)
                if "json" in answer.headers.get("Content-Type", ""):
                    return json.loads(raw)
                return raw.decode(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error

    def _write_query(self, dry_run: bool = False, manager: str | None = None) -> dict[str, str]:
        query = {"dryRun": "All"} if dry_run else {}
        if name := manager or self.field_manager:
            query["fieldManager"] = name
        return query

    async def get(
        self, resource: Resource, name: str, namespace: str | None = None, *, subresource: str | None = None
    ) -> Object:
        """One object. ``ApiError.not_found`` if there is none."""
        answer: Object = await self.request("GET", resource.path(namespace, name, subresource))
        return answer

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> tuple[list[Object], str]:
        """All objects (of a namespace, or of all namespaces) that match, and the resourceVersion to watch from.

        Items carry ``apiVersion`` and ``kind`` like single objects, though the wire form of a list may omit them.
        """
        query = {"limit": str(LIST_PAGE_OBJECTS)}
        query |= {"labelSelector": label_selector} if label_selector else {}
        query |= {"fieldSelector": field_selector} if field_selector else {}
        items: list[Object] = []
        while True:
            page = await self.request("GET", resource.path(namespace), query=query)
            for item in page.get("items") or []:
                items.append({"apiVersion": resource.api_version, "kind": resource.kind, **item})
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return items, str(metadata["resourceVersion"])
            query["continue"] = metadata["continue"]

    async def create(
        self,
        resource: Resource,
        body: Object,
        namespace: str | None = None,
        *,
        name: str | None = None,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        """Create an object (``apiVersion`` and ``kind`` are filled in), or POST to ``name``'s subresource
        (``eviction``, ``binding``, ``token``). ``ApiError.already_exists`` if the name is taken."""
        if subresource is None:
            body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        answer: Object = await self.request(
            "POST", resource.path(namespace, name, subresource), query=self._write_query(dry_run), body=body
        )
        return answer

    async def replace(
        self,
        resource: Resource,
        body: Object,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        """PUT the object by its own name. ``ApiError.conflict`` if its ``metadata.resourceVersion`` is stale."""
        metadata = body["metadata"]
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        answer: Object = await self.request(
            "PUT",
            resource.path(namespace or metadata.get("namespace"), metadata["name"], subresource),
            query=self._write_query(dry_run),
            body=body,
        )
        return answer

    async def patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        patch: Object | Sequence[Object],
        type: PatchType = "merge",
        *,
        subresource: str | None = None,
        field_manager: str | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> Object:
        """Change an object. ``type="apply"`` is server-side apply (needs a field manager; ``force`` takes fields
        over from other managers). A failed JSON-patch ``test`` is ``ApiError`` 422."""
        query = self._write_query(dry_run, field_manager)
        if type == "apply" and force:
            query["force"] = "true"
        answer: Object = await self.request(
            "PATCH",
            resource.path(namespace, name, subresource),
            query=query,
            body=patch,
            content_type=_PATCH_CONTENT_TYPE[type],
        )
        return answer

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        grace: int | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] | None = None,
        resource_version: str | None = None,
    ) -> Object:
        """Delete an object, or ask for it (finalizers, grace). ``uid`` and ``resource_version`` are preconditions
        (``ApiError.conflict`` when they fail); ``grace`` is in seconds, 0 removes a pod at once. Returns the Status,
        or the object if it is still there."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        preconditions = {"uid": uid} if uid else {}
        preconditions |= {"resourceVersion": resource_version} if resource_version else {}
        if preconditions:
            options["preconditions"] = preconditions
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        if propagation:
            options["propagationPolicy"] = propagation
        answer: Object = await self.request("DELETE", resource.path(namespace, name), body=options)
        return answer

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        timeout_seconds: int = WATCH_TIMEOUT_SECONDS,
    ) -> AsyncIterator[WatchEvent]:
        """The changes after ``resource_version``, bookmarks among them, until the server ends the stream.

        Raises ``ApiError`` (``gone``: list again) and, when the connection breaks, ``ApiError`` with code 0.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
        }
        query |= {"labelSelector": label_selector} if label_selector else {}
        query |= {"fieldSelector": field_selector} if field_selector else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_SILENCE_SECONDS)
        path = resource.path(namespace)
        try:
            async with self._open().get(self.base_url + path, params=query, timeout=timeout) as answer:
                if answer.status >= 400:
                    raise error_of(answer.status, await answer.read())
                async for line in _lines(answer.content):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise error_of(500, json.dumps(event["object"]).encode())
                    yield WatchEvent(event["type"], event["object"])
        except (aiohttp.ClientError, TimeoutError, OSError, json.JSONDecodeError) as error:
            raise ApiError(0, "Unreachable", f"watch {path}: {error or type(error).__name__}") from error

    async def wait_ready(self, timeout_seconds: float = 30.0) -> None:
        """Return when ``/readyz`` answers; raise the last ``ApiError`` after ``timeout_seconds``."""
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while True:
            try:
                await self.request("GET", "/readyz")
                return
            except ApiError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(0.1)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a stream into lines of at most ``LINE_LIMIT_BYTES``; ``readline`` has a limit of its own, far lower."""
    pending = bytearray()
    async for chunk in stream.iter_any():
        pending += chunk
        *lines, rest = pending.split(b"\n")
        for line in lines:
            if line:
                yield bytes(line)
        pending = rest
        if len(pending) > LINE_LIMIT_BYTES:
            raise ApiError(0, "TooLarge", f"a watch event is longer than {LINE_LIMIT_BYTES} bytes")


class Backoff:
    """Waits that double from ``first`` to ``limit`` seconds, with jitter so that loops do not stay in step."""

    def __init__(self, first: float = BACKOFF_FIRST_SECONDS, limit: float = BACKOFF_LIMIT_SECONDS) -> None:
        self._first, self._limit, self._next = first, limit, first

    def reset(self) -> None:
        self._next = self._first

    async def wait(self) -> None:
        delay = self._next * random.uniform(0.5, 1.0)
        self._next = min(self._next * 2, self._limit)
        await asyncio.sleep(delay)


class Informer:
    """A live copy of one resource's objects.

    ``store`` maps ``(namespace or "", name)`` to the newest known object: read it, never change it. ``synced`` is set
    once the first list is in. ``on_event(type, object)`` is called after ``store`` was updated, for every change, in
    order; the object of a ``DELETED`` is its last known state. ``run()`` never returns by itself: cancel its task.
    """

    def __init__(
        self,
        client: ApiClient,
        resource: Resource,
        on_event: Handler | None = None,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> None:
        self.client = client
        self.resource = resource
        self.store: dict[tuple[str, str], Object] = {}
        self.synced = asyncio.Event()
        self._handlers: list[Handler] = [on_event] if on_event else []
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._task: asyncio.Task[None] | None = None

    def add_handler(self, handler: Handler) -> None:
        """One more handler; it hears of what is already in the store first, as ``ADDED``."""
        self._handlers.append(handler)
        for item in list(self.store.values()):
            handler("ADDED", item)

    def get(self, name: str, namespace: str | None = None) -> Object | None:
        return self.store.get((namespace or "", name))

    def start(self) -> asyncio.Task[None]:
        """Run in a task of its own; ``stop()`` ends it."""
        self._task = asyncio.create_task(self.run(), name=f"informer {self.resource.plural}")
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def run(self) -> None:
        backoff = Backoff()
        version: str | None = None
        while True:
            try:
                if version is None:
                    version = await self._relist()
                    backoff.reset()
                    self.synced.set()
                async for event in self.client.watch(
                    self.resource,
                    self._namespace,
                    resource_version=version,
                    label_selector=self._label_selector,
                    field_selector=self._field_selector,
                ):
                    version = event.resource_version
                    self._take(event)
                    backoff.reset()
            except ApiError as error:
                if error.code != 0:
                    # Gone, or an answer that says nothing about what was missed: only a new list is sure.
                    version = None
                log.log(logging.DEBUG if error.gone else logging.INFO, "%s: %s", self.resource.plural, error)
                await backoff.wait()

    async def _relist(self) -> str:
        items, version = await self.client.list(
            self.resource, self._namespace, self._label_selector, self._field_selector
        )
        found = {_key(item): item for item in items}
        for key, old in list(self.store.items()):
            # The same name with another uid is another object: its predecessor's end must be heard, too.
            if key not in found or found[key]["metadata"]["uid"] != old["metadata"]["uid"]:
                del self.store[key]
                self._tell("DELETED", old)
        for key, item in found.items():
            before = self.store.get(key)
            if before is None or before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self.store[key] = item
                self._tell("ADDED" if before is None else "MODIFIED", item)
        return version

    def _take(self, event: WatchEvent) -> None:
        if event.type == "BOOKMARK":
            return
        key = _key(event.object)
        if event.type == "DELETED":
            self.store.pop(key, None)
            self._tell("DELETED", event.object)
        else:
            before = self.store.get(key)
            self.store[key] = event.object
            self._tell("ADDED" if before is None else "MODIFIED", event.object)

    def _tell(self, type: EventType, item: Object) -> None:
        for handler in self._handlers:
            try:
                handler(type, item)
            except Exception:
                log.exception("a handler of %s failed on %s", self.resource.plural, _key(item))


def _key(item: Object) -> tuple[str, str]:
    metadata = item["metadata"]
    return (metadata.get("namespace") or "", metadata["name"])
