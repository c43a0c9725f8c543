"""Subresources with a form of their own: scale, eviction, binding, and tokens of service accounts."""

from __future__ import annotations

import copy
import datetime
import json
from typing import Any

from aiohttp import web

from raftkv_playground.apiserver import errors, fields, patches
from raftkv_playground.apiserver.auth import (
    TOKEN_SECONDS_DEFAULT,
    TOKEN_SECONDS_LEAST,
    TOKEN_SECONDS_MOST,
    Authenticator,
)
from raftkv_playground.apiserver.crd.definition import value_at
from raftkv_playground.apiserver.errors import Failure, Object
from raftkv_playground.apiserver.kinds import Kind
from raftkv_playground.apiserver.metadata import now
from raftkv_playground.apiserver.proxy import Proxy
from raftkv_playground.apiserver.requests import Target, read_body
from raftkv_playground.apiserver.resources import Options, Resources
from raftkv_playground.apiserver.schema.shapes import builtin
from raftkv_playground.apiserver.selectors import match_selector, selector_text

_POD_KEY = ("", "pods")


def _set(item: Object, path: str, value: Any) -> None:
    *parents, last = path.strip(".").split(".")
    for key in parents:
        item = item.setdefault(key, {})
    item[last] = value


class Subresources:
    def __init__(self, resources: Resources, authenticator: Authenticator, proxy: Proxy) -> None:
        self._resources = resources
        self._authenticator = authenticator
        self._proxy = proxy

    def create(self, kind: Kind, target: Target, body: Object, options: Options) -> Object:
        """POST to eviction, binding or token."""
        match target.subresource:
            case "eviction":
                return self._evict(target, body, options)
            case "binding":
                body.setdefault("metadata", {})["name"] = target.name
                self.bind(target.namespace, body)
                return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
            case "token":
                return self._token(kind, target, body)
        raise errors.method_not_allowed()

    # --------------------------------------------------------------------------------------------------- scale

    def _show(self, kind: Kind, item: Object) -> Object:
        meta = item["metadata"]
        shown = {k: meta[k] for k in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp") if k in meta}
        if kind.custom is not None:
            paths = kind.custom.scale or {}
            replicas = value_at(item, paths["specReplicasPath"])
            status: Object = {"replicas": value_at(item, paths["statusReplicasPath"]) or 0}
            selector = value_at(item, paths["labelSelectorPath"]) if "labelSelectorPath" in paths else None
        else:
            replicas = item["spec"].get("replicas")
            status = {"replicas": (item.get("status") or {}).get("replicas", 0)}
            selector = selector_text(item["spec"].get("selector"))
        if selector:
            status["selector"] = selector
        spec = {"replicas": replicas} if replicas else {}
        return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": shown, "spec": spec, "status": status}

    async def scale(self, request: web.Request, kind: Kind, target: Target, options: Options) -> Object:
        """GET, PUT or PATCH of the scale subresource."""
        raw = await read_body(request)
        item = self._resources.get(kind, target.namespace, target.name)
        shown = self._show(kind, item)
        if request.method == "GET":
            return shown
        wanted = self._wanted_scale(request, raw, shown)
        version = (wanted.get("metadata") or {}).get("resourceVersion")
        if version and version != item["metadata"]["resourceVersion"]:
            raise errors.modified(kind.plural, kind.group, target.name)
        replicas = (wanted.get("spec") or {}).get("replicas", 0)
        if not isinstance(replicas, int) or isinstance(replicas, bool):
            raise errors.bad_request(
                'Scale in version "v1" cannot be handled as a Scale: json: cannot unmarshal '
                "into Go struct field ScaleSpec.spec.replicas of type int32"
            )
        path = (kind.custom.scale or {})["specReplicasPath"] if kind.custom else ".spec.replicas"

        def transform(old: Object) -> Object:
            new = copy.deepcopy(old)
            _set(new, path, replicas)
            return new

        changed = self._resources.update(kind, target.namespace, target.name, transform, "scale", options)
        return self._show(kind, changed)

    def _wanted_scale(self, request: web.Request, raw: bytes, shown: Object) -> Object:
        try:
            body = json.loads(raw)
        except ValueError as error:
            raise errors.bad_request(f"error decoding the body: {error}") from None
        if request.method == "PUT":
            return dict(body)
        match request.headers.get("Content-Type", "").partition(";")[0]:
            case "application/json-patch+json":
                return patches.json_patch(shown, body)
            case "application/merge-patch+json":
                return dict(patches.merge_patch(shown, body))
            case "application/strategic-merge-patch+json":
                return dict(patches.strategic_patch(shown, body, builtin("Scale")))
            case "application/apply-patch+yaml":
                return dict(fields.merge(shown, body, builtin("Scale")))
        raise errors.unsupported_media(
            [
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
                "application/apply-patch+yaml",
            ]
        )

    # ------------------------------------------------------------------------------------------ pods and tokens

    def bind(self, namespace: str, body: Object) -> None:
        """Put a pod on a node, as a scheduler does."""
        name, node = (body.get("metadata") or {}).get("name", ""), (body.get("target") or {}).get("name", "")
        kind = self._resources.registry.find("", "v1", "pods")
        assert kind is not None
        pod = self._resources.get(kind, namespace, name)
        if not node:
            raise errors.invalid("Binding", "", name, [errors.required("target.name")])
        if pod["spec"].get("nodeName"):
            text = f'pod {name} is already assigned to node "{pod["spec"]["nodeName"]}"'
            raise errors.conflict("pods/binding", "", name, text)
        if pod["metadata"].get("deletionTimestamp"):
            raise errors.conflict(
                "pods/binding", "", name, f"pod {name} is being deleted, cannot be assigned to a host"
            )
        if pod["spec"].get("schedulingGates"):
            raise errors.conflict("pods/binding", "", name, f"pod {name} has non-empty .spec.schedulingGates")
        bound = copy.deepcopy(pod)
        bound["spec"]["nodeName"] = node
        conditions = [c for c in bound["status"].get("conditions") or [] if c["type"] != "PodScheduled"]
        scheduled = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now()}
        bound["status"]["conditions"] = [*conditions, scheduled]
        self._resources.store.put(_POD_KEY, bound)

    def _evict(self, target: Target, body: Object, options: Options) -> Object:
        """Delete a pod unless a disruption budget forbids it now (429)."""
        kind = self._resources.registry.find("", "v1", "pods")
        assert kind is not None
        pod = self._resources.get(kind, target.namespace, target.name)
        budgets = [
            b
            for b in self._resources.store.scan(("policy", "poddisruptionbudgets"), target.namespace)
            if match_selector(b["spec"].get("selector"), pod["metadata"].get("labels"))
        ]
        settled = (pod.get("status") or {}).get("phase") in {"Pending", "Succeeded", "Failed"}
        if budgets and not settled and not pod["metadata"].get("deletionTimestamp"):
            if len(budgets) > 1:
                text = (
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
                )
                raise Failure(500, "InternalError", text)
            self._disrupt(budgets[0], target.name, options)
        self._resources.delete(kind, target.namespace, target.name, body.get("deleteOptions") or {}, options)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}

    def _disrupt(self, budget: Object, pod: str, options: Options) -> None:
        meta, status = budget["metadata"], budget.get("status") or {}
        behind = status.get("observedGeneration", 0) < meta.get("generation", 0)
        if behind or status.get("disruptionsAllowed", 0) <= 0:
            text = (
                f"The disruption budget {meta['name']} is still being processed by the server."
                if behind
                else f"The disruption budget {meta['name']} needs {status.get('desiredHealthy', 0)} healthy pods and "
                f"has {status.get('currentHealthy', 0)} currently"
            )
            raise Failure(
                429,
                "TooManyRequests",
                "Cannot evict pod as it would violate the pod's disruption budget.",
                {"causes": [{"reason": "DisruptionBudget", "message": text}]},
                {"Retry-After": "10"} if behind else None,
            )
        if options.dry_run:
            return
        updated = copy.deepcopy(budget)
        updated["status"]["disruptionsAllowed"] -= 1
        updated["status"].setdefault("disruptedPods", {})[pod] = now()
        self._resources.store.put(("policy", "poddisruptionbudgets"), updated)

    def _token(self, kind: Kind, target: Target, body: Object) -> Object:
        account = self._resources.get(kind, target.namespace, target.name)
        spec = dict(body.get("spec") or {})
        if spec.get("expirationSeconds") is None:
            spec["expirationSeconds"] = TOKEN_SECONDS_DEFAULT
        seconds = spec["expirationSeconds"]
        if not isinstance(seconds, int) or not TOKEN_SECONDS_LEAST <= seconds <= TOKEN_SECONDS_MOST:
            text = "may not specify a duration less than 10 minutes"
            field = errors.invalid_value("spec.expirationSeconds", seconds, text)
            raise errors.invalid("TokenRequest", "authentication.k8s.io", target.name, [field])
        if not spec.get("audiences"):
            spec["audiences"] = ["https://kubernetes.default.svc"]
        token, expires = self._authenticator.issue(target.namespace, account, seconds)
        when = datetime.datetime.fromtimestamp(expires, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": target.name, "namespace": target.namespace, "creationTimestamp": now()},
            "spec": spec,
            "status": {"token": token, "expirationTimestamp": when},
        }
