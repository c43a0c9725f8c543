"""A running API server, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftkv_playground.apiserver.auth import User, service_account
from raftkv_playground.apiserver.server import Server, ServerOptions, serve
from raftkv_playground.client import ApiClient


@dataclass
class Cluster:
    server: Server
    admin: ApiClient

    def client(self, identity: str | None) -> ApiClient:
        """A client under another identity; None is anonymous."""
        token = None if identity is None else self.server.tokens[identity]
        return ApiClient(self.server.url, token, self.server.ca_file)


@asynccontextmanager
async def cluster(directory: Path, **options: Any) -> AsyncIterator[Cluster]:
    identities = {
        "oper": User("oper", ("system:authenticated",)),
        "robot": service_account("default", "robot"),
    }
    server = await serve(ServerOptions(directory, identities=identities, **options))
    admin = ApiClient(server.url, server.admin_token, server.ca_file, field_manager="test")
    try:
        yield Cluster(server, admin)
    finally:
        await admin.close()
        await server.close()


Scenario = Callable[[Cluster], Awaitable[None]]
