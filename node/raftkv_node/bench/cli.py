"""The command line of ``raftkv bench``: options as etcd's benchmark has them, and a few more."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..config import EXIT_USAGE
from . import loads, report
from .loads import LoadPlan, Watchers
from .running import Progress, Size, fill, run
from .target import Target, TargetError, parse_endpoints
from .templates import Shape

EXIT_ERRORS = 1
"""Calls failed, or the load could not run."""
EXIT_INTERRUPTED = 130
_MAX_VALUE_BYTES = 16 << 20
_MAX_CLIENTS = 100_000
_STAMP_BYTES = 16


def _whole(least: int, most: int = 1 << 62) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text.replace("_", "").replace(",", ""))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not in {least}..{most}")
        return value

    return parse


def _seconds(text: str) -> float:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    number, factor = text, 1.0
    for unit, seconds in units.items():
        if text.endswith(unit) and not (unit == "s" and text.endswith("ms")):
            number, factor = text[: -len(unit)], seconds
            break
    try:
        value = float(number) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 500ms, 30s or 2m") from None
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0")
    return value


def _ratio(parts: int) -> Callable[[str], tuple[int, ...]]:
    def parse(text: str) -> tuple[int, ...]:
        numbers = text.split(":")
        if len(numbers) != parts or not all(one.isdigit() for one in numbers) or not any(map(int, numbers)):
            raise argparse.ArgumentTypeError(f"{text!r} is not {parts} numbers with colons between them")
        return tuple(map(int, numbers))

    return parse


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    server = common.add_argument_group("server")
    server.add_argument("--endpoints", default="127.0.0.1:2379", help="comma-separated HOST:PORT or URLs")
    server.add_argument("--target-leader", action="store_true", help="only the leader among the endpoints")
    server.add_argument("--cacert", type=Path, help="authorities that the server's certificate is checked against")
    server.add_argument("--cert", type=Path, help="client certificate")
    server.add_argument("--key", type=Path, help="its private key")
    server.add_argument("--dial-timeout", type=_seconds, default=10.0, help="to connect (default 10s)")
    server.add_argument("--timeout", type=_seconds, default=30.0, help="of each call (default 30s)")
    size = common.add_argument_group("size")
    size.add_argument("--clients", type=_whole(1, _MAX_CLIENTS), help="calls that may be under way at once")
    size.add_argument("--conns", type=_whole(1, _MAX_CLIENTS), help="connections (default: one for 20 clients)")
    size.add_argument("--total", type=_whole(1), help="calls to make (default 10000, unless --duration is given)")
    size.add_argument("--duration", type=_seconds, help="how long to go on")
    size.add_argument("--rate", type=float, help="calls per second to begin, whatever the answers take (open loop)")
    keys = common.add_argument_group("keys and values")
    keys.add_argument("--key-size", type=_whole(1, 4096), default=32, help="bytes (default 32)")
    keys.add_argument("--val-size", type=_whole(0, _MAX_VALUE_BYTES), default=256, help="bytes (default 256)")
    keys.add_argument("--key-space-size", type=_whole(1), default=100_000, help="different keys (default 100000)")
    keys.add_argument("--key-prefix", default="/bench/", help="what keys begin with (default /bench/)")
    keys.add_argument("--sequential-keys", action="store_true", help="keys in turn, not at random")
    keys.add_argument("--ordered-keys", action="store_true", help="keys sort in the order in which they are numbered")
    keys.add_argument("--seed", type=_whole(1), default=0, help="makes the choices of keys repeatable")
    output = common.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="one JSON document on stdout")
    output.add_argument("--precise", action="store_true", help="more digits")
    output.add_argument("--progress", action=argparse.BooleanOptionalAction, help="a line each second on stderr")
    output.add_argument("--interval", type=_seconds, default=1.0, help="of progress and of the JSON's time line")
    return common


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raftkv bench",
        description="Loads on a server of etcd's v3 API, and what its answers took. All keys lie beneath --key-prefix.",
    )
    commands = parser.add_subparsers(dest="load", required=True, metavar="LOAD")
    common = _common()

    def add(name: str, text: str, clients: int = 100) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[common])
        command.set_defaults(default_clients=clients)
        return command

    def reads(command: argparse.ArgumentParser) -> None:
        command.add_argument("--consistency", choices=["l", "s", "linearizable", "serializable"], default="l")
        command.add_argument("--no-fill", action="store_true", help="do not put the keys that are to be read")

    put = add("put", "puts")
    put.add_argument("--new-keys", type=float, default=0.0, help="share of the puts that go to a new key (0 to 1)")
    txn = add("txn", "transactions: puts, or compare-and-swap on the revision last seen")
    txn.add_argument("--txn-ops", type=_whole(1, 128), default=1, help="puts in each transaction (default 1)")
    txn.add_argument("--cas", action="store_true", help="compare-and-swap")
    read = add("range", "reads")
    reads(read)
    read.add_argument("--limit", type=_whole(0), default=1, help="keys in each answer; 0: all (default 1)")
    read.add_argument("--stream", action="store_true", help="by RangeStream (etcd from 3.7), not by Range")
    mixed = add("mixed", "puts and reads")
    reads(mixed)
    mixed.add_argument("--ratio", type=_ratio(2), default=(1, 9), help="puts:reads (default 1:9)")
    for name, text, watchers in (
        ("watch", "puts at full speed, and how many events come back", 100),
        ("watch-latency", "puts one after the other, and how long their events take", 100),
    ):
        command = add(name, text, 100 if name == "watch" else 1)
        command.add_argument("--watchers", type=_whole(1), default=watchers, help="each sees every put (default 100)")
        command.add_argument("--streams", type=_whole(1), default=10, help="streams that share them (default 10)")
    kubernetes = add("kubernetes", "what API servers do: lists in pages, watches, compare-and-swap, gets")
    kubernetes.add_argument("--mix", type=_ratio(3), default=(1, 80, 19), help="lists:updates:gets (default 1:80:19)")
    kubernetes.add_argument("--page", type=_whole(1), default=500, help="keys in a page of a list (default 500)")
    kubernetes.add_argument("--watchers", type=_whole(0), default=10, help="each sees every update (default 10)")
    kubernetes.add_argument("--streams", type=_whole(1), default=10, help="streams that share them (default 10)")
    kubernetes.add_argument("--no-fill", action="store_true", help="do not put the objects first")
    add("lease", "leases: granted, kept alive, revoked")
    return parser


def _plan(chosen: argparse.Namespace) -> LoadPlan:
    serializable = getattr(chosen, "consistency", "l").startswith("s")
    match chosen.load:
        case "put":
            return loads.put()
        case "txn":
            return loads.cas() if chosen.cas else loads.txn(chosen.txn_ops)
        case "range":
            return loads.read(serializable=serializable, limit=chosen.limit, stream=chosen.stream)
        case "mixed":
            return loads.mixed(*chosen.ratio, serializable=serializable)
        case "watch" | "watch-latency":
            return loads.put(Watchers(chosen.watchers, chosen.streams))
        case "kubernetes":
            watchers = Watchers(chosen.watchers, chosen.streams)
            return loads.kubernetes(chosen.mix, chosen.page, watchers)
        case _:
            return loads.lease()


def _check(parser: argparse.ArgumentParser, chosen: argparse.Namespace, shape: Shape) -> None:
    """Refuses what does not go together."""
    if chosen.rate is not None and not 0 < chosen.rate < 1e9:
        parser.error("argument --rate: must be above 0")
    if not 0 <= getattr(chosen, "new_keys", 0.0) <= 1:
        parser.error("argument --new-keys: must be between 0 and 1")
    if (chosen.cert is None) != (chosen.key is None):
        parser.error("--cert and --key go together")
    if shape.key_bytes <= len(shape.prefix):
        parser.error(
            f"argument --key-size: {shape.key_bytes} bytes leave no room after the prefix; "
            "make keys longer or --key-prefix shorter"
        )
    if shape.digits < 16 and chosen.key_space_size > 16**shape.digits:
        parser.error(
            f"argument --key-space-size: {shape.key_bytes} bytes after {len(shape.prefix)} of prefix "
            f"make no more than {16**shape.digits} keys"
        )
    if chosen.load == "txn" and chosen.cas and chosen.txn_ops != 1:
        parser.error("argument --cas: not with --txn-ops")
    if getattr(chosen, "txn_ops", 1) > chosen.key_space_size:
        parser.error("argument --txn-ops: a transaction puts each key once; --key-space-size is too small")
    watches = getattr(chosen, "watchers", 0) > 0
    if watches and shape.value_bytes < _STAMP_BYTES:
        parser.error(f"argument --val-size: values that are watched for need {_STAMP_BYTES} bytes for the time")


def _target(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> Target:
    try:
        endpoints, secure = parse_endpoints(chosen.endpoints)
    except ValueError as error:
        parser.error(f"argument --endpoints: {error}")
    given = chosen.cacert is not None or chosen.cert is not None
    if given and not secure and "http://" in chosen.endpoints:
        parser.error("certificates are for https endpoints")
    return Target(endpoints, secure or given, chosen.cacert, chosen.cert, chosen.key, chosen.dial_timeout)


def _size(chosen: argparse.Namespace) -> Size:
    clients = chosen.clients or chosen.default_clients
    total = chosen.total
    if total is None and chosen.duration is None:
        total = 10_000
    return Size(
        clients=clients,
        connections=min(clients, chosen.conns or max(1, (clients + 19) // 20)),
        total=total,
        duration_seconds=chosen.duration,
        rate=chosen.rate,
        key_space=chosen.key_space_size,
        sequential=chosen.sequential_keys,
        ordered=chosen.ordered_keys,
        new_keys=getattr(chosen, "new_keys", 0.0),
        call_timeout_seconds=chosen.timeout,
        seed=chosen.seed,
    )


def main(arguments: Sequence[str]) -> int:
    """Runs a load and prints what it measured."""
    parser = _parser()
    try:
        chosen = parser.parse_args(arguments)
        shape = Shape(chosen.key_prefix.encode(), chosen.key_size, chosen.val_size)
        _check(parser, chosen, shape)
        target = _target(parser, chosen)
    except SystemExit as end:
        return EXIT_USAGE if end.code else 0
    try:
        return _run(target, chosen, shape)
    except (TargetError, ValueError) as error:
        print(f"raftkv bench: {error}", file=sys.stderr)
        return EXIT_ERRORS
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run(target: Target, chosen: argparse.Namespace, shape: Shape) -> int:
    plan, size = _plan(chosen), _size(chosen)
    if chosen.target_leader:
        target = target.leader_only()
    if plan.needs_keys and not chosen.no_fill and (put := fill(target, size, shape)):
        print(f"put {put:,} keys to read", file=sys.stderr)
    terminal = sys.stderr.isatty()
    progress = Progress(size, in_place=terminal) if chosen.progress or (chosen.progress is None and terminal) else None
    outcome = run(target, plan, size, shape, watching=progress, look_seconds=chosen.interval)
    if progress is not None:
        progress.end()
    if chosen.json:
        print(json.dumps(report.as_json(outcome)))
    else:
        print(report.as_text(outcome, precise=chosen.precise))
    if outcome.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_ERRORS if outcome.errors or outcome.snapshot.failure else 0
