"""HTTP requests: what a path and a query mean, which forms of an answer are wanted, and reading bodies."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml
from aiohttp import web

from raftkv_playground.apiserver import errors, protobuf
from raftkv_playground.apiserver.auth import Attributes
from raftkv_playground.apiserver.errors import Object
from raftkv_playground.apiserver.kinds import Kind
from raftkv_playground.apiserver.resources import Options

BODY_LIMIT_BYTES = 3 << 20
"""A larger request body is refused with 413, as by the real server."""
_PROTOBUF = "application/vnd.kubernetes.protobuf"


@dataclass(frozen=True, slots=True)
class Target:
    """What a resource path points at."""

    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""


def parse_path(path: str) -> Target | None:
    """``/api/v1/namespaces/ns/pods/name/log`` and the like; None for a path that is no resource's."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) >= 3:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) >= 4:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) >= 3 and not (rest[2] in {"status", "finalize"} and len(rest) == 3):
        namespace, rest = rest[1], rest[2:]
    if not rest[0] or "" in rest[:3]:
        return None
    name = rest[1] if len(rest) > 1 else ""
    if rest[0] == "namespaces" and name:
        namespace = name
    subresource = rest[2] if len(rest) > 2 else ""
    return Target(group, version, rest[0], namespace, name, subresource, "/".join(rest[3:]))


_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def verb_of(method: str, target: Target, query: Any) -> str:
    """The verb that RBAC knows the request by."""
    verb = _VERBS.get(method, method.lower())
    if target.name:
        return verb
    if verb == "get":
        return "watch" if truth(query.get("watch")) else "list"
    return "deletecollection" if verb == "delete" else verb


def attributes_of(method: str, target: Target, query: Any) -> Attributes:
    name = target.name
    verb = verb_of(method, target, query)
    if not name and (match := re.fullmatch(r"metadata\.name==?([^,=]+)", query.get("fieldSelector", ""))):
        # A list of one named object may be allowed by resourceNames.
        name = match[1]
    namespace = target.namespace if target.plural != "namespaces" or target.group else target.name
    return Attributes(verb, target.group, target.version, target.plural, target.subresource, namespace, name)


def truth(value: str | None) -> bool:
    return value is not None and value.lower() in {"", "1", "true", "t"}


def number(query: Any, name: str) -> int:
    """A number in a query, 0 if it is absent; 400 for what is none."""
    text = query.get(name) or "0"
    try:
        return int(text)
    except ValueError:
        raise errors.bad_request(
            f"unable to parse query parameter {name}: strconv.ParseInt: parsing {errors.go_value(text)}: invalid syntax"
        ) from None


def options_of(request: web.Request) -> Options:
    """The write options in a query."""
    query = request.query
    if query.get("dryRun") not in {None, "", "All"}:
        field = errors.not_supported("dryRun", [query["dryRun"]], ["All"])
        raise errors.invalid("PatchOptions", "meta.k8s.io", "", [field])
    validation = query.get("fieldValidation") or "Warn"
    if validation not in {"Ignore", "Warn", "Strict"}:
        field = errors.not_supported("fieldValidation", validation, ["Ignore", "Strict", "Warn"])
        raise errors.invalid("CreateOptions", "meta.k8s.io", "", [field])
    manager = query.get("fieldManager") or request.headers.get("User-Agent", "unknown").partition("/")[0]
    if len(manager.encode()) > 128:
        field = errors.too_long("fieldManager", 128)
        raise errors.invalid("CreateOptions", "meta.k8s.io", "", [field])
    return Options(
        manager, validation, query.get("dryRun") == "All", truth(query.get("force")) if "force" in query else False
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """The first acceptable form of the answer."""

    form: str = "json"
    """json, table or partial"""
    media: str = "application/json"


def wanted_of(request: web.Request) -> Wanted:
    """By the Accept header; 406 if nothing on it can be produced."""
    accept = request.headers.get("Accept", "")
    if not accept.strip():
        return Wanted()
    for entry in accept.split(","):
        media, *parameters = (p.strip() for p in entry.split(";"))
        values = dict(p.partition("=")[::2] for p in parameters)
        if media in {"application/json", "*/*", "application/*"}:
            match values.get("as"):
                case None:
                    return Wanted()
                case "Table" if values.get("g") == "meta.k8s.io" and values.get("v") == "v1":
                    return Wanted("table")
                case "PartialObjectMetadata" | "PartialObjectMetadataList":
                    return Wanted("partial")
        elif media in {"application/yaml", "text/yaml"} and "as" not in values:
            return Wanted("json", "application/yaml")
    raise errors.not_acceptable(["application/json", "application/yaml", _PROTOBUF])


async def read_body(request: web.Request) -> bytes:
    raw = await request.read()
    if len(raw) > BODY_LIMIT_BYTES:
        raise errors.Failure(
            413,
            "RequestEntityTooLarge",
            f"Request entity too large: limit is {BODY_LIMIT_BYTES}",
            {},
        )
    return raw


async def read_object(request: web.Request, kind: Kind) -> Object:
    """The object in a POST or PUT body: JSON, YAML, or protobuf for the kinds that kubectl sends so."""
    raw = await read_body(request)
    media = request.headers.get("Content-Type", "application/json").partition(";")[0].strip().lower()
    if media == _PROTOBUF and kind.custom is None:
        decoded = protobuf.decode(raw)
        if decoded is None:
            raise errors.unsupported_media(["application/json", "application/yaml"])
        return decoded
    if media not in {"application/json", "application/yaml", "text/plain", "application/octet-stream", ""}:
        raise errors.unsupported_media(["application/json", "application/yaml"])
    return parse_object(raw, kind.kind, yaml_too=media == "application/yaml")


def parse_object(raw: bytes, kind: str, *, yaml_too: bool = False) -> Object:
    """A JSON (or YAML) object; 400 in the real server's words."""
    if not raw:
        raise errors.bad_request(f"EOF while reading {kind}")
    prefix = f"the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; "
    try:
        value = json.loads(raw)
    except ValueError as error:
        value = None
        if yaml_too:
            try:
                value = yaml.safe_load(raw)
            except yaml.YAMLError as problem:
                raise errors.bad_request(f"{prefix}yaml parse error: {problem}") from None
        if value is None:
            text = raw[:100].decode(errors="replace")
            raise errors.bad_request(f"{prefix}json parse error: {json_error(error)} ({text})") from None
    if not isinstance(value, dict):
        raise errors.bad_request(
            f"{prefix}json parse error: json: cannot unmarshal {type(value).__name__} into Go value of type struct"
        )
    return value


def json_error(error: ValueError) -> str:
    """A JSON syntax error in the words of Go's decoder."""
    if not isinstance(error, json.JSONDecodeError):
        return "invalid character in string"
    if error.pos >= len(error.doc):
        return "unexpected end of JSON input"
    where = {
        "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
        "Expecting value": "looking for beginning of value",
        "Expecting ':' delimiter": "after object key",
        "Expecting ',' delimiter": "after object key:value pair",
        "Extra data": "after top-level value",
    }.get(error.msg, "in string literal")
    return f"invalid character {error.doc[error.pos]!r} {where}"


def respond(
    body: Any,
    status: int = 200,
    *,
    warnings: list[str] | None = None,
    media: str = "application/json",
    headers: dict[str, str] | None = None,
) -> web.Response:
    """A JSON (or YAML) answer, with Warning headers."""
    text = (
        yaml.safe_dump(body)
        if media == "application/yaml"
        else json.dumps(body, separators=(",", ":"), ensure_ascii=False) + "\n"
    )
    response = web.Response(body=text.encode(), status=status, headers={**(headers or {}), "Content-Type": media})
    response.headers["Cache-Control"] = "no-cache, private"
    for text in dict.fromkeys(warnings or []):
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{quoted}"')
    return response
