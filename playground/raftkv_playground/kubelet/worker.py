"""The life of one pod on its node.

Volumes, address, init containers one after the other (those with ``restartPolicy: Always`` stay as sidecars), then
all containers side by side. When the pod is deleted, every container is stopped within the grace period, its last
status is written, and the object is removed from the API, which is the sign that nothing of it runs any more. Status
is written by one task per pod from the state of the moment, so that writes cannot overtake each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from raftkv_playground import client as api
from raftkv_playground.client import ApiClient, ApiError, Backoff
from raftkv_playground.events import EventRecorder
from raftkv_playground.janitor import MARKER
from raftkv_playground.kubelet.addresses import AddressPool
from raftkv_playground.kubelet.container import DEFAULT_TERMINATION_PATH, Container, Settings
from raftkv_playground.kubelet.images import Image
from raftkv_playground.kubelet.logs import NOTE_SECONDS, LogKeeper
from raftkv_playground.kubelet.plan import (
    PodContext,
    ProcessPlan,
    Sources,
    needed_sources,
    plan_container,
    source_data,
)
from raftkv_playground.kubelet.resolve import Resolver
from raftkv_playground.kubelet.status import ContainerState, PodState, build_status
from raftkv_playground.kubelet.volumes import MountError, VolumeMounter
from raftkv_playground.objects import Object, deleting, now, pod_finished, pod_ready, status_of, uid_of

log = logging.getLogger(__name__)

MOUNT_RETRY_SECONDS = 1.0
REFRESH_SECONDS = 20.0
"""How often ConfigMap, Secret and projected volumes of running pods are written anew."""
DEFAULT_GRACE_SECONDS = 30.0
FORCED_GRACE_SECONDS = 2.0
"""Time to end for a pod whose object is gone already."""
TOKEN_SECONDS = 30 * 24 * 3600
SERVICE_ACCOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
LOST_EXIT_CODE = 137
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(slots=True)
class NodeServices:
    """What the pods of one node share."""

    client: ApiClient
    events: EventRecorder
    mounter: VolumeMounter
    addresses: AddressPool
    resolver: Resolver
    images: Mapping[str, Image]
    settings: Settings
    node: str
    host_ip: str
    pods_dir: Path
    ca_certificate: str
    allocatable: Mapping[str, str]
    marker: str


class PodWorker:
    """One pod. ``update`` tells it of changes, ``run`` is its life."""

    def __init__(self, kubelet: NodeServices, pod: Object) -> None:
        self.kubelet = kubelet
        self.pod = {"apiVersion": "v1", "kind": "Pod", **pod}
        metadata = pod["metadata"]
        self.uid = uid_of(pod)
        self.namespace, self.name = str(metadata["namespace"]), str(metadata["name"])
        self.label = f"{self.name}_{self.namespace}({self.uid})"
        self.directory = kubelet.pods_dir / self.uid
        self.logs = LogKeeper(self.directory / "logs")
        self.state = PodState(
            init=[_fresh(container) for container in pod["spec"].get("initContainers") or []],
            containers=[_fresh(container) for container in pod["spec"]["containers"]],
        )
        self._volumes: dict[str, str] = {}
        self._running: list[Container] = []
        self._sidecars: list[Container] = []
        self._sidecar_tasks: list[asyncio.Task[None]] = []
        self._dirty = asyncio.Event()
        self._written: Object | None = None
        self._stop = asyncio.Event()
        self._gone = asyncio.Event()

    # -- what others ask

    @property
    def grace_seconds(self) -> float:
        seconds = self.pod["spec"].get("terminationGracePeriodSeconds")
        return DEFAULT_GRACE_SECONDS if seconds is None else float(seconds)

    def event(self, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self.kubelet.events.record(self.pod, type, reason, message)

    def changed(self) -> None:
        """The state is not what was written last."""
        self._dirty.set()

    def update(self, pod: Object) -> None:
        self.pod = {"apiVersion": "v1", "kind": "Pod", **pod}
        if deleting(pod):
            self._stop.set()
        elif self._written is not None and pod_ready(pod) != pod_ready({"status": self._written}):
            # Somebody else wrote it (the node seemed silent), or it is an old copy: then the write changes nothing.
            self._written = None
            self.changed()

    def removed(self) -> None:
        """The pod's object is gone."""
        self._gone.set()
        self._stop.set()

    async def shut_down(self, grace_seconds: float) -> None:
        """The node goes down: end the processes in an orderly way, and leave the object as it is."""
        await asyncio.gather(*(container.stop(grace_seconds) for container in [*self._running, *self._sidecars]))

    def termination_file(self, container: Object) -> Path:
        return self.directory / "termination" / str(container["name"])

    # -- life

    async def run(self) -> None:
        """Until the pod is gone. Cancelled (the kubelet ends), its processes are killed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        helpers = [
            asyncio.create_task(self._write_statuses(), name=f"status {self.label}"),
            asyncio.create_task(self._note_logs(), name=f"logs {self.label}"),
        ]
        life = asyncio.create_task(self._live(), name=f"pod {self.label}")
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({life, stop}, return_when=asyncio.FIRST_COMPLETED)
            if life.done() and not life.cancelled() and (error := life.exception()):
                # A bug of ours, or a spec of unexpected shape: say so on the pod instead of losing it.
                log.error("pod %s", self.label, exc_info=error)
                self.state.failed = ("KubeletError", f"{type(error).__name__}: {error}")
                self.changed()
            await stop
            await self._end(life)
        finally:
            for container in [*self._running, *self._sidecars]:
                container.kill()
            for task in (life, stop, *helpers):
                task.cancel()
            await asyncio.gather(life, stop, *helpers, return_exceptions=True)
        await asyncio.to_thread(self.kubelet.mounter.release, self.uid, self.directory)
        self.kubelet.addresses.release(self.uid)

    async def _live(self) -> None:
        if pod_finished(self.pod):
            self._recall()
            return
        self._recall()
        self.state.started = status_of(self.pod).get("startTime") or now()
        await self._mount()
        if self.pod["spec"].get("hostNetwork"):
            self.state.pod_ip = self.kubelet.host_ip
        else:
            self.state.pod_ip = self.kubelet.addresses.take(self.uid, status_of(self.pod).get("podIP"))
        self.changed()
        refresh = asyncio.create_task(self._refresh_volumes(), name=f"volumes {self.label}")
        try:
            if await self._initialize():
                self.state.initialized = True
                self.changed()
                await self._run_containers()
        finally:
            refresh.cancel()
            await asyncio.gather(refresh, return_exceptions=True)

    def _recall(self) -> None:
        """What the pod's status tells of the time before this kubelet: its processes died with the last one."""
        status = status_of(self.pod)
        known = {entry["name"]: entry for entry in (status.get("containerStatuses") or [])}
        known |= {entry["name"]: entry for entry in (status.get("initContainerStatuses") or [])}
        for state in [*self.state.init, *self.state.containers]:
            entry = known.get(state.name)
            if not entry or not entry.get("containerID"):
                continue
            self.logs.recover(state.name)
            state.container_id = entry["containerID"]
            state.restarts = entry.get("restartCount", 0)
            if pod_finished(self.pod):
                state.state, state.last = entry["state"], entry.get("lastState") or {}
                continue
            state.restarts += 1
            started = (entry.get("state", {}).get("running") or {}).get("startedAt")
            lost = {
                "exitCode": LOST_EXIT_CODE,
                "reason": "Error",
                "message": "The kubelet ended, and its containers with it",
                "startedAt": started,
                "finishedAt": now(),
                "containerID": state.container_id,
            }
            state.last = {"terminated": lost} if started else entry.get("lastState") or {}
        if pod_finished(self.pod):
            self.state.pod_ip, self.state.initialized = status.get("podIP", ""), True

    async def _mount(self) -> None:
        while True:
            try:
                self._volumes = await self.kubelet.mounter.mount(self._context(), self.directory)
                (self.directory / "termination").mkdir(exist_ok=True)
                (self.directory / "work").mkdir(exist_ok=True)
                await self._provide_service_account()
                return
            except MountError as error:
                reason = "FailedAttachVolume" if "Multi-Attach" in str(error) else "FailedMount"
                self.event("Warning", reason, str(error))
            except ApiError as error:
                self.event("Warning", "FailedMount", f"cannot prepare the pod's volumes: {error.message}")
            for state in self.state.containers if not self.state.init else self.state.init:
                if "waiting" in state.state:
                    state.state = {"waiting": {"reason": "ContainerCreating"}}
            self.changed()
            await asyncio.sleep(MOUNT_RETRY_SECONDS)

    def _context(self) -> PodContext:
        return PodContext(self.pod, self.state.pod_ip, self.kubelet.host_ip, self.kubelet.allocatable)

    async def _provide_service_account(self) -> None:
        """Token, certificate and namespace where a pod expects them, and a kubeconfig for programs that cannot be told
        another place than the built-in one."""
        spec = self.pod["spec"]
        automount = spec.get("automountServiceAccountToken")
        if automount is None:
            name = spec.get("serviceAccountName") or "default"
            account = await self.kubelet.client.get(api.SERVICE_ACCOUNTS, name, self.namespace)
            automount = account.get("automountServiceAccountToken", True)
        if not automount:
            return
        directory = self.directory / "serviceaccount"
        directory.mkdir(mode=0o700, exist_ok=True)
        token = await self.kubelet.mounter.service_account_token(self.pod, TOKEN_SECONDS)
        (directory / "token").write_text(token)
        (directory / "ca.crt").write_text(self.kubelet.ca_certificate)
        (directory / "namespace").write_text(self.namespace)
        cluster = {"server": self.kubelet.client.base_url, "certificate-authority": str(directory / "ca.crt")}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "playground", "cluster": cluster}],
            "users": [{"name": "pod", "user": {"token": token}}],
            "contexts": [
                {"name": "pod", "context": {"cluster": "playground", "user": "pod", "namespace": self.namespace}}
            ],
            "current-context": "pod",
        }
        (directory / "kubeconfig").write_text(yaml.safe_dump(config))

    async def plan_container(self, container: Object, image: Image) -> ProcessPlan:
        """The process of a container. Raises ConfigError, LookupError, ApiError."""
        data = {}
        for kind, name in needed_sources({"spec": {"containers": [container]}}):
            resource = api.CONFIG_MAPS if kind == "ConfigMap" else api.SECRETS
            try:
                item = await self.kubelet.client.get(resource, name, self.namespace)
                data[(kind, name)] = source_data({**item, "kind": kind})
            except ApiError as error:
                if not error.not_found:
                    raise
        work, account = self.directory / "work", self.directory / "serviceaccount"
        base_env = {
            "PATH": PATH,
            "HOME": str(work),
            "TMPDIR": str(work),
            "HOSTNAME": str(self.pod["spec"].get("hostname") or self.name),
            MARKER: self.kubelet.marker,
            # The image is this environment: what the playground itself was started with, modules from elsewhere too.
            **({"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}),
            "RAFTKV_RESOLVER": f"hosts-file:{self.kubelet.resolver.path(self.namespace)}",
        }
        path = container.get("terminationMessagePath") or DEFAULT_TERMINATION_PATH
        extra = {path: str(self.termination_file(container))}
        if account.is_dir():
            base_env["KUBECONFIG"] = str(account / "kubeconfig")
            extra[SERVICE_ACCOUNT_PATH] = str(account)
        return plan_container(
            self._context(),
            container,
            image,
            Sources(data),
            self._volumes,
            base_env=base_env,
            extra_mounts=extra,
            cwd=str(work),
        )

    async def _initialize(self) -> bool:
        """Run the init containers. False if one failed for good."""
        policy = self.pod["spec"].get("restartPolicy", "Always")
        once = "Never" if policy == "Never" else "OnFailure"
        for spec, state in zip(self.pod["spec"].get("initContainers") or [], self.state.init, strict=True):
            if spec.get("restartPolicy") == "Always":
                await self._start_sidecar(spec, state)
                continue
            container = Container(self, spec, state, once)
            self._running = [container]
            await container.run()
            if state.exit_code != 0:
                return False
            state.ready = True
            self.changed()
        return True

    async def _start_sidecar(self, spec: Object, state: ContainerState) -> None:
        container = Container(self, spec, state, "Always")
        self._sidecars.append(container)
        self._sidecar_tasks.append(asyncio.create_task(container.run(), name=f"sidecar {self.label}/{container.name}"))
        while not state.started:
            await asyncio.sleep(0.1)

    async def _run_containers(self) -> None:
        policy = self.pod["spec"].get("restartPolicy", "Always")
        specs = self.pod["spec"]["containers"]
        self._running = [Container(self, s, st, policy) for s, st in zip(specs, self.state.containers, strict=True)]
        for state in self.state.containers:
            state.state = {"waiting": {"reason": "ContainerCreating"}}
        try:
            async with asyncio.TaskGroup() as group:
                for container in self._running:
                    group.create_task(container.run(), name=f"container {self.label}/{container.name}")
        finally:
            await self._stop_sidecars(self.grace_seconds)
        self.changed()

    async def _stop_sidecars(self, grace_seconds: float) -> None:
        for container in reversed(self._sidecars):
            await container.stop(grace_seconds)
        for task in self._sidecar_tasks:
            task.cancel()
        await asyncio.gather(*self._sidecar_tasks, return_exceptions=True)
        self._sidecar_tasks.clear()

    async def _refresh_volumes(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.kubelet.mounter.refresh(self._context(), self.directory)
            except (MountError, ApiError) as error:
                log.info("%s: volumes not refreshed: %s", self.label, error)

    async def _note_logs(self) -> None:
        while True:
            await asyncio.sleep(NOTE_SECONDS)
            self.logs.note()

    # -- end

    async def _end(self, life: asyncio.Task[None]) -> None:
        grace = self.pod["metadata"].get("deletionGracePeriodSeconds")
        seconds = self.grace_seconds if grace is None else float(grace)
        if self._gone.is_set():
            seconds = min(seconds, FORCED_GRACE_SECONDS)
        stops = asyncio.gather(*(container.stop(seconds) for container in self._running))
        gone = asyncio.create_task(self._gone.wait())
        try:
            # Removed by force while it is being stopped: no more grace.
            if not self._gone.is_set():
                either: set[asyncio.Future[Any]] = {stops, gone}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not stops.done():
                    for container in self._running:
                        container.kill()
            await stops
        finally:
            gone.cancel()
        # The containers' own loops still have to take note of their ends.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self._settled()
        await self._stop_sidecars(min(seconds, FORCED_GRACE_SECONDS))
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        if not self._gone.is_set():
            await self._remove()

    async def _settled(self) -> None:
        while any(container.state.running for container in self._running):
            await asyncio.sleep(0.01)

    async def _remove(self) -> None:
        """Write the last status, then remove the object: its uid makes sure that it is ours."""
        backoff = Backoff()
        while not self._gone.is_set():
            try:
                await self._write_status()
                await self.kubelet.client.delete(api.PODS, self.name, self.namespace, uid=self.uid, grace=0)
                return
            except ApiError as error:
                if error.not_found or error.conflict:
                    return
                log.info("%s: not removed yet: %s", self.label, error)
            await backoff.wait()

    # -- status

    async def _write_statuses(self) -> None:
        backoff = Backoff()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._write_status()
                backoff.reset()
            except ApiError as error:
                if error.not_found or error.conflict:
                    continue
                log.info("%s: status not written: %s", self.label, error)
                self._dirty.set()
                await backoff.wait()

    async def _write_status(self) -> None:
        status = build_status(self.pod, self.state, self.kubelet.host_ip)
        if status == self._written:
            return
        patch = {"metadata": {"uid": self.uid}, "status": status}
        answer = await self.kubelet.client.patch(
            api.PODS, self.name, self.namespace, patch, "merge", subresource="status"
        )
        self._written = status
        # The next status builds on these conditions, whether the informer has shown them or not.
        self.pod = {**self.pod, "status": answer.get("status") or status}


def _fresh(container: Object) -> ContainerState:
    return ContainerState(str(container["name"]), str(container["image"]))
