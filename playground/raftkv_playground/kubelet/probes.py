"""Probes and lifecycle hooks: http, tcp, grpc and exec.

A probe's thresholds are Kubernetes': ``failureThreshold`` failures or ``successThreshold`` successes in a row change
its verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from raftkv_playground.kubelet.images import Image
from raftkv_playground.kubelet.plan import ProcessPlan, exec_argv
from raftkv_playground.kubelet.process import run_once
from raftkv_playground.objects import Object

BODY_LIMIT_BYTES = 10 << 10
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = 1


@dataclass(frozen=True, slots=True)
class Target:
    """The container that a probe is about."""

    container: Object
    pod_ip: str
    plan: ProcessPlan
    image: Image

    def port(self, value: int | str) -> int:
        """A port number, or the container's port of that name. Raises ValueError."""
        if isinstance(value, int):
            return value
        for port in self.container.get("ports") or []:
            if port.get("name") == value:
                return int(port["containerPort"])
        return int(value)


async def check(action: Mapping[str, Any], target: Target, timeout_seconds: float) -> tuple[bool, str]:
    """Run one probe or hook: (passed, what happened). Never raises but for cancellation."""
    try:
        async with asyncio.timeout(timeout_seconds):
            if action.get("exec"):
                return await _exec(action["exec"], target, timeout_seconds)
            if action.get("httpGet"):
                return await _http(action["httpGet"], target)
            if action.get("tcpSocket"):
                return await _tcp(action["tcpSocket"], target)
            if action.get("grpc"):
                return await _grpc(action["grpc"], target)
            if action.get("sleep"):
                await asyncio.sleep(float(action["sleep"]["seconds"]))
                return True, ""
    except TimeoutError:
        return False, f"timed out after {timeout_seconds:g} s"
    except aiohttp.ClientConnectorError as error:
        number = error.os_error.errno
        return False, f"{error.host}:{error.port}: {os.strerror(number) if number else error.os_error}"
    except (OSError, ValueError, LookupError, aiohttp.ClientError) as error:
        return False, str(error) or type(error).__name__
    return False, "no action that this kubelet knows"


async def _exec(action: Mapping[str, Any], target: Target, timeout_seconds: float) -> tuple[bool, str]:
    argv = exec_argv(target.plan, target.image, action["command"])
    code, output = await run_once(argv, target.plan.env, target.plan.cwd, timeout_seconds)
    return code == 0, output.strip()


async def _http(action: Mapping[str, Any], target: Target) -> tuple[bool, str]:
    scheme = action.get("scheme", "HTTP").lower()
    path = action.get("path", "/")
    url = f"{scheme}://{action.get('host') or target.pod_ip}:{target.port(action['port'])}/{path.lstrip('/')}"
    headers = {entry["name"]: entry["value"] for entry in action.get("httpHeaders") or []}
    headers.setdefault("User-Agent", "kube-probe/raftkv-playground")
    # As the real kubelet: a probe does not verify certificates.
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False, force_close=True)) as session,
        session.get(url, headers=headers, allow_redirects=False) as answer,
    ):
        body = await answer.content.read(BODY_LIMIT_BYTES)
        passed = 200 <= answer.status < 400
        text = "" if passed else f": {body[:200].decode(errors='replace').strip()}"
        return passed, f"HTTP probe: statuscode: {answer.status}{text}"


async def _tcp(action: Mapping[str, Any], target: Target) -> tuple[bool, str]:
    host, port = action.get("host") or target.pod_ip, target.port(action["port"])
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True, ""


async def _grpc(action: Mapping[str, Any], target: Target) -> tuple[bool, str]:
    import grpc

    service = (action.get("service") or "").encode()
    # HealthCheckRequest{service = 1} and HealthCheckResponse{status = 1}, by hand: two fields need no generated code.
    request = b"\x0a" + bytes([len(service)]) + service if service else b""
    async with grpc.aio.insecure_channel(f"{target.pod_ip}:{action['port']}") as channel:
        call = channel.unary_unary(_HEALTH_CHECK, request_serializer=bytes, response_deserializer=bytes)
        try:
            answer: bytes = await call(request)
        except grpc.aio.AioRpcError as error:
            return False, f"grpc: {error.code().name}: {error.details()}"
    status = answer[1] if answer[:1] == b"\x08" else 0
    return status == _SERVING, f"grpc health status {status}"


@dataclass(slots=True)
class Threshold:
    """Counts results in a row; ``verdict`` is None until a threshold is reached for the first time."""

    success: int
    failure: int
    verdict: bool | None = None
    _streak: int = 0
    _last: bool | None = None

    def add(self, passed: bool) -> bool | None:
        """Take one result; returns the new verdict if it changed, else None."""
        self._streak = self._streak + 1 if passed is self._last else 1
        self._last = passed
        if self._streak >= (self.success if passed else self.failure) and self.verdict is not passed:
            self.verdict = passed
            return passed
        return None


def threshold_of(probe: Mapping[str, Any]) -> Threshold:
    return Threshold(int(probe.get("successThreshold") or 1), int(probe.get("failureThreshold") or 3))


def period_of(probe: Mapping[str, Any]) -> float:
    return float(probe.get("periodSeconds") or 10)


def timeout_of(probe: Mapping[str, Any]) -> float:
    return float(probe.get("timeoutSeconds") or 1)
