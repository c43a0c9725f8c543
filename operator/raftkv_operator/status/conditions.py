"""The status: a pure function from spec, observation and decision to what ``status`` should say.

``Ready``, ``Reconciling`` and ``Stalled`` are written as kstatus (and with it Helm and Flux) reads them: the object is
*current* only if ``observedGeneration`` is its generation, ``Ready`` is True and neither of the other two is. Nothing
that moves by itself (indexes, sizes, latencies) stands in the status, so that a cluster at rest causes no write at all;
those are metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from raftkv_operator.api import constants
from raftkv_operator.api.types import ClusterSpec, Object, hex_id
from raftkv_operator.observe.views import Configuration, NodePhase, Observed, PodView, Role, format_time

DURABILITY_ORDER: Final = ("process", "kernel", "power")
"""Levels from the weakest to the strongest (D12)."""

REFUSALS: Final[dict[int, tuple[str, str]]] = {
    constants.EXIT_ABSENT: ("LogBufferAbsent", "its log buffer or disk is missing"),
    constants.EXIT_PROVEN_LOST: ("LogBufferLost", "acknowledged entries of its log buffer are lost"),
    constants.EXIT_CORRUPT: ("LogBufferCorrupt", "its log buffer or disk is corrupt"),
    constants.EXIT_MISMATCH: ("LogBufferMismatch", "its log buffer and disk do not belong together"),
    constants.EXIT_DURABILITY: ("DurabilityTooWeak", "what it found is weaker than logBuffer.minimumDurability"),
}
"""Exit codes by which a node refuses to start: the condition's reason, and what to say if the node said nothing."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """The decision in the status' terms: what is under way, or why nothing is."""

    kind: str = ""
    text: str = ""
    member: str = ""
    stalled: bool = False
    rest: bool = False
    error: str = ""

    @property
    def reconciling(self) -> bool:
        """Whether something is still to come."""
        return not self.rest and not self.stalled


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition without its time."""

    type: str
    status: str
    reason: str
    message: str


def build_status(spec: ClusterSpec | None, seen: Observed, outlook: Outlook, old: Mapping[str, Any]) -> Object:
    """The whole status but ``identity`` (which is no report), with transition times carried over from the old one.

    ``spec`` is None if it could not even be read.
    """
    quorum = "Unknown" if spec is not None and spec.hibernates else quorum_word(seen, old)
    conf = seen.configuration
    asleep = spec is not None and spec.hibernates
    members = member_list(seen, old, asleep)
    ready_count = sum(1 for m in members if m["ready"])
    conditions = _conditions(spec, seen, outlook, quorum, members)
    status: Object = {
        "observedGeneration": seen.generation,
        "phase": _phase(seen, outlook, asleep),
        "message": _sentence(outlook, quorum, members, asleep),
        "replicas": len(members),
        "readyReplicas": ready_count,
        "selector": f"{constants.LABEL_MANAGED_BY}={constants.MANAGED_BY},{constants.LABEL_CLUSTER}={seen.name}",
        "quorum": quorum,
        "members": members,
        "conditions": [_timed(c, seen, old) for c in conditions],
    }
    if seen.latch is not None:
        status["clusterID"] = hex_id(seen.latch.cluster_id)
    if conf is not None:
        status["votingMembers"] = len(conf.voters)
        status["term"] = conf.term
    leader = hex_id(conf.leader_id) if conf is not None else None
    status["leader"] = next((m["name"] for m in members if leader and m.get("id") == leader), "")
    levels = [n.durability for n in seen.nodes.values() if n.durability in DURABILITY_ORDER]
    if levels:
        status["durability"] = min(levels, key=DURABILITY_ORDER.index)
    versions = sorted({n.version for n in seen.nodes.values() if n.version})
    if versions:
        status["version"] = ", ".join(versions)
    status["currentOperation"] = _operation(seen, outlook, old)
    return status


def changes(status: Mapping[str, Any], old: Mapping[str, Any]) -> Object:
    """The merge patch from the old status to the new one; empty if nothing has to be written."""
    return {key: value for key, value in status.items() if old.get(key) != value}


def quorum_word(seen: Observed, old: Mapping[str, Any]) -> str:
    """``Safe`` (one more voter may fail), ``Critical`` (none may), ``Lost`` (no quorum) or ``Unknown``."""
    conf = seen.configuration
    if conf is not None and conf.voters:
        spare = conf.live_voters - conf.quorum
        return "Lost" if spare < 0 else "Critical" if spare == 0 else "Safe"
    if seen.latch is None or seen.latch.phase != "Opened":
        return "Unknown"
    voters = [m for m in old.get("members", ()) if m.get("role") in ("Leader", "Voter")]
    reachable = {hex_id(n.member_id) for n in seen.nodes.values() if n.phase is NodePhase.OPENED}
    alive = sum(1 for m in voters if m.get("id") in reachable)
    return "Lost" if voters and alive < len(voters) // 2 + 1 else "Unknown"


def member_list(seen: Observed, old: Mapping[str, Any], asleep: bool) -> list[Object]:
    """The members in the order of their numbers, matched with the configuration by id.

    A member that was put to sleep is not missed: the patience with it begins when it is woken (M17).
    """
    before: dict[str, Mapping[str, Any]] = {m["name"]: m for m in old.get("members", ())}
    conf = seen.configuration
    found: list[Object] = []
    for entry in sorted(seen.latch.members if seen.latch else (), key=lambda e: e.number):
        name = f"{seen.name}-{entry.number}"
        pod, node = seen.pods.get(entry.number), seen.nodes.get(entry.number)
        ready = pod is not None and pod.ready and not pod.deleting
        state: Object = {"name": name, "number": entry.number, "ready": ready}
        if entry.bound:
            state["id"] = hex_id(entry.member_id)
        role = _role(conf, entry.member_id) if conf is not None else before.get(name, {}).get("role", "")
        if role:
            state["role"] = role
        if pod is not None and pod.host:
            state["host"] = pod.host
        if node is not None and node.version:
            state["version"] = node.version
        if node is not None and node.durability:
            state["durability"] = node.durability
            state["medium"] = node.medium
        reason = _trouble(seen, pod, entry.number) or entry.condemned
        if reason and not ready:
            state["reason"] = reason
        if not ready and not asleep:
            state["notReadySince"] = before.get(name, {}).get("notReadySince") or format_time(seen.now)
        found.append(state)
    return found


def _role(conf: Configuration, member_id: int) -> str:
    if member_id and member_id == conf.leader_id:
        return "Leader"
    member = conf.member(member_id)
    if member is None:
        return "Removed" if member_id in conf.removed else ""
    return {Role.VOTER: "Voter", Role.LEARNER: "Learner", Role.STANDBY: "Standby"}[member.role]


def _trouble(seen: Observed, pod: PodView | None, number: int) -> str:
    workload = seen.sets.get(number)
    if workload is not None and workload.halted:
        return workload.halted.partition(":")[0]
    if pod is not None and pod.exit_code:
        return REFUSALS.get(pod.exit_code, (f"Exit{pod.exit_code}", ""))[0]
    return ""


def _phase(seen: Observed, outlook: Outlook, asleep: bool) -> str:
    if seen.deleting_since is not None:
        return "Deleting"
    if outlook.kind == "Paused":
        return "Paused"
    if outlook.stalled:
        return "Stalled"
    if asleep:
        return "Hibernated" if outlook.rest else "Hibernating"
    if seen.latch is None or seen.latch.phase != "Opened":
        return "Bootstrapping"
    if outlook.rest:
        return "Running"
    if outlook.kind in ("Restart", "RestartMember", "UpdateStatefulSet"):
        return "Updating"
    if seen.latch.asleep:
        return "Waking"
    if outlook.kind in ("Recovery", "NoLeader", "CondemnMember", "Starting"):
        return "Recovering"
    return "Scaling"


def _sentence(outlook: Outlook, quorum: str, members: list[Object], asleep: bool) -> str:
    if outlook.error:
        return _upper(f"{outlook.text}: {outlook.error}" if outlook.text else outlook.error)
    if not outlook.rest:
        return _upper(outlook.text)
    if asleep:
        return f"Hibernated: no member runs, and the disks of {len(members)} are kept"
    plural = "member is" if len(members) == 1 else "members are"
    margin = {"Safe": "the quorum is safe", "Critical": "one more loss would cost the quorum"}.get(quorum, "")
    return f"All {len(members)} {plural} ready" + (f"; {margin}" if margin and len(members) > 1 else "")


def _operation(seen: Observed, outlook: Outlook, old: Mapping[str, Any]) -> Object | None:
    if outlook.rest or outlook.stalled or not outlook.kind:
        return None
    before = old.get("currentOperation") or {}
    same = (before.get("type"), before.get("member", "")) == (outlook.kind, outlook.member)
    started = before.get("startedAt") if same else None
    return {
        "type": outlook.kind,
        **({"member": outlook.member} if outlook.member else {}),
        "description": outlook.text,
        "startedAt": started or format_time(seen.now),
    }


def _conditions(
    spec: ClusterSpec | None, seen: Observed, outlook: Outlook, quorum: str, members: list[Object]
) -> Iterable[Condition]:
    asleep = spec is not None and spec.hibernates
    text = _sentence(outlook, quorum, members, asleep)
    yield (
        Condition("Ready", "True", "AsWished", text)
        if outlook.rest and not outlook.error
        else Condition("Ready", "False", "ReconcileError" if outlook.error else outlook.kind or "Unknown", text)
    )
    yield (
        Condition("Reconciling", "True", outlook.kind or "ReconcileError", text)
        if outlook.reconciling or outlook.error
        else Condition("Reconciling", "False", "Stalled" if outlook.stalled else "AsWished", "")
    )
    yield Condition("Stalled", "True", outlook.kind, text) if outlook.stalled else Condition("Stalled", "False", "", "")
    if asleep:
        yield Condition("Available", "False", "Hibernated", "spec.replicas is 0: no member is to run")
        yield Condition("Degraded", "False", "Hibernated", "")
    else:
        yield _available(seen, quorum)
        yield _degraded(seen, members)
    word = {"Safe": "True", "Unknown": "Unknown"}.get(quorum, "False")
    yield Condition("QuorumSafe", word, f"Quorum{quorum}", _quorum_text(seen.configuration))
    yield _log_buffer(spec, seen)
    yield _updated(seen)


def _available(seen: Observed, quorum: str) -> Condition:
    conf = seen.configuration
    if conf is not None and conf.settings.opened:
        return Condition("Available", "True", "LinearizableRead", "A linearizable read succeeds")
    if seen.latch is None or seen.latch.phase != "Opened" or conf is not None:
        return Condition("Available", "False", "NotOpened", "The cluster has not been opened to clients yet")
    if quorum == "Lost":
        return Condition("Available", "False", "QuorumLost", "Fewer voters than a quorum can be reached")
    return Condition("Available", "False", "NoLeader", "No leader has answered a linearizable read")


def _degraded(seen: Observed, members: list[Object]) -> Condition:
    if seen.latch is None or seen.latch.phase != "Opened":
        return Condition("Degraded", "False", "NotOpened", "")
    bad = [m["name"] for m in members if not m["ready"]]
    if bad:
        return Condition("Degraded", "True", "MembersNotReady", f"Not ready: {', '.join(bad)}")
    return Condition("Degraded", "False", "MembersReady", "")


def _quorum_text(conf: Configuration | None) -> str:
    if conf is None:
        return ""
    return f"{conf.live_voters} of {len(conf.voters)} voters answer, {conf.quorum} are needed"


def _log_buffer(spec: ClusterSpec | None, seen: Observed) -> Condition:
    for number, workload in sorted(seen.sets.items()):
        reason, _, text = workload.halted.partition(": ")
        if workload.halted and any(reason == known for known, _ in REFUSALS.values()):
            return Condition("LogBufferReady", "False", reason, f"{seen.name}-{number}: {text}")
    for number, pod in sorted(seen.pods.items()):
        if pod.exit_code in REFUSALS:
            reason, text = REFUSALS[pod.exit_code]
            return Condition("LogBufferReady", "False", reason, f"{seen.name}-{number}: {pod.exit_message or text}")
    known = {n: v for n, v in sorted(seen.nodes.items()) if v.durability}
    if spec is None or not known:
        return Condition("LogBufferReady", "Unknown", "NotObserved", "No node has said yet what it found")
    weakest = min((v.durability for v in known.values()), key=_rank)
    media = ", ".join(sorted({v.medium for v in known.values() if v.medium}))
    return Condition("LogBufferReady", "True", "Durable", f"An acknowledged write survives: {weakest} (on {media})")


def _rank(level: str) -> int:
    return DURABILITY_ORDER.index(level) if level in DURABILITY_ORDER else -1


def _updated(seen: Observed) -> Condition:
    old = [p.name for _, p in sorted(seen.pods.items()) if p.template and p.template != seen.template]
    if old:
        return Condition("MembersUpdated", "False", "RestartNeeded", f"Not restarted yet: {', '.join(old)}")
    return Condition("MembersUpdated", "True", "UpToDate", "")


def _timed(condition: Condition, seen: Observed, old: Mapping[str, Any]) -> Object:
    before: Mapping[str, Any] = next((c for c in old.get("conditions", ()) if c.get("type") == condition.type), {})
    same = before.get("status") == condition.status
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason or "None",
        "message": condition.message,
        "observedGeneration": seen.generation,
        "lastTransitionTime": before["lastTransitionTime"] if same else format_time(seen.now),
    }


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
