"""Validation rules (``x-kubernetes-validations``): CEL expressions over ``self`` and ``oldSelf``.

Rules are compiled when the definition is created. A rule that names ``oldSelf`` is a *transition rule*: it is checked
only when the value existed before. Rules run after the structural schema passed, so values have the types that the
rule expects. The CEL library is dynamically typed; references to fields that the schema does not have are therefore
looked for here, in the text of the rule, so that they are refused at creation as by a real server.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass, field
from typing import Any

import cel

from raftkv_playground.apiserver.crd import cost
from raftkv_playground.apiserver.crd.openapi import json_type
from raftkv_playground.apiserver.errors import FieldError, Object, forbidden_field, go_value

_FUNCTIONS = frozenset(
    (
        "bytes",
        "contains",
        "double",
        "duration",
        "dyn",
        "endsWith",
        "getDate",
        "getDayOfMonth",
        "getDayOfWeek",
        "getDayOfYear",
        "getFullYear",
        "getHours",
        "getMilliseconds",
        "getMinutes",
        "getMonth",
        "getSeconds",
        "int",
        "matches",
        "size",
        "startsWith",
        "string",
        "timestamp",
        "type",
        "uint",
    )
)
"""Functions that the CEL library evaluates; a rule that calls another is refused when the definition is created."""

_REASONS = {
    "FieldValueInvalid": "Invalid value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueRequired": "Required value",
    "FieldValueDuplicate": "Duplicate value",
}


@dataclass(slots=True)
class Rule:
    """One compiled rule."""

    spec: Object
    program: Any
    transition: bool
    message_program: Any = None

    @property
    def message(self) -> str:
        return str(self.spec.get("message") or f"failed rule: {self.spec['rule'].strip()}")


@dataclass(slots=True)
class RuleNode:
    """The rules of one place in the schema, and of the places below it."""

    schema: Object
    rules: list[Rule] = field(default_factory=list)
    fields: dict[str, RuleNode] = field(default_factory=dict)
    extra: RuleNode | None = None
    items: RuleNode | None = None

    @property
    def empty(self) -> bool:
        return not (self.rules or self.fields or self.extra or self.items)


def compile_rules(schema: Object, path: str, errors: list[FieldError], runs: int = 1) -> RuleNode:
    """The rules in ``schema`` and below; ``errors`` gets those that do not compile or cost too much. ``path`` is the
    schema's place in the definition, ``runs`` how many values of it one object can have."""
    node = RuleNode(schema)
    for n, spec in enumerate(schema.get("x-kubernetes-validations") or []):
        at = f"{path}.x-kubernetes-validations[{n}]"
        rule = _compile(spec, schema, at, errors)
        if rule is not None:
            node.rules.append(rule)
            if complaint := cost.check(spec["rule"], schema, runs, at):
                errors.append(complaint)
    for key, child in (schema.get("properties") or {}).items():
        below = compile_rules(child, f"{path}.properties[{key}]", errors, runs)
        if not below.empty:
            node.fields[key] = below
    if isinstance(extra := schema.get("additionalProperties"), dict):
        below = compile_rules(extra, f"{path}.additionalProperties", errors, runs * cost.most_items(schema))
        node.extra = None if below.empty else below
    if isinstance(items := schema.get("items"), dict):
        below = compile_rules(items, f"{path}.items", errors, runs * cost.most_items(schema))
        node.items = None if below.empty else below
        unkeyed = schema.get("x-kubernetes-list-type", "atomic") != "map"
        if node.items and unkeyed and _has_transition(node.items):
            errors.append(
                forbidden_field(
                    f"{path}.items",
                    f"oldSelf cannot be used on the uncorrelatable portion of the schema within {path}.items",
                )
            )
    return node


def _has_transition(node: RuleNode) -> bool:
    below = [*node.fields.values(), *filter(None, (node.extra, node.items))]
    return any(r.transition for r in node.rules) or any(map(_has_transition, below))


def _shown(spec: Object) -> str:
    """The rule as the server's messages print it."""
    known = {
        "Rule": spec.get("rule", ""),
        "Message": spec.get("message", ""),
        "MessageExpression": spec.get("messageExpression", ""),
        "Reason": spec.get("reason"),
        "FieldPath": spec.get("fieldPath", ""),
        "OptionalOldSelf": spec.get("optionalOldSelf"),
    }
    text = json.dumps(known, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _compile(spec: Object, schema: Object, at: str, errors: list[FieldError]) -> Rule | None:
    text = spec.get("rule", "")
    if not text.strip():
        errors.append(FieldError("FieldValueRequired", f"{at}.rule", "Required value: rule is not specified"))
        return None

    def complain(detail: str) -> None:
        errors.append(FieldError("FieldValueInvalid", f"{at}.rule", f"Invalid value: {_shown(spec)}: {detail}"))

    try:
        program = cel.compile(text)
    except ValueError as error:
        complain("compilation failed: " + str(error).split(": ", 1)[-1])
        return None
    if unknown := sorted(n for n in program.functions() if n[0].isalpha() and n not in _FUNCTIONS):
        name = unknown[0]
        column = text.find(name) + 1
        complain(
            f"compilation failed: ERROR: <input>:1:{column}: undeclared reference to '{name}' (in container '')\n | "
            + text.replace("\n", "\n | ")
            + "\n | "
            + "." * (column - 1)
            + "^"
        )
        return None
    if (found := _undefined_field(text, schema)) is not None:
        column, name = found
        source = text.replace("\n", "\n | ")
        complain(
            f"compilation failed: ERROR: <input>:1:{column}: undefined field '{name}'\n | {source}\n | "
            + "." * (column - 1)
            + "^"
        )
        return None
    message_program = None
    if expression := spec.get("messageExpression"):
        try:
            message_program = cel.compile(expression)
        except ValueError as error:
            errors.append(
                FieldError(
                    "FieldValueInvalid",
                    f"{at}.messageExpression",
                    f"Invalid value: {_shown(spec)}: messageExpression compilation failed: {error}",
                )
            )
            return None
    return Rule(spec, program, "oldSelf" in _names(text), message_program)


# ------------------------------------------------------------------------------------------- reading rule texts

_TOKEN = re.compile(
    r"""(?P<string>[rR]?(?:"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))|(?P<name>[A-Za-z_]\w*)|(?P<other>\S)|\s+"""
)


def _tokens(text: str) -> list[tuple[str, str, int]]:
    return [(m.lastgroup or "", m[0], m.start()) for m in _TOKEN.finditer(text) if m.lastgroup]


def _names(text: str) -> set[str]:
    return {value for kind, value, _ in _tokens(text) if kind == "name"}


def _chains(text: str) -> list[tuple[list[str], list[int]]]:
    """Field selections that start at self or oldSelf: the names, and the offset of the dot before each."""
    tokens = _tokens(text)
    chains = []
    n = 0
    while n < len(tokens):
        kind, value, _ = tokens[n]
        after_dot = n > 0 and tokens[n - 1][1] == "."
        n += 1
        if kind != "name" or value not in {"self", "oldSelf"} or after_dot:
            continue
        names, dots = [], []
        while n + 1 < len(tokens) and tokens[n][1] == "." and tokens[n + 1][0] == "name":
            if n + 2 < len(tokens) and tokens[n + 2][1] == "(":
                break
            names.append(tokens[n + 1][1])
            dots.append(tokens[n][2])
            n += 2
        if names:
            chains.append((names, dots))
    return chains


def _undefined_field(text: str, schema: Object) -> tuple[int, str] | None:
    """(column, name) of the first selection of a field that the schema does not define."""
    for names, dots in _chains(text):
        node = schema
        for name, dot in zip(names, dots, strict=True):
            if node.get("x-kubernetes-preserve-unknown-fields") or "properties" not in node:
                if node.get("type") == "object" and isinstance(node.get("additionalProperties"), dict):
                    node = node["additionalProperties"]
                    continue
                if node.get("type") in {None, "object"} and "properties" not in node:
                    break
                return dot + 1, name
            properties = node["properties"]
            plain = name.removeprefix("__").removesuffix("__") if name.startswith("__") else name
            if plain not in properties:
                if node.get("x-kubernetes-embedded-resource") or plain in {"metadata", "apiVersion", "kind"}:
                    break
                return dot + 1, name
            node = properties[plain]
    return None


# --------------------------------------------------------------------------------------------------- evaluation


def check(value: Any, old: Any, node: RuleNode, path: str, *, exists_old: bool) -> list[FieldError]:
    """Complaints of all rules that apply to ``value`` (and, with ``exists_old``, to its change from ``old``)."""
    errors: list[FieldError] = []
    unchanged = exists_old and value == old
    for rule in node.rules:
        if rule.transition and not exists_old and not rule.spec.get("optionalOldSelf"):
            continue
        if unchanged and not rule.transition:
            # Like the schema, rules do not hold against an object what an update leaves as it was.
            continue
        if error := _evaluate(rule, value, old if exists_old else None, node.schema, path):
            errors.append(error)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for key in sorted(value):
            below = node.fields.get(key, node.extra)
            if below is not None:
                at = f"{path}.{key}" if path else key
                errors += check(value[key], before.get(key), below, at, exists_old=exists_old and key in before)
    elif isinstance(value, list) and node.items is not None:
        keys = node.schema.get("x-kubernetes-list-map-keys") or []
        for n, item in enumerate(value):
            match = _partner(item, old, keys) if exists_old and keys else None
            errors += check(item, match, node.items, f"{path}[{n}]", exists_old=match is not None)
    return errors


def _partner(item: Any, old: Any, keys: list[str]) -> Any:
    for candidate in old if isinstance(old, list) else []:
        if all(candidate.get(k) == item.get(k) for k in keys):
            return candidate
    return None


def _typed(value: Any, schema: Object) -> Any:
    """JSON values as CEL sees them: times and durations by their format, other values as they are."""
    if isinstance(value, dict):
        properties, extra = schema.get("properties") or {}, schema.get("additionalProperties")
        extra = extra if isinstance(extra, dict) else {}
        return {k: _typed(v, properties.get(k, extra)) for k, v in value.items()}
    if isinstance(value, list):
        return [_typed(item, schema.get("items") or {}) for item in value]
    if isinstance(value, str) and schema.get("format") == "date-time":
        return datetime.datetime.fromisoformat(value)
    if isinstance(value, int) and not isinstance(value, bool) and schema.get("type") == "number":
        return float(value)
    return value


def _evaluate(rule: Rule, value: Any, old: Any, schema: Object, path: str) -> FieldError | None:
    variables = {"self": _typed(value, schema), "oldSelf": _typed(old, schema)}
    shown = "" if isinstance(value, dict | list) else go_value(value) + ": "
    at = path + rule.spec.get("fieldPath", "") if path else rule.spec.get("fieldPath", "").lstrip(".")
    try:
        if rule.program.execute(variables) is True:
            return None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        text = _evaluation_error(rule.spec["rule"], error, variables)
        return FieldError(
            "FieldValueInvalid",
            at,
            f'Invalid value: "{json_type(value)}": {text} evaluating rule: {rule.message}',
        )
    message = rule.message
    if rule.message_program is not None:
        try:
            produced = rule.message_program.execute(variables)
            if isinstance(produced, str) and produced.strip() and "\n" not in produced:
                message = produced
        except (KeyError, TypeError, ValueError, RuntimeError):
            pass  # The fixed message stands in, as in the real server.
    reason = rule.spec.get("reason") or "FieldValueInvalid"
    if reason in {"FieldValueForbidden", "FieldValueRequired"}:
        return FieldError(reason, at, f"{_REASONS[reason]}: {message}")
    if reason == "FieldValueDuplicate":
        return FieldError(reason, at, f"{_REASONS[reason]}: {shown.removesuffix(': ') or go_value(value)}")
    return FieldError(reason, at, f"Invalid value: {shown}{message}")


def _evaluation_error(text: str, error: Exception, variables: dict[str, Any]) -> str:
    if isinstance(error, KeyError):
        # The library names the last missing key that it met; the server the first.
        for names, _ in _chains(text):
            node = variables["self"]
            for name in names:
                if not isinstance(node, dict):
                    break
                if name not in node:
                    return f"no such key: {name}"
                node = node[name]
        return f"no such key: {error.args[0]}"
    return str(error)
