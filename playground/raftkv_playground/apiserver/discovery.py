"""Discovery: which groups, versions and resources there are, in the legacy and the aggregated form."""

from __future__ import annotations

from aiohttp import web

from raftkv_playground.apiserver.errors import Object, PlainNotFound
from raftkv_playground.apiserver.kinds import Kind, Registry
from raftkv_playground.apiserver.requests import respond

_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList"


def version(text: str) -> Object:
    """The ``/version`` document for a version such as ``v1.36.2``."""
    major, minor, *_ = text.removeprefix("v").split(".")
    return {
        "major": major,
        "minor": minor,
        "emulationMajor": major,
        "emulationMinor": minor,
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": str(int(minor) - 1),
        "gitVersion": text,
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "",
        "compiler": "gc",
        "platform": "linux/amd64",
    }


def _aggregated_version(request: web.Request) -> str | None:
    """The first aggregated form on the Accept header, if it stands before plain JSON."""
    for entry in request.headers.get("Accept", "").split(","):
        parts = {p.strip() for p in entry.split(";")}
        if "as=APIGroupDiscoveryList" in parts and "g=apidiscovery.k8s.io" in parts:
            for known in ("v2", "v2beta1"):
                if f"v={known}" in parts:
                    return known
        elif parts == {"application/json"}:
            return None
    return None


class Discovery:
    def __init__(self, registry: Registry, address: str) -> None:
        self._registry = registry
        self.address = address

    def api(self, request: web.Request) -> web.Response:
        if form := _aggregated_version(request):
            return self._aggregated([""], form)
        return respond(
            {
                "kind": "APIVersions",
                "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": self.address}],
            }
        )

    def apis(self, request: web.Request) -> web.Response:
        groups = [g for g in self._registry.groups() if g]
        if form := _aggregated_version(request):
            return self._aggregated(groups, form)
        documents = [self._group(g) for g in groups]
        return respond({"kind": "APIGroupList", "apiVersion": "v1", "groups": documents})

    def _group(self, group: str) -> Object:
        versions = [{"groupVersion": f"{group}/{v}", "version": v} for v in self._registry.groups()[group]]
        return {"name": group, "versions": versions, "preferredVersion": versions[0]}

    def group(self, group: str) -> web.Response:
        if not group or group not in self._registry.groups():
            raise PlainNotFound
        return respond({"kind": "APIGroup", "apiVersion": "v1", **self._group(group)})

    def resources(self, group: str, api_version: str) -> web.Response:
        kinds = [k for k in self._registry.all() if (k.group, k.version) == (group, api_version)]
        if not kinds:
            raise PlainNotFound
        body: Object = {"kind": "APIResourceList"}
        if group:
            body["apiVersion"] = "v1"
        body["groupVersion"] = kinds[0].api_version
        body["resources"] = [entry for kind in kinds for entry in _entries(kind)]
        return respond(body)

    def _aggregated(self, groups: list[str], form: str) -> web.Response:
        items = []
        for group in groups:
            versions = []
            for api_version in self._registry.groups()[group]:
                kinds = [k for k in self._registry.all() if (k.group, k.version) == (group, api_version)]
                resources = [_aggregated_entry(k) for k in kinds]
                versions.append({"version": api_version, "resources": resources, "freshness": "Current"})
            meta: Object = {"name": group} if group else {}
            meta["creationTimestamp"] = None
            items.append({"metadata": meta, "versions": versions})
        body = {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": f"apidiscovery.k8s.io/{form}",
            "metadata": {},
            "items": items,
        }
        return respond(body, media=_AGGREGATED.format(form))


def _entries(kind: Kind) -> list[Object]:
    entry: Object = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        entry["shortNames"] = list(kind.short_names)
    if kind.categories:
        entry["categories"] = list(kind.categories)
    if kind.stored:
        entry["storageVersionHash"] = kind.storage_hash
    entries = [entry]
    for sub in kind.subresources.values():
        below: Object = {"name": f"{kind.plural}/{sub.name}", "singularName": "", "namespaced": kind.namespaced}
        if sub.group is not None:
            below |= {"group": sub.group, "version": sub.version}
        entries.append({**below, "kind": sub.kind, "verbs": list(sub.verbs)})
    return entries


def _aggregated_entry(kind: Kind) -> Object:
    entry: Object = {
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        entry["shortNames"] = list(kind.short_names)
    if kind.categories:
        entry["categories"] = list(kind.categories)
    if kind.subresources:
        entry["subresources"] = [
            {
                "subresource": sub.name,
                "responseKind": {
                    "group": kind.group if sub.group is None else sub.group,
                    "version": sub.version or kind.version,
                    "kind": sub.kind,
                },
                "verbs": list(sub.verbs),
            }
            for sub in kind.subresources.values()
        ]
    return entry
