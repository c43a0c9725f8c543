"""Failures of requests, as the Status objects that clients know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


class Failure(Exception):
    """A request that is refused; ``status()`` is the body of the answer."""

    def __init__(
        self, code: int, reason: str, message: str, details: Object | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.headers = headers or {}
        self.warnings: list[str] = []

    def status(self) -> Object:
        body: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details is not None:
            body["details"] = self.details
        body["code"] = self.code
        return body


class PlainNotFound(Exception):
    """A path that no handler knows: a plain text 404, not a Status."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One complaint about one field: a cause in the details of ``Invalid``."""

    reason: str
    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.field}: {self.text}"

    @property
    def blocks_rules(self) -> bool:
        """Errors after which validation rules are not evaluated, since they could not be trusted."""
        return self.reason in {
            "FieldValueRequired",
            "FieldValueNotSupported",
            "FieldValueTooLong",
            "FieldValueTooMany",
            "FieldValueTypeInvalid",
        }


def go_value(value: Any) -> str:
    """A value as the server prints it inside a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)
    return str(value)


def invalid_value(field: str, value: Any, text: str) -> FieldError:
    return FieldError("FieldValueInvalid", field, f"Invalid value: {go_value(value)}: {text}")


def wrong_type(field: str, value: Any, text: str) -> FieldError:
    return FieldError("FieldValueTypeInvalid", field, f"Invalid value: {go_value(value)}: {text}")


def required(field: str, text: str = "") -> FieldError:
    return FieldError("FieldValueRequired", field, f"Required value: {text}" if text else "Required value")


def forbidden_field(field: str, text: str) -> FieldError:
    return FieldError("FieldValueForbidden", field, f"Forbidden: {text}")


def duplicate(field: str, value: Any) -> FieldError:
    return FieldError("FieldValueDuplicate", field, f"Duplicate value: {go_value(value)}")


def not_supported(field: str, value: Any, allowed: list[str]) -> FieldError:
    choices = ", ".join(go_value(v) for v in allowed)
    return FieldError(
        "FieldValueNotSupported", field, f"Unsupported value: {go_value(value)}: supported values: {choices}"
    )


def too_long(field: str, limit: int) -> FieldError:
    return FieldError("FieldValueTooLong", field, f"Too long: may not be more than {limit} bytes")


def too_many(field: str, count: int, limit: int) -> FieldError:
    return FieldError("FieldValueTooMany", field, f"Too many: {count}: must have at most {limit} items")


def _details(name: str, group: str, kind: str, **more: Any) -> Object:
    details: Object = {}
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    if kind:
        details["kind"] = kind
    return details | more


def qualified(plural: str, group: str) -> str:
    return f"{plural}.{group}" if group else plural


def invalid(kind: str, group: str, name: str, errors: list[FieldError]) -> Failure:
    """422: the object is well-formed but not valid. Repeated messages are said once, but every cause is listed."""
    said = list(dict.fromkeys(map(str, errors)))
    text = said[0] if len(said) == 1 else "[" + ", ".join(said) + "]"
    causes = [{"reason": e.reason, "message": e.text, "field": e.field} for e in errors]
    return Failure(
        422,
        "Invalid",
        f'{qualified(kind, group)} "{name}" is invalid: {text}',
        _details(name, group, kind, causes=causes),
    )


def not_found(plural: str, group: str, name: str) -> Failure:
    return Failure(404, "NotFound", f'{qualified(plural, group)} "{name}" not found', _details(name, group, plural))


def already_exists(plural: str, group: str, name: str) -> Failure:
    return Failure(
        409, "AlreadyExists", f'{qualified(plural, group)} "{name}" already exists', _details(name, group, plural)
    )


def conflict(kind: str, group: str, name: str, text: str) -> Failure:
    return Failure(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {qualified(kind, group)} "{name}": {text}',
        _details(name, group, kind),
    )


def modified(plural: str, group: str, name: str) -> Failure:
    """409 for a stale resourceVersion."""
    return conflict(
        plural,
        group,
        name,
        "the object has been modified; please apply your changes to the latest version and try again",
    )


def bad_request(message: str) -> Failure:
    return Failure(400, "BadRequest", message)


def forbidden(plural: str, group: str, name: str, text: str, **details: Any) -> Failure:
    subject = qualified(plural, group) + (f' "{name}"' if name else "")
    return Failure(403, "Forbidden", f"{subject} is forbidden: {text}", _details(name, group, plural, **details))


def unauthorized() -> Failure:
    return Failure(401, "Unauthorized", "Unauthorized")


def unsupported_media(accepted: list[str]) -> Failure:
    return Failure(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: " + ", ".join(accepted),
    )


def not_acceptable(accepted: list[str]) -> Failure:
    return Failure(406, "NotAcceptable", "only the following media types are accepted: " + ", ".join(accepted))


def method_not_allowed() -> Failure:
    return Failure(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def expired(message: str) -> Failure:
    return Failure(410, "Expired", message)


def rejected_patch() -> Failure:
    """422 for a JSON patch that cannot be applied (a failed ``test``, a path that is not there)."""
    return Failure(422, "Invalid", "the server rejected our request due to an error in our request", {})


def success(plural: str, group: str, name: str, uid: str) -> Object:
    """The Status that answers a deletion that left nothing."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": _details(name, group, plural, uid=uid),
    }
