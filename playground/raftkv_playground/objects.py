"""Reading Kubernetes objects: plain functions over the ``dict`` values that the API gives.

All of them are pure. What a field means is what the Kubernetes API reference says of it.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str]
"""(namespace or "", name)"""

_SAFE_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Letters and digits that form no words, as Kubernetes uses for generated names."""


def now() -> str:
    """The time as the API writes it: RFC 3339, UTC, whole seconds."""
    return format_time(datetime.datetime.now(datetime.UTC))


def format_time(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime.datetime:
    """``metav1.Time`` or ``MicroTime`` to an aware datetime. Raises ValueError."""
    return datetime.datetime.fromisoformat(text)


def age_seconds(text: str | None, at: datetime.datetime | None = None) -> float:
    """Seconds since ``text``; 0 if there is none."""
    if not text:
        return 0.0
    return ((at or datetime.datetime.now(datetime.UTC)) - parse_time(text)).total_seconds()


def key_of(item: Mapping[str, Any]) -> Key:
    metadata = item["metadata"]
    return (metadata.get("namespace") or "", metadata["name"])


def labels_of(item: Mapping[str, Any]) -> dict[str, str]:
    return item["metadata"].get("labels") or {}


def annotations_of(item: Mapping[str, Any]) -> dict[str, str]:
    return item["metadata"].get("annotations") or {}


def uid_of(item: Mapping[str, Any]) -> str:
    return str(item["metadata"]["uid"])


def deleting(item: Mapping[str, Any]) -> bool:
    return bool(item["metadata"].get("deletionTimestamp"))


def status_of(item: Mapping[str, Any]) -> Object:
    return item.get("status") or {}


def controller_of(item: Mapping[str, Any]) -> Object | None:
    """The owner reference marked ``controller``, if any."""
    for reference in item["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            return dict(reference)
    return None


def controlled_by(item: Mapping[str, Any], owner: Mapping[str, Any]) -> bool:
    """By uid: an object of the same name that was deleted and created again is another owner."""
    reference = controller_of(item)
    return reference is not None and reference["uid"] == owner["metadata"]["uid"]


def owner_reference(owner: Mapping[str, Any], *, controller: bool = True, block: bool = True) -> Object:
    reference: Object = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    if controller:
        reference["controller"] = True
    if block:
        reference["blockOwnerDeletion"] = True
    return reference


def object_reference(item: Mapping[str, Any]) -> Object:
    """What an Event or an endpoint says of an object."""
    metadata = item["metadata"]
    reference = {
        "apiVersion": item.get("apiVersion"),
        "kind": item.get("kind"),
        "name": metadata["name"],
        "namespace": metadata.get("namespace"),
        "uid": metadata.get("uid"),
        "resourceVersion": metadata.get("resourceVersion"),
    }
    return {name: value for name, value in reference.items() if value}


def _requirement_matches(requirement: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator = requirement["key"], requirement["operator"]
    values = requirement.get("values") or []
    if operator == "In":
        return key in labels and labels[key] in values
    if operator == "NotIn":
        return key not in labels or labels[key] not in values
    if operator == "Exists":
        return key in labels
    if operator == "DoesNotExist":
        return key not in labels
    if operator in ("Gt", "Lt"):
        try:
            have, want = int(labels[key]), int(values[0])
        except (KeyError, ValueError, IndexError):
            return False
        return have > want if operator == "Gt" else have < want
    return False


def requirements_match(requirements: Iterable[Mapping[str, Any]], labels: Mapping[str, str]) -> bool:
    """All of a list of ``{key, operator, values}``; an unknown operator matches nothing."""
    return all(_requirement_matches(requirement, labels) for requirement in requirements)


def selector_matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """A ``metav1.LabelSelector``: ``None`` matches nothing, an empty one everything."""
    if selector is None:
        return False
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return requirements_match(selector.get("matchExpressions") or [], labels)


def condition(item: Mapping[str, Any], type: str) -> Object | None:
    for entry in status_of(item).get("conditions") or []:
        if entry.get("type") == type:
            return dict(entry)
    return None


def condition_true(item: Mapping[str, Any], type: str) -> bool:
    found = condition(item, type)
    return found is not None and found.get("status") == "True"


def with_condition(conditions: Sequence[Object], new: Object, at: str | None = None) -> list[Object]:
    """``conditions`` with ``new`` in the place of the one of its type; the transition time moves only when the
    status does."""
    result: list[Object] = []
    new = {"lastTransitionTime": at or now(), **new}
    placed = False
    for entry in conditions:
        if entry.get("type") != new["type"]:
            result.append(entry)
            continue
        if entry.get("status") == new["status"] and entry.get("lastTransitionTime"):
            new["lastTransitionTime"] = entry["lastTransitionTime"]
        result.append(new)
        placed = True
    if not placed:
        result.append(new)
    return result


def pod_ready(pod: Mapping[str, Any]) -> bool:
    return condition_true(pod, "Ready")


def pod_finished(pod: Mapping[str, Any]) -> bool:
    """Its containers have ended for good."""
    return status_of(pod).get("phase") in ("Succeeded", "Failed")


def pod_available(pod: Mapping[str, Any], minimum_ready_seconds: float = 0) -> bool:
    """Ready for at least ``minimum_ready_seconds``."""
    found = condition(pod, "Ready")
    if found is None or found.get("status") != "True":
        return False
    return minimum_ready_seconds <= 0 or age_seconds(found.get("lastTransitionTime")) >= minimum_ready_seconds


def canonical(value: Any) -> str:
    """The same text for equal JSON values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def name_hash(value: Any, length: int = 10) -> str:
    """A hash of a JSON value in letters that may stand in names and labels."""
    number = int.from_bytes(hashlib.sha256(canonical(value).encode()).digest()[:16], "big")
    letters = []
    for _ in range(length):
        number, digit = divmod(number, len(_SAFE_ALPHABET))
        letters.append(_SAFE_ALPHABET[digit])
    return "".join(letters)


_SUFFIX = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(1 << 10),
    "Mi": Decimal(1 << 20),
    "Gi": Decimal(1 << 30),
    "Ti": Decimal(1 << 40),
    "Pi": Decimal(1 << 50),
    "Ei": Decimal(1 << 60),
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([numkMGTPE]|[KMGTPE]i)?)")


def quantity(text: str | int | float) -> Decimal:
    """A ``resource.Quantity`` as a number. Raises ValueError."""
    match = _QUANTITY.fullmatch(str(text))
    if not match:
        raise ValueError(f"not a quantity: {text!r}")
    try:
        return Decimal(match[1] + (match[2] or "")) * _SUFFIX[match[3] or ""]
    except InvalidOperation as error:
        raise ValueError(f"not a quantity: {text!r}") from error


def percent_of(value: int | str | None, total: int, *, round_up: bool, default: int) -> int:
    """An ``IntOrString`` that may be a percentage of ``total``."""
    if value is None:
        return default
    if isinstance(value, str):
        if value.endswith("%"):
            share = int(value[:-1]) * total
            return -(-share // 100) if round_up else share // 100
        return int(value)
    return value


def edited(item: Mapping[str, Any]) -> Object:
    """A deep copy to change: what an informer holds must never be changed in place."""
    return copy.deepcopy(dict(item))
