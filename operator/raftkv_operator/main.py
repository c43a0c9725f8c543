"""``raftkv operator``: arguments, the HTTP endpoint for probes and metrics, and the life of the process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import kopf
from aiohttp import web
from prometheus_client.exposition import generate_latest

from raftkv_operator import metrics, wiring
from raftkv_operator.act.kube import KubeClient
from raftkv_operator.act.members import Channels
from raftkv_operator.observe.seams import CLUSTERS, KubeError

log = logging.getLogger(__name__)

CRD_RETRY_SECONDS: Final = 2.0


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    found = argparse.ArgumentParser(
        prog="raftkv operator", description="Looks after the RaftKVCluster objects of a Kubernetes cluster."
    )
    found.add_argument("--kubeconfig", metavar="FILE", help="default: KUBECONFIG, or the pod's service account")
    found.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NAME",
        help="look after this namespace only; may be repeated (default: all namespaces)",
    )
    found.add_argument(
        "--listen",
        default="",
        metavar="HOST:PORT",
        help="serve /healthz and /metrics here, e.g. 0.0.0.0:8080 (default: not at all)",
    )
    found.add_argument("--log-level", choices=["debug", "info", "warning"], default="info")
    found.add_argument("--log-format", choices=["plain", "json"], default="plain")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT; 0 after those, 1 after a failure."""
    options = parser().parse_args(argv)
    if options.kubeconfig:
        if not Path(options.kubeconfig).is_file():
            parser().error(f"no such file: {options.kubeconfig}")
        # kopf and the kubernetes package both read it from there.
        os.environ["KUBECONFIG"] = options.kubeconfig
    kopf.configure(
        debug=options.log_level == "debug",
        quiet=options.log_level == "warning",
        log_format=kopf.LogFormat.JSON if options.log_format == "json" else kopf.LogFormat.PLAIN,
    )
    for noisy in ("kopf", "aiohttp", "asyncio"):
        if options.log_level != "debug":
            logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("kopf.objects").addFilter(wiring.quiet)
    try:
        asyncio.run(run(options))
    except KeyboardInterrupt:
        pass
    except OSError as error:
        log.error("%s", error)
        return 1
    return 0


async def run(options: argparse.Namespace, stop: asyncio.Event | None = None) -> None:
    """The operator until it is told to stop."""
    channels = Channels()
    health = wiring.Health()
    async with contextlib.AsyncExitStack() as stack:
        kube = await stack.enter_async_context(await KubeClient.connect(options.kubeconfig))
        stack.push_async_callback(channels.close)
        if options.listen:
            stack.push_async_callback((await _serve(options.listen, health)).cleanup)
        measuring = asyncio.create_task(health.run())
        stack.callback(measuring.cancel)
        await _wait_for_crd(kube, options.namespace[0] if options.namespace else "")
        clusters = wiring.Clusters(kube, channels.for_cluster)
        registry = kopf.OperatorRegistry()
        wiring.register(registry, clusters, wiring.configure)
        log.info("looking after %s", ", ".join(options.namespace) if options.namespace else "all namespaces")
        await kopf.operator(
            registry=registry,
            standalone=True,
            clusterwide=not options.namespace,
            namespaces=options.namespace,
            stop_flag=stop,
        )


async def _wait_for_crd(kube: KubeClient, namespace: str) -> None:
    """Until the API server answers and knows ``RaftKVCluster``; says once what it waits for."""
    said = ""
    while True:
        try:
            await kube.select(CLUSTERS, namespace, "")
            return
        except KubeError as error:
            words = "the custom resource definition is not installed" if error.code == 404 else str(error)
            if words != said:
                log.warning("waiting: %s", words)
                said = words
            await asyncio.sleep(CRD_RETRY_SECONDS)


async def _serve(listen: str, health: wiring.Health) -> web.AppRunner:
    async def healthz(_: web.Request) -> web.Response:
        problem = health.problem()
        return web.Response(text=problem or "ok", status=503 if problem else 200)

    async def show(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(metrics.REGISTRY), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    host, _, port = listen.rpartition(":")
    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", show)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host.strip("[]") or "0.0.0.0", int(port)).start()
    return runner


if __name__ == "__main__":
    raise SystemExit(main())
