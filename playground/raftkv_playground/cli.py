"""``raftkv playground``: a local Kubernetes API with nodes, and the RaftKV operator on it."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
"""The manifests beside this package in the repository."""
PARTS = {
    "controllers": "raftkv_playground.controllers.manager",
    "kubelet": "raftkv_playground.kubelet.main",
}
"""Commands that run one part in this process, as the supervisor does; each module has ``main(argv)``."""


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="raftkv playground", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser(
        "up",
        help="start everything and stay until Ctrl-C",
        description="Start API server, controllers, nodes and operator as local processes; stay until Ctrl-C.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    up.add_argument("--nodes", type=int, default=3, help="how many nodes (1 to 9), named node-1, node-2, ...")
    up.add_argument("--port", type=int, default=0, help="port of the API on 127.0.0.1; 0 takes a free one")
    up.add_argument(
        "--state-dir", type=Path, help="where everything is kept; without it a temporary folder, removed at the end"
    )
    up.add_argument("--kubeconfig", type=Path, help="where to write the kubeconfig; without it in the state folder")
    up.add_argument(
        "--apply", type=Path, action="append", default=[], metavar="PATH",
        help="manifests to apply before the operator starts; repeatable. Without any: the CRD and RBAC of the "
        "repository's deploy folder",
    )  # fmt: skip
    up.add_argument(
        "--sample", type=Path, action="append", default=[], metavar="PATH", dest="samples",
        help="manifests to apply when the operator runs; repeatable",
    )  # fmt: skip
    up.add_argument(
        "--image", action="append", default=[], metavar="NAME=COMMAND", dest="images",
        help="let pods run one more image: the last part of its name, and what to execute for it; repeatable",
    )  # fmt: skip
    up.add_argument(
        "--no-kubelet", action="store_false", dest="kubelet",
        help="start without nodes: pods stay pending until something else runs them",
    )  # fmt: skip
    up.add_argument("--no-operator", action="store_false", dest="operator", help="start without the operator")
    up.add_argument(
        "--operator-arg", action="append", default=[], dest="operator_args", metavar="ARG",
        help="one more argument for the operator; repeatable",
    )  # fmt: skip
    up.add_argument("--ready-file", type=Path, help="written when all is ready, with the kubeconfig's path")
    up.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="limit for each step of the start")
    up.add_argument(
        "--restart-backoff", type=float, default=1.0, metavar="SECONDS",
        help="delay before the second restart in a row of a container; it doubles",
    )  # fmt: skip
    up.add_argument("--restart-backoff-limit", type=float, default=30.0, metavar="SECONDS", help="where it ends")
    up.add_argument("--log-level", default="INFO", help="of the parts' logs")
    for name in PARTS:
        commands.add_parser(name, help=f"run only the {name}", add_help=False)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in PARTS:
        part = importlib.import_module(PARTS[words[0]])
        code: int = part.main(words[1:])
        return code
    options = parser().parse_args(words)
    if options.operator and not options.apply:
        options.apply = [DEPLOY / "crd.yaml", DEPLOY / "rbac.yaml"]
        if not DEPLOY.is_dir():
            parser().error(
                "this installation lies outside of RaftKV's repository: name the repository's deploy/crd.yaml and "
                "deploy/rbac.yaml with --apply, or start with --no-operator"
            )
    if not 1 <= options.nodes <= 9:
        parser().error("--nodes must be 1 to 9")
    missing = [str(path) for path in [*options.apply, *options.samples] if not path.exists()]
    if missing:
        parser().error(f"no such file: {', '.join(missing)}")
    return asyncio.run(_up(options))


async def _up(options: argparse.Namespace) -> int:
    from raftkv_playground.supervisor import Options, Supervisor

    wanted = Options(
        nodes=options.nodes,
        port=options.port,
        state_dir=options.state_dir,
        kubeconfig=options.kubeconfig,
        apply=options.apply,
        samples=options.samples,
        images=options.images,
        kubelet=options.kubelet,
        operator=options.operator,
        operator_args=options.operator_args,
        ready_file=options.ready_file,
        timeout_seconds=options.timeout,
        restart_backoff_seconds=options.restart_backoff,
        restart_backoff_limit_seconds=options.restart_backoff_limit,
        log_level=options.log_level,
    )
    try:
        supervisor = Supervisor(wanted)
    except OSError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 1
    return await supervisor.run()


if __name__ == "__main__":
    raise SystemExit(main())
