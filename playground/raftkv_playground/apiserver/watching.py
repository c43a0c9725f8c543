"""Lists and watches."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections import OrderedDict
from typing import Any

from aiohttp import web

from raftkv_playground.apiserver import errors, selectors, tables
from raftkv_playground.apiserver.errors import Failure, Object
from raftkv_playground.apiserver.kinds import Kind
from raftkv_playground.apiserver.requests import Target, Wanted, number, respond, truth, wanted_of
from raftkv_playground.apiserver.store import Change, Gone, Store

BOOKMARK_SECONDS = 30.0
"""A quiet watch that allows bookmarks gets one this often (kopf gives a silent stream up after 70 s)."""
WATCH_SECONDS_LEAST = 1800
"""A watch without timeoutSeconds lasts between this and twice as long."""
SNAPSHOTS_LIMIT = 64
"""Unfinished paged lists that are remembered; the oldest is forgotten and its continuation is 410."""


class Lister:
    """Answers to GET of a collection."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._snapshots: OrderedDict[str, list[Object]] = OrderedDict()
        self.open_watches = 0

    def select(self, kind: Kind, target: Target, query: Any) -> selectors.Predicate:
        """The predicate of a query's selectors (and the target's name)."""
        labels = [r for text in query.getall("labelSelector", []) for r in selectors.parse_labels(text)]
        selectable = kind.custom.selectable if kind.custom else ()
        by_field = [selectors.field_predicate(t, kind.kind, selectable) for t in query.getall("fieldSelector", []) if t]

        def predicate(item: Object) -> bool:
            meta = item["metadata"]
            if target.namespace and kind.namespaced and meta.get("namespace") != target.namespace:
                return False
            if target.name and meta["name"] != target.name:
                return False
            return selectors.match_labels(labels, meta.get("labels")) and all(p(item) for p in by_field)

        return predicate

    # --------------------------------------------------------------------------------------------------- lists

    def answer(self, request: web.Request, kind: Kind, target: Target) -> web.Response:
        query = request.query
        self._check_versions(kind, query)
        predicate = self.select(kind, target, query)
        limit = max(number(query, "limit"), 0)
        if token := query.get("continue"):
            revision, items = self._resume(token)
        else:
            revision = self._store.revision
            namespace = target.namespace if kind.namespaced and target.namespace else None
            items = [i for i in self._store.scan(kind.key, namespace) if predicate(i)]
        meta: Object = {"resourceVersion": str(revision)}
        if kind.custom is not None:
            meta["continue"] = ""
        if limit and len(items) > limit:
            meta["continue"] = self._keep(items[limit - 1], items[limit:], revision, namespaced=bool(target.namespace))
            if not query.get("labelSelector") and not query.get("fieldSelector"):
                meta["remainingItemCount"] = len(items) - limit
            items = items[:limit]
        wanted = wanted_of(request)
        return respond(self.render(kind, items, meta, wanted, query), media=wanted.media)

    def render(self, kind: Kind, items: list[Object], meta: Object, wanted: Wanted, query: Any) -> Object:
        """A list in the wanted form."""
        shown = [kind.present(i) for i in items]
        if wanted.form == "table":
            meta = {k: v for k, v in meta.items() if v != ""}
            return tables.render(kind, shown, meta, query.get("includeObject", "Metadata"))
        if wanted.form == "partial":
            return {
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": meta,
                "items": [tables.partial(i) for i in shown],
            }
        if kind.custom is None:
            # Typed lists do not repeat the type in their items.
            shown = [{k: v for k, v in i.items() if k not in {"kind", "apiVersion"}} for i in shown]
        return {"kind": kind.list_kind, "apiVersion": kind.api_version, "metadata": meta, "items": shown}

    def _check_versions(self, kind: Kind, query: Any) -> None:
        version, match = query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
        complaint = None
        if match and not version:
            complaint = errors.forbidden_field(
                "resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided"
            )
        elif match and match not in {"Exact", "NotOlderThan"}:
            complaint = errors.not_supported("resourceVersionMatch", match, ["Exact", "NotOlderThan", ""])
        elif match == "Exact" and version == "0":
            text = 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
            complaint = errors.forbidden_field("resourceVersionMatch", text)
        if complaint:
            raise errors.invalid("ListOptions", "meta.k8s.io", "", [complaint])
        if version:
            revision = parse_version(version)
            if revision > self._store.revision:
                raise too_large(revision, self._store.revision)
            if match == "Exact" and revision != self._store.revision:
                raise errors.expired(f"The resourceVersion for the provided list is too old: {revision}")

    def _keep(self, last: Object, rest: list[Object], revision: int, *, namespaced: bool) -> str:
        meta = last["metadata"]
        key = f"/{meta['name']}" if namespaced or not meta.get("namespace") else f"/{meta['namespace']}/{meta['name']}"
        text = json.dumps({"v": "meta.k8s.io/v1", "rv": revision, "start": key + "\x00"}, separators=(",", ":"))
        token = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
        self._snapshots[token] = rest
        while len(self._snapshots) > SNAPSHOTS_LIMIT:
            self._snapshots.popitem(last=False)
        return token

    def _resume(self, token: str) -> tuple[int, list[Object]]:
        try:
            revision = int(json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))["rv"])
        except (ValueError, KeyError, TypeError):
            raise errors.bad_request("continue key is not valid: illegal base64 data") from None
        if token not in self._snapshots:
            raise errors.expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new "
                "list without the continue parameter."
            )
        return revision, self._snapshots[token]

    # -------------------------------------------------------------------------------------------------- watches

    async def watch(self, request: web.Request, kind: Kind, target: Target) -> web.StreamResponse:
        """Stream the changes until the timeout, the client leaves, or the watcher falls behind."""
        query = request.query
        predicate = self.select(kind, target, query)
        version, initial = query.get("resourceVersion", ""), query.get("sendInitialEvents")
        bookmarks = truth(query.get("allowWatchBookmarks")) if "allowWatchBookmarks" in query else False
        self._check_initial(query, initial)
        wanted_seconds = max(number(query, "timeoutSeconds"), 0)
        stream = _Stream(request, kind, wanted_of(request), query)
        revision = parse_version(version) if version else 0
        if revision > self._store.revision:
            raise too_large(revision, self._store.revision)
        from_now = truth(initial) if initial is not None else revision == 0
        try:
            watcher = self._store.watch(kind.key, None if from_now else revision)
        except Gone as gone:
            await stream.open()
            await stream.write("ERROR", errors.expired(str(gone)).status())
            return await stream.close()
        self.open_watches += 1
        try:
            # Nothing is awaited between the subscription and this list, so no change falls between them.
            start = [i for i in self._store.scan(kind.key) if predicate(i)] if from_now else []
            at = self._store.revision
            await stream.open()
            for item in start:
                await stream.send("ADDED", item)
            if from_now and bookmarks:
                await stream.bookmark(at, ended=True)
            seconds = wanted_seconds or WATCH_SECONDS_LEAST * random.uniform(1, 2)
            await self._follow(stream, watcher.queue, predicate, seconds, bookmarks)
        except (ConnectionResetError, ConnectionError):
            pass
        finally:
            self._store.unwatch(watcher)
            self.open_watches -= 1
        return await stream.close()

    def _check_initial(self, query: Any, initial: str | None) -> None:
        complaint = None
        if initial is not None and query.get("resourceVersionMatch") != "NotOlderThan":
            text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            complaint = errors.forbidden_field("resourceVersionMatch", text)
        elif initial is None and query.get("resourceVersionMatch"):
            text = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
            complaint = errors.forbidden_field("resourceVersionMatch", text)
        if complaint:
            raise errors.invalid("ListOptions", "meta.k8s.io", "", [complaint])

    async def _follow(
        self,
        stream: _Stream,
        queue: asyncio.Queue[Change | None],
        predicate: selectors.Predicate,
        seconds: float,
        bookmarks: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (left := deadline - loop.time()) > 0:
            try:
                change = await asyncio.wait_for(queue.get(), min(left, BOOKMARK_SECONDS))
            except TimeoutError:
                if stream.gone:
                    return
                if bookmarks and deadline - loop.time() > 0:
                    await stream.bookmark(self._store.revision)
                continue
            if change is None:
                return
            before = change.before is not None and predicate(change.before)
            after = change.kind != "DELETED" and predicate(change.object)
            if after:
                await stream.send("MODIFIED" if before else "ADDED", change.object)
            elif before:
                # The last state that the watcher knew, under the revision at which it stopped to match.
                gone = change.object if change.kind == "DELETED" else _at_revision(change)
                await stream.send("DELETED", gone)


def _at_revision(change: Change) -> Object:
    before = change.before or change.object
    return {**before, "metadata": {**before["metadata"], "resourceVersion": str(change.revision)}}


def parse_version(text: str) -> int:
    if not text.isdigit():
        field = errors.invalid_value("resourceVersion", text, "strconv.ParseUint: parsing: invalid syntax")
        raise errors.invalid("ListOptions", "meta.k8s.io", "", [field])
    return int(text)


def too_large(wanted: int, current: int) -> Failure:
    return Failure(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {wanted}, current: {current}",
        {
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
    )


class _Stream:
    """The answer of one watch: a JSON line per event, in the form that the client accepts."""

    def __init__(self, request: web.Request, kind: Kind, wanted: Wanted, query: Any) -> None:
        self._request, self._kind, self._wanted = request, kind, wanted
        self._include = query.get("includeObject", "Metadata")
        self._first = True
        self._response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )

    @property
    def gone(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing()

    async def open(self) -> None:
        self._response.enable_chunked_encoding()
        await self._response.prepare(self._request)

    async def close(self) -> web.StreamResponse:
        if not self.gone:
            await self._response.write_eof()
        return self._response

    async def write(self, event: str, body: Object) -> None:
        line = json.dumps({"type": event, "object": body}, separators=(",", ":"), ensure_ascii=False)
        await self._response.write(line.encode() + b"\n")

    async def send(self, event: str, item: Object) -> None:
        shown = self._kind.present(item)
        if self._wanted.form == "table":
            meta = {"resourceVersion": item["metadata"]["resourceVersion"]}
            shown = tables.render(self._kind, [shown], meta, self._include, header=self._first)
            self._first = False
        elif self._wanted.form == "partial":
            shown = tables.partial(shown)
        await self.write(event, shown)

    async def bookmark(self, revision: int, *, ended: bool = False) -> None:
        meta: Object = {"resourceVersion": str(revision)}
        if ended:
            meta["annotations"] = {"k8s.io/initial-events-end": "true"}
        item: Object = {"kind": self._kind.kind, "apiVersion": self._kind.api_version, "metadata": meta}
        if self._wanted.form == "table":
            item = tables.render(self._kind, [], {"resourceVersion": str(revision)}, "None", header=self._first)
        elif self._wanted.form == "partial":
            item = tables.partial(item)
        await self.write("BOOKMARK", item)
