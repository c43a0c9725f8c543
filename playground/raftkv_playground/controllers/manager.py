"""All controllers in one process: ``python -m raftkv_playground.controllers.manager``."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from raftkv_playground import client as api
from raftkv_playground.client import ApiClient, ApiError
from raftkv_playground.controllers.deployment import DeploymentController
from raftkv_playground.controllers.disruption import DisruptionController
from raftkv_playground.controllers.garbage import GarbageCollector
from raftkv_playground.controllers.nodes import LEASE_NAMESPACE, NodeLifecycle, PodGarbageCollector
from raftkv_playground.controllers.replicaset import ReplicaSetController
from raftkv_playground.controllers.runtime import Controller, Informers
from raftkv_playground.controllers.scheduling import Scheduler
from raftkv_playground.controllers.services import EndpointsController
from raftkv_playground.controllers.statefulset import StatefulSetController
from raftkv_playground.controllers.storage import (
    ClaimBinder,
    ClaimProtection,
    VolumeReclaimer,
    default_storage_class,
)
from raftkv_playground.process import end_on_signals, log_to_stderr

log = logging.getLogger(__name__)


class Manager:
    """Builds the controllers over one client and runs them until cancelled."""

    def __init__(self, client: ApiClient, *, volumes_dir: Path) -> None:
        self.client = client
        self.informers = Informers(client)
        shared = (client, self.informers)
        self.controllers: list[Controller] = [
            StatefulSetController(*shared),
            DeploymentController(*shared),
            ReplicaSetController(*shared),
            Scheduler(*shared),
            ClaimBinder(*shared, volumes_dir),
            VolumeReclaimer(*shared, volumes_dir),
            ClaimProtection(*shared),
            EndpointsController(*shared),
            DisruptionController(*shared),
            NodeLifecycle(*shared),
            PodGarbageCollector(*shared),
        ]
        self.garbage = GarbageCollector(client, self.informers)

    async def bootstrap(self) -> None:
        """Create what a usable cluster has: the namespace of the nodes' Leases and the default StorageClass."""
        await self._ensure(api.NAMESPACES, {"metadata": {"name": LEASE_NAMESPACE}})
        await self._ensure(api.STORAGE_CLASSES, default_storage_class())

    async def _ensure(self, resource: api.Resource, body: dict[str, object]) -> None:
        try:
            await self.client.create(resource, body)
        except ApiError as error:
            if not error.already_exists:
                raise

    async def run(self) -> None:
        await self.client.wait_ready()
        await self.bootstrap()
        self.informers.start()
        await self.informers.synced()
        log.info("controllers run")
        try:
            async with asyncio.TaskGroup() as group:
                for controller in self.controllers:
                    group.create_task(controller.run(), name=controller.name)
                group.create_task(self.garbage.run(), name=self.garbage.name)
        finally:
            await self.informers.stop()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="raftkv playground controllers", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--volumes-dir", type=Path, required=True, help="where network disks are directories")
    parser.add_argument("--log-level", default="INFO")
    options = parser.parse_args(argv)
    log_to_stderr("controllers", options.log_level)

    async def run() -> None:
        async with ApiClient.from_kubeconfig(options.kubeconfig, field_manager="playground-controllers") as client:
            manager = Manager(client, volumes_dir=options.volumes_dir)
            await end_on_signals(manager.run())

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
