"""The playground's process tree: started in order, watched, started again, and ended as a whole.

Theory of operation
-------------------
``Supervisor`` is the parent of all: API server, controllers, kubelets, operator. Each child is started with a
parent-death signal, so that the kernel kills it when the supervisor dies, whatever the reason; the kubelet does the
same with its pods. Beside them runs the janitor, which notices the supervisor's end by a closed pipe, kills what is
still left by a marker in the environment, and removes temporary directories. A child that ends on its own is started
again after a delay that doubles per failure, with a line that says so. Only the API server is not: its state lives in
its memory, so without it the playground is over.

Progress lines say what is being waited for, since the first thing a newcomer sees is this start.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import yaml

from raftkv_playground import client as api
from raftkv_playground.apply import apply, documents, find_resource
from raftkv_playground.blocks import Block, claim_block
from raftkv_playground.client import ApiClient, ApiError
from raftkv_playground.janitor import MARKER
from raftkv_playground.kubelet.process import Process
from raftkv_playground.objects import condition_true, status_of

log = logging.getLogger(__name__)

RESTART_FIRST_SECONDS = 0.5
RESTART_LIMIT_SECONDS = 10.0
RESTART_RESET_SECONDS = 30.0
"""A child that ran for so long starts again with the shortest delay."""
STOP_GRACE_SECONDS = 8.0
TOKEN_SECONDS = 30 * 24 * 3600
POLL_SECONDS = 0.1
LOG_TAIL_LINES = 15
CLUSTER_KIND = "RaftKVCluster"
CLIENT_PORT = 2379


class StartError(Exception):
    """The playground cannot be started; the message says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``raftkv playground up`` was asked for; times in seconds."""

    nodes: int = 3
    port: int = 0
    state_dir: Path | None = None
    kubeconfig: Path | None = None
    apply: Sequence[Path] = ()
    samples: Sequence[Path] = ()
    images: Sequence[str] = ()
    kubelet: bool = True
    operator: bool = True
    operator_args: Sequence[str] = ()
    operator_account: tuple[str, str] = ("raftkv-system", "raftkv-operator")
    ready_file: Path | None = None
    timeout_seconds: float = 60.0
    restart_backoff_seconds: float = 1.0
    restart_backoff_limit_seconds: float = 30.0
    log_level: str = "INFO"


class Progress:
    """Lines with the time since the start; what is waited for is named before the wait."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begin = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._begin:6.1f} s] {text}", file=self._out, flush=True)

    async def wait(self, what: str, work: Awaitable[str]) -> None:
        """Name ``what`` is waited for, then what came out of it (the text that ``work`` gives)."""
        self.say(f"waiting for {what} ...")
        result = await work
        self.say(f"{what}: {result}")


@dataclass(slots=True)
class Child:
    """One process of the tree. ``essential``: the playground ends with it."""

    name: str
    argv: list[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    essential: bool = False
    process: Process | None = None
    restarts: int = 0


class Supervisor:
    """Use as ``await Supervisor(options).run()``; returns the exit code."""

    def __init__(self, options: Options, out: TextIO = sys.stdout) -> None:
        self.options = options
        self.progress = Progress(out)
        self._out = out
        self._temporary: list[Path] = []
        self.state = self._state_dir()
        self.memory = self._memory_dir()
        self.kubeconfig = (options.kubeconfig or self.state / "kubeconfig").absolute()
        self._marker = uuid.uuid4().hex
        self._lock: TextIO | None = None
        self._block: Block | None = None
        self._janitor: subprocess.Popen[bytes] | None = None
        self._children: list[Child] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._over: asyncio.Future[str] | None = None
        self._stopping = False
        self._started = False

    # -- directories

    def _state_dir(self) -> Path:
        if self.options.state_dir is not None:
            path = self.options.state_dir.absolute()
            path.mkdir(parents=True, exist_ok=True)
            return path
        path = Path(tempfile.mkdtemp(prefix="raftkv-playground-"))
        self._temporary.append(path)
        return path

    def _memory_dir(self) -> Path:
        """On tmpfs if the machine has one that we may write to. "Persistent memory" must outlive pods, not the
        playground; with a kept state directory it is kept there."""
        shared = Path("/dev/shm")
        if self.options.state_dir is None and os.access(shared, os.W_OK):
            path = Path(tempfile.mkdtemp(prefix="raftkv-playground-", dir=shared))
            self._temporary.append(path)
            return path
        path = self.state / "memory"
        path.mkdir(exist_ok=True)
        return path

    def _lock_state(self) -> None:
        self._lock = (self.state / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartError(f"another playground uses {self.state}") from error

    # -- processes

    def _start_janitor(self) -> None:
        env = {name: value for name, value in os.environ.items() if name != MARKER}
        self._janitor = subprocess.Popen(
            [sys.executable, "-m", "raftkv_playground.janitor", self._marker, *map(str, self._temporary)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=env,
        )

    def _launch(self, child: Child) -> None:
        env = {**os.environ, **child.env, MARKER: self._marker, "PYTHONUNBUFFERED": "1"}
        child.log.parent.mkdir(parents=True, exist_ok=True)
        child.process = Process.start(child.argv, env, str(self.state), child.log)
        pids = self.state / "pids"
        pids.mkdir(exist_ok=True)
        (pids / child.name).write_text(f"{child.process.pid}\n")

    def start(
        self, name: str, argv: list[str], *, essential: bool = False, env: Mapping[str, str] | None = None
    ) -> Child:
        """Start a child and watch over it."""
        child = Child(name, argv, self.state / "logs" / f"{name}.log", env or {}, essential)
        self._children.append(child)
        self._launch(child)
        self._watchers.append(asyncio.create_task(self._watch(child), name=f"watch {name}"))
        return child

    async def _watch(self, child: Child) -> None:
        delay = RESTART_FIRST_SECONDS
        while True:
            assert child.process is not None
            ended = await child.process.wait()
            if self._stopping:
                return
            how = f"killed by {signal.Signals(ended.signal).name}" if ended.signal else f"exit code {ended.code}"
            if child.essential:
                what = "with it the playground's state is gone" if self._started else "its log says why"
                self._end(f"{'' if self._started else 'cannot start: '}the {child.name} ended ({how}); {what}")
                return
            if (ended.finished - ended.started).total_seconds() > RESTART_RESET_SECONDS:
                delay = RESTART_FIRST_SECONDS
            child.restarts += 1
            self.progress.say(f"the {child.name} ended ({how}); starting it again in {delay:g} s; its log: {child.log}")
            await asyncio.sleep(delay)
            delay = min(delay * 2, RESTART_LIMIT_SECONDS)
            if not self._stopping:
                self._launch(child)

    def _end(self, why: str) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(why)

    async def _stop(self) -> None:
        """In the opposite order of the start; then the janitor finds nothing left to kill."""
        self._stopping = True
        for child in reversed(self._children):
            if child.process is not None and child.process.running:
                with contextlib.suppress(TimeoutError):
                    await child.process.stop(STOP_GRACE_SECONDS)
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        if self._janitor is not None:
            assert self._janitor.stdin is not None
            self._janitor.stdin.close()
            await asyncio.to_thread(self._janitor.wait)
        for path in self._temporary:
            shutil.rmtree(path, ignore_errors=True)
        if self._block is not None:
            self._block.release()

    # -- the start, step by step

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._end, "")
        starting = asyncio.create_task(self._start_all(), name="start")
        try:
            either: set[asyncio.Future[Any]] = {starting, self._over}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await self._over
            why = self._over.result()
            self.progress.say(why or "ending")
            if why:
                self._show_logs()
            return 1 if why else 0
        except (StartError, ApiError, OSError, yaml.YAMLError) as error:
            self.progress.say(f"cannot start: {error}")
            self._show_logs()
            return 1
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._stop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _show_logs(self) -> None:
        """The ends of the logs, since the files may be about to go."""
        for child in self._children:
            with contextlib.suppress(OSError):
                lines = child.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
                if lines:
                    print(f"--- {child.name}", *lines, sep="\n", file=self._out, flush=True)

    async def _start_all(self) -> None:
        self.progress.say(f"state: {self.state}")
        if self.options.ready_file is not None:
            self.options.ready_file.unlink(missing_ok=True)
        self._lock_state()
        self._start_janitor()
        try:
            self._block = claim_block()
        except RuntimeError as error:
            raise StartError(str(error)) from error
        await self._start_apiserver()
        async with ApiClient.from_kubeconfig(self.kubeconfig, field_manager="raftkv-playground") as client:
            self._start_controllers()
            if self.options.kubelet:
                self._start_kubelets()
                await self.progress.wait(f"{self.options.nodes} nodes", self._nodes_ready(client))
            await self._apply_all(client, self.options.apply)
            if self.options.operator:
                await self._start_operator(client)
            await self._apply_all(client, self.options.samples)
            for item in documents(self.options.samples):
                if item["kind"] == CLUSTER_KIND and self.options.operator:
                    await self._follow(client, item)
            await self._greet(client)
        self._started = True
        if self.options.ready_file is not None:
            self.options.ready_file.write_text(f"{self.kubeconfig}\n")

    async def _until(self, what: str, done: Callable[[], Awaitable[str | None]]) -> str:
        """Poll until ``done`` gives a text. Raises StartError after the timeout, with the last error."""
        deadline, last = time.monotonic() + self.options.timeout_seconds, ""
        while time.monotonic() < deadline:
            try:
                result = await done()
                if result is not None:
                    return result
            except ApiError as error:
                last = f": {error}"
            await asyncio.sleep(POLL_SECONDS)
        raise StartError(f"{what} did not come within {self.options.timeout_seconds:g} s{last}")

    async def _start_apiserver(self) -> None:
        """It writes its credentials into ``<state>/apiserver``; the admin's become the kubeconfig of the playground."""
        assert self._block is not None
        directory = self.state / "apiserver"
        shutil.rmtree(directory, ignore_errors=True)
        argv = [sys.executable, "-m", "raftkv_playground.apiserver", f"--state-dir={directory}"]
        argv += [f"--port={self.options.port}", f"--service-network={self._block.services}"]
        argv += ["--identity=controllers=masters:system:kube-controller-manager"]
        argv += ["--identity=kubelet=masters:system:nodes"]
        self.start("apiserver", argv, essential=True)

        async def ready() -> str | None:
            if not (directory / "kubeconfig").exists():
                return None
            async with ApiClient.from_kubeconfig(directory / "kubeconfig") as client:
                await client.request("GET", "/readyz")
                return client.base_url

        await self.progress.wait("the API server", self._until("the API server", ready))
        for name in ("controllers", "kubelet", "admin"):
            token = (directory / "tokens" / name).read_text().strip()
            path = self.kubeconfig if name == "admin" else self.state / f"{name}.kubeconfig"
            write_kubeconfig(path, read_kubeconfig(directory / "kubeconfig"), name, token)

    def _start_controllers(self) -> None:
        argv = [sys.executable, "-m", "raftkv_playground.controllers.manager"]
        argv += [f"--kubeconfig={self.state / 'controllers.kubeconfig'}", f"--volumes-dir={self.state / 'volumes'}"]
        self.start("controllers", [*argv, f"--log-level={self.options.log_level}"])

    def _start_kubelets(self) -> None:
        """One process for all nodes: a pod's processes are its children, so they die with it."""
        assert self._block is not None
        options = self.options
        argv = [sys.executable, "-m", "raftkv_playground.kubelet.main"]
        argv += [f"--kubeconfig={self.state / 'kubelet.kubeconfig'}", f"--state-dir={self.state}"]
        argv += [f"--memory-dir={self.memory}", f"--pod-cidr={self._block.pods}"]
        argv += [f"--ca-file={self.state / 'apiserver' / 'ca.crt'}", f"--log-level={options.log_level}"]
        argv += [f"--restart-backoff={options.restart_backoff_seconds}"]
        argv += [f"--restart-backoff-limit={options.restart_backoff_limit_seconds}"]
        argv += [f"--node=node-{number}" for number in range(1, options.nodes + 1)]
        argv += [f"--image={rule}" for rule in options.images]
        self.start("kubelet", argv)

    async def _nodes_ready(self, client: ApiClient) -> str:
        async def ready() -> str | None:
            nodes, _ = await client.list(api.NODES)
            names = [node["metadata"]["name"] for node in nodes if condition_true(node, "Ready")]
            return f"{', '.join(sorted(names))} ready" if len(names) >= self.options.nodes else None

        return await self._until("the nodes", ready)

    async def _apply_all(self, client: ApiClient, paths: Sequence[Path]) -> None:
        for item in documents(paths):
            await apply(client, item)
            self.progress.say(f"applied {item['kind']} {item['metadata']['name']}")

    async def _follow(self, client: ApiClient, item: Mapping[str, Any]) -> None:
        """Tell what a cluster's status says until it is ready. One that takes too long is no failure of the start."""
        resource = await find_resource(client, item)
        name, namespace = item["metadata"]["name"], item["metadata"].get("namespace", "default")
        self.progress.say(f"waiting for cluster {name} ...")
        deadline, told = time.monotonic() + self.options.timeout_seconds, ""
        while time.monotonic() < deadline:
            live = await client.get(resource, name, namespace)
            message = str(status_of(live).get("message") or "")
            if message and message != told:
                self.progress.say(f"cluster {name}: {message}")
                told = message
            if condition_true(live, "Ready") and status_of(live).get("observedGeneration"):
                return
            await asyncio.sleep(POLL_SECONDS)
        self.progress.say(f"cluster {name} is not ready yet; look at `kubectl describe rkv {name}`")

    async def _start_operator(self, client: ApiClient) -> None:
        """Under the token of its own ServiceAccount, so that its rights are those of the manifests."""
        namespace, name = self.options.operator_account

        async def token() -> str | None:
            body = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": TOKEN_SECONDS},
            }
            answer = await client.create(api.SERVICE_ACCOUNTS, body, namespace, name=name, subresource="token")
            return str(answer["status"]["token"])

        secret = await self._until(f"the operator's service account {namespace}/{name}", token)
        path = self.state / "operator.kubeconfig"
        write_kubeconfig(path, read_kubeconfig(self.kubeconfig), "operator", secret, namespace)
        raftkv = Path(sys.executable).with_name("raftkv")
        argv = [str(raftkv), "operator", f"--kubeconfig={path}", *self.options.operator_args]
        names = f"hosts-file:{self.state / 'names' / 'default.hosts'}"
        self.start("operator", argv, env={"KUBECONFIG": str(path), "RAFTKV_RESOLVER": names})
        self.progress.say(f"the operator runs as ServiceAccount {namespace}/{name}")

    async def _client_addresses(self, client: ApiClient) -> list[str]:
        """Where the samples' clusters take clients."""
        services, _ = await client.list(api.SERVICES)
        names = {item["metadata"]["name"] for item in documents(self.options.samples) if item["kind"] == CLUSTER_KIND}
        return [
            f"http://{service['spec']['clusterIP']}:{CLIENT_PORT}"
            for service in services
            if service["metadata"]["name"] in names and service["spec"].get("clusterIP", "None") != "None"
        ]

    async def _greet(self, client: ApiClient) -> None:
        stamp = datetime.datetime.now().strftime("%H:%M:%S")
        self.progress.say(f"ready at {stamp}; Ctrl-C ends it. In another terminal:")
        addresses = await self._client_addresses(client)
        etcdctl = "".join(f"    etcdctl --endpoints={address} put hello world\n" for address in addresses)
        text = f"""
    export KUBECONFIG={self.kubeconfig}
    kubectl get nodes
    kubectl get rkv,pods
    kubectl get events --watch
{etcdctl}
  logs of the playground itself: {self.state / "logs"}
  node file systems (hostPath):  {self.state / "nodes"}
"""
        print(text, file=self._out, flush=True)


def read_kubeconfig(path: Path) -> dict[str, object]:
    """The (only) cluster entry of a kubeconfig."""
    config = yaml.safe_load(path.read_text())
    cluster: dict[str, object] = config["clusters"][0]["cluster"]
    return cluster


def write_kubeconfig(path: Path, cluster: dict[str, object], user: str, token: str, namespace: str = "default") -> None:
    """A kubeconfig that only its owner may read."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "raftkv-playground", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [
            {
                "name": "raftkv-playground",
                "context": {"cluster": "raftkv-playground", "user": user, "namespace": namespace},
            }
        ],
        "current-context": "raftkv-playground",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        yaml.safe_dump(config, file)
