"""What an opening tells its caller of the log that it has recovered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from raftkv_node.adr.disks import VOLATILE_FILE_SYSTEMS
from raftkv_node.adr.errors import Refusal, Refused
from raftkv_node.adr.levels import Medium
from raftkv_node.adr.log import Log, LogOptions, Recovered
from raftkv_node.adr.records import MARK_SNAPSHOT, MARK_USER, HardState, Mark, StoredEntry

if TYPE_CHECKING:
    from raftkv_node.adr.opening import Findings, Opened


def recovered_of(opened: Opened, found: Findings, log: Log, began: float) -> Recovered:
    """The result of an opening. Refused (*corrupt*): an entry that was just found cannot be read back."""
    index = opened.index
    last_index, last_term = index.last
    first_index = index.first_index
    lo = max(first_index, index.tail(opened.options.recovered_entries_bytes))
    entries: list[StoredEntry] = []
    while lo <= last_index:
        read = log.read_entries(lo, last_index + 1, opened.options.recovered_entries_bytes)
        if not read:
            raise Refused(Refusal.CORRUPT, f"entry {lo} of the log cannot be read back")
        entries += read
        lo = read[-1].index + 1
    membership = index.configuration
    snapshot = index.mark(MARK_SNAPSHOT)
    return Recovered(
        hard_state=HardState(*index.hard_state),
        configuration=Mark(*membership) if membership is not None else None,
        snapshot=Mark(*snapshot) if snapshot is not None else None,
        marks={item[0]: Mark(*item[1:]) for item in index.marks_from(MARK_USER)},
        first_index=first_index,
        last_index=last_index,
        last_term=last_term,
        base_term=index.term(first_index - 1) or 0,
        entries=entries,
        torn_tail_bytes=found.torn_tail_bytes,
        replayed=found.replayed,
        duration_seconds=time.monotonic() - began,
        generation=opened.generation.number,
        nonce=bytes.fromhex(opened.manifest.nonce),
        fresh=found.previous is None,
        row=found.verdict.row,
        ring_proof=_ring_proves(opened.options, found),
    )


def _ring_proves(options: LogOptions, found: Findings) -> bool:
    """M5: whether the ring that was recovered from shows that this disk is not an older copy.

    A ring in use belongs to the newest opening, by rows 5 to 7, and the disk lacks nothing that it gave up, by row 12.
    A ring that is marked clean may have been left behind when the member moved on to another host. An ordinary file,
    or one on the disk's own file system, may have been restored together with the disk, and proves nothing.
    """
    ring = found.verdict.ring
    if ring is None or ring.header.clean:
        return False
    outside = found.probe.identity != options.environment.probe_disk(options.data_dir).identity
    memory = found.probe.medium == Medium.PMEM or found.probe.file_system in VOLATILE_FILE_SYSTEMS
    return outside and memory
