"""The HTTP front: authentication, authorization, and the way of each request to its handler."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from typing import Any

import yaml
from aiohttp import web

from raftkv_playground.apiserver import errors, patches
from raftkv_playground.apiserver.auth import Attributes, Authenticator, Authorizer, User, service_account
from raftkv_playground.apiserver.discovery import Discovery, version
from raftkv_playground.apiserver.errors import Failure, Object, PlainNotFound
from raftkv_playground.apiserver.kinds import Kind, Registry
from raftkv_playground.apiserver.openapi import OpenApi
from raftkv_playground.apiserver.proxy import Proxy
from raftkv_playground.apiserver.requests import (
    Target,
    attributes_of,
    number,
    options_of,
    parse_object,
    parse_path,
    read_body,
    read_object,
    respond,
    truth,
    verb_of,
    wanted_of,
)
from raftkv_playground.apiserver.resources import Options, Resources
from raftkv_playground.apiserver.reviews import Reviews
from raftkv_playground.apiserver.subresources import Subresources
from raftkv_playground.apiserver.tables import partial, render
from raftkv_playground.apiserver.watching import Lister

log = logging.getLogger(__name__)

_MERGE = "application/merge-patch+json"
_JSON = "application/json-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"
_APPLY = "application/apply-patch+yaml"


class Api:
    """Handles every request; ``handle`` is the one entry."""

    def __init__(
        self,
        resources: Resources,
        authenticator: Authenticator,
        authorizer: Authorizer,
        reported_version: str,
        address: str,
    ) -> None:
        self.resources = resources
        self.registry: Registry = resources.registry
        self.authenticator = authenticator
        self.authorizer = authorizer
        self.lister = Lister(resources.store)
        self.discovery = Discovery(self.registry, address)
        self.openapi = OpenApi(self.registry, reported_version)
        self.reviews = Reviews(authenticator, authorizer)
        self.proxy = Proxy(resources)
        self.subresources = Subresources(resources, authenticator, self.proxy)
        self._version = version(reported_version)
        self._requests: Counter[tuple[str, str, str]] = Counter()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        started = time.perf_counter()
        warnings: list[str] = []
        try:
            response = await self._dispatch(request, warnings)
        except Failure as failure:
            response = respond(
                failure.status(), failure.code, warnings=warnings + failure.warnings, headers=failure.headers
            )
        except PlainNotFound:
            response = web.Response(status=404, text="404 page not found\n", content_type="text/plain", charset="utf-8")
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:
            log.exception("%s %s", request.method, request.path_qs)
            response = respond(Failure(500, "InternalError", "Internal error occurred").status(), 500)
        if log.isEnabledFor(logging.DEBUG):
            elapsed = (time.perf_counter() - started) * 1000
            log.debug("%s %s -> %d (%.1f ms)", request.method, request.path_qs, response.status, elapsed)
        return response

    async def _dispatch(self, request: web.Request, warnings: list[str]) -> web.StreamResponse:
        user = self._impersonated(request, self.authenticator.authenticate(request.headers.get("Authorization")))
        path = request.path
        target = parse_path(path)
        if target is None:
            verb = "get" if request.method in {"GET", "HEAD"} else request.method.lower()
            self._requests[user.name, verb, ""] += 1
            self.authorizer.check(user, Attributes(verb, path=path))
            return self._other(request, path)
        attributes = attributes_of(request.method, target, request.query)
        # Counted as they come: a watch must not be missing for as long as it lasts.
        self._requests[user.name, attributes.verb, attributes.full_resource] += 1
        self.authorizer.check(user, attributes)
        kind = self.registry.find(target.group, target.version, target.plural)
        if kind is None:
            raise PlainNotFound
        if target.name and not kind.namespaced and target.plural != "namespaces" and target.namespace:
            raise PlainNotFound
        if target.subresource:
            return await self._subresource(request, kind, target, user, warnings)
        return await self._resource(request, kind, target, user, warnings)

    def _impersonated(self, request: web.Request, user: User) -> User:
        """The user that the request acts as (kubectl's ``--as`` and ``--as-group``), if the real one may."""
        name = request.headers.get("Impersonate-User")
        groups = request.headers.getall("Impersonate-Group", [])
        if not name:
            if groups:
                raise errors.bad_request("requested groups without impersonating a user")
            return user
        parts = name.split(":")
        account = parts[2:] if name.startswith("system:serviceaccount:") and len(parts) == 4 else None
        if account:
            self.authorizer.check(user, Attributes("impersonate", "", "v1", "serviceaccounts", "", *account))
            groups = groups or list(service_account(*account).groups)
        else:
            self.authorizer.check(user, Attributes("impersonate", "", "v1", "users", name=name))
        for group in request.headers.getall("Impersonate-Group", []):
            self.authorizer.check(user, Attributes("impersonate", "", "v1", "groups", name=group))
        if "system:authenticated" not in groups and name != "system:anonymous":
            groups = [*groups, "system:authenticated"]
        return User(name, tuple(groups))

    def _other(self, request: web.Request, path: str) -> web.Response:
        parts = path.strip("/").split("/")
        match parts:
            case ["healthz" | "livez" | "readyz", *_]:
                return web.Response(text="ok")
            case ["version"]:
                return respond(self._version)
            case ["metrics"]:
                return web.Response(text=self._metrics(), content_type="text/plain", charset="utf-8")
            case ["api"]:
                return self.discovery.api(request)
            case ["apis"]:
                return self.discovery.apis(request)
            case ["api", api_version]:
                return self.discovery.resources("", api_version)
            case ["apis", group]:
                return self.discovery.group(group)
            case ["apis", group, api_version]:
                return self.discovery.resources(group, api_version)
            case ["openapi", "v2"]:
                return self.openapi.old_document(request)
            case ["openapi", "v3"]:
                return respond(self.openapi.index())
            case ["openapi", "v3", *rest]:
                return self.openapi.document("/".join(rest))
        raise PlainNotFound

    def _metrics(self) -> str:
        """The requests so far, in Prometheus' text format. Who asked is a label, which the real server's counter lacks:
        here it is known what each client costs."""
        name = "raftkv_playground_apiserver_requests_total"
        lines = [f"# HELP {name} Requests by user, verb and resource, counted as they come.", f"# TYPE {name} counter"]
        for (user, verb, resource), count in sorted(self._requests.items()):
            escaped = user.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
            lines.append(f'{name}{{user="{escaped}",verb="{verb}",resource="{resource}"}} {count}')
        return "\n".join(lines) + "\n"

    # ----------------------------------------------------------------------------------------------- resources

    async def _resource(
        self, request: web.Request, kind: Kind, target: Target, user: User, warnings: list[str]
    ) -> web.StreamResponse:
        verb = verb_of(request.method, target, request.query)
        if verb == "watch" or (verb == "get" and truth(request.query.get("watch")) and "watch" in request.query):
            return await self.lister.watch(request, kind, target)
        if verb not in kind.verbs or (kind.namespaced and not target.namespace and verb in {"create", "update"}):
            raise errors.method_not_allowed()
        if verb == "create" and target.name:
            raise errors.method_not_allowed()
        match verb:
            case "list":
                return self.lister.answer(request, kind, target)
            case "get":
                return self._one(request, kind, self.resources.get(kind, _namespace(kind, target), target.name))
        options = options_of(request)
        options.warnings = warnings
        match verb:
            case "create":
                return await self._create(request, kind, target, user, options)
            case "update":
                return await self._replace(request, kind, target, options)
            case "patch":
                return await self._patch(request, kind, target, "", options)
            case "delete":
                wanted = await self._delete_options(request, options)
                item = self.resources.delete(kind, _namespace(kind, target), target.name, wanted, options)
                return respond(item, warnings=warnings)
            case "deletecollection":
                return await self._delete_all(request, kind, target, options)
        raise errors.method_not_allowed()

    def _one(
        self, request: web.Request, kind: Kind, item: Object, status: int = 200, warnings: list[str] | None = None
    ) -> web.Response:
        """One object in the form that the client wants."""
        wanted = wanted_of(request)
        if wanted.form == "table":
            meta = {"resourceVersion": item["metadata"].get("resourceVersion", "")}
            item = render(kind, [item], meta, request.query.get("includeObject", "Metadata"))
        elif wanted.form == "partial":
            item = partial(item)
        return respond(item, status, warnings=warnings, media=wanted.media)

    async def _create(
        self, request: web.Request, kind: Kind, target: Target, user: User, options: Options
    ) -> web.Response:
        body = await read_object(request, kind)
        if not kind.stored:
            if kind.kind == "Binding":
                self.subresources.bind(target.namespace, body)
                return respond(
                    {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201
                )
            return respond(self.reviews.answer(self.resources, kind, target, body, user, options), 201)
        item = self.resources.create(kind, _namespace(kind, target), body, options)
        return self._one(request, kind, item, 201, options.warnings)

    async def _replace(
        self, request: web.Request, kind: Kind, target: Target, options: Options, subresource: str = ""
    ) -> web.Response:
        body = await read_object(request, kind)
        namespace = _namespace(kind, target)
        meta = body.setdefault("metadata", {})
        self.resources.check_type(kind, body, options)
        if not meta.get("name"):
            meta["name"] = target.name
        if meta["name"] != target.name:
            raise errors.bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL ({target.name})"
            )
        self.resources.place(kind, namespace, meta)
        if kind.strategy.create_on_update and not self.resources.exists(kind, namespace, target.name):
            return self._one(request, kind, self.resources.create(kind, namespace, body, options), 201)
        old = self.resources.get(kind, namespace, target.name)
        if not meta.get("resourceVersion") and not kind.strategy.unconditional_update:
            field = errors.invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
            raise errors.invalid(kind.plural, kind.group, target.name, [field])
        uid = meta.get("uid")
        if uid and uid != old["metadata"]["uid"]:
            text = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {old['metadata']['uid']}"
            raise errors.conflict(kind.plural, kind.group, target.name, text)
        item = self.resources.update(kind, namespace, target.name, lambda _: body, subresource, options)
        return self._one(request, kind, item, 200, options.warnings)

    async def _patch(
        self, request: web.Request, kind: Kind, target: Target, subresource: str, options: Options
    ) -> web.Response:
        raw = await read_body(request)
        media = request.headers.get("Content-Type", "").partition(";")[0].strip()
        accepted = [_JSON, _MERGE, *([] if kind.custom else [_STRATEGIC]), _APPLY]
        if media not in accepted:
            raise errors.unsupported_media(accepted)
        namespace = _namespace(kind, target)
        if media == _APPLY:
            if not request.query.get("fieldManager"):
                field = errors.required("fieldManager", "is required for apply patch")
                raise errors.invalid("PatchOptions", "meta.k8s.io", "", [field])
            config = _yaml_object(raw)
            item, created = self.resources.apply(kind, namespace, target.name, config, subresource, options)
            return self._one(request, kind, item, 201 if created else 200, options.warnings)
        patch = _json_patch_body(raw)

        def transform(old: Object) -> Object:
            result = apply_patch(media, old, patch, kind)
            if result.get("metadata", {}).get("name") != target.name:
                result.setdefault("metadata", {})
            return result

        item = self.resources.update(kind, namespace, target.name, transform, subresource, options)
        return self._one(request, kind, item, 200, options.warnings)

    async def _delete_options(self, request: web.Request, options: Options) -> Object:
        raw = await read_body(request)
        wanted = parse_object(raw, "DeleteOptions") if raw.strip() else {}
        query = request.query
        if "gracePeriodSeconds" in query:
            wanted.setdefault("gracePeriodSeconds", number(query, "gracePeriodSeconds"))
        if "propagationPolicy" in query:
            wanted.setdefault("propagationPolicy", query["propagationPolicy"])
        policy = wanted.get("propagationPolicy")
        if policy not in {None, "", "Orphan", "Background", "Foreground"}:
            field = errors.not_supported("propagationPolicy", policy, ["Foreground", "Background", "Orphan"])
            raise errors.invalid("DeleteOptions", "meta.k8s.io", "", [field])
        if wanted.get("dryRun") == ["All"]:
            options.dry_run = True
        return wanted

    async def _delete_all(self, request: web.Request, kind: Kind, target: Target, options: Options) -> web.Response:
        wanted = await self._delete_options(request, options)
        predicate = self.lister.select(kind, target, request.query)
        items = [i for i in self.resources.store.scan(kind.key) if predicate(i)]
        for item in items:
            meta = item["metadata"]
            self.resources.delete(kind, meta.get("namespace") or "", meta["name"], wanted, options)
        meta = {"resourceVersion": str(self.resources.store.revision)}
        if kind.custom is not None:
            meta["continue"] = ""
        return respond(self.lister.render(kind, items, meta, wanted_of(request), request.query))

    # -------------------------------------------------------------------------------------------- subresources

    async def _subresource(
        self, request: web.Request, kind: Kind, target: Target, user: User, warnings: list[str]
    ) -> web.StreamResponse:
        sub = kind.subresources.get(target.subresource)
        if sub is None or (target.rest and target.subresource != "proxy"):
            raise PlainNotFound
        verb = verb_of(request.method, target, request.query)
        if verb not in sub.verbs:
            raise errors.method_not_allowed()
        namespace = _namespace(kind, target)
        if sub.name == "proxy":
            return await self.proxy.forward(request, kind, target)
        if sub.name == "log":
            return await self.proxy.logs(request, target)
        options = options_of(request)
        options.warnings = warnings
        if sub.name in {"status", "finalize"}:
            if verb == "get":
                return self._one(request, kind, self.resources.get(kind, namespace, target.name))
            if verb == "update":
                return await self._replace(request, kind, target, options, sub.name)
            return await self._patch(request, kind, target, sub.name, options)
        if sub.name == "scale":
            return respond(await self.subresources.scale(request, kind, target, options), warnings=warnings)
        body = await read_object(request, kind)
        return respond(self.subresources.create(kind, target, body, options), 201)


def _namespace(kind: Kind, target: Target) -> str:
    return target.namespace if kind.namespaced else ""


def apply_patch(media: str, old: Object, patch: Any, kind: Kind) -> Object:
    """A plain patch of any of the three types."""
    if media == _JSON:
        return patches.json_patch(old, patch)
    if not isinstance(patch, dict):
        raise errors.bad_request(
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"
        )
    if media == _MERGE:
        return dict(patches.merge_patch(old, patch))
    return dict(patches.strategic_patch(old, patch, kind.shape))


def _json_patch_body(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise errors.bad_request(f"error decoding patch: {error}") from None


def _yaml_object(raw: bytes) -> Object:
    try:
        config = json.loads(raw)
    except ValueError:
        try:
            config = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise errors.bad_request(f"error decoding YAML: {error}") from None
    if not isinstance(config, dict):
        raise errors.bad_request("error decoding YAML: the configuration is no object")
    return config
