"""A pod's status from what happened to its containers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raftkv_playground.kubelet.process import Exit
from raftkv_playground.objects import Object, format_time, now, with_condition

MESSAGE_LIMIT_BYTES = 4096
"""Kubernetes' limit for a termination message."""


@dataclass(slots=True)
class ContainerState:
    """What a container's worker knows. ``state`` and ``last`` are the API's own shapes."""

    name: str
    image: str
    state: Object = field(default_factory=lambda: {"waiting": {"reason": "PodInitializing"}})
    last: Object = field(default_factory=dict)
    restarts: int = 0
    ready: bool = False
    started: bool = False
    container_id: str = ""

    @property
    def running(self) -> bool:
        return "running" in self.state

    @property
    def exit_code(self) -> int | None:
        """Of a container that has ended for good."""
        ended = self.state.get("terminated")
        return None if ended is None else int(ended["exitCode"])

    def api(self) -> Object:
        return {
            "name": self.name,
            "image": self.image,
            "imageID": self.image if self.container_id else "",
            "containerID": self.container_id,
            "state": self.state,
            "lastState": self.last,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
        }


def waiting(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason} | ({"message": message} if message else {})}


def running(started: str) -> Object:
    return {"running": {"startedAt": started}}


def terminated(ended: Exit, message: str, container_id: str, reason: str = "") -> Object:
    entry: Object = {
        "exitCode": ended.code,
        "reason": reason or ("Completed" if ended.code == 0 else "Error"),
        "startedAt": format_time(ended.started),
        "finishedAt": format_time(ended.finished),
        "containerID": container_id,
    }
    if ended.signal is not None:
        entry["signal"] = ended.signal
    if message:
        entry["message"] = message.encode()[:MESSAGE_LIMIT_BYTES].decode(errors="ignore")
    return {"terminated": entry}


def restarts(policy: str, exit_code: int) -> bool:
    """Whether a container that ended with ``exit_code`` is started again under the pod's restartPolicy."""
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


Phase = Literal["Pending", "Running", "Succeeded", "Failed"]


def phase_of(policy: str, initialized: bool, containers: Sequence[ContainerState]) -> Phase:
    """Kubernetes' rules: Running from the first start on, ended when every container has ended for good."""
    if not initialized:
        return "Pending"
    codes = [container.exit_code for container in containers]
    final = [code for code in codes if code is not None and not restarts(policy, code)]
    if containers and len(final) == len(containers):
        return "Succeeded" if all(code == 0 for code in final) else "Failed"
    begun = [c for c in containers if c.running or c.exit_code is not None or c.last]
    return "Running" if begun else "Pending"


@dataclass(slots=True)
class PodState:
    """All that a pod's worker knows."""

    init: list[ContainerState]
    containers: list[ContainerState]
    pod_ip: str = ""
    started: str = ""
    initialized: bool = False
    failed: tuple[str, str] | None = None
    """(reason, message) of a pod that was given up as a whole."""


def _not_ready_names(containers: Sequence[ContainerState]) -> str:
    return " ".join(container.name for container in containers if not container.ready)


def _conditions(pod: Mapping[str, Any], state: PodState, phase: Phase, before: Sequence[Object]) -> list[Object]:
    done = phase == "Succeeded"
    ready = state.initialized and phase == "Running" and all(container.ready for container in state.containers)
    why: Object = {}
    if not ready:
        names = _not_ready_names(state.containers)
        why = {"reason": "ContainersNotReady", "message": f"containers with unready status: [{names}]"}
        if done:
            why = {"reason": "PodCompleted"}
    pending = _not_ready_names(state.init)
    initialized: Object = {"type": "Initialized", "status": "True" if state.initialized else "False"}
    if not state.initialized:
        initialized |= {"reason": "ContainersNotInitialized",
                        "message": f"containers with incomplete status: [{pending}]"}  # fmt: skip
    truth = {True: "True", False: "False"}
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or []]
    passed = all(any(c["type"] == g and c["status"] == "True" for c in before) for g in gates)
    pod_why = why if not ready else {"reason": "ReadinessGatesNotReady"}
    result = list(before)
    for entry in (
        {"type": "PodReadyToStartContainers", "status": truth[bool(state.pod_ip)]},
        initialized,
        {"type": "Ready", "status": truth[ready and passed], **({} if ready and passed else pod_why)},
        {"type": "ContainersReady", "status": truth[ready], **why},
        {"type": "PodScheduled", "status": "True"},
    ):
        result = with_condition(result, entry)
    return result


def build_status(pod: Mapping[str, Any], state: PodState, host_ip: str) -> Object:
    """The pod's whole status; conditions of others are kept from ``pod``."""
    before = pod.get("status") or {}
    policy = pod["spec"].get("restartPolicy", "Always")
    phase = phase_of(policy, state.initialized, state.containers)
    status: Object = {"qosClass": before.get("qosClass") or "BestEffort"}
    if state.failed:
        phase = "Failed"
        status |= {"reason": state.failed[0], "message": state.failed[1]}
    elif phase == "Pending" and any(
        c.exit_code not in (None, 0) and policy == "Never" and not c.running for c in state.init
    ):
        phase = "Failed"
    status |= {
        "phase": phase,
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
        "startTime": state.started or before.get("startTime") or now(),
        "conditions": _conditions(pod, state, phase, before.get("conditions") or []),
        "containerStatuses": [container.api() for container in state.containers],
    }
    if state.pod_ip:
        status |= {"podIP": state.pod_ip, "podIPs": [{"ip": state.pod_ip}]}
    if state.init:
        status["initContainerStatuses"] = [container.api() for container in state.init]
    if "observedGeneration" in before or "generation" in pod["metadata"]:
        status["observedGeneration"] = pod["metadata"].get("generation", 1)
    return status
