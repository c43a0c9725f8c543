"""From the command line to a running member, and to its end.

A start that is refused says why in one sentence on standard error and ends with a code that tells the cases apart:
64 for flags, the log's own codes for what D10 distinguishes, 70 where a port, a folder or a file cannot be used.
Nothing is sent before the log is open.

SIGTERM and SIGINT end the node well: the lead is handed on, calls in flight are finished within a bound, the backend
commits, the log is drained and marked clean (D9). What must never be survived (a broken invariant, a failed log or
store) ends the process at once with code 72, as a crash would.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic

from raftkv_node import _engine
from raftkv_node.adr import (
    EXIT_CORRUPT,
    EXIT_MISMATCH,
    EXIT_PROVEN_LOST,
    EXIT_UNUSABLE,
    Environment,
    Files,
    LogError,
    LogFailed,
)
from raftkv_node.adr import wipe as wipe_log
from raftkv_node.adr.log import SEGMENT_FOLDER
from raftkv_node.api.methods import registrations
from raftkv_node.config import EXIT_USAGE, ConfigError, NodeConfig, flags_help, parse_arguments
from raftkv_node.raft import Configuration, InvariantViolation, LostLogError
from raftkv_node.server.force import force, is_due
from raftkv_node.server.hugepages import HugePages
from raftkv_node.server.identity import DISOWNED, FILE_NAME, Identity, IdentityError, load_or_format, save
from raftkv_node.server.log import Logger
from raftkv_node.server.member import Failure
from raftkv_node.server.members import founders
from raftkv_node.server.node import CAPTURED_METADATA, Node
from raftkv_node.server.peers import DEFERRABLE_FRAMES
from raftkv_node.server.watches import STREAM_QUEUE_HIGH_BYTES
from raftkv_node.store.errors import StoreError
from raftkv_node.threads import daemon

EXIT_FAILED = 72
"""Exit code of a node that stopped because it could not go on safely."""
GRPC_OVERHEAD_BYTES = 512 << 10
"""What a message may have beside a request of the largest size, as with etcd."""
TRANSFER_SECONDS = 2.0
DRAIN_SECONDS = 3.0
GC_FREEZE_SECONDS = 30.0
KEPT_FREE_BYTES = 32 << 20
"""Free memory at the end of a heap that the system does not get back, and the largest block that is taken from a heap
(glibc allows no more)."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
SWITCH_SECONDS = 0.0005
"""How long another thread may keep the turn from running (the interpreter's default is 5 ms)."""


class StartError(Exception):
    """The node cannot start; one sentence and the exit code."""

    def __init__(self, message: str, exit_code: int = EXIT_UNUSABLE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(arguments: Sequence[str]) -> int:
    """``raftkv node``; returns the exit code."""
    if any(one in ("-h", "-help", "--help") for one in arguments):
        print(flags_help())
        return 0
    try:
        config = parse_arguments(arguments)
    except ConfigError as error:
        return _refuse(str(error), EXIT_USAGE)
    logger = Logger(config.log_level, config.log_format)
    _tune_malloc()
    try:
        node = _start(config, logger)
    except (StartError, LogError) as error:
        return _refuse(str(error), error.exit_code)
    except (IdentityError, StoreError) as error:
        return _refuse(str(error), EXIT_CORRUPT)
    except (InvariantViolation, LostLogError) as error:
        return _refuse(f"log and backend contradict each other: {error}", EXIT_CORRUPT)
    if node is None:
        logger.info("retired")
        return 0
    return _run(node, logger)


def _refuse(sentence: str, code: int) -> int:
    print(f"raftkv node: {sentence}", file=sys.stderr)
    return code


# -- start -------------------------------------------------------------------------------------------------------------


def _start(config: NodeConfig, logger: Logger) -> Node | None:
    """The node, listening; None when it was being wiped and that is now done."""
    _make_folder(config.data_dir)
    try:
        identity = load_or_format(config.data_dir, config.number, config.name)
    except OSError as error:
        raise StartError(f"the identity in {config.data_dir} cannot be read or written: {error.strerror}") from None
    if identity.retired:
        wipe(config, identity)
        return None
    if identity.disowned:
        raise StartError(DISOWNED, EXIT_MISMATCH)
    if is_due(config, identity):
        identity = force(config, identity, lambda text: print(text, flush=True))
    identity, founding = identity_of(config, identity)
    engine = _engine.Engine(
        max_message_bytes=config.max_request_bytes + GRPC_OVERHEAD_BYTES,
        stream_queue_high_bytes=STREAM_QUEUE_HIGH_BYTES,
        capture_metadata=CAPTURED_METADATA,
        deferrable_frames=DEFERRABLE_FRAMES,
    )
    engine.register_methods(registrations())
    _listen(config, engine)
    try:
        # The member saves a derived identity once its log is open, and before anybody hears of it: a start that is
        # refused binds to no flags.
        node = Node(config, identity, founding, engine, logger)
    except OSError as error:
        raise StartError(f"the identity in {config.data_dir} cannot be written: {error.strerror}") from None
    engine.start()
    logger.info(
        "serving",
        clients=",".join(address.url for address in config.listen_client_urls),
        peers=",".join(address.url for address in config.listen_peer_urls),
        name=config.name,
        waiting=node.member is None,
    )
    return node


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"the data folder {folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StartError(f"the data folder {folder} cannot be written")


def identity_of(config: NodeConfig, identity: Identity) -> tuple[Identity, Configuration]:
    """Who the node is: as issued before, or derived from the flags when it is started by hand for the first time."""
    if config.operated and config.number and identity.number not in (0, config.number):
        raise StartError(
            f"the disk in {config.data_dir} is of number {identity.number}, not {config.number}: a wrong volume",
            EXIT_MISMATCH,
        )
    if identity.issued:
        if identity.operated != config.operated:
            kind = "with --operated" if identity.operated else "by hand"
            raise StartError(f"the member in {config.data_dir} was started {kind} and stays so", EXIT_USAGE)
        founding = Configuration.decode(identity.founding) if identity.founding else Configuration()
        return identity, founding
    if config.operated or config.initial_cluster_state == "existing":
        return identity, Configuration()
    derived = founders(config.initial_cluster, config.initial_cluster_token)
    issued = replace(
        identity,
        name=config.name,
        cluster_id=derived.cluster_id,
        member_id=derived.ids[config.name],
        peer_url=config.peer_url,
        client_urls=config.client_urls,
        zone=config.zone,
        founding=derived.configuration.encode(),
    )
    return issued, derived.configuration


def _listen(config: NodeConfig, engine: _engine.Engine) -> None:
    """Binds all ports; nothing is accepted before the engine is started."""
    client = _tls(config.cert_file, config.key_file, config.trusted_ca_file, config.client_cert_auth)
    peer = _tls(config.peer_cert_file, config.peer_key_file, config.peer_trusted_ca_file, config.peer_client_cert_auth)
    listeners = (
        (config.listen_client_urls, engine.listen_grpc, client),
        (config.listen_peer_urls, engine.listen_peer, peer),
        (config.listen_metrics_urls, engine.listen_http, _tls(config.cert_file, config.key_file, None, False)),
    )
    for addresses, listen, tls in listeners:
        for address in addresses:
            try:
                listen(address.host, address.port, tls if address.tls else None)
            except OSError as error:
                reason = error.strerror or str(error)
                raise StartError(f"cannot listen on {address.url}: {reason}") from None


def _tls(cert: Path | None, key: Path | None, authority: Path | None, required: bool) -> _engine.TlsConfig | None:
    if cert is None or key is None:
        return None
    try:
        return _engine.TlsConfig(
            cert_file=str(cert),
            key_file=str(key),
            ca_file=str(authority) if authority else None,
            require_client_cert=required,
        )
    except ValueError as error:
        raise StartError(str(error), EXIT_USAGE) from None


# -- run ---------------------------------------------------------------------------------------------------------------


def _run(node: Node, logger: Logger) -> int:
    """Turns until a signal or an error ends them; returns the exit code."""

    def stop(number: int, _frame: object) -> None:
        logger.info("stopping", signal=signal.Signals(number).name)
        node.stopping = True
        node.engine.wake()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with contextlib.suppress(ValueError, OSError):
        faulthandler.register(signal.SIGUSR1)
    _tune_gc()
    sys.setswitchinterval(SWITCH_SECONDS)
    with contextlib.suppress(AttributeError, OSError, RuntimeError):  # no libc to load, no thread to be had
        HugePages(logger, node.metrics).start()
    try:
        frozen = monotonic()
        while not node.stopping:
            node.turn()
            if monotonic() - frozen > GC_FREEZE_SECONDS:
                frozen = monotonic()
                gc.collect(1)
                gc.freeze()
        return _end(node, logger)
    except LostLogError as error:
        logger.error("the log of this member is proven lost", reason=str(error))
        return _crash(EXIT_PROVEN_LOST)
    except LogFailed as error:
        logger.error("cannot go on", reason=str(error))
        return _crash(EXIT_FAILED)
    except LogError as error:  # the log of an identity that was issued to the running node, or a disk that is disowned
        logger.error("this member must not take part", reason=str(error))
        return _crash(error.exit_code)
    except (InvariantViolation, Failure, StoreError) as error:
        logger.error("cannot go on", reason=str(error))
        return _crash(EXIT_FAILED)
    except Exception as error:
        logger.error("cannot go on", reason=repr(error))
        traceback.print_exc()
        return _crash(EXIT_FAILED)


def _tune_malloc() -> None:
    """Keep what a large answer was made in for the next one. By default glibc gives such blocks back at once, and a
    third of a large range's time goes into getting the same pages again, zeroed. Other C libraries are left alone.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # no such name: not glibc, and its numbers mean something else
        library.mallopt(_M_MMAP_THRESHOLD, KEPT_FREE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_FREE_BYTES)


def _tune_gc() -> None:
    """Reference counts free nearly everything; full collections would only walk the index, in one long pause."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 1_000_000)


def _crash(code: int) -> int:
    """Ends at once, as a crash does: nothing is marked clean, no thread is waited for."""
    sys.stderr.flush()
    os._exit(code)


def _end(node: Node, logger: Logger) -> int:
    """The end on purpose: the lead is handed on, calls are finished, log and store are closed clean."""
    member = node.member
    if member is not None and node.retiring is None:
        target = member.transfer_target()
        if target and member.raft.transfer_leader(target):
            deadline = monotonic() + TRANSFER_SECONDS
            node.run(until=lambda: not member.raft.is_leader or monotonic() >= deadline)
        deadline = monotonic() + DRAIN_SECONDS
        node.run(until=lambda: not member.busy or monotonic() >= deadline)
        member.abandon()
        node.answers.flush()
    ender = daemon("shutdown", lambda: node.engine.shutdown(DRAIN_SECONDS / 2))
    ender.start()
    while ender.is_alive():
        node.engine.poll(0.05)
    ender.join()
    node.workers.close()
    if node.retiring is not None:
        _retire(node, node.retiring)
        logger.info("retired")
        return 0
    if member is not None:
        member.close()
    logger.info("stopped")
    return 0


# -- retire ------------------------------------------------------------------------------------------------------------


def _retire(node: Node, identity: Identity) -> None:
    """M10: note it durably, then wipe; an interrupted wipe is finished at the next start."""
    save(node.config.data_dir, replace(identity, retired=True))
    if node.member is not None:
        node.member.store.close(commit=False)
        node.member.log.retire()
    wipe(node.config, identity)


def wipe(config: NodeConfig, identity: Identity) -> None:
    """Removes this member's rings, its segments and everything in the data folder, the identity last."""
    folder = config.data_dir
    if identity.issued:
        segments = config.adr_drain_dir if config.adr_drain_dir is not None else folder / SEGMENT_FOLDER
        wipe_log(Files(), folder, segments, config.adr_path, (identity.cluster_id, identity.number), Environment())
    for entry in folder.iterdir():
        if entry.name == FILE_NAME:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    (folder / FILE_NAME).unlink(missing_ok=True)
