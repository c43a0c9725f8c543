"""``python -m raftkv_playground.apiserver``: one API server, until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from raftkv_playground.apiserver.server import REPORTED_VERSION, SERVICE_NETWORK, ServerOptions, parse_identity, run


def options_from(arguments: list[str]) -> tuple[ServerOptions, bool]:
    parser = argparse.ArgumentParser(prog="raftkv_playground.apiserver", description="A local Kubernetes API server.")
    parser.add_argument("--state-dir", type=Path, required=True, help="gets kubeconfig, ca.crt, endpoint and tokens/")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    parser.add_argument("--reported-version", default=REPORTED_VERSION, help="what /version says (default %(default)s)")
    parser.add_argument("--service-network", default=SERVICE_NETWORK, help="cluster IPs (default %(default)s)")
    parser.add_argument(
        "--identity",
        action="append",
        default=[],
        metavar="NAME=KIND:WHO",
        help="write a token to tokens/NAME for serviceaccount:NAMESPACE:ACCOUNT, user:USER or masters:USER",
    )
    parser.add_argument("--verbose", action="store_true", help="log every request")
    parsed = parser.parse_args(arguments)
    try:
        identities = dict(map(parse_identity, parsed.identity))
    except ValueError as error:
        parser.error(str(error))
    options = ServerOptions(
        parsed.state_dir,
        parsed.host,
        parsed.port,
        parsed.reported_version,
        parsed.service_network,
        identities=identities,
    )
    return options, parsed.verbose


async def _main(options: ServerOptions) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await run(options, stopped)


def main() -> int:
    options, verbose = options_from(sys.argv[1:])
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        asyncio.run(_main(options))
    except OSError as error:
        print(f"cannot serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
