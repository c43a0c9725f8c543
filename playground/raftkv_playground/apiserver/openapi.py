"""``/openapi/v3``: what kubectl needs to check fields and to explain kinds."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from aiohttp import web

from raftkv_playground.apiserver.errors import Object, PlainNotFound
from raftkv_playground.apiserver.kinds import Kind, Registry
from raftkv_playground.apiserver.openapi_custom import META, document, gvk, meta_types, ref
from raftkv_playground.apiserver.requests import respond
from raftkv_playground.apiserver.schema.shapes import Shape


class OpenApi:
    def __init__(self, registry: Registry, version: str) -> None:
        self._registry = registry
        self._version = version
        self._cached: tuple[int, dict[str, Object]] = (-1, {})

    def _documents(self) -> dict[str, Object]:
        generation, documents = self._cached
        if generation != self._registry.generation:
            documents = {}
            for group, versions in self._registry.groups().items():
                for version in versions:
                    kinds = [k for k in self._registry.all() if (k.group, k.version) == (group, version)]
                    path = f"apis/{group}/{version}" if group else f"api/{version}"
                    custom = all(k.custom for k in kinds)
                    groups = self._registry.groups()
                    documents[path] = document(kinds, groups) if custom else self._document(kinds)
            self._cached = (self._registry.generation, documents)
        return documents

    def index(self) -> Object:
        paths = {}
        for path, found in self._documents().items():
            digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:32].upper()
            paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
        return {"paths": paths}

    def document(self, path: str) -> web.Response:
        document = self._documents().get(path)
        if document is None:
            raise PlainNotFound
        return respond(document)

    def old_document(self, request: web.Request) -> web.Response:
        """``/openapi/v2`` without definitions: clients of that age take kinds that it does not have unchecked, and
        the server checks fields by itself."""
        title, version = b"Kubernetes", self._version.encode()
        if "proto-openapi" in request.headers.get("Accept", ""):
            info = b"\x0a" + bytes([len(title)]) + title + b"\x12" + bytes([len(version)]) + version
            body = b"\x0a\x032.0\x12" + bytes([len(info)]) + info + b"\x42\x00"
            return web.Response(body=body, content_type="application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
        document = {"swagger": "2.0", "info": {"title": "Kubernetes", "version": self._version}, "paths": {}}
        return respond({**document, "definitions": {}})

    def _document(self, kinds: list[Kind]) -> Object:
        schemas: dict[str, Object] = {}
        paths: dict[str, Object] = {}
        for kind in kinds:
            name = _name(kind)
            _add_type(schemas, kind.shape, name)
            schemas[name]["x-kubernetes-group-version-kind"] = [gvk(kind)]
            paths |= _paths(kind, name)
        schemas |= {name: schema for name, schema in meta_types().items() if name.startswith(META)}
        return {
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": self._version},
            "paths": paths,
            "components": {"schemas": schemas},
        }


def _name(kind: Kind) -> str:
    return f"io.k8s.api.{kind.group.split('.')[0] or 'core'}.{kind.version}.{kind.kind}"


def _add_type(schemas: dict[str, Object], shape: Shape, name: str) -> None:
    """A struct type and those below it as components."""
    if name in schemas:
        return
    schemas[name] = {"type": "object"}
    properties = {key: _type(schemas, child) for key, child in shape.fields.items()}
    if properties:
        schemas[name]["properties"] = properties


def _type(schemas: dict[str, Object], shape: Shape) -> Object:
    if shape.kind == "list":
        schema: Object = {"type": "array", "items": _type(schemas, shape.element())}
        if shape.list_type != "atomic" or shape.keys:
            schema["x-kubernetes-list-type"] = shape.list_type
        if shape.keys:
            schema["x-kubernetes-list-map-keys"] = list(shape.keys)
        if shape.patch_key:
            schema |= {"x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": shape.patch_key}
        return schema
    if shape.kind == "map":
        if shape.fields:
            if META + shape.type_name in meta_types():
                return {"allOf": [ref(META + shape.type_name)]}
            name = "io.k8s.api." + shape.type_name
            _add_type(schemas, shape, name)
            return {"allOf": [ref(name)]}
        return {"type": "object", "additionalProperties": _type(schemas, shape.extra) if shape.extra else {}}
    match shape.scalar:
        case "time":
            return {"type": "string", "format": "date-time"}
        case "bytes":
            return {"type": "string", "format": "byte"}
        case "int-or-string":
            return {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}
        case "quantity":
            return {"oneOf": [{"type": "string"}, {"type": "number"}]}
        case "string" | "integer" | "number" | "boolean":
            return {"type": shape.scalar}
    return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _query(names: str) -> list[Object]:
    kinds = {"force": "boolean", "limit": "integer", "timeoutSeconds": "integer", "watch": "boolean"}
    return [
        {"name": n, "in": "query", "schema": {"type": kinds.get(n, "string"), "uniqueItems": True}}
        for n in names.split()
    ]


def _paths(kind: Kind, name: str) -> dict[str, Object]:
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    base = f"{root}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"{root}/{kind.plural}"
    content = {"application/json": {"schema": ref(name)}}
    answer = {"200": {"description": "OK", "content": content}}

    def operation(action: str, parameters: str, body: Any = None) -> Object:
        entry: Object = {"parameters": _query(parameters), "responses": answer}
        if body:
            entry["requestBody"] = {"content": body, "required": True}
        return {**entry, "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk(kind)}

    write = "dryRun fieldManager fieldValidation"
    select = "fieldSelector labelSelector limit continue resourceVersion resourceVersionMatch timeoutSeconds watch"
    patch_types = [
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/apply-patch+yaml",
        "application/strategic-merge-patch+json",
    ]
    patch = {t: {"schema": {"type": "object"}} for t in patch_types}
    collection: Object = {}
    if "list" in kind.verbs:
        collection["get"] = operation("list", select)
    if "create" in kind.verbs:
        collection["post"] = operation("post", write, content)
    paths = {base: collection}
    if kind.stored:
        paths[base + "/{name}"] = {
            "get": operation("get", ""),
            "put": operation("put", write, content),
            "patch": operation("patch", write + " force", patch),
            "delete": operation("delete", "dryRun gracePeriodSeconds propagationPolicy"),
        }
    return paths
