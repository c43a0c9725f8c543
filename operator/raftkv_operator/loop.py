"""The loop of one cluster: observe, decide, tell, act.

Theory of operation
-------------------
A pass looks at the cluster as the watches' cache shows it and asks the members. If that gives ``Rest`` and the status
already says so, the pass ends without a single request to the Kubernetes API. Anything else is decided again on a fresh
read of everything, and only what *that* says is told (status, Events) and done: one side effect, then the next pass.
So a stale cache can make the operator look twice, but never act.

Nothing is kept only in memory: what a pass needs to know of earlier ones is in the status (the latch, since when a
member has not been ready, since when an operation has been under way), on the objects, or in Raft's configuration. The
loop may be killed at any await and started anew, also while another one still runs: every side effect is conditional
on what was seen (resourceVersion, uid, configuration index) or idempotent.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from raftkv_operator import metrics
from raftkv_operator.act.executor import Executor, NameTakenError, NotNowError
from raftkv_operator.api.types import ClusterSpec, Latch, Names, Object
from raftkv_operator.decide import Action, Decision, Rest, Stall, Wait, decide
from raftkv_operator.decide.actions import WriteLatch
from raftkv_operator.observe.cache import Cache, Key
from raftkv_operator.observe.reader import Extras, Objects, observe
from raftkv_operator.observe.seams import (
    CLAIMS,
    CLUSTERS,
    EVENTS,
    PODS,
    SECRETS,
    STATEFUL_SETS,
    Kube,
    KubeError,
    MemberError,
    Members,
)
from raftkv_operator.observe.views import Observed, controller_uid
from raftkv_operator.observe.zones import Zones
from raftkv_operator.resources.common import Owner, selector_text
from raftkv_operator.resources.member import template_hash
from raftkv_operator.resources.shared import in_place, read_token, shared_objects
from raftkv_operator.status.conditions import Outlook, build_status, changes
from raftkv_operator.status.events import Event, event_object, transitions

log = logging.getLogger(__name__)

RESYNC_SECONDS: Final = 10.0
"""A cluster at rest is looked at this often, from the cache."""
REPAIR_SECONDS: Final = 600.0
"""And this often from the API, so that what no watch has shown (the Secret, an event that was lost) is put right."""
AWAITED_SECONDS: Final = 5.0
"""And this often while something is awaited, which a watch should show."""
PROGRESS_SECONDS: Final = 0.5
"""While something is awaited, the members are asked this often."""
ERROR_FIRST_SECONDS: Final = 0.5
ERROR_LIMIT_SECONDS: Final = 15.0
"""Failed passes are repeated after a doubling pause between these two."""

MembersFactory = Callable[[str], Members]
"""Gives the client of a cluster's members for its administration token."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What came of one pass."""

    decision: Decision | None
    pause_seconds: float
    gone: bool = False
    error: str = ""


@dataclass
class ClusterLoop:
    """The loop of one cluster; ``step`` is one pass. Not to be run twice at the same time."""

    key: Key
    kube: Kube
    members_for: MembersFactory
    cache: Cache | None = None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _token: str = ""
    _errors: int = 0
    _settled: Decision | None = None
    """What the last fresh read has come to, if that was no action."""
    _read_due: float = 0.0
    """When everything is to be read anew, whatever the cache shows."""
    _taken: frozenset[int] = frozenset()
    _last_words: str = ""
    _zones: Zones | None = None
    _known_drift: frozenset[str] = frozenset()
    """Shared objects that the cache shows as drifted and that a fresh read has found nothing to do about."""

    async def step(self) -> Pass:
        """One pass. Never raises for what the API or a member does; tells it instead."""
        started = time.monotonic()
        try:
            result = await self._step()
            self._errors = 0
        except (KubeError, MemberError) as error:
            result = self._failed("", str(error))
        except Exception as error:
            # A mistake of ours in one cluster must neither end its loop nor stay unseen.
            log.exception("%s/%s: pass failed", *self.key)
            result = self._failed("", repr(error))
        metrics.RECONCILE_SECONDS.observe(time.monotonic() - started)
        metrics.RECONCILES.labels(_result_name(result)).inc()
        return result

    async def _step(self) -> Pass:
        nothing_new = await self._nothing_new()
        if nothing_new is not None:
            return nothing_new
        objects = await self._fresh_objects()
        if objects is None:
            return Pass(None, RESYNC_SECONDS, gone=True)
        spec, seen = await self._observe(objects, fresh=True)
        self._settled = None
        if spec is None:
            return await self._tell_unreadable(objects, seen)
        decision = decide(spec, seen)
        told = await self._tell(spec, seen, objects.cluster.get("status") or {}, _outlook(decision))
        if isinstance(decision, Action):
            if told is None:
                return Pass(decision, 0.0)
            seen = told
            return await self._act(spec, seen, objects, decision)
        self._say(decision)
        self._settled = decision
        keep = AWAITED_SECONDS if _awaits(decision) else REPAIR_SECONDS * random.uniform(0.75, 1.0)
        self._read_due = time.monotonic() + keep
        self._known_drift = self._cached_drift(seen)
        return Pass(decision, _pause(decision))

    async def _nothing_new(self) -> Pass | None:
        """The pass on the cache: its result if that shows what the last fresh read has come to and the status says, so
        that there is nothing to read, to tell or to do."""
        cached = self._cached_objects()
        if cached is None or self._settled is None or time.monotonic() >= self._read_due:
            return None
        spec, seen = await self._observe(cached, fresh=False)
        drift = self._cached_drift(seen)
        news, self._known_drift = drift - self._known_drift, self._known_drift & drift
        if spec is None or news:
            return None
        decision, status = decide(spec, seen), cached.cluster.get("status") or {}
        if decision != self._settled or changes(build_status(spec, seen, _outlook(decision), status), status):
            return None
        self._show(spec, seen, status)
        return Pass(decision, _pause(decision))

    async def _act(self, spec: ClusterSpec, seen: Observed, objects: Objects, action: Action) -> Pass:
        self._say(action)
        started, result = time.monotonic(), "ok"
        try:
            await Executor(self.kube, self.members_for(self._token), spec, seen).run(action)
        except NameTakenError as error:
            self._taken |= {error.number}
            return Pass(action, 0.0)
        except NotNowError as error:
            result = "denied"
            wait = Wait(action.kind, f"waiting for leave, {action.describe()}: {error}", action.subject)
            await self._tell(spec, seen, objects.cluster.get("status") or {}, _outlook(wait))
            return Pass(wait, PROGRESS_SECONDS)
        except (KubeError, MemberError) as error:
            result = "conflict" if _conflict(error) else "error"
            if result == "conflict":
                # The decision was made on what is no longer so: look again, there is nothing to report.
                return Pass(action, PROGRESS_SECONDS)
            failed = self._failed(action.describe(), str(error))
            # The sentence is told only once it is not a passing failure, so that an election makes no noise.
            if self._errors > 3:
                outlook = Outlook(action.kind, action.describe(), action.subject, error=str(error))
                await self._tell(spec, seen, objects.cluster.get("status") or {}, outlook)
            return failed
        finally:
            metrics.ACTIONS.labels(action.kind, result).inc()
            metrics.ACTION_SECONDS.labels(action.kind).observe(time.monotonic() - started)
        if isinstance(action, WriteLatch) and action.step == "CondemnMember":
            entry = next(e for e in action.latch.members if Names(*self.key).member(e.number) == action.member)
            metrics.REPLACEMENTS.labels(entry.condemned).inc()
        if action.event or action.kind in _LATCH_EVENTS:
            reason, warning = _LATCH_EVENTS.get(action.kind, (action.event, action.warning))
            await self._record(Event(reason, _sentence(action.describe()), warning), seen)
        return Pass(action, 0.0)

    # --- reading ---

    def _cached_objects(self) -> Objects | None:
        if self.cache is None:
            return None
        cluster = self.cache.cluster(self.key)
        if cluster is None:
            return None
        return Objects(cluster, *(self.cache.children(self.key, r) for r in (STATEFUL_SETS, PODS, CLAIMS)))

    def _cached_drift(self, seen: Observed) -> frozenset[str]:
        """Shared objects that according to their watches are missing or differ: a reason to look, never to act."""
        if self.cache is None or seen.latch is None:
            return frozenset()
        owner = Owner(Names(*self.key), seen.uid, seen.latch.cluster_id)
        watched = [one for one in shared_objects(owner, "") if one.resource is not SECRETS]
        return frozenset(
            one.key for one in watched if not in_place(self.cache.child(self.key, one.resource, one.name), one)
        )

    async def _fresh_objects(self) -> Objects | None:
        namespace, name = self.key
        # The children first: whatever the custom resource latches after this was not there yet when they were listed.
        text = selector_text(name)
        sets = await self.kube.select(STATEFUL_SETS, namespace, text)
        pods = await self.kube.select(PODS, namespace, text)
        claims = await self.kube.select(CLAIMS, namespace, text)
        cluster = await self.kube.get(CLUSTERS, namespace, name)
        return Objects(cluster, sets, pods, claims) if cluster is not None else None

    async def _observe(self, objects: Objects, *, fresh: bool) -> tuple[ClusterSpec | None, Observed]:
        spec: ClusterSpec | None
        try:
            spec = ClusterSpec.parse(objects.cluster["spec"])
        except (KeyError, TypeError, ValueError):
            spec = None
        if self._zones is None:
            self._zones = Zones(self.kube)
        zones = await self._zones.of(host for host in map(_host, objects.pods) if host)
        extras = Extras(
            template=template_hash(spec) if spec is not None else "", taken_numbers=self._taken, zones=zones
        )
        if fresh and spec is not None:
            extras = await self._extras(objects.cluster, extras)
        members = self.members_for(self._token) if self._token else None
        return spec, await observe(objects, members, self.clock(), extras)

    async def _extras(self, cluster: Object, extras: Extras) -> Extras:
        """Looks at the shared objects; takes the token from the Secret on the way."""
        bare = await observe(Objects(cluster, [], [], []), None, self.clock(), extras)
        if bare.latch is None:
            return extras
        owner = Owner(Names(*self.key), bare.uid, bare.latch.cluster_id)
        drift: list[str] = []
        ours: list[str] = []
        conflict = ""
        for wished in shared_objects(owner, ""):
            actual = await self.kube.get(wished.resource, self.key[0], wished.name)
            if actual is not None and controller_uid(actual) != bare.uid:
                conflict = conflict or f"{wished.key} exists and belongs to another owner"
                continue
            if actual is not None:
                ours.append(wished.key)
                if wished.resource is SECRETS:
                    self._token = read_token(actual)
            if not in_place(actual, wished):
                drift.append(wished.key)
        deleting = bare.deleting_since is not None
        return Extras(
            template=extras.template,
            drift=() if deleting else tuple(drift),
            shared=tuple(ours) if deleting else (),
            taken_numbers=extras.taken_numbers,
            name_conflict="" if deleting else conflict,
            zones=extras.zones,
        )

    # --- telling ---

    async def _tell(
        self, spec: ClusterSpec | None, seen: Observed, old: Mapping[str, Any], outlook: Outlook
    ) -> Observed | None:
        """Writes what has changed in the status, and the Events that the change is worth.

        The answer to that write is as good as a fresh read: it gives the resourceVersion for a compare-and-swap, but
        only if latch, spec and deletion are still those that the decision was made on. None if they are not.
        """
        status = build_status(spec, seen, outlook, old)
        if spec is not None:
            self._show(spec, seen, {**old, **status})
        patch = changes(status, old)
        if not patch:
            return seen
        namespace, name = self.key
        try:
            answer = await self.kube.merge(CLUSTERS, namespace, name, {"status": patch}, "status")
        except KubeError as error:
            if error.code == 404:
                return None
            raise
        for event in transitions(status, old):
            await self._record(event, seen)
        meta = answer["metadata"]
        same = (
            meta["uid"] == seen.uid
            and int(meta.get("generation", 1)) == seen.generation
            and ("deletionTimestamp" in meta) == (seen.deleting_since is not None)
            and Latch.parse(answer.get("status") or {}) == seen.latch
        )
        return replace(seen, resource_version=meta["resourceVersion"], has_status=True) if same else None

    async def _tell_unreadable(self, objects: Objects, seen: Observed) -> Pass:
        decision = Stall("InvalidSpec", "the spec cannot be read: apply this version's CRD, then this object again")
        await self._tell(None, seen, objects.cluster.get("status") or {}, _outlook(decision))
        return Pass(decision, RESYNC_SECONDS)

    async def _record(self, event: Event, seen: Observed) -> None:
        """Leaves an Event; that it cannot be left is no reason to stop."""
        try:
            await self.kube.create(EVENTS, seen.namespace, event_object(event, seen, seen.now))
        except KubeError as error:
            if error.code != 409:
                log.warning("%s/%s: event %s not recorded: %s", *self.key, event.reason, error)

    def _say(self, decision: Decision) -> None:
        words = "as wished" if isinstance(decision, Rest) else decision.describe()
        if words != self._last_words:
            log.info("%s/%s: %s", *self.key, words)
            self._last_words = words

    def _show(self, spec: ClusterSpec, seen: Observed, status: Mapping[str, Any]) -> None:
        conf = seen.configuration
        margin = conf.live_voters - conf.quorum if conf is not None else -1
        metrics.cluster_seen(*self.key, status, spec_replicas=spec.replicas, generation=seen.generation, margin=margin)

    def _failed(self, doing: str, error: str) -> Pass:
        self._errors += 1
        words = f"{doing}: {error}" if doing else error
        level = logging.WARNING if self._errors > 3 else logging.INFO
        log.log(level, "%s/%s: %s", *self.key, words)
        pause = min(ERROR_FIRST_SECONDS * 2 ** (self._errors - 1), ERROR_LIMIT_SECONDS)
        return Pass(None, pause, error=words)


_LATCH_EVENTS: Final[dict[str, tuple[str, bool]]] = {
    "IssueIdentity": ("ClusterCreated", False),
    "AdoptIdentity": ("ClusterAdopted", False),
    "OpenCluster": ("ClusterOpened", False),
    "Hibernate": ("ClusterHibernates", False),
    "Wake": ("ClusterAwake", False),
    "CondemnMember": ("ReplacingMember", True),
}


def _host(pod: Object) -> str:
    """The node that a pod is bound to; empty if it is not."""
    return (pod.get("spec") or {}).get("nodeName") or ""


def _outlook(decision: Decision) -> Outlook:
    if isinstance(decision, Rest):
        return Outlook(rest=True)
    if isinstance(decision, Stall):
        return Outlook(decision.reason, decision.text, stalled=True)
    if isinstance(decision, Wait):
        return Outlook(decision.kind, decision.text, decision.member)
    return Outlook(decision.kind, decision.describe(), decision.subject)


def _awaits(decision: Decision) -> bool:
    """Whether something is under way that the operator looks out for."""
    return isinstance(decision, Wait) and decision.kind != "Paused"


def _pause(decision: Decision) -> float:
    """Seconds until the next pass after one without an action."""
    return PROGRESS_SECONDS if _awaits(decision) else RESYNC_SECONDS


def _conflict(error: KubeError | MemberError) -> bool:
    if isinstance(error, MemberError):
        return error.code == "ABORTED"
    return error.code in (409, 422)


def _result_name(result: Pass) -> str:
    if result.error:
        return "error"
    return type(result.decision).__name__.lower() if isinstance(result.decision, Rest | Wait | Stall) else "action"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
