"""The OpenAPI v3 document of a group of custom resources, in the form that a real server publishes it."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

from raftkv_playground.apiserver.errors import Object
from raftkv_playground.apiserver.kinds import Kind

META = "io.k8s.apimachinery.pkg.apis.meta.v1."
_SCALE = "io.k8s.api.autoscaling.v1.Scale"
_LIST = (
    "allowWatchBookmarks:boolean continue:string fieldSelector:string labelSelector:string limit:integer "
    "resourceVersion:string resourceVersionMatch:string sendInitialEvents:boolean shardSelector:string "
    "timeoutSeconds:integer watch:boolean"
)
_WRITE = "dryRun:string fieldManager:string fieldValidation:string"
_DELETE = (
    "dryRun:string gracePeriodSeconds:integer ignoreStoreReadErrorWithClusterBreakingPotential:boolean "
    "orphanDependents:boolean propagationPolicy:string"
)


@cache
def meta_types() -> dict[str, Object]:
    """Schemas of the types that all documents share (object metadata, Status, Scale, ...)."""
    types: dict[str, Object] = json.loads((Path(__file__).parent / "schema" / "meta.json").read_text())
    return types


def ref(name: str) -> Object:
    return {"$ref": f"#/components/schemas/{name}"}


def schema_name(kind: Kind) -> str:
    """``dev.example.v1.Widget`` for ``example.dev/v1`` Widget."""
    return ".".join([*reversed(kind.group.split(".")), kind.version, kind.kind])


def gvk(kind: Kind, name: str | None = None) -> Object:
    return {"group": kind.group, "version": kind.version, "kind": name or kind.kind}


def document(kinds: list[Kind], groups: dict[str, list[str]]) -> Object:
    """The document of one group and version. ``groups`` are all that the server has: they share DeleteOptions."""
    schemas = copy.deepcopy(meta_types())
    options = [{"group": g, "kind": "DeleteOptions", "version": v} for g, vs in sorted(groups.items()) for v in vs]
    schemas[META + "DeleteOptions"]["x-kubernetes-group-version-kind"] = options
    paths: dict[str, Object] = {}
    for kind in kinds:
        name = schema_name(kind)
        schemas[name] = _object_schema(kind)
        schemas[name + "List"] = _list_schema(kind, name)
        paths |= _paths(kind, name)
    if not any("scale" in k.subresources for k in kinds):
        schemas = {k: v for k, v in schemas.items() if not k.startswith(_SCALE)}
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes CRD Swagger", "version": "v0.1.0"},
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def _object_schema(kind: Kind) -> Object:
    assert kind.custom is not None
    schema = copy.deepcopy(kind.custom.schema)
    fixed: Object = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"allOf": [ref(META + "ObjectMeta")]},
    }
    schema["properties"] = {**fixed, **{k: v for k, v in (schema.get("properties") or {}).items() if k not in fixed}}
    schema["x-kubernetes-group-version-kind"] = [gvk(kind)]
    return schema


def _list_schema(kind: Kind, name: str) -> Object:
    return {
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "items": {"type": "array", "items": ref(name)},
            "kind": {"type": "string"},
            "metadata": {"allOf": [ref(META + "ListMeta")]},
        },
        "x-kubernetes-group-version-kind": [gvk(kind, kind.list_kind)],
    }


def _query(text: str) -> list[Object]:
    return [_parameter(*entry.split(":")) for entry in text.split()]


def _parameter(name: str, kind: str, place: str = "query") -> Object:
    schema = {"type": kind, "uniqueItems": True}
    if place == "path":
        return {"name": name, "in": "path", "required": True, "schema": schema}
    return {"name": name, "in": place, "schema": schema}


def _content(name: str) -> Object:
    return {media: {"schema": ref(name)} for media in ("application/json", "application/yaml")}


class _Operations:
    """Builds the operations on one kind: their ids follow the kind's names."""

    def __init__(self, kind: Kind) -> None:
        first, *rest = kind.group.split(".")
        camel = first + "".join(part.capitalize() for part in rest)
        self._tag = f"{camel}_{kind.version}"
        self._id = camel[0].upper() + camel[1:] + kind.version.capitalize()
        self._gvk = gvk(kind)

    def make(
        self, action: str, verb: str, what: str, parameters: str, answers: dict[str, str], body: Any = None
    ) -> Object:
        operation: Object = {"tags": [self._tag], "operationId": f"{verb}{self._id}{what}"}
        if parameters:
            operation["parameters"] = _query(parameters)
        if body:
            operation["requestBody"] = body
        responses = {code: {"content": _content(name)} for code, name in answers.items()}
        return {
            **operation,
            "responses": {**responses, "401": {}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": self._gvk,
        }


def _paths(kind: Kind, name: str) -> dict[str, Object]:
    make = _Operations(kind).make
    root = f"/apis/{kind.group}/{kind.version}"
    scope = "Namespaced" if kind.namespaced else ""
    base = f"{root}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"{root}/{kind.plural}"
    what = scope + kind.kind
    status, listed = META + "Status", name + "List"
    in_path = [_parameter("namespace", "string", "path")] if kind.namespaced else []
    pretty = [_parameter("pretty", "string")]
    delete_body = {"content": _content(META + "DeleteOptions")}
    collection_id = "Collection" + what
    paths: dict[str, Object] = {
        base: {
            "get": make("list", "list", what, _LIST, {"200": listed}),
            "post": make("post", "create", what, _WRITE, {"200": name, "201": name, "202": name}, _body(name)),
            "delete": make("deletecollection", "delete", collection_id, _LIST, {"200": status}),
            "parameters": in_path + pretty,
        },
        base + "/{name}": {
            **_object_operations(make, what, name),
            "delete": make("delete", "delete", what, _DELETE, {"200": status, "202": status}, delete_body),
            "parameters": [_parameter("name", "string", "path"), *in_path, *pretty],
        },
    }
    for sub, schema in (("status", name), ("scale", _SCALE)):
        if sub in kind.subresources:
            paths[f"{base}/{{name}}/{sub}"] = {
                **_object_operations(make, what + sub.capitalize(), schema),
                "parameters": [_parameter("name", "string", "path"), *in_path, *pretty],
            }
    if kind.namespaced:
        parameters = sorted(_query(_LIST) + pretty, key=lambda p: str(p["name"]))
        everywhere = make("list", "list", f"{kind.kind}ForAllNamespaces", "", {"200": listed})
        paths[f"{root}/{kind.plural}"] = {"get": everywhere, "parameters": parameters}
    return paths


def _body(name: str) -> Object:
    return {"content": _content(name), "required": True}


def _object_operations(make: Any, what: str, name: str) -> Object:
    types = ("application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json")
    patch = {"content": {t: {"schema": ref(META + "Patch")} for t in types}, "required": True}
    return {
        "get": make("get", "read", what, "resourceVersion:string", {"200": name}),
        "put": make("put", "replace", what, _WRITE, {"200": name, "201": name}, _body(name)),
        "patch": make("patch", "patch", what, _WRITE + " force:boolean", {"200": name}, patch),
    }
