"""The ADR log buffer: a member's log, durable in persistent memory at once, drained to disk in the background.

`Log.open` gives a log that was recovered, or refuses with one sentence and an exit code when ring and disk do not prove
that they belong together. Without a folder for the ring the same log lives in its segments alone (disk mode). The log
knows records, terms and indexes, and nothing of what they are about. `DurableLog` is the same log for any program
(docs/log-library.md). Rules D1 to D15, levels, decision table, exit codes: docs/durability.md;
the bytes: docs/formats/.
"""

from raftkv_node._engine import RingFull
from raftkv_node.adr.adopt import adopt_log, adoption_begun
from raftkv_node.adr.durable import DurableLog, Released
from raftkv_node.adr.errors import (
    EXIT_ABSENT,
    EXIT_CORRUPT,
    EXIT_DURABILITY,
    EXIT_MISMATCH,
    EXIT_OWNED,
    EXIT_PROVEN_LOST,
    EXIT_UNUSABLE,
    DurabilityTooLow,
    LogError,
    LogFailed,
    Owned,
    Refusal,
    Refused,
    Unusable,
)
from raftkv_node.adr.files import Files, read_document, write_document
from raftkv_node.adr.level import Level
from raftkv_node.adr.levels import Environment, Medium, Probe
from raftkv_node.adr.log import (
    ALARM_FAILING,
    ALARM_FULL,
    ALARM_NO_SPACE,
    ALARM_STALLED,
    PRESSURE_FULL,
    PRESSURE_SHRINK,
    Identity,
    Log,
    LogOptions,
    Recovered,
)
from raftkv_node.adr.places import wipe
from raftkv_node.adr.records import (
    CONFIGURATION,
    ENTRY,
    HARD_STATE,
    MARK,
    MARK_SNAPSHOT,
    MARK_USER,
    HardState,
    Mark,
    Record,
    StoredEntry,
    configuration,
    entry,
    hard_state,
    mark,
    record_bytes,
    snapshot,
)

__all__ = [
    "ALARM_FAILING",
    "ALARM_FULL",
    "ALARM_NO_SPACE",
    "ALARM_STALLED",
    "CONFIGURATION",
    "ENTRY",
    "EXIT_ABSENT",
    "EXIT_CORRUPT",
    "EXIT_DURABILITY",
    "EXIT_MISMATCH",
    "EXIT_OWNED",
    "EXIT_PROVEN_LOST",
    "EXIT_UNUSABLE",
    "HARD_STATE",
    "MARK",
    "MARK_SNAPSHOT",
    "MARK_USER",
    "PRESSURE_FULL",
    "PRESSURE_SHRINK",
    "DurabilityTooLow",
    "DurableLog",
    "Environment",
    "Files",
    "HardState",
    "Identity",
    "Level",
    "Log",
    "LogError",
    "LogFailed",
    "LogOptions",
    "Mark",
    "Medium",
    "Owned",
    "Probe",
    "Record",
    "Recovered",
    "Refusal",
    "Refused",
    "Released",
    "RingFull",
    "StoredEntry",
    "Unusable",
    "adopt_log",
    "adoption_begun",
    "configuration",
    "entry",
    "hard_state",
    "mark",
    "read_document",
    "record_bytes",
    "snapshot",
    "wipe",
    "write_document",
]
