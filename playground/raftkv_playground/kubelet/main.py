"""The kubelets of several nodes in one process: ``python -m raftkv_playground.kubelet.main``."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raftkv_playground import client as api
from raftkv_playground.client import ApiClient, Backoff, Informer
from raftkv_playground.events import EventRecorder
from raftkv_playground.janitor import MARKER
from raftkv_playground.kubelet.addresses import AddressPool
from raftkv_playground.kubelet.container import Settings
from raftkv_playground.kubelet.images import Image, image_map
from raftkv_playground.kubelet.node import NodeAgent, allocatable
from raftkv_playground.kubelet.proxy import ServiceProxy
from raftkv_playground.kubelet.resolve import Resolver
from raftkv_playground.kubelet.server import KubeletServer
from raftkv_playground.kubelet.volumes import Attachments, NodeRoot, VolumeMounter
from raftkv_playground.kubelet.worker import NodeServices, PodWorker
from raftkv_playground.objects import Object, deleting, uid_of
from raftkv_playground.process import end_on_signals, log_to_stderr

log = logging.getLogger(__name__)

ZONES = "abc"
SHUTDOWN_GRACE_SECONDS = 3.0
"""How long pods have to end when the kubelet itself is told to."""
PMEM_MOUNT = Path("mnt/pmem0")
PMEM_FOLDER = "raftkv"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a playground keeps its files. ``memory`` is on tmpfs where the machine has one."""

    state: Path
    memory: Path

    @property
    def volumes(self) -> Path:
        """Network disks, one directory each."""
        return self.state / "volumes"

    @property
    def names(self) -> Path:
        """Hosts files, one per namespace."""
        return self.state / "names"

    def root(self, node: str) -> Path:
        """A node's file system root for hostPaths."""
        return self.state / "nodes" / node / "rootfs"

    def pods(self, node: str) -> Path:
        return self.state / "nodes" / node / "pods"

    def prepare_node(self, node: str) -> None:
        """Make a node's root, with a folder for RaftKV on its "persistent memory" ``/mnt/pmem0`` (on tmpfs)."""
        pmem = self.memory / "nodes" / node / "pmem0"
        (pmem / PMEM_FOLDER).mkdir(parents=True, exist_ok=True)
        mount = self.root(node) / PMEM_MOUNT
        mount.parent.mkdir(parents=True, exist_ok=True)
        if not mount.exists():
            mount.unlink(missing_ok=True)
            mount.symlink_to(pmem)
        self.pods(node).mkdir(parents=True, exist_ok=True)


class Kubelets:
    """Runs the pods of ``nodes`` until cancelled."""

    def __init__(
        self,
        client: ApiClient,
        layout: Layout,
        nodes: Sequence[str],
        *,
        pod_block: str,
        images: Mapping[str, Image],
        ca_certificate: str,
        server_token: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.client = client
        self.layout = layout
        self.nodes = nodes
        self.images = images
        self.settings = settings or Settings()
        self._addresses = AddressPool(pod_block)
        if len(nodes) >= AddressPool.RESERVED:
            raise ValueError(f"at most {AddressPool.RESERVED - 1} nodes")
        self._ca_certificate = ca_certificate
        self._server_token = server_token
        self._pods = Informer(client, api.PODS)
        self._services = Informer(client, api.SERVICES)
        self._slices = Informer(client, api.ENDPOINT_SLICES)
        self._resolver = Resolver(layout.names, self._services, self._slices)
        self._shared: dict[str, NodeServices] = {}
        self._workers: dict[str, tuple[PodWorker, asyncio.Task[None]]] = {}

    def _prepare(self) -> None:
        attachments = Attachments()
        for number, node in enumerate(self.nodes):
            self.layout.prepare_node(node)
            mounter = VolumeMounter(
                self.client,
                node,
                NodeRoot(self.layout.root(node)),
                disks=self.layout.volumes,
                memory=self.layout.memory,
                attachments=attachments,
            )
            self._shared[node] = NodeServices(
                client=self.client,
                events=EventRecorder(self.client, "kubelet", node),
                mounter=mounter,
                addresses=self._addresses,
                resolver=self._resolver,
                images=self.images,
                settings=self.settings,
                node=node,
                host_ip=self._addresses.host(number + 1),
                pods_dir=self.layout.pods(node),
                ca_certificate=self._ca_certificate,
                allocatable=allocatable(),
                marker=os.environ.get(MARKER, str(self.layout.state)),
            )

    def _find(self, namespace: str, name: str) -> PodWorker | None:
        for worker, _ in self._workers.values():
            if (worker.namespace, worker.name) == (namespace, name):
                return worker
        return None

    def _pod_changed(self, type: str, pod: Object) -> None:
        uid, node = uid_of(pod), pod["spec"].get("nodeName") or ""
        entry = self._workers.get(uid)
        if entry is not None:
            if type == "DELETED":
                entry[0].removed()
            else:
                entry[0].update(pod)
            return
        if type == "DELETED" or node not in self._shared:
            return
        worker = PodWorker(self._shared[node], pod)
        if deleting(pod):
            # It was going already when we came: nothing of it runs, only the object is left to be removed.
            worker.update(pod)
        task = asyncio.create_task(worker.run(), name=f"pod {worker.label}")
        self._workers[uid] = (worker, task)
        task.add_done_callback(lambda done: self._worker_ended(uid, done))

    def _worker_ended(self, uid: str, task: asyncio.Task[None]) -> None:
        worker, _ = self._workers.pop(uid)
        if not task.cancelled() and (error := task.exception()):
            log.error("pod %s: its worker failed", worker.label, exc_info=error)

    def _sweep(self) -> None:
        """Remove what pods that are no longer there left behind."""
        known = {uid_of(pod) for pod in self._pods.store.values()}
        for node in self.nodes:
            for directory in self.layout.pods(node).iterdir():
                if directory.name not in known:
                    shutil.rmtree(directory, ignore_errors=True)

    async def run(self) -> None:
        self._prepare()
        server = KubeletServer(self._find, self._server_token)
        ports = await server.start([shared.host_ip for shared in self._shared.values()])
        agents = [
            NodeAgent(self.client, node, f"zone-{ZONES[i % len(ZONES)]}", shared.host_ip, ports[shared.host_ip])
            for i, (node, shared) in enumerate(self._shared.items())
        ]
        informers = [self._services, self._slices, self._pods]
        try:
            await self.client.wait_ready()
            for agent in agents:
                await self._register(agent)
            for informer in informers:
                informer.start()
            await asyncio.gather(*(informer.synced.wait() for informer in informers))
            self._sweep()
            # There from the start, for programs that are no pods (the playground's operator).
            self._resolver.path("default")
            self._pods.add_handler(self._pod_changed)
            proxy = ServiceProxy(self._services, self._slices, EventRecorder(self.client, "kube-proxy"))
            log.info("nodes %s are ready", ", ".join(self.nodes))
            async with asyncio.TaskGroup() as group:
                for agent in agents:
                    group.create_task(agent.run(), name=f"node {agent.name}")
                for shared in self._shared.values():
                    group.create_task(shared.events.run(), name=f"events {shared.node}")
                group.create_task(self._resolver.run(), name="names")
                group.create_task(proxy.run(), name="proxy")
                group.create_task(proxy.events.run(), name="proxy events")
        finally:
            for informer in informers:
                await informer.stop()
            await self._shut_down()
            tasks = [task for _, task in self._workers.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.stop()

    async def _shut_down(self) -> None:
        """Pods get a short time to end by themselves, so that what they keep on disk is in order."""
        stops = [worker.shut_down(SHUTDOWN_GRACE_SECONDS) for worker, _ in self._workers.values()]
        await asyncio.gather(*stops, return_exceptions=True)

    async def _register(self, agent: NodeAgent) -> None:
        backoff = Backoff()
        while True:
            try:
                return await agent.register()
            except api.ApiError as error:
                log.info("node %s is not registered yet: %s", agent.name, error)
            await backoff.wait()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="raftkv playground kubelet", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--memory-dir", type=Path, help="on tmpfs; for pmem folders and memory volumes")
    parser.add_argument("--node", action="append", required=True, dest="nodes", help="name of a node; repeatable")
    parser.add_argument("--pod-cidr", default="127.77.0.0/20", help="loopback block for nodes and pods")
    parser.add_argument("--image", action="append", default=[], metavar="NAME=COMMAND", help="allow one more image")
    parser.add_argument("--ca-file", type=Path, required=True, help="certificate that pods shall trust")
    parser.add_argument("--server-token-file", type=Path, help="token that requests for logs must carry")
    parser.add_argument("--restart-backoff", type=float, default=Settings().backoff_first_seconds, metavar="SECONDS")
    parser.add_argument(
        "--restart-backoff-limit", type=float, default=Settings().backoff_limit_seconds, metavar="SECONDS"
    )
    parser.add_argument("--log-level", default="INFO")
    options = parser.parse_args(argv)
    log_to_stderr("kubelet", options.log_level)
    ipaddress.IPv4Network(options.pod_cidr)
    state = options.state_dir.resolve()
    memory = (options.memory_dir or state / "memory").resolve()

    async def run() -> None:
        async with ApiClient.from_kubeconfig(options.kubeconfig, field_manager="kubelet") as client:
            kubelets = Kubelets(
                client,
                Layout(state, memory),
                options.nodes,
                pod_block=options.pod_cidr,
                images=image_map(options.image),
                ca_certificate=options.ca_file.read_text(),
                server_token=options.server_token_file.read_text().strip() if options.server_token_file else None,
                settings=Settings(options.restart_backoff, options.restart_backoff_limit),
            )
            await end_on_signals(kubelets.run())

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
