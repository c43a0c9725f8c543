"""StatefulSets: pods with names, claims and an order.

``plan`` is a pure function from what was observed to what is to be done next, and to the status. The rules are those
of Kubernetes' own controller:

* ``OrderedReady`` does one thing at a time and only past pods that run and are ready; ``Parallel`` does all at once.
* Pods of ordinals outside the range go, highest first.
* ``RollingUpdate`` deletes, highest ordinal first and down to ``partition``, one pod of an old revision at a time, and
  waits until it is back; ``OnDelete`` leaves pods alone, and a pod that comes back has the new revision.
* A pod that ended (``Failed`` or ``Succeeded``) is deleted, so that it is created anew.
* Claims are made from the templates before the pod, and never changed. ``persistentVolumeClaimRetentionPolicy`` works
  through owner references on them: to the set (``whenDeleted``), or to a pod that is going (``whenScaled``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raftkv_playground import client as api
from raftkv_playground.controllers import revisions as history
from raftkv_playground.controllers.actions import Action, Create, Delete, Patch, Record, Replace
from raftkv_playground.controllers.runtime import Controller, Informers
from raftkv_playground.objects import (
    Key,
    Object,
    age_seconds,
    condition,
    controlled_by,
    controller_of,
    deleting,
    edited,
    labels_of,
    owner_reference,
    pod_available,
    pod_finished,
    pod_ready,
    selector_matches,
    status_of,
    uid_of,
)

_ORDINAL = re.compile(r"(.*)-(\d+)")


@dataclass(slots=True)
class Plan:
    """``actions`` in order, then ``status`` if it differs from the stored one; look again after ``again_seconds``."""

    actions: list[Action] = field(default_factory=list)
    status: Object = field(default_factory=dict)
    again_seconds: float | None = None


@dataclass(slots=True)
class Observed:
    """One StatefulSet and what belongs to it: ``pods`` and ``revisions`` it controls, ``claims`` of its namespace by
    name, and ``orphans``, pods without a controller that its selector matches."""

    set: Object
    pods: Sequence[Object]
    revisions: Sequence[Object]
    claims: Mapping[str, Object]
    orphans: Sequence[Object] = ()


def ordinal_of(pod: Mapping[str, Any], set_name: str) -> int | None:
    """The number in the pod's name, if it is one of ``set_name``'s names."""
    match = _ORDINAL.fullmatch(pod["metadata"]["name"])
    return int(match[2]) if match and match[1] == set_name else None


def claim_names(statefulset: Mapping[str, Any], ordinal: int) -> dict[str, str]:
    """The claim of each volumeClaimTemplate, by volume name: ``<template>-<set>-<ordinal>``."""
    set_name = statefulset["metadata"]["name"]
    templates = statefulset["spec"].get("volumeClaimTemplates") or []
    return {t["metadata"]["name"]: f"{t['metadata']['name']}-{set_name}-{ordinal}" for t in templates}


def build_pod(statefulset: Mapping[str, Any], template: Mapping[str, Any], ordinal: int, revision: str) -> Object:
    """The pod of an ordinal, with its identity: name, labels, host name, subdomain, claims, owner."""
    name = f"{statefulset['metadata']['name']}-{ordinal}"
    source = template.get("metadata") or {}
    spec = edited(template["spec"])
    names = claim_names(statefulset, ordinal)
    volumes = [volume for volume in spec.get("volumes") or [] if volume["name"] not in names]
    volumes += [{"name": volume, "persistentVolumeClaim": {"claimName": claim}} for volume, claim in names.items()]
    if volumes:
        spec["volumes"] = volumes
    spec["hostname"] = name
    if service := statefulset["spec"].get("serviceName"):
        spec["subdomain"] = service
    metadata: Object = {
        "name": name,
        "generateName": f"{statefulset['metadata']['name']}-",
        "namespace": statefulset["metadata"]["namespace"],
        "labels": {
            **(source.get("labels") or {}),
            "statefulset.kubernetes.io/pod-name": name,
            "apps.kubernetes.io/pod-index": str(ordinal),
            "controller-revision-hash": revision,
        },
        "ownerReferences": [owner_reference(statefulset)],
    }
    if source.get("annotations"):
        metadata["annotations"] = dict(source["annotations"])
    return {"metadata": metadata, "spec": spec}


def build_claim(statefulset: Mapping[str, Any], template: Mapping[str, Any], ordinal: int) -> Object:
    metadata = template["metadata"]
    set_name = statefulset["metadata"]["name"]
    labels = {
        **(metadata.get("labels") or {}),
        **((statefulset["spec"].get("selector") or {}).get("matchLabels") or {}),
    }
    body: Object = {
        "metadata": {
            "name": f"{metadata['name']}-{set_name}-{ordinal}",
            "namespace": statefulset["metadata"]["namespace"],
            "labels": labels,
        },
        "spec": edited(template["spec"]),
    }
    if metadata.get("annotations"):
        body["metadata"]["annotations"] = dict(metadata["annotations"])
    if retention(statefulset)[0] == "Delete":
        body["metadata"]["ownerReferences"] = [owner_reference(statefulset, block=False)]
    return body


def retention(statefulset: Mapping[str, Any]) -> tuple[str, str]:
    """(whenDeleted, whenScaled), each ``Retain`` or ``Delete``."""
    policy = statefulset["spec"].get("persistentVolumeClaimRetentionPolicy") or {}
    return policy.get("whenDeleted", "Retain"), policy.get("whenScaled", "Retain")


def _created(pod: Object) -> bool:
    return bool(status_of(pod).get("phase"))


def _healthy(pod: Object) -> bool:
    return pod_ready(pod) and not deleting(pod)


class _Planner:
    """One run of ``plan``; a class only so that its steps can share what was looked up once."""

    def __init__(self, seen: Observed) -> None:
        self.seen = seen
        self.set = seen.set
        self.spec = seen.set["spec"]
        self.name = seen.set["metadata"]["name"]
        self.namespace = seen.set["metadata"]["namespace"]
        self.ordered = self.spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady"
        self.replicas = int(self.spec.get("replicas", 1))
        self.first = int((self.spec.get("ordinals") or {}).get("start", 0))
        self.minimum_ready = float(self.spec.get("minReadySeconds") or 0)
        self.plan = Plan()
        self.pods: dict[int, Object] = {}
        for pod in seen.pods:
            ordinal = ordinal_of(pod, self.name)
            if ordinal is not None:
                self.pods[ordinal] = pod
        self._find_revisions()

    # -- revisions

    def _find_revisions(self) -> None:
        known = history.ordered(self.seen.revisions)
        number = known[-1]["revision"] + 1 if known else 1
        self.collisions = int(status_of(self.set).get("collisionCount") or 0)
        equal = [item for item in known if history.same_template(item, self.set)]
        if equal:
            self.update = equal[-1]
            if self.update is not known[-1]:
                # An older template came back: its revision becomes the newest again.
                self.update = {**self.update, "revision": number}
                self.plan.actions.append(Replace(api.CONTROLLER_REVISIONS, self.update))
        else:
            self.update = history.build(self.set, number, self.collisions)
            while any(item["metadata"]["name"] == self.update["metadata"]["name"] for item in known):
                self.collisions += 1
                self.update = history.build(self.set, number, self.collisions)
            self.plan.actions.append(Create(api.CONTROLLER_REVISIONS, self.update))
        self.update_name = self.update["metadata"]["name"]
        current_name = status_of(self.set).get("currentRevision") or self.update_name
        by_name = {item["metadata"]["name"]: item for item in known}
        self.current = by_name.get(current_name, self.update)
        self.current_name = self.current["metadata"]["name"]

    def _template_for(self, ordinal: int) -> tuple[Object, str]:
        """A pod below the partition of a rolling update comes back as it was; every other one is made new."""
        strategy = self.spec.get("updateStrategy") or {}
        rolling = strategy.get("rollingUpdate") or {}
        if strategy.get("type", "RollingUpdate") == "RollingUpdate":
            partition = int(rolling.get("partition") or 0)
            if ordinal < self.first + partition:
                return self.current["data"]["spec"]["template"], self.current_name
        return self.spec["template"], self.update_name

    # -- steps

    def _ensure_claims(self, ordinal: int) -> None:
        for template in self.spec.get("volumeClaimTemplates") or []:
            body = build_claim(self.set, template, ordinal)
            name = body["metadata"]["name"]
            if name not in self.seen.claims:
                message = f"create Claim {name} Pod {self.name}-{ordinal} in StatefulSet {self.name} success"
                self.plan.actions += [
                    Create(api.PERSISTENT_VOLUME_CLAIMS, body),
                    Record(self.set, "Normal", "SuccessfulCreate", message),
                ]

    def _create(self, ordinal: int) -> None:
        self._ensure_claims(ordinal)
        template, revision = self._template_for(ordinal)
        body = build_pod(self.set, template, ordinal, revision)
        message = f"create Pod {body['metadata']['name']} in StatefulSet {self.name} successful"
        self.plan.actions += [Create(api.PODS, body), Record(self.set, "Normal", "SuccessfulCreate", message)]

    def _delete(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        message = f"delete Pod {name} in StatefulSet {self.name} successful"
        self.plan.actions += [
            Delete(api.PODS, self.namespace, name, uid_of(pod)),
            Record(self.set, "Normal", "SuccessfulDelete", message),
        ]

    def _fill(self) -> bool:
        """Create what is missing. True if the next step must wait."""
        for ordinal in range(self.first, self.first + self.replicas):
            pod = self.pods.get(ordinal)
            if pod is None:
                self._create(ordinal)
                if self.ordered:
                    return True
            elif pod_finished(pod) and not deleting(pod):
                message = f"StatefulSet {self.namespace}/{self.name} is recreating failed Pod {pod['metadata']['name']}"
                self.plan.actions.append(Record(self.set, "Warning", "RecreatingFailedPod", message))
                self._delete(pod)
                if self.ordered:
                    return True
            elif self.ordered and (deleting(pod) or not self._available(pod)):
                return True
        return False

    def _available(self, pod: Object) -> bool:
        if not pod_ready(pod):
            return False
        if not pod_available(pod, self.minimum_ready):
            since = (condition(pod, "Ready") or {}).get("lastTransitionTime")
            self.plan.again_seconds = max(0.1, self.minimum_ready - age_seconds(since))
            return False
        return True

    def _shrink(self) -> bool:
        """Remove what is outside the range, highest first. True if the next step must wait."""
        condemned = sorted((n for n in self.pods if not self.first <= n < self.first + self.replicas), reverse=True)
        for ordinal in condemned:
            pod = self.pods[ordinal]
            if deleting(pod):
                if self.ordered:
                    return True
                continue
            if retention(self.set)[1] == "Delete":
                self._hand_claims_to(pod, ordinal)
            self._delete(pod)
            if self.ordered:
                return True
        return bool(condemned)

    def _hand_claims_to(self, pod: Object, ordinal: int) -> None:
        """``whenScaled: Delete``: the claims go with the pod that is going."""
        for name in claim_names(self.set, ordinal).values():
            claim = self.seen.claims.get(name)
            if claim is not None and not any(r["uid"] == uid_of(pod) for r in _owners(claim)):
                body = edited(claim)
                body["metadata"]["ownerReferences"] = [
                    *(r for r in _owners(claim) if r["uid"] != uid_of(self.set)),
                    owner_reference({"apiVersion": "v1", "kind": "Pod", **pod}, block=False, controller=False),
                ]
                self.plan.actions.append(Replace(api.PERSISTENT_VOLUME_CLAIMS, body))

    def _roll(self) -> None:
        strategy = self.spec.get("updateStrategy") or {}
        if strategy.get("type", "RollingUpdate") != "RollingUpdate":
            return
        partition = int((strategy.get("rollingUpdate") or {}).get("partition") or 0)
        for ordinal in range(self.first + self.replicas - 1, self.first + partition - 1, -1):
            pod = self.pods.get(ordinal)
            if pod is None or pod_finished(pod):
                return  # it is made anew first
            if history.pod_revision(pod) != self.update_name and not deleting(pod):
                self._delete(pod)
                return
            if deleting(pod) or not self._available(pod):
                return

    def _keep_claims_owned(self) -> None:
        """Owner references of the claims follow ``whenDeleted``; a claim whose pod is wanted again leaves its pod."""
        wanted = retention(self.set)[0] == "Delete"
        for ordinal in range(self.first, self.first + self.replicas):
            for name in claim_names(self.set, ordinal).values():
                claim = self.seen.claims.get(name)
                if claim is None or deleting(claim):
                    continue
                kept = [r for r in _owners(claim) if r["uid"] != uid_of(self.set) and not self._is_own_pod(r, ordinal)]
                owners = [*kept, owner_reference(self.set, block=False)] if wanted else kept
                if {r["uid"] for r in owners} != {r["uid"] for r in _owners(claim)}:
                    body = edited(claim)
                    body["metadata"]["ownerReferences"] = owners
                    self.plan.actions.append(Replace(api.PERSISTENT_VOLUME_CLAIMS, body))

    def _is_own_pod(self, reference: Object, ordinal: int) -> bool:
        return bool(reference["kind"] == "Pod" and reference["name"] == f"{self.name}-{ordinal}")

    def _adopt(self) -> None:
        for pod in self.seen.orphans:
            if ordinal_of(pod, self.name) is not None and not deleting(pod):
                patch = {
                    "metadata": {"uid": uid_of(pod), "ownerReferences": [owner_reference(self.set)]},
                }
                self.plan.actions.append(Patch(api.PODS, self.namespace, pod["metadata"]["name"], patch, "strategic"))

    # -- status

    def _status(self) -> Object:
        pods = [pod for pod in self.pods.values() if _created(pod)]
        live = [pod for pod in pods if not deleting(pod)]
        old = status_of(self.set)
        status: Object = {
            "observedGeneration": self.set["metadata"].get("generation", 1),
            "replicas": len(pods),
            "readyReplicas": sum(map(pod_ready, pods)),
            "availableReplicas": sum(pod_available(pod, self.minimum_ready) for pod in pods),
            "currentReplicas": sum(history.pod_revision(pod) == self.current_name for pod in live),
            "updatedReplicas": sum(history.pod_revision(pod) == self.update_name for pod in live),
            "currentRevision": self.current_name,
            "updateRevision": self.update_name,
            "collisionCount": self.collisions,
        }
        strategy = (self.spec.get("updateStrategy") or {}).get("type", "RollingUpdate")
        rolled = status["updatedReplicas"] == status["replicas"] == status["readyReplicas"]
        if strategy == "RollingUpdate" and rolled:
            # Only a rolling update ends by itself: with OnDelete the current revision stays as it was.
            status["currentRevision"] = self.update_name
            status["currentReplicas"] = status["updatedReplicas"]
        if old.get("conditions"):
            status["conditions"] = old["conditions"]
        # As the real API leaves out what is zero, except the required and the pointer fields.
        for name in ("readyReplicas", "currentReplicas", "updatedReplicas"):
            if not status[name]:
                del status[name]
        return status

    def run(self) -> Plan:
        self.plan.status = self._status()
        if deleting(self.set):
            self.plan.actions = []
            return self.plan
        self._adopt()
        self._keep_claims_owned()
        wait = self._fill()
        if not (wait and self.ordered) and not self._shrink():
            self._roll()
        used = {self.update_name, self.current_name, *(history.pod_revision(pod) for pod in self.pods.values())}
        for revision in history.unused(self.seen.revisions, used, self.spec.get("revisionHistoryLimit")):
            name = revision["metadata"]["name"]
            self.plan.actions.append(Delete(api.CONTROLLER_REVISIONS, self.namespace, name, uid_of(revision)))
        return self.plan


def _owners(item: Object) -> list[Object]:
    return item["metadata"].get("ownerReferences") or []


def plan(seen: Observed) -> Plan:
    """What to do next for one StatefulSet. Pure."""
    return _Planner(seen).run()


class StatefulSetController(Controller):
    name = "statefulset-controller"
    primary = api.STATEFUL_SETS

    def __init__(self, client: api.ApiClient, informers: Informers) -> None:
        super().__init__(client, informers)
        self.trigger(api.PODS, self.keys_of_owned)
        self.trigger(api.PERSISTENT_VOLUME_CLAIMS, self._sets_of_claim)
        self.trigger(api.CONTROLLER_REVISIONS, self.keys_of_owned)

    def _sets_of_claim(self, claim: Object) -> list[Key]:
        namespace, name = claim["metadata"]["namespace"], claim["metadata"]["name"]
        return [key for key in self.store(api.STATEFUL_SETS) if key[0] == namespace and f"-{key[1]}-" in name]

    def observe(self, statefulset: Object) -> Observed:
        namespace = statefulset["metadata"]["namespace"]
        pods = [pod for key, pod in self.store(api.PODS).items() if key[0] == namespace]
        return Observed(
            set=statefulset,
            pods=[pod for pod in pods if controlled_by(pod, statefulset)],
            orphans=[
                pod
                for pod in pods
                if controller_of(pod) is None and selector_matches(statefulset["spec"].get("selector"), labels_of(pod))
            ],
            revisions=[
                item
                for key, item in self.store(api.CONTROLLER_REVISIONS).items()
                if key[0] == namespace and controlled_by(item, statefulset)
            ],
            claims={
                key[1]: claim for key, claim in self.store(api.PERSISTENT_VOLUME_CLAIMS).items() if key[0] == namespace
            },
        )

    async def sync(self, key: Key) -> float | None:
        statefulset = self.store(api.STATEFUL_SETS).get(key)
        if statefulset is None:
            return None
        statefulset = {"apiVersion": "apps/v1", "kind": "StatefulSet", **statefulset}
        result = plan(self.observe(statefulset))
        await self.perform(result.actions)
        if result.status != status_of(statefulset):
            body = {**statefulset, "status": result.status}
            await self.client.replace(api.STATEFUL_SETS, body, subresource="status")
        return result.again_seconds
