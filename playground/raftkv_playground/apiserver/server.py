"""Start and stop the API server.

All state is in memory: a restart of the server is a new cluster (new CA, new tokens, no objects). The state directory
gets what others need to reach it: ``kubeconfig`` (the admin's, mode 0600), ``ca.crt``, ``endpoint`` (the URL), and
``tokens/<name>`` (mode 0600) for each further identity.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from raftkv_playground.apiserver import builtins, tls
from raftkv_playground.apiserver.api import Api
from raftkv_playground.apiserver.auth import (
    MASTERS,
    Authenticator,
    Authorizer,
    User,
    bootstrap_objects,
    service_account,
)
from raftkv_playground.apiserver.crd.definition import DefinitionStrategy
from raftkv_playground.apiserver.errors import Object
from raftkv_playground.apiserver.housekeeping import DEFINITIONS, Housekeeping
from raftkv_playground.apiserver.kinds import Kind, Registry, Subresource
from raftkv_playground.apiserver.requests import BODY_LIMIT_BYTES
from raftkv_playground.apiserver.resources import Options, Resources
from raftkv_playground.apiserver.schema.shapes import builtin
from raftkv_playground.apiserver.store import LOG_LIMIT_EVENTS, Store

log = logging.getLogger(__name__)

REPORTED_VERSION = "v1.36.2"
SERVICE_NETWORK = "127.96.0.0/16"
"""Cluster IPs are loopback addresses, so that the playground's service proxy can listen on them."""
SHUTDOWN_SECONDS = 2.0
_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


@dataclass(slots=True)
class ServerOptions:
    """How to serve.

    ``identities`` are further tokens to make: file name -> user. ``{"kubelet": service_account("kube-system",
    "kubelet")}`` writes ``tokens/kubelet``. A user in the group ``system:masters`` may do everything; others need
    roles bound to them.
    """

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    reported_version: str = REPORTED_VERSION
    service_network: str = SERVICE_NETWORK
    log_limit_events: int = LOG_LIMIT_EVENTS
    identities: dict[str, User] = field(default_factory=dict)


class Server:
    """A running API server."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.store = Store(options.log_limit_events)
        self.registry = Registry()
        builtins.register(self.registry)
        self.registry.add(
            Kind(
                DEFINITIONS[0],
                "v1",
                DEFINITIONS[1],
                "CustomResourceDefinition",
                False,
                builtin("CustomResourceDefinition"),
                DefinitionStrategy(),
                short_names=("crd", "crds"),
                categories=("api-extensions",),
                subresources={"status": Subresource("status", "CustomResourceDefinition")},
            )
        )
        self.resources = Resources(self.store, self.registry, options.service_network)
        self.authenticator = Authenticator(self.store)
        self.authorizer = Authorizer(self.store)
        self.tokens: dict[str, str] = {}
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._api: Api | None = None
        self._housekeeping: Housekeeping | None = None

    @property
    def kubeconfig(self) -> Path:
        return self.options.state_dir / "kubeconfig"

    @property
    def ca_file(self) -> Path:
        return self.options.state_dir / "ca.crt"

    @property
    def admin_token(self) -> str:
        return self.tokens["admin"]

    async def start(self) -> None:
        """Write the credentials, create what every cluster has, and listen."""
        options = self.options
        options.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        context = tls.create(options.state_dir, options.host)
        self._housekeeping = Housekeeping(self.resources, self.ca_file.read_text())
        self._bootstrap()
        application = web.Application(client_max_size=BODY_LIMIT_BYTES + 1)
        self._api = Api(self.resources, self.authenticator, self.authorizer, options.reported_version, "")
        application.router.add_route("*", "/{path:.*}", self._api.handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        site = web.TCPSite(self._runner, options.host, options.port, ssl_context=context)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"https://{options.host}:{port}"
        self._api.discovery.address = f"{options.host}:{port}"
        self._write_credentials()

    def _bootstrap(self) -> None:
        options = Options("kube-apiserver")
        for name in _NAMESPACES:
            self._create("", "v1", "namespaces", {"metadata": {"name": name}}, options)
        for plural, item in bootstrap_objects():
            self._create("rbac.authorization.k8s.io", "v1", plural, item, options)

    def _create(self, group: str, version: str, plural: str, item: Object, options: Options) -> None:
        kind = self.registry.find(group, version, plural)
        assert kind is not None
        self.resources.create(kind, "", {"apiVersion": kind.api_version, "kind": kind.kind, **item}, options)

    def _write_credentials(self) -> None:
        directory = self.options.state_dir
        users = {"admin": User("kubernetes-admin", (MASTERS, "system:authenticated")), **self.options.identities}
        (directory / "tokens").mkdir(exist_ok=True, mode=0o700)
        for name, user in users.items():
            token = self.tokens[name] = secrets.token_urlsafe(32)
            self.authenticator.add(token, user)
            tls.write_private(directory / "tokens" / name, token)
        (directory / "endpoint").write_text(self.url + "\n")
        # Last, since others wait for it.
        tls.write_private(self.kubeconfig, tls.kubeconfig(self.url, self.ca_file, self.tokens["admin"], "admin"))

    async def close(self) -> None:
        """Stop listening and end all watches."""
        self.store.close_watchers()
        if self._housekeeping is not None:
            await self._housekeeping.stop()
        if self._api is not None:
            await self._api.proxy.close()
        if self._runner is not None:
            await self._runner.cleanup()


async def serve(options: ServerOptions) -> Server:
    """Start a server; ``close()`` it when done. ``OSError`` when the address cannot be listened on."""
    server = Server(options)
    try:
        await server.start()
    except BaseException:
        await server.close()
        raise
    return server


async def run(options: ServerOptions, stopped: asyncio.Event) -> None:
    """Serve until ``stopped``; print one line when ready."""
    server = await serve(options)
    print(f"ready {server.url} kubeconfig {server.kubeconfig}", flush=True)
    try:
        await stopped.wait()
    finally:
        await server.close()


def parse_identity(text: str) -> tuple[str, User]:
    """``name=serviceaccount:NAMESPACE:ACCOUNT``, ``name=user:USER`` or ``name=masters:USER`` as in ``--identity``."""
    name, _, rest = text.partition("=")
    kind, _, who = rest.partition(":")
    if not name or "/" in name or not who:
        raise ValueError(
            f"cannot read the identity {text!r}: want NAME=serviceaccount:NAMESPACE:ACCOUNT or NAME=user:USER"
        )
    match kind:
        case "serviceaccount":
            namespace, _, account = who.partition(":")
            return name, service_account(namespace, account)
        case "user":
            return name, User(who, ("system:authenticated",))
        case "masters":
            return name, User(who, (MASTERS, "system:authenticated"))
    raise ValueError(f"cannot read the identity {text!r}: unknown kind {kind!r}")
