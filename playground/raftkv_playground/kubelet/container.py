"""The life of one container: configured, started, probed, ended, and started again.

Restarts: the first one follows at once, later ones after a delay that doubles from ``Settings.backoff_first_seconds``
to ``backoff_limit_seconds`` (the real kubelet's 10 s and 300 s would only make people wait here); a run of twice the
limit resets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raftkv_playground.client import ApiError
from raftkv_playground.kubelet import probes
from raftkv_playground.kubelet.images import Image, repository_name
from raftkv_playground.kubelet.logs import LogFile
from raftkv_playground.kubelet.plan import ConfigError, ProcessPlan
from raftkv_playground.kubelet.process import Exit, Process
from raftkv_playground.kubelet.status import ContainerState, restarts, running, terminated, waiting
from raftkv_playground.objects import Object, format_time

if TYPE_CHECKING:
    from raftkv_playground.kubelet.worker import PodWorker

log = logging.getLogger(__name__)

CONFIG_RETRY_SECONDS = 2.0
PULL_RETRY_SECONDS = 10.0
UNHEALTHY_EVENT_SECONDS = 10.0
"""The same failure of a probe is told at most this often."""
EAGER_PERIOD_SECONDS = 0.5
"""Readiness is probed at least this often until it is reached."""
FIRST_PROBE_SECONDS = 0.25
START_ERROR_CODE = 128
"""Exit code of a container whose program could not be started, as container runtimes report it."""
DEFAULT_TERMINATION_PATH = "/dev/termination-log"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a kubelet treats its containers; times in seconds."""

    backoff_first_seconds: float = 1.0
    backoff_limit_seconds: float = 30.0


def backoff_seconds(failures: int, settings: Settings) -> float:
    """The delay before the restart after ``failures`` ends in a row: none for the first."""
    if failures <= 1:
        return 0.0
    return min(settings.backoff_first_seconds * float(2 ** min(failures - 2, 30)), settings.backoff_limit_seconds)


class Container:
    """Runs one container of a pod until it has ended for good or the pod stops."""

    def __init__(self, worker: PodWorker, spec: Object, state: ContainerState, policy: str) -> None:
        self.worker = worker
        self.spec = spec
        self.state = state
        self.policy = policy
        self.process: Process | None = None
        self.plan: ProcessPlan | None = None
        self.image: Image | None = None
        self._log: LogFile | None = None
        self._stopping = False
        self._failures = 0

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    # -- life

    async def run(self) -> None:
        """Until it has ended for good (``state`` then says ``terminated``) or ``stop`` was called."""
        while not self._stopping:
            await self._prepare()
            ended, reason = await self._run_once()
            self.process = None
            message = self._termination_message(ended, reason)
            final = terminated(ended, message, self.state.container_id, reason="StartError" if reason else "")
            self.state.ready = self.state.started = False
            self.state.state = final
            if self._stopping or not restarts(self.policy, ended.code):
                self.worker.changed()
                return
            await self._back_off(ended, final)

    async def _back_off(self, ended: Exit, final: Object) -> None:
        settings = self.worker.kubelet.settings
        if (ended.finished - ended.started).total_seconds() > 2 * settings.backoff_limit_seconds:
            self._failures = 0
        self._failures += 1
        delay = backoff_seconds(self._failures, settings)
        self.state.last = final
        if delay > 0:
            text = f"back-off {delay:g}s restarting failed container={self.name} pod={self.worker.label}"
            self.state.state = waiting("CrashLoopBackOff", text)
            self.worker.event(
                "Warning", "BackOff", f"Back-off restarting failed container {self.name} in pod {self.worker.label}"
            )
        self.worker.changed()
        await asyncio.sleep(delay)
        self.state.restarts += 1

    async def _prepare(self) -> None:
        """Until image and configuration are there."""
        while self.image is None:
            found = self.worker.kubelet.images.get(repository_name(self.spec["image"]))
            if found is not None:
                self.image = found
                self.worker.event(
                    "Normal", "Pulled", f'Container image "{self.spec["image"]}" already present on machine'
                )
                break
            text = f'Failed to pull image "{self.spec["image"]}": not among the images that this playground may run'
            self.worker.event("Warning", "Failed", text)
            self.worker.event("Warning", "Failed", "Error: ErrImagePull")
            self._wait_for("ErrImagePull", text)
            await asyncio.sleep(PULL_RETRY_SECONDS / 4)
            self._wait_for("ImagePullBackOff", f'Back-off pulling image "{self.spec["image"]}"')
            self.worker.event("Normal", "BackOff", f'Back-off pulling image "{self.spec["image"]}"')
            await asyncio.sleep(PULL_RETRY_SECONDS)

    def _wait_for(self, reason: str, message: str) -> None:
        self.state.state = waiting(reason, message)
        self.worker.changed()

    async def _configure(self) -> ProcessPlan:
        """Until what the container refers to exists. Raises LookupError for a command that the image lacks."""
        assert self.image is not None
        while True:
            try:
                return await self.worker.plan_container(self.spec, self.image)
            except ConfigError as error:
                self._wait_for("CreateContainerConfigError", str(error))
                self.worker.event("Warning", "Failed", f"Error: {error}")
            except ApiError as error:
                log.info("%s: %s", self.worker.label, error)
            await asyncio.sleep(CONFIG_RETRY_SECONDS)

    async def _run_once(self) -> tuple[Exit, str]:
        """One start to its end: how it ended, and why it did not start, if so."""
        self._log = self.worker.logs.begin(self.name, self.state.restarts)
        self.state.container_id = ""
        try:
            self.plan = await self._configure()
            self._termination_file().unlink(missing_ok=True)
            self.process = Process.start(self.plan.argv, self.plan.env, self.plan.cwd, self._log.path)
        except (LookupError, OSError) as error:
            return self._start_failed(str(error.args[0] if isinstance(error, LookupError) else error))
        self.state.container_id = f"process://{self.process.pid}"
        self.worker.event("Normal", "Created", f"Created container: {self.name}")
        self.worker.event("Normal", "Started", f"Started container {self.name} (pid {self.process.pid})")
        self.state.state = running(format_time(self.process.started))
        self.worker.changed()
        tasks = asyncio.create_task(self._attend(self.process), name=f"probes {self.worker.label}/{self.name}")
        try:
            ended = await self.process.wait()
        finally:
            tasks.cancel()
            await asyncio.gather(tasks, return_exceptions=True)
            self._log.note(datetime.datetime.now(datetime.UTC).timestamp())
            self._log.closed = True
        return ended, ""

    def _start_failed(self, reason: str) -> tuple[Exit, str]:
        moment = datetime.datetime.now(datetime.UTC)
        self.worker.event("Warning", "Failed", f"Error: failed to start container {self.name}: {reason}")
        assert self._log is not None
        self._log.closed = True
        return Exit(START_ERROR_CODE, None, moment, moment), reason

    # -- termination message

    def _termination_file(self) -> Path:
        return self.worker.termination_file(self.spec)

    def _termination_message(self, ended: Exit, reason: str) -> str:
        if reason:
            return reason
        with contextlib.suppress(OSError):
            if text := self._termination_file().read_text(errors="replace"):
                return text
        if self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError" and ended.code and self._log:
            return self._log.message()
        return ""

    # -- probes

    def target(self) -> probes.Target:
        assert self.plan is not None and self.image is not None
        return probes.Target(self.spec, self.worker.state.pod_ip, self.plan, self.image)

    async def _attend(self, process: Process) -> None:
        """Hook and probes of one start."""
        if hook := (self.spec.get("lifecycle") or {}).get("postStart"):
            passed, text = await probes.check(hook, self.target(), 300)
            if not passed:
                self.worker.event("Warning", "FailedPostStartHook", f"PostStartHook failed: {text}")
                await self._kill(process, "FailedPostStartHook")
                return
        if probe := self.spec.get("startupProbe"):
            await self._until_started(process, probe)
        self.state.started = True
        if not self.spec.get("readinessProbe"):
            self.state.ready = True
        self.worker.changed()
        async with asyncio.TaskGroup() as group:
            if probe := self.spec.get("readinessProbe"):
                group.create_task(self._probe("Readiness", probe, self._set_ready))
            if life := self.spec.get("livenessProbe"):

                async def judge(passed: bool) -> None:
                    if not passed:
                        await self._kill(process, "liveness probe", life)

                group.create_task(self._probe("Liveness", life, judge))

    async def _until_started(self, process: Process, probe: Object) -> None:
        verdict: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def judge(passed: bool) -> None:
            if passed and not verdict.done():
                verdict.set_result(None)
            elif not passed:
                await self._kill(process, "startup probe", probe)

        task = asyncio.create_task(self._probe("Startup", probe, judge))
        try:
            await verdict
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _probe(self, kind: str, probe: Object, judge: Callable[[bool], Awaitable[None]]) -> None:
        threshold, period = probes.threshold_of(probe), probes.period_of(probe)
        clock, told_at, told = asyncio.get_running_loop().time, 0.0, ""
        # A program that was started this moment cannot answer yet; to say so would only be noise.
        await asyncio.sleep(max(float(probe.get("initialDelaySeconds") or 0), FIRST_PROBE_SECONDS))
        while True:
            passed, text = await probes.check(probe, self.target(), probes.timeout_of(probe))
            if not passed and not self._stopping and (text != told or clock() - told_at > UNHEALTHY_EVENT_SECONDS):
                self.worker.event("Warning", "Unhealthy", f"{kind} probe failed: {text}")
                told_at, told = clock(), text
            verdict = threshold.add(passed)
            if verdict is not None:
                await judge(verdict)
            # A container that is not ready yet is asked more often: someone waits for it.
            eager = kind == "Readiness" and not self.state.ready
            await asyncio.sleep(min(period, EAGER_PERIOD_SECONDS) if eager else period)

    async def _set_ready(self, passed: bool) -> None:
        self.state.ready = passed
        self.worker.changed()

    async def _kill(self, process: Process, why: str, probe: Object | None = None) -> None:
        """Within the probe's own grace period, if it names one."""
        self.worker.event("Normal", "Killing", f"Container {self.name} failed {why}, will be restarted")
        own = (probe or {}).get("terminationGracePeriodSeconds")
        await process.stop(self.worker.grace_seconds if own is None else float(own))

    # -- stop

    async def stop(self, grace_seconds: float) -> None:
        """preStop, SIGTERM, and SIGKILL when the grace is over; the container is not started again."""
        self._stopping = True
        process = self.process
        if process is None or not process.running:
            return
        begin = asyncio.get_running_loop().time()
        self.worker.event("Normal", "Killing", f"Stopping container {self.name}")
        hook: Any = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook and grace_seconds > 0:
            passed, text = await probes.check(hook, self.target(), grace_seconds)
            if not passed:
                self.worker.event("Warning", "FailedPreStopHook", f"PreStopHook failed: {text}")
        left = grace_seconds - (asyncio.get_running_loop().time() - begin)
        # A hook that used up the grace leaves two seconds, as the real kubelet does.
        await process.stop(max(left, 2.0) if hook and grace_seconds > 0 else left)

    def kill(self) -> None:
        self._stopping = True
        if self.process is not None:
            self.process.signal_group(9)
