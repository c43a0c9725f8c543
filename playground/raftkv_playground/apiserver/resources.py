"""Operations on objects: create, update, patch, delete. The steps that every request for a kind goes through.

All steps of one operation run without awaiting, so that it sees and leaves one state; there are no locks.

A write is: decode (known fields, right types, defaults) -> field ownership -> admission (namespace, service account,
...) -> the kind's strategy -> validation -> store. A refused write leaves no trace. A write that changes nothing
is answered with the stored object, whose resourceVersion stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

from raftkv_playground.apiserver import errors, fields, metadata
from raftkv_playground.apiserver.addresses import Addresses
from raftkv_playground.apiserver.crd.definition import CustomStrategy, value_at
from raftkv_playground.apiserver.errors import FieldError, Object
from raftkv_playground.apiserver.fields import Manager, Paths
from raftkv_playground.apiserver.kinds import Kind, Registry
from raftkv_playground.apiserver.schema.decode import DecodeError, normalise, prune
from raftkv_playground.apiserver.schema.shapes import builtin, zero
from raftkv_playground.apiserver.store import Store

STATUS_PATHS: Paths = {("f:status",)}
Transform = Callable[[Object], Object]


@dataclass(slots=True)
class Options:
    """What a write request says beside its body."""

    manager: str
    field_validation: str = "Warn"
    dry_run: bool = False
    force: bool = False
    warnings: list[str] = field(default_factory=list)


class Resources:
    """The operations, on one store and registry."""

    def __init__(self, store: Store, registry: Registry, service_network: str) -> None:
        self.store = store
        self.registry = registry
        self.addresses = Addresses(store, service_network)

    # ------------------------------------------------------------------------------------------------- reading

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """The object as ``kind``'s version shows it; 404 if there is none."""
        item = self.store.get(kind.key, namespace, name)
        if item is None:
            raise errors.not_found(kind.plural, kind.group, name)
        return kind.present(item)

    def exists(self, kind: Kind, namespace: str, name: str) -> bool:
        return self.store.get(kind.key, namespace, name) is not None

    # ------------------------------------------------------------------------------------------------ decoding

    def decode(self, kind: Kind, body: Object, options: Options, *, partial: bool = False) -> Object:
        """A request's object in the server's form, defaults included. ``partial``: an apply configuration, which is
        only checked."""
        unknown: list[str] = []
        item = self._shaped(kind, body, unknown)
        if unknown and options.field_validation != "Ignore":
            if options.field_validation == "Strict":
                listed = ", ".join(f'unknown field "{f}"' for f in unknown)
                raise errors.bad_request(
                    f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
                    f"strict decoding error: {listed}"
                )
            options.warnings += [f'unknown field "{f}"' for f in unknown]
        if not partial:
            kind.strategy.default(item)
        return item

    def _shaped(self, kind: Kind, body: Object, unknown: list[str]) -> Object:
        try:
            if kind.custom is None:
                item = normalise(body, kind.shape, kind.kind, unknown)
            else:
                item = prune({k: v for k, v in body.items() if k != "metadata"}, kind.shape, unknown)
                below: list[str] = []
                item["metadata"] = normalise(body.get("metadata") or {}, builtin("ObjectMeta"), "ObjectMeta", below)
                unknown += [f"metadata.{f}" for f in below]
        except DecodeError as error:
            raise errors.bad_request(
                f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {error}'
            ) from None
        item.setdefault("metadata", {})
        return dict(item)

    # ------------------------------------------------------------------------------------------------ creating

    def create(self, kind: Kind, namespace: str, body: Object, options: Options) -> Object:
        """Store a new object and answer with it."""
        self.check_type(kind, body, options)
        item = self.decode(kind, body, options)
        self.place(kind, namespace, item["metadata"])
        if item["metadata"].get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        empty = zero(kind.shape) if kind.custom is None else {"metadata": {}}
        managers: dict[tuple[str, str, str, str], Manager] = {}
        fields.update(empty, item, kind.shape, managers, self._writer(kind, "", options), self._reset(kind, ""))
        return self._create(kind, namespace, item, managers, options)

    def _create(
        self,
        kind: Kind,
        namespace: str,
        item: Object,
        managers: dict[tuple[str, str, str, str], Manager],
        options: Options,
    ) -> Object:
        meta = item["metadata"]
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = metadata.generate_name(meta["generateName"])
        if not kind.custom:
            # Defaults may depend on the name.
            kind.strategy.default(item)
        self._check_namespace(kind, namespace, meta.get("name", ""))
        kind.strategy.admit_create(item, self)
        for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"):
            meta.pop(key, None)
        meta["uid"], meta["creationTimestamp"] = metadata.new_uid(), metadata.now()
        meta["managedFields"] = fields.encode_managers(managers.values())
        if kind.strategy.generation:
            meta["generation"] = 1
        metadata.drop_empty(meta)
        if kind.convert_in is not None:
            item = kind.convert_in(item)
        kind.strategy.prepare_create(item, self)
        self._validate_new(kind, item)
        if self.store.get(kind.key, namespace, meta["name"]) is not None:
            raise errors.already_exists(kind.plural, kind.group, meta["name"])
        options.warnings += kind.strategy.warnings(item)
        if not options.dry_run:
            item = self.store.put(kind.key, item)
        return kind.present(item)

    def check_type(self, kind: Kind, body: Object, options: Options) -> None:
        """The body must say that it is what the URL says."""
        version, name = body.get("apiVersion") or "", body.get("kind") or ""
        if not version and not name and kind.custom is None:
            body["apiVersion"], body["kind"] = kind.api_version, kind.kind
            return
        if version != kind.api_version:
            if kind.custom is not None and options.field_validation != "Ignore":
                known = {"apiVersion", "kind", "metadata"}
                options.warnings += [f'unknown field "{f}"' for f in body if f not in known]
            raise errors.bad_request(
                f"the API version in the data ({version}) does not match the expected API version ({kind.api_version})"
            )
        if name != kind.kind:
            given = (body.get("metadata") or {}).get("name", "")
            if kind.custom is None:
                raise errors.bad_request(
                    f'{name} in version "{kind.version}" cannot be handled as a {kind.kind}: no kind "{name}" is '
                    f'registered for version "{version}" in scheme "pkg/api/legacyscheme/scheme.go:30"'
                    if self.registry.by_kind(version, name) is None
                    else f"{name} in version {kind.version} cannot be handled as a {kind.kind}"
                )
            raise errors.invalid(name, kind.group, given, [errors.invalid_value("kind", name, f"must be {kind.kind}")])

    def place(self, kind: Kind, namespace: str, meta: Object) -> None:
        if not kind.namespaced:
            meta.pop("namespace", None)
        elif meta.get("namespace") not in {None, "", namespace}:
            raise errors.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        else:
            meta["namespace"] = namespace

    def _check_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        if not kind.namespaced:
            return
        found = self.store.get(("", "namespaces"), "", namespace)
        if found is None:
            raise errors.not_found("namespaces", "", namespace)
        if found["metadata"].get("deletionTimestamp"):
            raise errors.forbidden(
                kind.plural,
                kind.group,
                name,
                f"unable to create new content in namespace {namespace} because it is being terminated",
                causes=[
                    {
                        "reason": "NamespaceTerminating",
                        "message": f"namespace {namespace} is being terminated",
                        "field": "metadata.namespace",
                    }
                ],
            )

    def _validate_new(self, kind: Kind, item: Object) -> None:
        strategy = kind.strategy
        found = metadata.validate(item["metadata"], strategy.name_form)
        found += strategy.validate(item)
        if isinstance(strategy, CustomStrategy):
            found += strategy.validate_rules(item, None, found)
        if found:
            raise errors.invalid(kind.kind, kind.group, item["metadata"].get("name", ""), found)

    # ------------------------------------------------------------------------------------------------ changing

    def _writer(self, kind: Kind, subresource: str, options: Options, operation: str = "Update") -> Manager:
        return Manager(options.manager, operation, kind.api_version, subresource, metadata.now())

    def _reset(self, kind: Kind, subresource: str) -> Paths:
        """Subtrees that the endpoint does not write, and whose fields its writers therefore never own."""
        if subresource == "status":
            return {(f"f:{key}",) for key in kind.shape.fields if key not in {"status", "metadata"}} | (
                {("f:metadata",)} if kind.custom else set()
            )
        if "status" in kind.subresources or (kind.custom is None and "status" in kind.shape.fields):
            return STATUS_PATHS
        return set()

    def update(
        self, kind: Kind, namespace: str, name: str, transform: Transform, subresource: str, options: Options
    ) -> Object:
        """Replace the object by ``transform(object)`` (PUT and the plain patches)."""
        old = self.get(kind, namespace, name)
        body = transform(old)
        new = self.decode(kind, body, options)
        managers = self._base_managers(old, body)
        self._carry_over(kind, new, old)
        writer = self._writer(kind, subresource, options)
        fields.update(old, new, kind.shape, managers, writer, self._reset(kind, subresource))
        if subresource == "scale":
            self._scale_ownership(kind, new, managers, writer)
        return self._change(kind, old, new, managers, subresource, options)

    def _scale_ownership(
        self, kind: Kind, new: Object, managers: dict[tuple[str, str, str, str], Manager], writer: Manager
    ) -> None:
        """As on a real server: scale's entry has no time, and a count of zero, which a Scale's wire form omits, is
        nobody's."""
        if entry := managers.get(writer.identity):
            entry.time = None
            path = (kind.custom.scale or {})["specReplicasPath"] if kind.custom else ".spec.replicas"
            if not value_at(new, path):
                entry.paths.clear()

    def _base_managers(self, old: Object, body: Object) -> dict[tuple[str, str, str, str], Manager]:
        """The entries to start from: what the writer sent (it may have edited them), else the stored ones."""
        given = (body.get("metadata") or {}).get("managedFields")
        if given == [{}]:
            return {}
        return fields.decode_managers(given) or fields.decode_managers(old["metadata"].get("managedFields"))

    def apply(
        self, kind: Kind, namespace: str, name: str, config: Object, subresource: str, options: Options
    ) -> tuple[Object, bool]:
        """Server-side apply; the object and whether it was created."""
        self.check_type(kind, config, options)
        meta = config.setdefault("metadata", {})
        if meta.get("managedFields") is not None:
            raise errors.bad_request("metadata.managedFields must be nil")
        if meta.setdefault("name", name) != name:
            raise errors.bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL ({name})"
            )
        self.place(kind, namespace, meta)
        self.decode(kind, config, options, partial=True)
        # Ownership follows what was written, so the configuration keeps its own form, without unknown fields.
        config = prune(config, kind.shape, [])
        writer = self._writer(kind, subresource, options, "Apply")
        reset = self._reset(kind, subresource)
        old = self.store.get(kind.key, namespace, name)
        if old is None:
            if subresource:
                raise errors.not_found(kind.plural, kind.group, name)
            if meta.get("uid") or meta.get("resourceVersion"):
                raise errors.not_found(kind.plural, kind.group, name)
            managers: dict[tuple[str, str, str, str], Manager] = {}
            empty: Object = {"metadata": {}}
            merged = fields.apply(empty, config, kind.shape, managers, writer, reset, options.force) or config
            writer.time = metadata.now()
            item = self.decode(kind, merged, Options(options.manager, "Ignore"))
            return self._create(kind, namespace, item, managers, options), True
        old = kind.present(old)
        managers = fields.decode_managers(old["metadata"].get("managedFields"))
        live = dict(old)
        live["metadata"] = {k: v for k, v in old["metadata"].items() if k != "managedFields"}
        merged_or_none = fields.apply(live, config, kind.shape, managers, writer, reset, options.force)
        changed = merged_or_none is not None
        new = self.decode(kind, copy.deepcopy(merged_or_none or live), Options(options.manager, "Ignore"))
        self._carry_over(kind, new, old)
        if changed:
            writer.time = metadata.now()
        return self._change(kind, old, new, managers, subresource, options), False

    def _carry_over(self, kind: Kind, new: Object, old: Object) -> None:
        """What a client may leave out (or may not set) comes from the stored object."""
        meta, before = new["metadata"], old["metadata"]
        for key in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "name", "namespace"):
            if not meta.get(key) and key in before:
                meta[key] = before[key]
        for key in ("generation", "selfLink"):
            meta.pop(key, None)
            if key in before:
                meta[key] = before[key]

    def _change(
        self,
        kind: Kind,
        old: Object,
        new: Object,
        managers: dict[tuple[str, str, str, str], Manager],
        subresource: str,
        options: Options,
    ) -> Object:
        meta, before, strategy = new["metadata"], old["metadata"], kind.strategy
        new["apiVersion"], new["kind"] = kind.api_version, kind.kind
        version = meta.get("resourceVersion")
        if version and version != before["resourceVersion"]:
            raise errors.modified(kind.plural, kind.group, before["name"])
        meta["resourceVersion"] = before["resourceVersion"]
        meta["managedFields"] = fields.encode_managers(managers.values())
        metadata.drop_empty(meta)
        strategy.prepare_update(new, old, subresource)
        meta = new["metadata"]
        metadata.drop_empty(meta)
        if strategy.generation and strategy.spec_changed(new, old):
            meta["generation"] = before.get("generation", 0) + 1
        self._validate_change(kind, new, old, subresource)
        options.warnings += strategy.warnings(new)
        if _same_but_times(new, old):
            return old
        if options.dry_run:
            return new
        stored = kind.convert_in(new) if kind.convert_in else new
        if meta.get("deletionTimestamp") and self._finished(kind, new):
            answer = copy.deepcopy(new)
            self.store.remove(kind.key, stored)
            return answer
        return kind.present(self.store.put(kind.key, stored))

    def _finished(self, kind: Kind, item: Object) -> bool:
        meta = item["metadata"]
        waits = (item.get("spec") or {}).get("finalizers") if kind.kind == "Namespace" else None
        return not meta.get("finalizers") and not meta.get("deletionGracePeriodSeconds") and not waits

    def _validate_change(self, kind: Kind, new: Object, old: Object, subresource: str) -> None:
        strategy, meta, before = kind.strategy, new["metadata"], old["metadata"]
        found: list[FieldError] = metadata.validate(meta, strategy.name_form) + metadata.validate_update(meta, before)
        own = metadata.validate_update(meta, before) + strategy.validate_update(new, old, subresource)
        if isinstance(strategy, CustomStrategy):
            own += strategy.validate_rules(new, old, own)
        if found or own:
            raise errors.invalid(kind.kind, kind.group, before["name"], found + own)

    # ------------------------------------------------------------------------------------------------ deleting

    def delete(self, kind: Kind, namespace: str, name: str, wanted: Object, options: Options) -> Object:
        """Delete or mark as being deleted, by ``DeleteOptions``; the Status or object to answer with."""
        item = self.store.get(kind.key, namespace, name)
        if item is None:
            raise errors.not_found(kind.plural, kind.group, name)
        self._preconditions(kind, item, wanted.get("preconditions") or {})
        item = copy.deepcopy(item)
        meta = item["metadata"]
        if kind.kind == "Namespace" and not kind.group:
            return self._delete_namespace(kind, item, options)
        if kind.kind == "CustomResourceDefinition":
            return self._delete_definition(kind, item, options)
        finalizers = list(meta.get("finalizers") or [])
        for policy, finalizer in (("Orphan", "orphan"), ("Foreground", "foregroundDeletion")):
            chosen = wanted.get("propagationPolicy")
            if wanted.get("orphanDependents") is True:
                chosen = "Orphan"
            if chosen == policy and finalizer not in finalizers:
                finalizers.append(finalizer)
            elif chosen and chosen != policy and finalizer in finalizers:
                finalizers.remove(finalizer)
        grace = kind.strategy.grace(item, wanted.get("gracePeriodSeconds"))
        marked = bool(meta.get("deletionTimestamp"))
        if marked:
            grace = min(grace, meta.get("deletionGracePeriodSeconds", 0))
        if not finalizers and grace == 0:
            return self._remove(kind, item, marked, options)
        if marked and finalizers == (meta.get("finalizers") or []) and grace == meta.get("deletionGracePeriodSeconds"):
            return kind.present(item)
        if finalizers:
            meta["finalizers"] = finalizers
        self._mark(kind, meta, grace, marked)
        if options.dry_run:
            return kind.present(item)
        return kind.present(self.store.put(kind.key, item))

    def _mark(self, kind: Kind, meta: Object, grace: int, marked: bool) -> None:
        if not marked:
            meta["deletionTimestamp"] = metadata.later(grace)
            if meta.get("generation"):
                meta["generation"] += 1
        meta["deletionGracePeriodSeconds"] = grace

    def _remove(self, kind: Kind, item: Object, marked: bool, options: Options) -> Object:
        meta = item["metadata"]
        uid = meta["uid"]
        if kind.strategy.returns_deleted:
            self._mark(kind, meta, 0, marked)
        if not options.dry_run:
            item = self.store.remove(kind.key, item)
        if kind.strategy.returns_deleted:
            return kind.present(item)
        return errors.success(kind.plural, kind.group, meta["name"], uid)

    def _preconditions(self, kind: Kind, item: Object, wanted: Object) -> None:
        meta = item["metadata"]
        for key, word in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            value = wanted.get(key)
            if value and value != meta[key]:
                text = (
                    f"the {word} in the precondition ({value}) does not match the {word} in record ({meta[key]}). The "
                    "object might have been " + ("deleted and then recreated" if key == "uid" else "modified")
                )
                raise errors.conflict(kind.kind, kind.group, meta["name"], text)

    def _delete_namespace(self, kind: Kind, item: Object, options: Options) -> Object:
        meta = item["metadata"]
        if meta["name"] in {"default", "kube-system", "kube-public"}:
            text = "this namespace may not be deleted"
            raise errors.forbidden("namespaces", "", meta["name"], text)
        if not meta.get("deletionTimestamp"):
            meta["deletionTimestamp"] = metadata.now()
            item["status"] = {**item["status"], "phase": "Terminating"}
            if not options.dry_run:
                item = self.store.put(kind.key, item)
        return item

    def _delete_definition(self, kind: Kind, item: Object, options: Options) -> Object:
        from raftkv_playground.apiserver.crd.definition import CLEANUP_FINALIZER

        meta = item["metadata"]
        if not meta.get("deletionTimestamp"):
            meta["deletionTimestamp"] = metadata.now()
            meta["finalizers"] = [*(meta.get("finalizers") or []), CLEANUP_FINALIZER]
            item["status"]["conditions"] = [
                *(item["status"].get("conditions") or []),
                {
                    "type": "Terminating",
                    "status": "True",
                    "lastTransitionTime": metadata.now(),
                    "reason": "InstanceDeletionPending",
                    "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
                },
            ]
            if not options.dry_run:
                item = self.store.put(kind.key, item)
        return item


def _same_but_times(new: Object, old: Object) -> bool:
    """Whether two states differ in nothing but the times in managedFields."""
    if any(new.get(k) != old.get(k) for k in new.keys() | old.keys() if k != "metadata"):
        return False
    return _timeless(new["metadata"]) == _timeless(old["metadata"])


def _timeless(meta: Object) -> Object:
    entries = [{k: v for k, v in e.items() if k != "time"} for e in meta.get("managedFields") or []]
    entries.sort(key=lambda e: (e["operation"], e["manager"], e.get("subresource", ""), e["apiVersion"]))
    return {**meta, "managedFields": entries}
