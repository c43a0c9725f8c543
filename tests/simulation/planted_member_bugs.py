"""The bugs of `planted_bugs`, and a few more, planted in the production member: raft, driver, recovery, store."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adr_harness import last_lsn
from planted_bugs import (
    ChangeWithoutOwnTermCommit,
    OwnCountBeforeDurable,
    PriorTermCommit,
    ResentForward,
    ReusedReadContext,
    TwoChangesInFlight,
    VoteWithoutLogCheck,
)
from raftkv_node import adr
from raftkv_node.adr.segments import Segments
from raftkv_node.raft import Message, Raft, Ready, Snapshot
from raftkv_node.server import installs as installs_module
from raftkv_node.server import transfers as transfers_module
from raftkv_node.server.member import Member
from raftkv_node.server.replica import Replica
from raftkv_node.store import install
from raftkv_node.store.snapshot import SnapshotSink
from simulation_cluster import MemberWorld, absences, everything, storms
from simulation_disk import SimFiles
from simulation_member import MemberNode
from simulation_pieces import SimStore
from simulation_setup import Setup, changes, churn, freezes


class AcknowledgeBeforeFence(Replica):
    """Votes and acknowledgements leave before what they promise is durable."""

    def _persist(self, ready: Ready) -> bool:
        self._send(ready.messages_after_persist)
        ready.messages_after_persist = ()
        return super()._persist(ready)


class DurableWhenWritten(Replica):
    """Disk mode: what was handed to the log counts as durable before its flush."""

    def _after(self, ready: Ready, lsn: int = 0) -> None:
        self._durable(ready.number, ready.messages_after_persist)


class LostHardState(MemberNode):
    """Recovery gives the entries, but not the vote, and no term beyond that of the last entry."""

    def open_log(self, options: adr.LogOptions) -> tuple[adr.Log, adr.Recovered]:
        log, found = super().open_log(options)
        return log, dataclasses.replace(found, hard_state=adr.HardState(found.last_term, 0, found.hard_state.commit))


class DurableIndexNeverBack(SimStore):
    """D14: the backend's bound stays where a dropped tail once was."""

    def set_durable_index(self, index: int) -> None:
        super().set_durable_index(max(self.backend.durable_index, index))


class CommitsWhatIsApplied(SimStore):
    """D14: the backend does not ask what is durable in the log."""

    def set_durable_index(self, index: int) -> None:
        super().set_durable_index(1 << 62)


class ForgetsCompactions(SimStore):
    """The state machine depends on how often it was restarted."""

    def _recover(self) -> None:
        super()._recover()
        self.mvcc.compact_revision = -1


_READ_WHOLE: Callable[..., Any] = Segments._read_whole


def read_to_the_last_byte(self: Segments, path: Path, start: int, end: int, index: Any) -> Any:
    """Segments are read past what was recovered of them."""
    return _READ_WHOLE(self, path, start, max(end, last_lsn(path, start)), index)


def keep_the_file(self: Segments, segment: Any) -> None:
    """What was found behind the drained LSN is synced where it lies, with all that follows it."""
    fd = self._files.open(segment.path)
    self._files.fsync(fd)
    self._files.close(fd)


class AcknowledgeBeforeMark(Replica):
    """A snapshot is acknowledged before the log has its mark."""

    def _persist(self, ready: Ready) -> bool:
        if ready.snapshot is not None:
            self._send(ready.messages_after_persist)
            ready.messages_after_persist = ()
        return super()._persist(ready)


class InstallsOverANewerLog(Raft):
    """A snapshot is installed whatever the log holds."""

    def _handle_snapshot(self, message: Message) -> None:
        self._snapshot_messages.append(message)

    def restore(self, snapshot: Snapshot) -> bool:
        self._log.committed = min(self._log.committed, snapshot.index - 1)
        return super().restore(snapshot)

    def _has_committed(self, index: int, term: int) -> bool:
        return False


def releases_what_is_applied(self: Member) -> None:
    """D14: the log is released up to what is applied, committed or not."""
    self.log.release(self.store.applied_index + 1)


def hears_before_it_takes_part(self: Member, messages: Sequence[Message]) -> None:
    """M5: messages reach the core though nobody has stored this opening yet."""
    self.replica.step(messages)


def not_made_durable(files: Any, data_dir: Path) -> Path:
    """The snapshot is used as it was written, without its name."""
    return data_dir / install.PARTIAL


def swap_what_was_written(files: Any, data_dir: Path) -> None:
    shutil.rmtree(data_dir / install.BACKEND)
    (data_dir / install.PARTIAL).rename(data_dir / install.BACKEND)


_FINISH: Callable[..., Any] = SnapshotSink.finish


def forget_the_removed(self: SnapshotSink) -> Snapshot:
    """The removed set does not travel in snapshots."""
    assert self.head is not None
    snapshot = self.head.snapshot
    configuration = dataclasses.replace(snapshot.configuration, removed=frozenset())
    self.head = self.head._replace(
        snapshot=snapshot._replace(configuration=configuration), configuration=configuration.encode()
    )
    found: Snapshot = _FINISH(self)
    return found


ONE_PIECE = {
    transfers_module: {"CHUNK_BYTES": 1 << 16, "WINDOW_BYTES": 1 << 18},
    installs_module: {"CHUNK_BYTES": 1 << 16, "QUEUE_BYTES": 1 << 18},
}
"""No bug: a whole snapshot in a message, so that copies of it come again when it is installed."""

MARK_BEFORE_SNAPSHOT = {install: {"complete": not_made_durable, "swap": swap_what_was_written}}
"""The log's mark is written before the snapshot is durable under its name."""


STALE_RECORDS = {
    SimFiles: {"truncate": lambda self, fd, size_bytes: None},
    Segments: {"_read_whole": read_to_the_last_byte, "_replace": keep_the_file},
}
"""What lies behind a dropped tail is not cut off, and is read again."""


def on_disk(rng: random.Random) -> Setup:
    """Storms over slow disks: much is under way when the power goes."""
    return replace(storms(rng), slow_disks=True, flush=100, clients=12)


def divided(rng: random.Random) -> Setup:
    """Slow disks and a network that splits: leaders append what no quorum will have."""
    faults = replace(everything(rng).faults, lose=0.05, partition=0.8, crash=0.0, blackout=0.0)
    return replace(everything(rng), slow_disks=True, flush=100, faults=replace(faults, fault_every=80), clients=12)


def absences_with_changes(rng: random.Random) -> Setup:
    """Members are away while others are removed."""
    setup = absences(rng)
    return replace(setup, faults=replace(setup.faults, change=0.8, fault_every=60))


def figure_8(rng: random.Random) -> Setup:
    return replace(churn(rng), duration=3000)


@dataclass(frozen=True)
class Planted:
    """One bug, where it sits, and the rules that may tell of it."""

    name: str
    found_by: frozenset[str]
    shape: Callable[[random.Random], Setup] = everything
    classes: Mapping[str, Any] = field(default_factory=dict)

    def world(self, seed: int) -> MemberWorld:
        return MemberWorld(seed, self.shape(random.Random(seed)), **self.classes)


def bug(name: str, *found_by: str, shape: Callable[[random.Random], Setup] = everything, **classes: Any) -> Planted:
    return Planted(name, frozenset(found_by), shape, classes)


def core(name: str, raft_class: type[Raft], *found_by: str, shape: Callable[[random.Random], Setup]) -> Planted:
    return bug(name, *found_by, shape=shape, raft_class=raft_class)


BUGS = [
    core("own count before durable", OwnCountBeforeDurable, "COMMITTED_ON_QUORUM", shape=on_disk),
    core("prior-term commit", PriorTermCommit, "COMMIT_OWN_TERM", shape=figure_8),
    core("vote without the log check", VoteWithoutLogCheck, "LEADER_COMPLETENESS", shape=figure_8),
    bug(
        "acknowledgement before the fence",
        "D4_ACK_DURABLE",
        "D4_VOTE_DURABLE",
        replica_class=AcknowledgeBeforeFence,
    ),
    bug(
        "durable when written",
        "D4_ACK_DURABLE",
        "D4_VOTE_DURABLE",
        "COMMITTED_ON_QUORUM",
        shape=on_disk,
        replica_class=DurableWhenWritten,
    ),
    bug("stale records behind a dropped tail", "NO_VOTE_TWICE", "ACKNOWLEDGED_IMPLIES_DURABLE", "RECOVERED_IS_PREFIX",
        "FAILED", shape=on_disk, planted=STALE_RECORDS),
    bug("lost HardState", "VOTE_ONCE", "TERM_MONOTONIC", "ELECTION_SAFETY", "D4_VOTE_DURABLE", "FAILED",
        shape=figure_8, node_class=LostHardState),
    core("change without an own-term commit", ChangeWithoutOwnTermCommit, "OWN_TERM_BEFORE_CHANGE", shape=changes),
    core("two changes in flight", TwoChangesInFlight, "ONE_CHANGE_IN_FLIGHT", shape=changes),
    core("reused read context", ReusedReadContext, "LINEARIZABLE", shape=freezes),
    core("doubled forwarded proposal", ResentForward, "M16_APPLIED_ONCE", shape=everything),
    bug(
        "durable index never back",
        "D14_COMMIT_BEHIND_LOG",
        shape=divided,
        store_class=DurableIndexNeverBack,
    ),
    bug("backend ahead of the log", "D14_COMMIT_BEHIND_LOG", shape=on_disk, store_class=CommitsWhatIsApplied),
    bug("mark before the snapshot", "FAILED", shape=absences, planted=MARK_BEFORE_SNAPSHOT),
    bug("acknowledgement before the mark", "D4_ACK_DURABLE", shape=absences, replica_class=AcknowledgeBeforeMark),
    bug(
        "removed set lost in the snapshot",
        "REMOVED_NEVER_RETURNS",
        "M4_REMOVED_SET",
        shape=absences_with_changes,
        planted={SnapshotSink: {"finish": forget_the_removed}},
    ),
    bug(
        "an acknowledgement before it takes part",
        "M5_TAKES_PART",
        shape=storms,
        planted={Member: {"hear": hears_before_it_takes_part}},
    ),
    bug(
        "release past the synced commit",
        "D14_SEGMENTS_KEPT",
        "D15_NO_GAP",
        "FAILED",
        "LIVENESS",
        "INDEXES_IN_ORDER",
        shape=absences,
        planted={Member: {"_release": releases_what_is_applied}},
    ),
    bug(
        "install over a newer log",
        "M15_LOST_LOG",
        "COMMIT_MONOTONIC",
        "STATE_MACHINE_SAFETY",
        "FAILED",
        shape=absences,
        raft_class=InstallsOverANewerLog,
        planted=ONE_PIECE,
    ),
    bug("compaction forgotten at a restart", "STATE_MACHINE_SAFETY", shape=storms, store_class=ForgetsCompactions),
]  # fmt: skip
