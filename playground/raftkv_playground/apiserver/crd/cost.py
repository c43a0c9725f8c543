"""A lower bound of what a validation rule may cost, to refuse rules that a real server would surely refuse.

A real API server estimates each rule's cost from its syntax tree and the schema's bounds (``maxItems``,
``maxProperties``, ``maxLength``), and refuses a definition whose estimate exceeds a budget. Here only the dominating
terms are counted, read from the rule's tokens: how often the rule runs (lists and maps around it), iterations of
macros, and string operations whose cost grows with the value. What this accepts may still be refused elsewhere; what
it refuses has no bound where it needs one.
"""

from __future__ import annotations

import re

from raftkv_playground.apiserver.errors import FieldError, Object, forbidden_field

RULE_BUDGET = 10_000_000
REQUEST_LIMIT_BYTES = 3 << 20
"""No value can be longer than a request."""
_STRING_COST_PER_BYTE = 0.1
_REGEX_COST_PER_BYTE = 0.25
_MACROS = {"all", "exists", "exists_one", "filter", "map"}

_TOKEN = re.compile(r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<name>[A-Za-z_]\w*)|(?P<other>[=!<>]=|\S)""")


def _least_bytes(schema: Object) -> int:
    """The shortest JSON form of a value."""
    match schema.get("type"):
        case "boolean":
            return 4
        case "object":
            properties = schema.get("properties") or {}
            needed = [k for k in schema.get("required") or [] if k in properties and "default" not in properties[k]]
            return 2 + sum(len(k) + 4 + _least_bytes(properties[k]) for k in needed)
        case "string" | "array":
            return 2
    return 1


def most_items(schema: Object) -> int:
    """The most entries that a list or map can have."""
    if schema.get("type") == "array":
        bound, item = schema.get("maxItems"), schema.get("items") or {}
        return int(bound) if bound is not None else (REQUEST_LIMIT_BYTES - 2) // (_least_bytes(item) + 1)
    bound, value = schema.get("maxProperties"), schema.get("additionalProperties")
    if bound is not None:
        return int(bound)
    return (REQUEST_LIMIT_BYTES - 2) // (_least_bytes(value if isinstance(value, dict) else {}) + 4)


def _most_bytes(schema: Object) -> int:
    if "maxLength" in schema:
        return int(schema["maxLength"])
    if schema.get("enum"):
        return max(len(str(v)) for v in schema["enum"])
    if schema.get("format") in {"date-time", "date", "duration", "uuid", "ipv4", "ipv6"}:
        return 64
    return REQUEST_LIMIT_BYTES - 2


def check(rule: str, schema: Object, runs: int, at: str) -> FieldError | None:
    """The complaint about a rule that costs too much; ``runs`` is how often it may run in one request."""
    cost = runs * estimate(rule, schema)
    if cost <= RULE_BUDGET:
        return None
    factor = cost / RULE_BUDGET
    shown = "more than 100x" if factor > 100 else f"{factor:.1f}x"
    return forbidden_field(
        f"{at}.rule",
        f"estimated rule cost exceeds budget by factor of {shown} (try simplifying the rule, or adding maxItems, "
        "maxProperties, and maxLength where arrays, maps, and strings are declared)",
    )


def estimate(rule: str, schema: Object) -> float:
    """The counted cost of one run."""
    tokens = [(m.lastgroup or "", m[0]) for m in _TOKEN.finditer(rule)]
    scopes: dict[str, tuple[Object, float]] = {"self": (schema, 1.0), "oldSelf": (schema, 1.0)}
    total, n = 1.0, 0
    while n < len(tokens):
        kind, value = tokens[n]
        if kind != "name" or value not in scopes or (n and tokens[n - 1][1] == "."):
            n += 1
            continue
        node, times = scopes[value]
        n += 1
        while n + 1 < len(tokens) and tokens[n][1] == "." and tokens[n + 1][0] == "name" and not _called(tokens, n + 1):
            node = (node.get("properties") or {}).get(tokens[n + 1][1]) or {}
            n += 2
        if n + 1 < len(tokens) and tokens[n][1] == "." and tokens[n + 1][1] in _MACROS and _called(tokens, n + 1):
            times *= most_items(node) if node.get("type") in {"array", "object"} else 1
            total += times
            item = node.get("items") if node.get("type") == "array" else {"type": "string"}
            if n + 3 < len(tokens) and tokens[n + 3][0] == "name":
                scopes[tokens[n + 3][1]] = (item or {}, times)
                n += 4
            continue
        if node.get("type") == "string":
            total += times * _string_cost(tokens, n, _most_bytes(node), set(scopes))
    return total


def _called(tokens: list[tuple[str, str]], n: int) -> bool:
    return n + 1 < len(tokens) and tokens[n + 1][1] == "("


def _string_cost(tokens: list[tuple[str, str]], n: int, size: int, scopes: set[str]) -> float:
    """The cost of what is done next with a string of at most ``size`` bytes."""
    following = [value for _, value in tokens[n : n + 4]]
    if following[:1] in (["=="], ["!="]) and len(following) > 1 and following[1] in scopes:
        return size * _STRING_COST_PER_BYTE
    if len(following) == 4 and following[0] == "." and following[2] == "(":
        literal = len(following[3]) - 2 if tokens[n + 3][0] == "string" else 1
        if following[1] == "matches":
            return size * _STRING_COST_PER_BYTE * max(1.0, literal * _REGEX_COST_PER_BYTE)
        if following[1] == "contains":
            return size * _STRING_COST_PER_BYTE * max(1, literal)
    return 1.0
