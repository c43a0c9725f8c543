"""What all kinds have in common: object metadata, its generation and its validation."""

from __future__ import annotations

import datetime
import random
import re
import uuid

from raftkv_playground.apiserver.errors import (
    FieldError,
    Object,
    forbidden_field,
    go_value,
    invalid_value,
    required,
    too_long,
)

_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
GENERATED_SUFFIX_CHARACTERS = 5
GENERATED_NAME_LIMIT_BYTES = 63
SUBDOMAIN_LIMIT_BYTES = 253
LABEL_LIMIT_BYTES = 63
ANNOTATIONS_LIMIT_BYTES = 256 << 10

_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_LABEL_1035 = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_QUALIFIED = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")
_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")

SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
LABEL_1035_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_NAME_PART_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)


def now() -> str:
    """The current time as metadata carries it: UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def later(seconds: int) -> str:
    """The time ``seconds`` from now, in the same form."""
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime.datetime:
    """RFC 3339, with or without fractions."""
    return datetime.datetime.fromisoformat(text)


def generate_name(prefix: str) -> str:
    """``prefix`` (cut so that the whole fits in 63 characters) and five random characters without vowels."""
    room = GENERATED_NAME_LIMIT_BYTES - GENERATED_SUFFIX_CHARACTERS
    return prefix[:room] + "".join(random.choices(_SUFFIX_ALPHABET, k=GENERATED_SUFFIX_CHARACTERS))


def new_uid() -> str:
    return str(uuid.uuid4())


def name_problems(name: str, form: str) -> list[str]:
    """What is wrong with a name of the given form: ``subdomain``, ``label``, ``label1035`` or ``path``."""
    if form == "path":
        if name in {".", ".."}:
            return [f"may not be '{name}'"]
        return [f"may not contain '{c}'" for c in "/%" if c in name]
    limit, pattern, text = {
        "subdomain": (SUBDOMAIN_LIMIT_BYTES, _SUBDOMAIN, SUBDOMAIN_TEXT),
        "label": (LABEL_LIMIT_BYTES, _LABEL, LABEL_TEXT),
        "label1035": (LABEL_LIMIT_BYTES, _LABEL_1035, LABEL_1035_TEXT),
    }[form]
    problems = []
    if len(name) > limit:
        problems.append(f"must be no more than {limit} bytes")
    if not pattern.match(name):
        problems.append(text)
    return problems


def qualified_name_problems(key: str) -> list[str]:
    prefix, slash, name = key.rpartition("/")
    problems = []
    if slash and not prefix:
        problems.append("prefix part must be non-empty")
    elif prefix:
        problems += [f"prefix part {text}" for text in name_problems(prefix, "subdomain")]
    if not name:
        problems.append("name part must be non-empty")
    elif len(name) > LABEL_LIMIT_BYTES:
        problems.append("name part must be no more than 63 bytes")
    if not _QUALIFIED.match(name):
        problems.append(_NAME_PART_TEXT)
    return problems


def validate_labels(labels: Object | None, field: str) -> list[FieldError]:
    errors = []
    for key, value in (labels or {}).items():
        errors += [invalid_value(field, key, text) for text in qualified_name_problems(key)]
        if len(value) > LABEL_LIMIT_BYTES:
            errors.append(invalid_value(field, value, "must be no more than 63 bytes"))
        if not _VALUE.match(value):
            errors.append(invalid_value(field, value, _VALUE_TEXT))
    return errors


def _common(metadata: Object) -> list[FieldError]:
    errors = validate_labels(metadata.get("labels"), "metadata.labels")
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        errors += [invalid_value("metadata.annotations", key, t) for t in qualified_name_problems(key.lower())]
    if sum(len(k) + len(v) for k, v in annotations.items()) > ANNOTATIONS_LIMIT_BYTES:
        errors.append(too_long("metadata.annotations", ANNOTATIONS_LIMIT_BYTES))
    controllers = []
    for reference in metadata.get("ownerReferences") or []:
        at = "metadata.ownerReferences"
        for key in ("apiVersion", "kind", "name", "uid"):
            if not reference.get(key):
                errors.append(invalid_value(f"{at}.{key}", "", "must not be empty"))
        if reference.get("controller"):
            controllers.append(reference)
    if len(controllers) > 1:
        text = 'Only one reference can have Controller set to true. Found "true" in references for %s/%s and %s/%s'
        a, b = controllers[:2]
        errors.append(
            invalid_value(
                "metadata.ownerReferences",
                metadata["ownerReferences"],
                text % (a.get("kind"), a.get("name"), b.get("kind"), b.get("name")),
            )
        )
    for finalizer in metadata.get("finalizers") or []:
        errors += [invalid_value("metadata.finalizers", finalizer, t) for t in qualified_name_problems(finalizer)]
    return errors


def validate(metadata: Object, form: str) -> list[FieldError]:
    """Complaints about the metadata of one object, new or changed."""
    errors = []
    prefix = metadata.get("generateName") or ""
    if prefix:
        # A generated name ends with a random suffix, so a trailing dash or dot is fine here.
        errors += [
            invalid_value("metadata.generateName", prefix, t) for t in name_problems(prefix.rstrip("-.") or "-", form)
        ]
    name = metadata.get("name") or ""
    if not name:
        errors.append(required("metadata.name", "name or generateName is required"))
    else:
        errors += [invalid_value("metadata.name", name, text) for text in name_problems(name, form)]
    return errors + _common(metadata)


def validate_update(new: Object, old: Object) -> list[FieldError]:
    """Complaints about a change of metadata."""
    errors = _new_finalizers(new, old)
    for key in ("name", "namespace", "uid", "creationTimestamp"):
        if new.get(key) != old.get(key):
            errors.append(invalid_value(f"metadata.{key}", new.get(key), "field is immutable"))
    for key in ("deletionTimestamp", "deletionGracePeriodSeconds"):
        if new.get(key) != old.get(key):
            errors.append(invalid_value(f"metadata.{key}", new.get(key), "field is immutable"))
    return errors + _common(new)


def _new_finalizers(new: Object, old: Object) -> list[FieldError]:
    if not old.get("deletionTimestamp"):
        return []
    extra = [f for f in new.get("finalizers") or [] if f not in (old.get("finalizers") or [])]
    if not extra:
        return []
    listed = ", ".join(map(go_value, extra))
    return [
        forbidden_field(
            "metadata.finalizers",
            f"no new finalizers can be added if the object is being deleted, found new finalizers []string{{{listed}}}",
        )
    ]


def finalizer_warnings(metadata: Object) -> list[str]:
    """Finalizers without a domain are taken, with a warning."""
    return [
        f"metadata.finalizers: {go_value(f)}: prefer a domain-qualified finalizer name to avoid accidental conflicts "
        "with other finalizer writers"
        for f in metadata.get("finalizers") or []
        if "/" not in f and f not in {"orphan", "foregroundDeletion", "kubernetes"}
    ]


def drop_empty(metadata: Object) -> None:
    """Empty maps and lists are not stored (they would make noise in diffs)."""
    for key in ("labels", "annotations", "finalizers", "ownerReferences", "managedFields"):
        if key in metadata and not metadata[key]:
            del metadata[key]
    for key in [k for k, v in metadata.items() if v is None]:
        del metadata[key]
