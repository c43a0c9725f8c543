"""``raftkv``: one command with subcommands, and ``kubectl raftkv``, which is the same.

``node``, ``adr`` and ``bench`` belong to this package and are known here. All others are found in the entry-point group
``raftkv.commands`` and loaded only when they are asked for, so that starting a node never imports an operator.
An entry point is a function that takes the arguments after its name and returns an exit code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from . import __version__, compiled
from .config import EXIT_USAGE

Command = Callable[[Sequence[str]], int]
GROUP = "raftkv.commands"


def _node(arguments: Sequence[str]) -> int:
    from .server.lifecycle import main as run_node

    return run_node(arguments)


def _adr(arguments: Sequence[str]) -> int:
    from .adr import tools
    from .adr.probing import probe

    parser = argparse.ArgumentParser(
        prog="raftkv adr",
        description="Looks at a member's log on a host. Exit codes: docs/durability.md.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    probing = commands.add_parser("probe", help="which durability a folder gives, and why")
    probing.add_argument("folder", type=Path)
    probing.add_argument("--json", action="store_true", help="one JSON document")
    runs = {"inspect": tools.inspect, "verify": tools.verify, "drain": tools.drain}
    for name, text in (
        ("inspect", "show manifest, log buffers and segments; changes nothing"),
        ("verify", "read every record of a stopped member: what a start would recover, or the first damage"),
        ("drain", "bring a stopped member's log buffer to disk and mark it clean, so that the member may move"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("data_dir", type=Path, help="the member's --data-dir")
        command.add_argument("--adr-path", type=Path, help="folder of the log buffer (default: as recorded)")
        command.add_argument("--adr-drain-dir", type=Path, help="folder of the segments, where it is another one")
        command.add_argument("--json", action="store_true", help="one JSON document")
    try:
        chosen = parser.parse_args(arguments)
    except SystemExit as end:
        return EXIT_USAGE if end.code else 0
    if chosen.command == "probe":
        return probe(chosen.folder, as_json=chosen.json)
    run = runs[chosen.command]
    return run(chosen.data_dir, chosen.adr_path, drain_dir=chosen.adr_drain_dir, as_json=chosen.json)


def _bench(arguments: Sequence[str]) -> int:
    from .bench.cli import main as run_bench

    return run_bench(arguments)


def _version(_arguments: Sequence[str]) -> int:
    print(f"raftkv {__version__} ({'compiled' if compiled() else 'interpreted'})")
    return 0


OWN_COMMANDS: dict[str, Command] = {"node": _node, "adr": _adr, "bench": _bench, "version": _version}


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _usage() -> str:
    names = sorted({*OWN_COMMANDS, *_installed()})
    return f"usage: raftkv COMMAND [ARGUMENT ...]\n\ncommands: {', '.join(names)}\nraftkv COMMAND --help says more."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the subcommand; the exit code is its, or :data:`EXIT_USAGE` when there is none of that name."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else EXIT_USAGE
    name, rest = words[0], words[1:]
    if name == "--version":
        name = "version"
    command = OWN_COMMANDS.get(name)
    if command is None and (point := _installed().get(name)) is not None:
        command = point.load()
    if command is None:
        print(f"raftkv: {name!r} is not a command; see raftkv --help", file=sys.stderr)
        return EXIT_USAGE
    return command(rest)


if __name__ == "__main__":
    sys.exit(main())
